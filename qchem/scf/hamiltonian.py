"""Kohn-Sham energy and Fock matrix of given orbitals, built from positions."""

from __future__ import annotations

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qchem.basis.layout import Basis
from qchem.grids import Grid
from qchem.integrals.moments import packed_moment, unpack
from qchem.integrals.pairs import (
    PairRows,
    auxiliary_distributions,
    charge_distribution,
    npair,
    pair_expansions,
    plan_pairs,
)
from qchem.integrals.two_electron import coulomb_energy, potential, potential_energy
from qchem.jk import AbstractJK, DensityFittedJK, DirectJK, PackedJK, fitted_energy
from qchem.scf.guess import screened_charges
from qchem.scf.orbitals import density_matrix, reorthonormalize
from qchem.xc.functional import Functional
from qchem.xc.quadrature import GridXC

ENERGIES = ("nuclear", "one_electron", "coulomb", "exchange", "xc")  # parts of the total
TwoElectron = Literal["exact", "df"]
STORED_BYTES = 2 << 30  # of exact integrals, and of AO values, kept for all cycles


class Hamiltonian(eqx.Module):
    """Kohn-Sham energy at one geometry, as a function of occupied orbitals.

    Orbitals come as a `factor`: occupied columns times the square root of their occupation, so
    that dm_s = factor_s factor_s^T.
    """

    overlap: Float[Array, "nao nao"]
    hcore: Float[Array, "nao nao"]
    jk: AbstractJK
    xc: GridXC | None
    nuclear_repulsion: Float[Array, ""]
    exchange_fraction: float = eqx.field(static=True)

    def energies(self, factor: Float[Array, "nspin nao nocc"]) -> dict[str, Float[Array, ""]]:
        """The parts of the total energy, hartree."""
        return self._energies_and_fock(factor)[0]

    def energy(self, factor: Float[Array, "nspin nao nocc"]) -> Float[Array, ""]:
        """Total energy, hartree."""
        return sum(self.energies(factor).values())

    def energy_and_fock(
        self, factor: Float[Array, "nspin nao nocc"]
    ) -> tuple[Float[Array, ""], Float[Array, "nspin nao nao"]]:
        """Total energy and dE/d(dm) of each spin, hartree; half the derivative dE/d(factor) is
        the Fock matrix times the factor."""
        energies, fock = self._energies_and_fock(factor)
        return sum(energies.values()), fock

    def _energies_and_fock(self, factor):
        dm = density_matrix(factor)
        density = jnp.sum(dm, axis=0)
        coulomb = self.jk.coulomb(density)
        fock = jnp.broadcast_to((self.hcore + coulomb)[None], dm.shape)
        energies = {
            "nuclear": self.nuclear_repulsion,
            "one_electron": jnp.vdot(self.hcore, density),
            "coulomb": 0.5 * jnp.vdot(coulomb, density),
            "exchange": jnp.zeros_like(self.nuclear_repulsion),
            "xc": jnp.zeros_like(self.nuclear_repulsion),
        }
        if self.exchange_fraction:
            exchange = self.jk.exchange(factor) * (self.exchange_fraction * 0.5 * dm.shape[0])
            energies["exchange"] = -0.5 * jnp.vdot(exchange, dm)
            fock = fock - exchange
        if self.xc is not None:
            energies["xc"], potential = self.xc.energy_and_fock(dm)
            fock = fock + potential
        return energies, fock


class Method(eqx.Module):
    """All that defines a calculation except the positions: atoms, basis, functional, integrals.

    Built once per molecule family; everything it does is a pure function of positions.
    """

    numbers: tuple[int, ...] = eqx.field(static=True)
    basis: Basis
    aux: Basis | None
    functional: Functional
    grid: Grid | None
    pairs: tuple[PairRows, ...]
    screened: tuple[np.ndarray | Array, np.ndarray | Array]
    two_electron: Literal["exact", "direct", "df"] = eqx.field(static=True)
    chunk: int = eqx.field(static=True)
    stored_bytes: int = eqx.field(static=True)

    @classmethod
    def build(
        cls,
        numbers: tuple[int, ...],
        basis: Basis,
        functional: Functional,
        *,
        aux: Basis | None = None,
        grid: Grid | None = None,
        chunk: int = 4096,
        stored_bytes: int = STORED_BYTES,
    ) -> Method:
        """Plans the integrals.

        Args:
            numbers: Atomic numbers.
            basis: Of the orbitals.
            functional: Exchange and correlation.
            aux: Density fitting with this basis; without, exact integrals.
            grid: For exchange and correlation; not needed by Hartree-Fock.
            chunk: Grid points held at once.
            stored_bytes: Exact integrals, and AO values on the grid, are kept for all cycles
                where either takes no more than this; else they are made again in each.
        """
        npacked = npair(npair(basis.nao))
        exact = "exact" if 8 * npacked <= stored_bytes and npacked < 2**31 else "direct"
        return cls(
            numbers=numbers,
            basis=basis,
            aux=aux,
            functional=functional,
            grid=grid if functional.ingredients != "none" else None,
            pairs=plan_pairs(basis),
            screened=screened_charges(numbers),
            two_electron="df" if aux is not None else exact,
            chunk=chunk,
            stored_bytes=stored_bytes,
        )

    def hamiltonian(
        self, positions: Float[Array, "natom 3"]
    ) -> tuple[Hamiltonian, Float[Array, "nao nao"]]:
        """The Hamiltonian at one geometry, and the Fock matrix of superposed atomic potentials."""
        size = npair(self.basis.nao)
        pairs, kinetic = pair_expansions(self.basis, self.pairs, positions)
        overlap = packed_moment(pairs, size, (0, 0, 0), jnp.zeros(3, positions.dtype))
        attraction = potential(pairs, self._nuclei(positions), size)
        charges, widths = (jnp.asarray(x, positions.dtype) for x in self.screened)
        screened = potential(pairs, charge_distribution(-charges, widths, positions), size)
        if self.two_electron == "exact":
            jk = PackedJK.build(pairs, self.basis.nao)
        elif self.two_electron == "direct":
            jk = DirectJK(pairs)
        else:
            aux = auxiliary_distributions(self.aux, positions)
            jk = DensityFittedJK.build(pairs, aux, self.basis.nao, self.aux.nao)
        matrices = jnp.stack([overlap, kinetic + attraction, kinetic + screened])
        overlap, hcore, guess = unpack(matrices, self.basis.nao)
        hamiltonian = Hamiltonian(
            overlap=overlap,
            hcore=hcore,
            jk=jk,
            xc=self._xc(positions, self.stored_bytes),
            nuclear_repulsion=nuclear_repulsion(self.numbers, positions),
            exchange_fraction=self.functional.exchange_fraction,
        )
        return hamiltonian, guess

    def energy(
        self, positions: Float[Array, "natom 3"], factor: Float[Array, "nspin nao nocc"]
    ) -> Float[Array, ""]:
        """Energy of given orbitals, made orthonormal where the nuclei are; hartree.

        Its derivative with respect to positions, orbitals held, is the whole gradient of a
        converged energy: see `reorthonormalize`. Memory stays that of a tile, a chunk of points,
        or the three-index integrals.
        """
        size = npair(self.basis.nao)
        pairs, kinetic = pair_expansions(self.basis, self.pairs, positions)
        overlap = packed_moment(pairs, size, (0, 0, 0), jnp.zeros(3, positions.dtype))
        overlap, kinetic = unpack(jnp.stack([overlap, kinetic]), self.basis.nao)
        factor = reorthonormalize(factor, overlap, 2.0 / factor.shape[0])
        dm = density_matrix(factor)
        density = jnp.sum(dm, axis=0)
        energy = nuclear_repulsion(self.numbers, positions) + jnp.vdot(kinetic, density)
        energy = energy + potential_energy(pairs, self._nuclei(positions), density)
        fraction = self.functional.exchange_fraction * 0.5 * dm.shape[0]
        if self.two_electron == "df":
            aux = auxiliary_distributions(self.aux, positions)
            energy = energy + fitted_energy(pairs, aux, factor, self.aux.nao, 1.0, fraction)
        else:
            energy = energy + coulomb_energy(pairs, dm, 1.0, fraction)
        if self.grid is not None:
            energy = energy + self._xc(positions).energy(dm)
        return energy

    def _nuclei(self, positions):
        charges = jnp.asarray(self.numbers, positions.dtype)[:, None]
        return charge_distribution(-charges, jnp.zeros_like(charges), positions)

    def _xc(self, positions, stored_bytes=0):
        if self.grid is None:
            return None
        return GridXC(
            self.functional,
            self.basis,
            self.grid,
            positions,
            chunk=self.chunk,
            storage_bytes=stored_bytes,
        )


def nuclear_repulsion(
    numbers: tuple[int, ...], positions: Float[Array, "natom 3"]
) -> Float[Array, ""]:
    """Repulsion of the nuclei, hartree."""
    i, j = np.triu_indices(len(numbers), 1)
    z = np.asarray(numbers, dtype=float)
    distance2 = jnp.sum((positions[i] - positions[j]) ** 2, axis=-1)
    return jnp.sum(jnp.asarray(z[i] * z[j], positions.dtype) / jnp.sqrt(distance2))
