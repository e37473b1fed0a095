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
from qchem.integrals.moments import packed_density, unpack
from qchem.integrals.pairs import Distribution, attenuated, npair
from qchem.integrals.two_electron import coulomb_energy, coulomb_rows, in_order


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

    Pairs are counted in the order in which their integrals are made. Devices share the rows.

    Attributes:
        eri: The rows of one device after another.
        place: Of each AO pair in that order.
        row: The rows of each device, ascending, in groups that are read together; -1 fills up.
        start: Where they start among the device's.
        mesh: The devices.
    """

    eri: Float[Array, " _"]
    place: Int[Array, " npair"]
    row: Int[Array | np.ndarray, "ngroup size"]
    start: Int[Array | np.ndarray, "ngroup size"]
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
        row, start, starts, size = _dealt_rows(npair(nao), nao, share.count)

        def build(pairs):
            (lists, norms), place = in_order(pairs, npair(nao))

            def integrals(lists):
                rows = coulomb_rows(lists, norms, starts, share.count * size, share)
                return share.total_part(rows)

            first, *rest = over_ranges(integrals, omega, lists)
            return place, (first, *(full * first + far * second for second in rest))

        place, parts = spread(build, mesh, (P(),), (P(), P(MOLECULE)))(pairs)
        return tuple(cls(eri, place, row, start, mesh) for eri in parts)

    def coulomb(self, dm: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
        return self._total(_coulomb_of_rows, dm)

    def exchange(self, factor: Float[Array, "nspin nao nocc"]) -> Float[Array, "nspin nao nao"]:
        return self._total(_exchange_of_rows, factor)

    def _total(self, matrix, x):
        total = lambda *args: Share.of(self.mesh).total(matrix(*args))  # noqa: E731
        shared = self.eri, jnp.asarray(self.row), jnp.asarray(self.start)
        specs = P(), P(), *[P(MOLECULE)] * 3
        return spread(total, self.mesh, specs, P())(x, self.place, *shared)


def _dealt_rows(npair, group, count):
    """Which rows each device has, and where they start.

    The devices take turns from the longest row down, forwards and backwards.

    Returns:
        `row` and `start` of `PackedJK`, in groups; the start of each row in the whole array, and
        the size of a device's part.
    """
    row = np.arange(npair)
    turn = row[::-1] % (2 * count)
    device = np.minimum(turn, 2 * count - 1 - turn)
    own = [row[device == n] for n in range(count)]
    start = np.zeros(npair, np.int64)
    for of_device in own:
        start[of_device] = np.cumsum(of_device + 1) - (of_device + 1)
    # Rows are read in the length of the longest, which for one device is the last.
    size = max(np.sum(of_device + 1) for of_device in own) + (npair if count > 1 else 0)
    most = -(-max(map(len, own)) // group) * group
    rows = np.stack([np.pad(x, (0, most - len(x)), constant_values=-1) for x in own])
    rows = rows.reshape(-1, group)
    arrays = rows, np.where(rows < 0, 0, start[rows]), start + device * size
    rows, own_start, start = (x.astype(np.int32) for x in arrays)
    return rows, own_start, jnp.asarray(start), int(size)


def _coulomb_of_rows(dm, place, eri, row, start):
    density = jnp.zeros(place.size, dm.dtype).at[place].set(packed_density(dm))

    def add(ket_sum, group):
        rows = _rows(eri, *group, place.size)
        bra_sum = jnp.dot(rows, density, precision="highest")
        return ket_sum + jnp.dot(density[group[0]], rows, precision="highest"), bra_sum

    ket_sum, bra_sum = jax.lax.scan(add, jnp.zeros_like(density), (row, start))
    return unpack((ket_sum.at[row].add(bra_sum))[place], dm.shape[0])


def _exchange_of_rows(factor, place, eri, row, start):
    dm = jnp.matmul(factor, jnp.swapaxes(factor, 1, 2), precision="highest")
    nao = factor.shape[1]
    every = jnp.arange(nao, dtype=jnp.int32)
    square = place[packed_index(every[:, None], every[None])]
    lower = (i.astype(np.int32) for i in np.tril_indices(nao))
    high, low = (jnp.zeros_like(place).at[place].set(i) for i in lower)

    def add(half, group):
        rows = _rows(eri, *group, place.size)[:, square]  # ab, c, d
        a, b = high[group[0]], low[group[0]]
        densities = jnp.stack([dm[:, b], dm[:, a]])  # one pass over the integrals for both
        to_a, to_b = jnp.einsum("rcd,ksrd->ksrc", rows, densities, precision="highest")
        to_b = jnp.where((a > b)[None, :, None], to_b, 0.0)
        return half.at[:, a].add(to_a).at[:, b].add(to_b), None

    half, _ = jax.lax.scan(add, jnp.zeros_like(dm), (row, start))
    return half + jnp.swapaxes(half, 1, 2)


def _rows(eri, row, start, size):
    """(ab|cd) for each cd <= ab, half where cd = ab; else zero.

    Every integral stands in one of these rows: with the two sides exchanged they give all the
    others.
    """
    rows = jax.vmap(lambda start: jax.lax.dynamic_slice(eri, (start,), (size,)))(start)
    ket, bra = jnp.arange(size, dtype=row.dtype)[None], row[:, None]
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
