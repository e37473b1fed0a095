"""Coulomb and exchange matrices: from stored integrals, recomputed ones, or density fitting."""

from __future__ import annotations

import abc
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qchem.integrals.moments import unpack
from qchem.integrals.pairs import Distribution, npair
from qchem.integrals.two_electron import (
    coulomb_2c,
    coulomb_3c,
    coulomb_4c,
    coulomb_energy,
    weighted_2c,
    weighted_3c,
)

_UNPACKED_BYTES = 1 << 28  # of three-index integrals unpacked at once for the exchange


class AbstractJK(eqx.Module):
    """Builds J and K. Density matrices are dm_s = factor_s factor_s^T."""

    @abc.abstractmethod
    def coulomb(self, dm: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
        """J_ab = sum_cd (ab|cd) D_cd, hartree."""

    @abc.abstractmethod
    def exchange(self, factor: Float[Array, "nspin nao nocc"]) -> Float[Array, "nspin nao nao"]:
        """K_ac = sum_bd (ab|cd) D_bd of each spin, positive and unscaled, hartree."""


class PackedJK(AbstractJK):
    """All integrals stored once, with their 8-fold symmetry."""

    eri: Float[Array, _]

    @classmethod
    def build(cls, pairs: tuple[Distribution, ...], nao: int) -> PackedJK:
        """Computes the integrals of the AO pairs."""
        return cls(coulomb_4c(pairs, npair(nao)))

    def coulomb(self, dm: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
        nao = dm.shape[0]
        i, j = np.tril_indices(nao)
        density = dm[i, j] * jnp.asarray(np.where(i == j, 1.0, 2.0), dm.dtype)
        ket = jnp.arange(i.size, dtype=jnp.int32)

        def row(a):
            bra = _packed(a, jnp.arange(nao, dtype=jnp.int32))
            integrals = self.eri[_packed(bra[:, None], ket[None])]
            return jnp.dot(integrals, density, precision="highest")

        return jax.lax.map(row, jnp.arange(nao, dtype=jnp.int32))

    def exchange(self, factor: Float[Array, "nspin nao nocc"]) -> Float[Array, "nspin nao nao"]:
        dm = factor @ jnp.swapaxes(factor, 1, 2)
        nao = factor.shape[1]
        ao = jnp.arange(nao, dtype=jnp.int32)
        ket = _packed(ao[:, None], ao[None])

        def row(a):
            bra = _packed(a, ao)
            integrals = self.eri[_packed(bra[:, None, None], ket[None])]  # b, c, d
            return jnp.einsum("bcd,sbd->sc", integrals, dm, precision="highest")

        return jnp.swapaxes(jax.lax.map(row, ao), 0, 1)


def _packed(i, j):
    high, low = jnp.maximum(i, j), jnp.minimum(i, j)
    return high * (high + 1) // 2 + low


class DirectJK(AbstractJK):
    """Nothing stored: integrals are made again, tile by tile, for every matrix."""

    pairs: tuple[Distribution, ...]

    def coulomb(self, dm: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
        gradient = jax.grad(lambda dm: coulomb_energy(self.pairs, dm, 1.0, 0.0))(dm[None])[0]
        return 0.5 * (gradient + gradient.T)

    def exchange(self, factor: Float[Array, "nspin nao nocc"]) -> Float[Array, "nspin nao nao"]:
        dm = factor @ jnp.swapaxes(factor, 1, 2)
        gradient = jax.grad(lambda dm: coulomb_energy(self.pairs, dm, 0.0, 1.0))(dm)
        return -0.5 * (gradient + jnp.swapaxes(gradient, 1, 2))


class DensityFittedJK(AbstractJK):
    """Products of AOs expanded in an auxiliary basis, in the Coulomb metric (RI-J and RI-K).

    (ab|cd) is replaced by sum_P B_ab,P B_cd,P with B = (ab|P) L^-T and L L^T = (P|Q): Dunlap,
    Connolly & Sabin, J. Chem. Phys. 71, 3396 (1979); Weigend, PCCP 4, 4285 (2002).
    """

    fitted: Float[Array, "npair naux"]

    @classmethod
    def build(
        cls, pairs: tuple[Distribution, ...], aux: tuple[Distribution, ...], nao: int, naux: int
    ) -> DensityFittedJK:
        """Fits the AO pairs."""
        return cls.fit(coulomb_3c(pairs, aux, npair(nao), naux), coulomb_2c(aux, naux))

    @classmethod
    def fit(
        cls, three: Float[Array, "npair naux"], two: Float[Array, "naux naux"]
    ) -> DensityFittedJK:
        """From (ab|P) and (P|Q)."""
        lower = jnp.linalg.cholesky(two)
        fitted = jax.lax.linalg.triangular_solve(
            lower, three, left_side=False, lower=True, transpose_a=True
        )
        return cls(fitted)

    def coulomb(self, dm: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
        nao = dm.shape[0]
        i, j = np.tril_indices(nao)
        density = dm[i, j] * jnp.asarray(np.where(i == j, 1.0, 2.0), dm.dtype)
        charge = jnp.dot(density, self.fitted, precision="highest")
        return unpack(jnp.dot(self.fitted, charge, precision="highest"), nao)

    def exchange(self, factor: Float[Array, "nspin nao nocc"]) -> Float[Array, "nspin nao nao"]:
        nspin, nao, nocc = factor.shape
        naux = self.fitted.shape[1]
        chunk = max(1, min(naux, _UNPACKED_BYTES // (8 * nao * nao)))
        nchunk = -(-naux // chunk)
        ao = np.arange(nao)
        index = _packed(jnp.asarray(ao)[:, None], jnp.asarray(ao)[None])

        def part(columns):
            square = columns[index]  # a, b, P
            half = jnp.einsum("bap,sbi->siap", square, factor, precision="highest")
            return jnp.einsum("siap,sicp->sac", half, half, precision="highest")

        if nchunk == 1:
            return part(self.fitted)
        padded = jnp.pad(self.fitted, ((0, 0), (0, nchunk * chunk - naux)))
        chunks = jnp.moveaxis(padded.reshape(-1, nchunk, chunk), 1, 0)
        zero = jnp.zeros((nspin, nao, nao), factor.dtype)
        return jax.lax.scan(lambda k, c: (k + jax.checkpoint(part)(c), None), zero, chunks)[0]


def fitted_energy(
    pairs: tuple[Distribution, ...],
    aux: tuple[Distribution, ...],
    factor: Float[Array, "nspin nao nocc"],
    naux: int,
    coulomb: float,
    exchange: float,
) -> Float[Array, ""]:
    """Weighted Coulomb and exchange energy in density fitting, as `coulomb_energy` counts it.

    Its derivative contracts derivatives of (ab|P) and (P|Q) with their weights in the energy, tile
    by tile: none is ever stored.
    """
    return _fitted_energy(naux, coulomb, exchange, pairs, aux, factor)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _fitted_energy(naux, coulomb, exchange, pairs, aux, factor):
    three = coulomb_3c(pairs, aux, npair(factor.shape[1]), naux)
    return _energy_of_integrals(coulomb, exchange, three, coulomb_2c(aux, naux), factor)


@_fitted_energy.defjvp
def _fitted_energy_jvp(naux, coulomb, exchange, primals, tangents):
    pairs, aux, factor = primals
    three = coulomb_3c(pairs, aux, npair(factor.shape[1]), naux)
    two = coulomb_2c(aux, naux)
    energy = partial(_energy_of_integrals, coulomb, exchange)
    value, slopes = jax.value_and_grad(energy, argnums=(0, 1, 2))(three, two, factor)
    metric = 0.5 * (slopes[1] + slopes[1].T)

    def weighted(pairs, aux):
        return weighted_3c(pairs, aux, slopes[0]) + weighted_2c(aux, metric)

    tangent = jax.jvp(weighted, (pairs, aux), tangents[:2])[1]
    return value, tangent + jnp.vdot(slopes[2], tangents[2])


def _energy_of_integrals(coulomb, exchange, three, two, factor):
    jk = DensityFittedJK.fit(three, two)
    dm = factor @ jnp.swapaxes(factor, 1, 2)
    density = jnp.sum(dm, axis=0)
    energy = 0.5 * coulomb * jnp.vdot(jk.coulomb(density), density)
    if exchange:
        energy = energy - 0.5 * exchange * jnp.vdot(jk.exchange(factor), dm)
    return energy
