"""How well chains have sampled: effective sample size and agreement between chains."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from blackjax.diagnostics import effective_sample_size, potential_scale_reduction
from jaxtyping import Float

from qchem import SYMBOLS
from srdft.geometry import bond_lengths, bonds, torsion_angles, torsions

FEWEST = 8  # samples of a chain, for the diagnostics to mean anything


def quantities(
    numbers: tuple[int, ...], frames: Float[np.ndarray, "n natom 3"], reference: np.ndarray
) -> dict[str, Float[np.ndarray, " n"]]:
    """Internal coordinates of each frame: bonds, bohr, and torsions, degrees, by name.

    Args:
        numbers: Atomic numbers.
        frames: Geometries, bohr.
        reference: The geometry whose bonds are taken, bohr.
    """
    pairs = bonds(numbers, reference)
    chains = torsions(pairs, len(numbers))
    lengths, angles = bond_lengths(frames, pairs), torsion_angles(frames, chains)
    named = {_name(numbers, pair): lengths[:, i] for i, pair in enumerate(pairs)}
    return named | {_name(numbers, chain): angles[:, i] for i, chain in enumerate(chains)}


def diagnose(values: Float[np.ndarray, "nchain n"]) -> tuple[float, float]:
    """Effective sample size, over all chains, and R-hat of a quantity along chains.

    Vehtari et al., Bayesian Anal. 16, 667 (2021), in BlackJAX's implementation; the chains are
    halved, so that one that drifts disagrees with itself. Not a number for chains that are too
    short, or that never moved.
    """
    half = values.shape[1] // 2
    if half < FEWEST // 2 or not np.isfinite(values).all() or np.ptp(values) == 0:
        return float("nan"), float("nan")
    split = jnp.asarray(np.concatenate([values[:, :half], values[:, half : 2 * half]]))
    return float(effective_sample_size(split)), float(potential_scale_reduction(split))


def _name(numbers, atoms):
    return "-".join(f"{SYMBOLS[numbers[i]]}{i + 1}" for i in atoms)
