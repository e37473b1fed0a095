"""The molecules that are measured, and geometries near their structures."""

from pathlib import Path
from typing import Literal

import numpy as np

from qchem import Molecule

ROOT = Path(__file__).parents[1]
Name = Literal["water", "h2o2", "ethanol", "aspirin"]
FILES: dict[str, Path] = {
    "water": ROOT / "examples" / "water.xyz",
    "h2o2": ROOT / "benchmarks" / "h2o2.xyz",
    "ethanol": ROOT / "examples" / "ethanol.xyz",
    "aspirin": ROOT / "benchmarks" / "aspirin.xyz",
}
NOISE = 0.05  # bohr, about half of the thermal motion of a light atom


def molecule(name: Name) -> Molecule:
    """The molecule at the structure of its file."""
    return Molecule.from_xyz(FILES[name])


def geometries(name: Name, count: int) -> np.ndarray:
    """Positions, bohr: the structure of the file first, then others near it, always the same."""
    positions = np.asarray(molecule(name).positions)
    noise = np.random.default_rng(0).normal(scale=NOISE, size=(count, *positions.shape))
    noise[0] = 0
    return positions + noise
