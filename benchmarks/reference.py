"""Remake benchmarks/reference.json: tightly converged energies and forces by PySCF.

They are what results are compared with where PySCF is not installed, and what the command is
compared with; each at the structure of the molecule's file.
"""

import importlib.util
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.molecules import Name, geometries, molecule

FILE = Path(__file__).with_name("reference.json")
SAME_POSITIONS = 1e-9  # bohr; energies then agree to better than 1e-10 hartree


@dataclass(frozen=True)
class Case:
    """What is calculated."""

    molecule: Name
    xc: str
    two_electron: Literal["exact", "df"]
    grid: int = 3
    basis: str = "def2-svp"


@dataclass(frozen=True)
class Options:
    """Remake benchmarks/reference.json with PySCF; cases that are not named keep their values."""

    molecules: tuple[Name, ...] = ("water", "ethanol", "aspirin")
    xc: tuple[str, ...] = ("pbe", "b3lyp")
    two_electron: tuple[Literal["exact", "df"], ...] = ("exact", "df")
    """Exact integrals are left out for aspirin."""
    grid: int = 3


def cases(molecules, xc, two_electron, grid: int = 3) -> list[Case]:
    """All combinations but aspirin with exact integrals."""
    return [
        Case(name, functional, builder, grid)
        for name in molecules
        for functional in xc
        for builder in two_electron
        if (name, builder) != ("aspirin", "exact")
    ]


def pyscf_is_installed() -> bool:
    """Whether there is anything to compare with in the same run."""
    return importlib.util.find_spec("pyscf") is not None


def stored(case: Case, positions: np.ndarray) -> tuple[float, np.ndarray] | None:
    """Energy and forces of reference.json, hartree and bohr, or None if it has not this case."""
    for record in _records():
        if record["case"] != asdict(case):
            continue
        if np.abs(np.asarray(record["positions"]) - positions).max() > SAME_POSITIONS:
            raise ValueError(
                f"{case} was stored for another structure; python -m benchmarks.reference"
            )
        return record["energy"], np.asarray(record["forces"])
    return None


def _records() -> list[dict[str, Any]]:
    return json.loads(FILE.read_text())["cases"] if FILE.exists() else []


def main(options: Options) -> None:
    """Calculate and store."""
    import pyscf

    from benchmarks.peer import calculate  # imports this module, and PySCF

    for case in cases(options.molecules, options.xc, options.two_electron, options.grid):
        numbers = molecule(case.molecule).numbers
        positions = geometries(case.molecule, 1)[0]
        result = calculate(case, numbers, positions, tight=True)
        record = {
            "case": asdict(case),
            "program": f"PySCF {pyscf.__version__}",
            "positions": positions.tolist(),
            "energy": result.energy,
            "forces": result.forces.tolist(),
        }
        records = [old for old in _records() if old["case"] != asdict(case)] + [record]
        lines = ",\n".join(json.dumps(one) for one in records)
        about = json.dumps("hartree, bohr; made by python -m benchmarks.reference")
        FILE.write_text(f'{{"about": {about},\n"cases": [\n{lines}\n]}}\n')
        print(f"{case}: {result.energy:.10f}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
