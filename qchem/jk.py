"""Coulomb and exchange matrices: from stored integrals, or recomputed ones.

With range separation the exchange has two parts, `full` times that of 1/r and `attenuated` times
that of erf(omega r)/r, or of erfc(|omega| r)/r where omega is negative; omega 0 means none.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PyTree

from qchem.devices import MOLECULE, Share, spread
from qchem.integrals.moments import unpack
from qchem.integrals.pairs import Distribution, attenuated, npair
from qchem.integrals.two_electron import coulomb_energy, coulomb_rows, packed_density


class ExchangeWeights(NamedTuple):
    """Fractions of exact exchange; see the head of this module."""

    full: float
    attenuated: float = 0.0
    omega: float = 0.0

    def of_long_range(self) -> ExchangeWeights:
        """The same sum with omega positive: what is short-ranged is the full less the long."""
        if self.omega >= 0:
            return self
        return ExchangeWeights(self.full + self.attenuated, -self.attenuated, -self.omega)


def over_ranges(f: Callable[..., PyTree], omega: float, *lists: tuple[eqx.Module, ...]) -> PyTree:
    """f of the lists for 1/r and, if omega is not 0, for erf(|omega| r)/r: stacked.

    One compiled program serves both.
    """
    if omega == 0:
        return jax.tree.map(lambda x: x[None], f(*lists))
    inverse = jnp.asarray([0.0, omega**-2], lists[0][0].width.dtype)
    return jax.lax.map(lambda s: f(*(attenuated(rows, s) for rows in lists)), inverse)


class AbstractJK(eqx.Module):
    """Builds J and K. Density matrices are dm_s = factor_s factor_s^T."""

    @abc.abstractmethod
    def coulomb(self, dm: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
        """J_ab = sum_cd (ab|cd) D_cd, hartree."""

    @abc.abstractmethod
    def exchange(self, factor: Float[Array, "nspin nao nocc"]) -> Float[Array, "nspin nao nao"]:
        """K_ac = sum_bd (ab|cd) D_bd of each spin, positive and unscaled, hartree."""


class PackedJK(AbstractJK):
    """All integrals stored once, with their 8-fold symmetry: rows (ab|cd) of pairs cd <= ab.

    Devices share the rows: each has those of some a.

    Attributes:
        eri: The rows of one device after another.
        ao: The a of each device, ascending; -1 fills up.
        shift: Where the rows of an a start among the device's, less the number of integrals before
            them.
        mesh: The devices.
    """

    eri: Float[Array, _]
    ao: Int[Array | np.ndarray, " a"]
    shift: Int[Array | np.ndarray, " a"]
    mesh: Mesh | None = eqx.field(static=True, default=None)

    @classmethod
    def build(cls, pairs: tuple[Distribution, ...], nao: int, mesh: Mesh | None = None) -> PackedJK:
        """Computes the integrals of the AO pairs."""
        return cls.build_separated(pairs, nao, ExchangeWeights(0.0), mesh)[0]

    @classmethod
    def build_separated(
        cls,
        pairs: tuple[Distribution, ...],
        nao: int,
        weights: ExchangeWeights,
        mesh: Mesh | None = None,
    ) -> tuple[PackedJK, ...]:
        """The builder for 1/r and, with range separation, one whose exchange is the weighted sum of
        both parts."""
        full, far, omega = weights.of_long_range()
        share = Share.of(mesh)
        ao, shift, starts, size = _dealt_rows(nao, share.count)

        def build(pairs):
            def integrals(pairs):
                return share.total_part(coulomb_rows(pairs, starts, share.count * size, share))

            first, *rest = over_ranges(integrals, omega, pairs)
            return first, *(full * first + far * second for second in rest)

        parts = spread(build, mesh, (P(),), P(MOLECULE))(pairs)
        return tuple(cls(eri, ao, shift, mesh) for eri in parts)

    def coulomb(self, dm: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
        return self._total(_coulomb_of_rows, dm)

    def exchange(self, factor: Float[Array, "nspin nao nocc"]) -> Float[Array, "nspin nao nao"]:
        return self._total(_exchange_of_rows, factor)

    def _total(self, matrix, x):
        total = lambda x, *rows: Share.of(self.mesh).total(matrix(x, *rows))  # noqa: E731
        arrays = self.eri, jnp.asarray(self.ao), jnp.asarray(self.shift)
        return spread(total, self.mesh, (P(), *[P(MOLECULE)] * 3), P())(x, *arrays)


def _dealt_rows(nao, count):
    """Which a each device has, and where the rows of all pairs start.

    The rows of one a hold about a^3 integrals, so the devices take turns from the largest down,
    forwards and backwards.

    Returns:
        `ao` and `shift` of `PackedJK`, the start of each row, and the size of a device's part.
    """
    a, pair = np.arange(nao + 1), np.arange(npair(nao))
    before = npair(npair(a))  # integrals in the rows of smaller a
    length, a = np.diff(before), a[:-1]
    turn = a[::-1] % (2 * count)
    device = np.minimum(turn, 2 * count - 1 - turn)
    own = [a[device == n] for n in range(count)]
    shift = np.zeros(nao, np.int64)
    for of_device in own:
        shift[of_device] = np.cumsum(length[of_device]) - length[of_device] - before[of_device]
    # Rows are read in the length of the longest, which for one device is the last.
    size = max(length[of_device].sum() for of_device in own) + (npair(nao) if count > 1 else 0)
    high, _ = np.tril_indices(nao)
    starts = npair(pair) + (device * size + shift)[high]
    most = max(map(len, own))
    ao = np.stack([np.pad(x, (0, most - len(x)), constant_values=-1) for x in own]).ravel()
    ao, shift, starts = (x.astype(np.int32) for x in (ao, shift[ao], starts))
    return ao, shift, jnp.asarray(starts), int(size)


def _coulomb_of_rows(dm, eri, ao, shift):
    nao = dm.shape[0]
    i, j = np.tril_indices(nao)
    density = packed_density(dm)
    every = jnp.arange(nao, dtype=jnp.int32)

    def add(ket_sum, a):
        rows = _rows(eri, *a, nao)
        bra_sum = jnp.dot(rows, density, precision="highest")
        ket_sum = ket_sum + jnp.dot(density[packed_index(a[0], every)], rows, precision="highest")
        return ket_sum, bra_sum

    ket_sum, bra_sum = jax.lax.scan(add, jnp.zeros_like(density), (ao, shift))
    bra_sum = jnp.zeros_like(dm).at[ao].add(bra_sum)
    return unpack(bra_sum[i, j] + ket_sum, nao)


def _exchange_of_rows(factor, eri, ao, shift):
    dm = jnp.matmul(factor, jnp.swapaxes(factor, 1, 2), precision="highest")
    nao = factor.shape[1]

    def add(half, row):
        a, _ = row
        rows = unpack(_rows(eri, *row, nao), nao)  # b, c, d
        of_a = jnp.broadcast_to(dm[:, a][:, None], dm.shape)
        densities = jnp.stack([dm, of_a])  # one pass over the integrals for both
        to_a, to_b = jnp.einsum("bcd,ksbd->ksbc", rows, densities, precision="highest")
        below = (jnp.arange(nao, dtype=a.dtype) < a).astype(dm.dtype)
        half = half + to_b * below[None, :, None]
        return half.at[:, a].add(jnp.sum(to_a, axis=1)), None

    half, _ = jax.lax.scan(add, jnp.zeros_like(dm), (ao, shift))
    return half + jnp.swapaxes(half, 1, 2)


def _rows(eri, a, shift, nao):
    """(ab|cd) for each b <= a and cd <= ab, half where cd = ab; else zero.

    Every integral stands in one of these rows, and each row is a piece of what is stored: with
    the two sides exchanged the rows give all the others.
    """
    size = npair(nao)
    b = jnp.arange(nao, dtype=a.dtype)
    bra = a * (a + 1) // 2 + b
    starts = jnp.where(b <= a, bra * (bra + 1) // 2 + shift, 0)
    rows = jax.vmap(lambda start: jax.lax.dynamic_slice(eri, (start,), (size,)))(starts)
    ket = jnp.arange(size, dtype=a.dtype)[None]
    bra = jnp.where(b <= a, bra, -1)[:, None]
    twice = (ket < bra).astype(rows.dtype) + (ket <= bra).astype(rows.dtype)
    return rows * (0.5 * twice)


def packed_index(i: Int[Array, "*#index"], j: Int[Array, "*#index"]) -> Int[Array, "*index"]:
    """Where a pair of AOs stands among the pairs i >= j."""
    high, low = jnp.maximum(i, j), jnp.minimum(i, j)
    return high * (high + 1) // 2 + low


class DirectJK(AbstractJK):
    """Nothing stored: integrals are made again, tile by tile, for every matrix."""

    pairs: tuple[Distribution, ...]
    mesh: Mesh | None = eqx.field(static=True, default=None)

    def coulomb(self, dm: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
        gradient = self._slope(dm[None], 1.0, 0.0)[0]
        return 0.5 * (gradient + gradient.T)

    def exchange(self, factor: Float[Array, "nspin nao nocc"]) -> Float[Array, "nspin nao nao"]:
        dm = jnp.matmul(factor, jnp.swapaxes(factor, 1, 2), precision="highest")
        gradient = self._slope(dm, 0.0, 1.0)
        return -0.5 * (gradient + jnp.swapaxes(gradient, 1, 2))

    def _slope(self, dm, *weights):
        """Derivative of the weighted energies."""
        share = Share.of(self.mesh)

        def slope(pairs, dm):
            return share.total(jax.grad(lambda dm: coulomb_energy(pairs, dm, *weights, share))(dm))

        return spread(slope, self.mesh, (P(), P()), P())(self.pairs, dm)


def exact_energy(
    pairs: tuple[Distribution, ...],
    dm: Float[Array, "nspin nao nao"],
    weights: ExchangeWeights,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """Coulomb energy and weighted exchange energy, as `coulomb_energy` counts them, hartree."""
    full, far, omega = weights.of_long_range()
    share = Share.of(mesh)

    def energy(pairs, dm):
        if omega == 0:
            return share.total(coulomb_energy(pairs, dm, 1.0, full, share))
        # Rows: 1/omega², weight of the Coulomb energy, weight of the exchange energy.
        terms = jnp.asarray([[0.0, 1.0, full], [omega**-2, 0.0, far]], dm.dtype)

        def term(row):
            return coulomb_energy(attenuated(pairs, row[0]), dm, row[1], row[2], share)

        return share.total(jnp.sum(jax.lax.map(term, terms)))

    return spread(energy, mesh, (P(), P()), P())(pairs, dm)
