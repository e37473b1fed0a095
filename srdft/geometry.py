"""Shapes of molecules: bonds, angles, torsions, connectedness."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qchem import BOHR_IN_ANGSTROM

# Single-bond radii of H to Kr in picometres: Cordero et al., Dalton Trans. 2832 (2008), low spin.
_RADII = (
    "31 28 128 96 84 76 71 66 57 58 166 141 121 111 107 105 102 106 "
    "203 176 170 160 153 139 139 132 126 124 132 122 122 120 119 120 120 116"
)
COVALENT_RADII = np.array([0, *map(float, _RADII.split())]) / (100 * BOHR_IN_ANGSTROM)
BOND = 1.3  # atoms closer than this many sums of covalent radii are bonded


def radius_sums(numbers: tuple[int, ...]) -> Float[np.ndarray, "natom natom"]:
    """Sum of the covalent radii of each pair of atoms, bohr."""
    radii = COVALENT_RADII[list(numbers)]
    return radii[:, None] + radii[None, :]


def distances(positions: Float[Array, "natom 3"]) -> Float[Array, "natom natom"]:
    """Between each pair of nuclei, bohr; the derivative at coincidence is finite."""
    square = jnp.sum((positions[:, None] - positions[None]) ** 2, axis=-1)
    apart = square > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1)), 0)


def is_connected(
    numbers: tuple[int, ...], positions: Float[Array, "natom 3"], factor: float
) -> Bool[Array, ""]:
    """Whether contacts join all atoms to one molecule.

    Args:
        numbers: Atomic numbers.
        positions: Of the nuclei, bohr.
        factor: Two atoms are in contact when they are closer than this many sums of their
            covalent radii.
    """
    bound = jnp.asarray(factor * radius_sums(numbers), positions.dtype)
    reached = (distances(positions) < bound).astype(positions.dtype)
    for _ in range(max(1, (len(numbers) - 1).bit_length())):  # paths of 1, 2, 4, ... contacts
        reached = (reached @ reached > 0).astype(positions.dtype)
    return jnp.all(reached > 0)


def bonds(numbers: tuple[int, ...], positions: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of bonded atoms of one geometry, on the host."""
    apart = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    near = apart < BOND * radius_sums(numbers)
    return [(i, j) for i, j in itertools.combinations(range(len(numbers)), 2) if near[i, j]]


def matching(
    numbers: tuple[int, ...], wanted: list[tuple[int, int]], given: list[tuple[int, int]]
) -> list[int] | None:
    """An order of atoms in which the given bonds become the wanted ones; elements stay.

    Returns:
        For each atom the one of the given bonds that takes its place; None if there is no order.
    """
    natom = len(numbers)
    near, there = np.zeros((2, natom, natom), bool)
    for matrix, pairs in ((near, wanted), (there, given)):
        for i, j in pairs:
            matrix[i, j] = matrix[j, i] = True

    def fits(order, atom):
        new = len(order)
        same = numbers[atom] == numbers[new] and there[atom].sum() == near[new].sum()
        return same and atom not in order and (there[atom, order] == near[new, :new]).all()

    def extended(order):
        if len(order) == natom:
            return order
        for atom in range(natom):
            if fits(order, atom) and (whole := extended([*order, atom])):
                return whole
        return None

    return extended([])


def torsions(pairs: list[tuple[int, int]], natom: int) -> list[tuple[int, int, int, int]]:
    """Chains a-b-c-d of bonded atoms; one for each inner bond b-c that has one."""
    near: dict[int, list[int]] = {i: [] for i in range(natom)}
    for i, j in pairs:
        near[i].append(j)
        near[j].append(i)
    found = []
    for b, c in pairs:
        ends = [(a, d) for a in near[b] if a != c for d in near[c] if d != b and d != a]
        if ends:
            found.append((ends[0][0], b, c, ends[0][1]))
    return found


def bond_lengths(
    frames: Float[np.ndarray, "n natom 3"], pairs: list[tuple[int, int]]
) -> Float[np.ndarray, "n nbond"]:
    """Lengths of the given bonds in each frame, bohr."""
    i, j = (np.array([pair[k] for pair in pairs], dtype=int) for k in (0, 1))
    return np.linalg.norm(frames[:, i] - frames[:, j], axis=-1)


def torsion_angles(
    frames: Float[np.ndarray, "n natom 3"], chains: list[tuple[int, int, int, int]]
) -> Float[np.ndarray, "n nchain"]:
    """Dihedral angles in each frame, degrees from -180 to 180; 0 is cis."""
    angles = [_torsion(*(frames[:, atom] for atom in chain)) for chain in chains]
    return np.stack(angles, axis=1) if angles else np.zeros((len(frames), 0))


def _torsion(a, b, c, d):
    axis = c - b
    axis = axis / np.linalg.norm(axis, axis=1, keepdims=True)
    first = (a - b) - np.sum((a - b) * axis, axis=1, keepdims=True) * axis
    last = (d - c) - np.sum((d - c) * axis, axis=1, keepdims=True) * axis
    cosine = np.sum(first * last, axis=1)
    sine = np.sum(np.cross(axis, first) * last, axis=1)
    return np.degrees(np.arctan2(sine, cosine))
