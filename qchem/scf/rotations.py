"""Rotations of occupied with virtual orbitals, and the energy to second order in them."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from qchem.scf.orbitals import Nocc, is_occupied, orbital_factor, reorthonormalize, width
from qchem.scf.solve import SelfConsistent


class Expansion(eqx.Module):
    """E(kappa) = E + <gradient|kappa> + 1/2 <kappa|H|kappa> + ..., at given orbitals.

    kappa_ai adds virtual orbital a to occupied orbital i, after which the orbitals are made
    orthonormal again: to second order the exponential of (10.1.8) of Helgaker, Jørgensen & Olsen
    (2000). It is an array of shape (nspin, nmo, nocc) that is zero outside of `allowed`.

    Attributes:
        hamiltonian: Energy and Fock matrix, differentiable in the orbitals.
        mo_coeff: Orthonormal orbitals, the occupied ones first.
        fock: Their Fock matrix in these orbitals, hartree.
        exists: False for orbitals lost to linear dependence.
        nocc: Number of occupied orbitals in each spin channel.
    """

    hamiltonian: SelfConsistent
    mo_coeff: Float[Array, "nspin nao nmo"]
    fock: Float[Array, "nspin nmo nmo"]
    exists: Bool[Array, " nmo"]
    nocc: Nocc

    @classmethod
    def at(
        cls,
        hamiltonian: SelfConsistent,
        mo_coeff: Float[Array, "nspin nao nmo"],
        fock: Float[Array, "nspin nao nao"],
        exists: Bool[Array, " nmo"],
        nocc: Nocc,
    ) -> Expansion:
        """From the Fock matrix in AOs."""
        return cls(hamiltonian, mo_coeff, in_orbitals(fock, mo_coeff), exists, nocc)

    @property
    def allowed(self) -> Bool[Array, "nspin nmo nocc"]:
        """Pairs of a virtual and an occupied orbital."""
        occupied = is_occupied(self.nocc, self.exists.size)
        virtual = ~occupied & self.exists[None, :]
        return virtual[:, :, None] & occupied[:, None, : width(self.nocc)]

    @property
    def gradient(self) -> Float[Array, "nspin nmo nocc"]:
        """dE/d(kappa) = 2 n F_ai with occupation n, hartree."""
        return self._scaled(self.fock[:, :, : width(self.nocc)])

    @property
    def residual(self) -> Float[Array, ""]:
        """Largest element of FDS - SDF, which is half of the gradient, hartree."""
        return 0.5 * jnp.max(jnp.abs(self.gradient), initial=0.0)

    @property
    def diagonal(self) -> Float[Array, "nspin nmo nocc"]:
        """The Hessian without response of the Fock matrix, 2 n (F_aa - F_ii), hartree."""
        energies = jnp.diagonal(self.fock, axis1=1, axis2=2)
        return self._scaled(energies[:, :, None] - energies[:, None, : width(self.nocc)])

    def product(self, kappa: Float[Array, "nspin nmo nocc"]) -> Float[Array, "nspin nmo nocc"]:
        """The Hessian times a rotation, hartree.

        2 n (F_ab kappa_bi - kappa_aj F_ji + dF_ai), where dF is the derivative of the Fock matrix
        along the change of the orbitals: one product of its Jacobian with a vector.
        """
        nocc = width(self.nocc)
        factor = orbital_factor(self.mo_coeff, self.nocc)
        change = (self.mo_coeff @ kappa) * (2 / len(self.nocc)) ** 0.5

        def fock(factor):
            return self.hamiltonian.energy_and_fock(factor)[1]

        _, response = jax.jvp(fock, (factor,), (change,))
        response = jnp.swapaxes(self.mo_coeff, 1, 2) @ response @ self.mo_coeff[:, :, :nocc]
        mixed = self.fock @ kappa - kappa @ self.fock[:, :nocc, :nocc]
        return self._scaled(mixed + response)

    def rotated(self, kappa: Float[Array, "nspin nmo nocc"]) -> Float[Array, "nspin nao nmo"]:
        """Orthonormal orbitals after a rotation, the occupied ones first."""
        nmo = self.exists.size
        half = jnp.pad(kappa, ((0, 0), (0, 0), (0, nmo - kappa.shape[2])))
        unit = jnp.eye(nmo, dtype=kappa.dtype)
        mixed = unit[None] + half - jnp.swapaxes(half, 1, 2)
        # Both blocks stay orthogonal to each other; each is made orthonormal.
        return self.mo_coeff @ reorthonormalize(mixed, unit)

    def _scaled(self, kappa):
        return jnp.where(self.allowed, kappa * (4 / len(self.nocc)), 0)


def in_orbitals(
    fock: Float[Array, "nspin nao nao"], mo_coeff: Float[Array, "nspin nao nmo"]
) -> Float[Array, "nspin nmo nmo"]:
    """C^T F C."""
    return jnp.swapaxes(mo_coeff, 1, 2) @ fock @ mo_coeff
