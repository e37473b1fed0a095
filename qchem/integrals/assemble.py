"""Class blocks to AO arrays: the integrals as functions of a basis and positions."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qchem.basis.layout import Basis
from qchem.errors import InputError
from qchem.integrals import auxiliary, moments, potential, two_electron
from qchem.integrals.moments import unpack
from qchem.integrals.pairs import (
    attenuated,
    auxiliary_distributions,
    charge_distribution,
    npair,
    pair_distributions,
    pair_expansions,
    plan_pairs,
)


def _inverse_omega2(omega: float, positions: Float[Array, "natom 3"]) -> Float[Array, ""]:
    if omega < 0:
        raise InputError(f"omega must be positive, or 0 for the full operator; got {omega}.")
    return jnp.asarray(1.0 / omega**2 if omega else 0.0, positions.dtype)


def overlap(basis: Basis, positions: Float[Array, "natom 3"]) -> Float[Array, "nao nao"]:
    """Overlap of the AOs."""
    return _moment(basis, positions, [(0, 0, 0)], np.zeros(3))[0]


def dipole(
    basis: Basis, positions: Float[Array, "natom 3"], origin=(0.0, 0.0, 0.0)
) -> Float[Array, "3 nao nao"]:
    """x, y, z about `origin`, bohr."""
    return _moment(basis, positions, np.eye(3, dtype=int).tolist(), origin)


def second_moment(
    basis: Basis, positions: Float[Array, "natom 3"], origin=(0.0, 0.0, 0.0)
) -> Float[Array, "3 3 nao nao"]:
    """xx, xy, ... zz about `origin`, bohr²."""
    unit = np.eye(3, dtype=int)
    powers = [(unit[i] + unit[j]).tolist() for i in range(3) for j in range(i, 3)]
    xx, xy, xz, yy, yz, zz = _moment(basis, positions, powers, origin)
    return jnp.stack([jnp.stack(row) for row in ((xx, xy, xz), (xy, yy, yz), (xz, yz, zz))])


def _moment(basis, positions, powers, origin):
    powers = tuple(tuple(power) for power in powers)
    return _moments(basis, plan_pairs(basis), positions, powers, jnp.asarray(origin))


@eqx.filter_jit
def _moments(basis, rows, positions, powers, origin):
    pairs, size = pair_distributions(basis, rows, positions), npair(basis.nao)
    origin = origin.astype(positions.dtype)
    packed = [moments.packed_moment(pairs, size, power, origin) for power in powers]
    return unpack(jnp.stack(packed), basis.nao)


def kinetic(basis: Basis, positions: Float[Array, "natom 3"]) -> Float[Array, "nao nao"]:
    """Kinetic energy of the AOs, hartree."""
    return _kinetic(basis, plan_pairs(basis), positions)


@eqx.filter_jit
def _kinetic(basis, rows, positions):
    return unpack(pair_expansions(basis, rows, positions)[1], basis.nao)


def nuclear_attraction(
    basis: Basis,
    positions: Float[Array, "natom 3"],
    charges: Float[Array | np.ndarray, " natom"],
    *,
    omega: float = 0.0,
) -> Float[Array, "nao nao"]:
    """Attraction of the AOs to the nuclei, hartree, negative.

    Args:
        basis, positions: The AOs; nuclei at the same positions, bohr.
        charges: Of the nuclei.
        omega: erf(omega r)/r in place of 1/r where positive, bohr⁻¹.
    """
    charges = jnp.asarray(charges, positions.dtype)
    return _attraction(
        basis, plan_pairs(basis), positions, charges, _inverse_omega2(omega, positions)
    )


@eqx.filter_jit
def _attraction(basis, rows, positions, charges, inverse_omega2):
    pairs = attenuated(pair_distributions(basis, rows, positions), inverse_omega2)
    charges = -charges[:, None]
    nuclei = charge_distribution(charges, jnp.zeros_like(charges), positions)
    (nuclei,) = attenuated((nuclei,), inverse_omega2)
    return unpack(potential.potential(pairs, nuclei, npair(basis.nao)), basis.nao)


def eri_2c(
    aux: Basis, positions: Float[Array, "natom 3"], *, omega: float = 0.0
) -> Float[Array, "naux naux"]:
    """(P|Q), hartree; `omega` as in `nuclear_attraction`."""
    return _coulomb_2c(aux, positions, _inverse_omega2(omega, positions))


@eqx.filter_jit
def _coulomb_2c(aux, positions, inverse_omega2):
    rows = attenuated(auxiliary_distributions(aux, positions), inverse_omega2)
    place = auxiliary.auxiliary_columns(rows, aux.nao)
    return auxiliary.coulomb_2c(rows)[place][:, place]


def eri_3c(
    basis: Basis, aux: Basis, positions: Float[Array, "natom 3"], *, omega: float = 0.0
) -> Float[Array, "npair naux"]:
    """(ab|P) for a >= b at a (a + 1)/2 + b, hartree; `omega` as in `nuclear_attraction`."""
    return _coulomb_3c(basis, aux, plan_pairs(basis), positions, _inverse_omega2(omega, positions))


@eqx.filter_jit
def _coulomb_3c(basis, aux, rows, positions, inverse_omega2):
    fitting = attenuated(auxiliary_distributions(aux, positions), inverse_omega2)
    pairs = attenuated(pair_distributions(basis, rows, positions), inverse_omega2)
    place = auxiliary.auxiliary_columns(fitting, aux.nao)
    return auxiliary.coulomb_3c(pairs, fitting, npair(basis.nao))[:, place]


def eri(
    basis: Basis, positions: Float[Array, "natom 3"], *, omega: float = 0.0
) -> Float[Array, " nquartet"]:
    """(ab|cd) with 8-fold symmetry, hartree: packed pairs ab >= cd of packed pairs a >= b.

    For small molecules: the length is about nao⁴/8.
    """
    return _coulomb_4c(basis, plan_pairs(basis), positions, _inverse_omega2(omega, positions))


@eqx.filter_jit
def _coulomb_4c(basis, rows, positions, inverse_omega2):
    pairs = attenuated(pair_distributions(basis, rows, positions), inverse_omega2)
    return two_electron.coulomb_4c(pairs, npair(basis.nao))
