"""Where the SCF starts: superpositions of atomic potentials and of atomic densities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from qchem.basis.layout import Basis, ShellBatch
from qchem.basis.spherical import angular_matrix
from qchem.scf.orbitals import OVERLAP_THRESHOLD

_SET = "sap_helfem_large"
_AUFBAU = ((0, 2), (0, 2), (1, 6), (0, 2), (1, 6), (0, 2), (2, 10), (1, 6))  # l, capacity: 1s to 4p


@lru_cache(maxsize=64)
def _screening(number: int) -> tuple[np.ndarray, np.ndarray]:
    import basis_set_exchange

    element = basis_set_exchange.get_basis(_SET, elements=[number])["elements"][str(number)]
    (shell,) = element["electron_shells"]
    exponents = np.array(shell["exponents"], dtype=float)
    return np.array(shell["coefficients"][0], dtype=float), 1.0 / exponents


def screened_charges(
    numbers: Sequence[int],
) -> tuple[Float[np.ndarray, "natom nprim"], Float[np.ndarray, "natom nprim"]]:
    """Charges and widths (1/exponent, bohr²) of each atom's nucleus and of its electrons.

    Electrons as Gaussian charges fitted to the effective potential of the free atom: Lehtola,
    Visscher & Engel, J. Chem. Phys. 152, 144105 (2020). The first column is the nucleus, a point.
    """
    atoms = [_screening(number) for number in numbers]
    depth = 1 + max(charge.size for charge, _ in atoms)
    charges = np.zeros((len(atoms), depth))
    widths = np.ones((len(atoms), depth))
    for row, (number, (charge, width)) in enumerate(zip(numbers, atoms, strict=True)):
        charges[row, : charge.size + 1] = [number, *charge]
        widths[row, : charge.size + 1] = [0.0, *width]
    return charges, widths


def atomic_densities(numbers: Sequence[int], basis: Basis) -> Float[np.ndarray, "nao nao"]:
    """Density matrix of free, spherical, neutral atoms side by side, spins summed.

    Each atom's electrons fill the orbitals of its screened nucleus (`screened_charges`) in the
    AOs of its own shells, those of one l alike: no two-electron integral is needed. The AOs move
    with the atoms, so that the matrix depends on no position.
    """
    dm = np.zeros((basis.nao, basis.nao))
    for batch in basis.batches:
        # Real solid harmonics in the AOs of the basis; every m is occupied alike.
        monomials = angular_matrix(batch.l, basis.spherical)
        harmonics = angular_matrix(batch.l, True) @ np.linalg.pinv(monomials)
        products, size = harmonics.T @ harmonics, len(monomials)
        for atom in np.unique(batch.atom):
            rows = np.flatnonzero(batch.atom == atom)
            density = _radial_density(numbers[atom], batch, rows)
            first = np.asarray(batch.ao)[rows]
            columns = (first[:, None] + np.arange(size)).ravel()
            dm[np.ix_(columns, columns)] = np.kron(density, products)
    return dm


def _radial_density(number: int, batch: ShellBatch, rows: np.ndarray) -> np.ndarray:
    """Density matrix of one m in the shells of one l of an atom."""
    from scipy.special import erf  # here, as `import qchem` is the faster for it

    l = batch.l
    r = np.exp(np.linspace(-16.0, 5.0, 3000))
    measure = r**3 * (np.log(r[1]) - np.log(r[0]))  # r² dr on a logarithmic grid
    exponents = np.asarray(batch.exponents)[rows][:, :, None]
    # Published coefficients are those of normalized primitives; a common factor cancels below.
    weights = np.asarray(batch.contraction)[rows][:, :, None] * exponents ** (l / 2 + 0.75)
    gaussians = weights * np.exp(-exponents * r**2)
    value = r**l * gaussians.sum(1)
    slope = (l / r - 2 * exponents * r) * r**l * gaussians
    slope = slope.sum(1)
    norm = np.sqrt(value**2 @ measure)[:, None]
    value, slope = value / norm, slope / norm
    charges, widths = _screening(number)
    attraction = -(number + charges @ erf(r / np.sqrt(widths)[:, None])) / r
    overlap = (value * measure) @ value.T
    kinetic = 0.5 * (slope * measure) @ slope.T
    centrifugal_and_attraction = (0.5 * l * (l + 1) / r**2 + attraction) * measure
    fock = kinetic + (value * centrifugal_and_attraction) @ value.T
    s, vectors = np.linalg.eigh(overlap)
    kept = s > OVERLAP_THRESHOLD
    x = vectors[:, kept] / np.sqrt(s[kept])
    orbitals = x @ np.linalg.eigh(x.T @ fock @ x)[1]
    occupation = np.clip(_electrons(number)[l] / (2 * l + 1) - 2 * np.arange(kept.sum()), 0, 2)
    return (orbitals * occupation) @ orbitals.T


def _electrons(number: int) -> tuple[int, ...]:
    """Electrons with l = 0, 1, 2, ... in the ground state of the free atom, H to Kr."""
    electrons = [0, 0, 0, 0, 0]
    left = number
    for l, capacity in _AUFBAU:
        electrons[l] += min(left, capacity)
        left -= min(left, capacity)
    if number in (24, 29):  # Cr, Cu
        electrons[0] -= 1
        electrons[2] += 1
    return tuple(electrons)
