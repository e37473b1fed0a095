"""Coulomb and exchange matrices: from stored integrals, recomputed ones, or density fitting.

With range separation the exchange has two parts, `full` times that of 1/r and `attenuated` times
that of erf(omega r)/r, or of erfc(|omega| r)/r where omega is negative; omega 0 means none.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from qchem.devices import ALONE, Share
from qchem.integrals.fitting import (
    Auxiliary,
    fitting_2c,
    fitting_3c,
    fitting_integrals,
    weighted_fitting,
)
from qchem.integrals.moments import unpack
from qchem.integrals.pairs import Distribution, attenuated, npair
from qchem.integrals.shared import from_device_order, to_device_order
from qchem.integrals.two_electron import (
    auxiliary_columns,
    coulomb_2c,
    coulomb_3c,
    coulomb_4c,
    coulomb_energy,
    weighted_2c,
    weighted_3c,
)

_WIDENED_BYTES = 1 << 24  # of shorter numbers that are made long at once
_UNPACKED_BYTES = 1 << 26  # of three-index integrals unpacked at once for the exchange
_SOLVED_BYTES = 1 << 26  # of three-index integrals that the metric meets at once
_SHORT_SUM = 32  # auxiliary functions whose float32 contributions are added up in float32
_METRIC_SHIFT = 1e-8  # bohr^5 hartree, or rounding if more: see `_separated`


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
    """All integrals stored once, with their 8-fold symmetry."""

    eri: Float[Array, _]

    @classmethod
    def build(cls, pairs: tuple[Distribution, ...], nao: int) -> PackedJK:
        """Computes the integrals of the AO pairs."""
        return cls(coulomb_4c(pairs, npair(nao)))

    @classmethod
    def build_separated(
        cls, pairs: tuple[Distribution, ...], nao: int, weights: ExchangeWeights
    ) -> tuple[PackedJK, PackedJK]:
        """The builder for 1/r, and one whose exchange is the weighted sum of both parts."""
        full, far, omega = weights.of_long_range()
        integrals = over_ranges(lambda pairs: coulomb_4c(pairs, npair(nao)), omega, pairs)
        return cls(integrals[0]), cls(full * integrals[0] + far * integrals[1])

    def coulomb(self, dm: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
        nao = dm.shape[0]
        i, j = np.tril_indices(nao)
        density = dm[i, j] * jnp.asarray(np.where(i == j, 1.0, 2.0), dm.dtype)
        ao = jnp.arange(nao, dtype=jnp.int32)

        def add(ket_sum, a):
            rows = self._rows(a, nao)
            bra_sum = jnp.dot(rows, density, precision="highest")
            ket_sum = ket_sum + jnp.dot(density[_packed(a, ao)], rows, precision="highest")
            return ket_sum, bra_sum

        zero = jnp.zeros_like(density)
        ket_sum, bra_sum = jax.lax.scan(add, zero, ao)
        return unpack(bra_sum[i, j] + ket_sum, nao)

    def exchange(self, factor: Float[Array, "nspin nao nocc"]) -> Float[Array, "nspin nao nao"]:
        dm = jnp.matmul(factor, jnp.swapaxes(factor, 1, 2), precision="highest")
        nao = factor.shape[1]

        def add(half, a):
            rows = unpack(self._rows(a, nao), nao)  # b, c, d
            of_a = jnp.broadcast_to(dm[:, a][:, None], dm.shape)
            densities = jnp.stack([dm, of_a])  # one pass over the integrals for both
            to_a, to_b = jnp.einsum("bcd,ksbd->ksbc", rows, densities, precision="highest")
            below = (jnp.arange(nao, dtype=a.dtype) < a).astype(dm.dtype)
            half = half + to_b * below[None, :, None]
            return half.at[:, a].add(jnp.sum(to_a, axis=1)), None

        half, _ = jax.lax.scan(add, jnp.zeros_like(dm), jnp.arange(nao, dtype=jnp.int32))
        return half + jnp.swapaxes(half, 1, 2)

    def _rows(self, a, nao):
        """(ab|cd) for each b <= a and cd <= ab, half where cd = ab; else zero.

        Every integral stands in one of these rows, and each row is a piece of what is stored: with
        the two sides exchanged the rows give all the others.
        """
        size = npair(nao)
        b = jnp.arange(nao, dtype=a.dtype)
        bra = a * (a + 1) // 2 + b
        starts = jnp.where(b <= a, bra * (bra + 1) // 2, 0)
        rows = jax.vmap(lambda start: jax.lax.dynamic_slice(self.eri, (start,), (size,)))(starts)
        ket = jnp.arange(size, dtype=a.dtype)[None]
        bra = jnp.where(b <= a, bra, -1)[:, None]
        twice = (ket < bra).astype(rows.dtype) + (ket <= bra).astype(rows.dtype)
        return rows * (0.5 * twice)


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
        dm = jnp.matmul(factor, jnp.swapaxes(factor, 1, 2), precision="highest")
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
        cls, pairs: tuple[Distribution, ...], aux: Auxiliary, nao: int, naux: int
    ) -> DensityFittedJK:
        """Fits the AO pairs."""
        return cls.build_separated(pairs, aux, nao, naux, 0.0)[0]

    @classmethod
    def build_separated(
        cls,
        pairs: tuple[Distribution, ...],
        aux: Auxiliary,
        nao: int,
        naux: int,
        omega: float,
        *,
        own: tuple[Distribution, ...] = (),
        share: Share = ALONE,
        reverse: bool = False,
        dtype: DTypeLike | None = None,
    ) -> tuple[DensityFittedJK, ...]:
        """The builder for 1/r and, if omega is not 0, one for the attenuated interaction.

        Args:
            own, share: A device's part of the auxiliary functions: see `qchem.shared_fitting`.
            reverse: To be differentiated in reverse mode alone, at less cost.
            dtype: As in `fit`.
        """
        integrals = partial(fitting_arrays, nao, naux, share=share, reverse=reverse)
        ranges = _separated(*over_ranges(integrals, omega, pairs, aux, own), omega)
        return tuple(cls.fit(*both, share, dtype=dtype) for both in ranges)

    @classmethod
    def fit(
        cls,
        three: Float[Array, "npair own"],
        two: Float[Array, "naux naux"],
        share: Share = ALONE,
        *,
        dtype: DTypeLike | None = None,
    ) -> DensityFittedJK:
        """From (ab|P) and (P|Q); linearly dependent auxiliary functions do no harm.

        Args:
            dtype: That B is stored and multiplied in; the fit has that of the integrals.
        """
        fitted = _fitted(share, lower_factor(two), three)
        return cls(fitted.astype(three.dtype if dtype is None else dtype))

    def coulomb(self, dm: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
        nao = dm.shape[0]
        i, j = np.tril_indices(nao)
        density = dm[i, j] * jnp.asarray(np.where(i == j, 1.0, 2.0), dm.dtype)

        def part(start, size):
            columns = jax.lax.dynamic_slice_in_dim(self.fitted, start, size, 1).astype(dm.dtype)
            charge = jnp.dot(density, columns, precision="highest")
            return jnp.dot(columns, charge, precision="highest")

        naux = self.fitted.shape[1]
        if self.fitted.dtype == dm.dtype:
            return unpack(part(0, naux), nao)
        # Reading B takes the time, not multiplying: the product has the longer dtype, as the
        # Coulomb energy is large.
        size = max(1, min(naux, _WIDENED_BYTES // (dm.dtype.itemsize * density.size)))
        starts = jnp.arange(0, naux - naux % size, size, dtype=jnp.int32)
        rest = part(naux - naux % size, naux % size)
        total, _ = jax.lax.scan(lambda total, n: (total + part(n, size), None), rest, starts)
        return unpack(total, nao)

    def exchange(self, factor: Float[Array, "nspin nao nocc"]) -> Float[Array, "nspin nao nao"]:
        nspin, nao, _ = factor.shape
        short = factor.astype(self.fitted.dtype)

        def add(exchange, _, columns, fresh):
            half = jnp.einsum("bap,sbi->siap", columns, short, precision="highest")
            counted = half * fresh[None, None, None]
            part = jnp.einsum("siap,sicp->sac", counted, half, precision="highest")
            return exchange + part.astype(exchange.dtype)

        zero = jnp.zeros((nspin, nao, nao), factor.dtype)
        most = None if short.dtype == factor.dtype else _SHORT_SUM
        return _over_columns(add, zero, self.fitted, nao, most=most)


def fitting_arrays(nao, naux, pairs, aux, own=(), share=ALONE, reverse=False):
    """(ab|P) and (P|Q) without what fills up lists; else in any order, so that none is copied.

    Where devices share the auxiliary functions, (ab|P) of a device's `own` P, and (P|Q) in the
    order of the columns of all devices, with those that fill up.
    """
    if own:
        return coulomb_3c(pairs, own, npair(nao)), to_device_order(coulomb_2c(aux), aux, own, share)
    if reverse:
        three, two = fitting_integrals((pairs, aux), npair(nao))
    else:
        three, two = fitting_3c(pairs, aux, npair(nao)), fitting_2c(aux)
    if three.shape[1] == naux:
        return three, two
    columns = auxiliary_columns(aux, naux)
    return three[:, columns], two[columns][:, columns]


def _filled_up(aux, three, two):
    """The reverse for weights of the integrals."""
    naux, width = two.shape[0], sum(rows.index.size for rows in aux)
    if naux == width:
        return three, two
    columns = auxiliary_columns(aux, naux)
    three = jnp.zeros((three.shape[0], width), three.dtype).at[:, columns].set(three)
    return three, jnp.zeros((width, width), two.dtype).at[columns[:, None], columns[None]].set(two)


def _separated(three, two, omega):
    """(ab|P) and (P|Q) of each interaction from those of `over_ranges`.

    Tight functions of the same moments do not differ in erf(omega r)/r: their metric is singular
    to rounding. A small multiple of the unit matrix makes it regular, smoothly in the positions;
    the exchange energy of a small molecule changes by about 1e-9 hartree, as with the directions
    of small eigenvalues cut off.
    """
    if omega < 0:
        three, two = (jnp.stack([x[0], x[0] - x[1]]) for x in (three, two))
    elif omega > 0:
        two = two.at[1].set(_shifted(two[1]))
    return tuple(zip(three, two, strict=True))


def lower_factor(two: Float[Array, "naux naux"]) -> Float[Array, "naux naux"]:
    """L of the metric L L^T, which is shifted where it is singular."""
    # Functions that are zero everywhere, of atoms that fill up, take no part.
    two = two + jnp.diag((jnp.diagonal(two) == 0).astype(two.dtype))
    # A failure is a matrix of NaN.
    failed = jnp.isnan(jnp.linalg.cholesky(jax.lax.stop_gradient(two))[-1, -1])
    return jnp.linalg.cholesky(jnp.where(failed, _shifted(two), two))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _fitted(share, lower, three):
    """`_solved_columns` of (ab|P), block by block in the same memory."""
    nrow, own = three.shape
    size = max(1, min(nrow, _SOLVED_BYTES // (three.dtype.itemsize * own)))

    def solve(start, size, three):
        rows = jax.lax.dynamic_slice_in_dim(three, start, size, 0)
        rows = _solved_columns(share, lower, rows)
        return jax.lax.dynamic_update_slice_in_dim(three, rows, start, 0)

    whole = nrow // size
    three = jax.lax.fori_loop(0, whole, lambda n, x: solve(n * size, size, x), three)
    return solve(whole * size, nrow % size, three) if nrow % size else three


@_fitted.defjvp
def _fitted_jvp(share, primals, tangents):
    return jax.jvp(partial(_solved_columns, share), primals, tangents)


def _solved_columns(share, lower, columns):
    """X of X L^T = (ab|P), from a device's columns P to its columns of X."""
    rows = solved(lower, share.to_rows(columns), transpose_a=True)
    return share.to_columns(rows, len(columns))


def solved(
    lower: Float[Array, "naux naux"], rows: Float[Array, "nrow naux"], *, transpose_a: bool
) -> Float[Array, "nrow naux"]:
    """X of X L = rows, or of X L^T = rows."""
    return jax.lax.linalg.triangular_solve(
        lower, rows, left_side=False, lower=True, transpose_a=transpose_a
    )


def _shifted(two):
    """A metric made regular; see `_separated`."""
    naux = two.shape[0]
    largest = jax.lax.stop_gradient(jnp.max(two))
    shift = jnp.maximum(_METRIC_SHIFT, naux * float(jnp.finfo(two.dtype).eps) * largest)
    return two + shift * jnp.eye(naux, dtype=two.dtype)


def exact_energy(
    pairs: tuple[Distribution, ...],
    dm: Float[Array, "nspin nao nao"],
    weights: ExchangeWeights,
) -> Float[Array, ""]:
    """Coulomb energy and weighted exchange energy, as `coulomb_energy` counts them, hartree."""
    full, far, omega = weights.of_long_range()
    if omega == 0:
        return coulomb_energy(pairs, dm, 1.0, full)
    # Rows: 1/omega², weight of the Coulomb energy, weight of the exchange energy.
    terms = jnp.asarray([[0.0, 1.0, full], [omega**-2, 0.0, far]], dm.dtype)

    def term(row):
        return coulomb_energy(attenuated(pairs, row[0]), dm, row[1], row[2])

    return jnp.sum(jax.lax.map(term, terms))


def fitted_energy(
    pairs: tuple[Distribution, ...],
    aux: Auxiliary,
    factor: Float[Array, "nspin nao nocc"],
    naux: int,
    coulomb: float,
    exchange: float | ExchangeWeights,
    own: tuple[Distribution, ...] = (),
    share: Share = ALONE,
    dtype: DTypeLike | None = None,
) -> Float[Array, ""]:
    """Weighted Coulomb and exchange energy in density fitting, as `coulomb_energy` counts it.

    The orbitals contract (ab|P) to the charge q_P of the density and to (ij|P) of their own
    products; the metric meets only these. The derivative contracts derivatives of (ab|P) and (P|Q)
    with their weights in the energy, tile by tile: none is ever stored.

    Args:
        dtype: Of products of (ab|P) with orbitals; by default that of the orbitals.
    """
    if not isinstance(exchange, ExchangeWeights):
        exchange = ExchangeWeights(exchange)
    return _fitted_energy(naux, coulomb, exchange, share, dtype, pairs, aux, own, factor)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3, 4))
def _fitted_energy(naux, coulomb, exchange, share, dtype, pairs, aux, own, factor):
    integrals = partial(fitting_arrays, factor.shape[1], naux, share=share)
    ranges = _separated(*over_ranges(integrals, exchange.omega, pairs, aux, own), exchange.omega)
    return sum(
        _Contracted.build(*both, factor, *weights, share, dtype).energy
        for both, weights in zip(ranges, _weights(coulomb, exchange))
    )


def _fitted_energy_jvp(naux, coulomb, exchange, share, dtype, primals, tangents):
    *lists, factor = primals
    integrals = partial(fitting_arrays, factor.shape[1], naux, share=share)
    ranges = _separated(*over_ranges(integrals, exchange.omega, *lists), exchange.omega)
    energies, of_factor, slopes = [], [], []
    for (three, two), weights in zip(ranges, _weights(coulomb, exchange)):
        contracted = _Contracted.build(three, two, factor, *weights, share, dtype)
        energies.append(contracted.energy)
        of_three, of_orbitals = contracted.slopes(three, factor)
        of_factor.append(share.total(of_orbitals))
        slopes.append((of_three, contracted.metric_slope()))
    if exchange.omega < 0:  # the second is 1/r less erf(|omega| r)/r
        whole, rest = slopes
        slopes = [tuple(a + b for a, b in zip(whole, rest)), tuple(-b for b in rest)]

    leaves, tree = jax.tree.flatten(lists)
    changes = jax.tree.leaves(tangents[:-1])
    moving = [n for n, t in enumerate(changes) if not isinstance(t, SymbolicZero)]

    def weighted(values):
        # What does not change is not differentiated: widths would take R of higher orders.
        given = [*leaves]
        for n, value in zip(moving, values, strict=True):
            given[n] = value
        return _weighted_ranges(share, *jax.tree.unflatten(tree, given), slopes, exchange.omega)

    of_moving = [[x[n] for n in moving] for x in (leaves, changes)]
    energy = sum(energies)
    tangent = jax.jvp(weighted, *[(x,) for x in of_moving])[1] if moving else jnp.zeros_like(energy)
    if not isinstance(tangents[-1], SymbolicZero):
        tangent = tangent + jnp.vdot(sum(of_factor), tangents[-1], precision="highest")
    return energy, tangent


_fitted_energy.defjvp(_fitted_energy_jvp, symbolic_zeros=True)


def _weights(coulomb, exchange):
    """Of Coulomb and exchange energy, for each interaction."""
    return (coulomb, exchange.full), (0.0, exchange.attenuated)


class _Contracted(eqx.Module):
    """Coulomb and exchange energy of one interaction, and its derivatives.

    E = c/2 q V^-1 q - k/2 sum_sij (ij|V^-1|ij), with the metric V = L L^T. `charge` and `products`
    are q_P and (ij|P) times V^-1, of a device's own P.
    """

    energy: Float[Array, ""]
    charge: Float[Array, " own"]
    products: Float[Array, "nspin nocc nocc own"]
    coulomb: float = eqx.field(static=True)
    exchange: float = eqx.field(static=True)
    share: Share = eqx.field(static=True)
    dtype: jnp.dtype = eqx.field(static=True)  # of products with (ab|P)

    @classmethod
    def build(
        cls, three, two, factor, coulomb: float, exchange: float, share=ALONE, dtype=None
    ) -> _Contracted:
        """From (ab|P), (P|Q) and orbitals."""
        dtype = jnp.dtype(factor.dtype if dtype is None else dtype)
        nspin, nao, nocc = factor.shape
        own = three.shape[1]
        lower = lower_factor(two)
        charge = jnp.dot(_packed_density(factor), three, precision="highest")
        charge = share.whole(charge)
        charge = solved(lower, charge[None], transpose_a=True)
        energy = 0.5 * coulomb * jnp.sum(charge**2)
        products = jnp.zeros((nspin, nocc, nocc, own), factor.dtype)
        if exchange:
            short = factor.astype(dtype)

            def add(products, start, columns, _):
                half = jnp.einsum("bap,sbi->siap", columns, short, precision="highest")
                part = jnp.einsum("siap,saj->sijp", half, short, precision="highest")
                part = part.astype(products.dtype)
                return jax.lax.dynamic_update_slice_in_dim(products, part, start, 3)

            products = _over_columns(add, products, three, nao, dtype)
            rows = share.to_rows(products.reshape(-1, own))
            rows = solved(lower, rows, transpose_a=True)
            energy = energy - 0.5 * exchange * share.total(jnp.sum(rows**2))
            rows = solved(lower, rows, transpose_a=False)
            products = share.to_columns(rows, nspin * nocc**2).reshape(products.shape)
        charge = solved(lower, charge, transpose_a=False)[0]
        return cls(energy, share.part(charge), products, coulomb, exchange, share, dtype)

    def metric_slope(self) -> Float[Array, "naux naux"]:
        """dE/d(P|Q)."""
        charge = self.share.whole(self.charge)
        slope = -0.5 * self.coulomb * charge[:, None] * charge[None]
        if self.exchange:
            rows = self.share.to_rows(self.products.reshape(-1, self.charge.size))
            square = self.share.total(jnp.dot(rows.T, rows, precision="highest"))
            slope = slope + 0.5 * self.exchange * square
        return slope

    def slopes(self, three, factor):
        """dE/d(ab|P), each pair of AOs once, and dE/d(factor)."""
        nao = factor.shape[1]
        coulomb = self.coulomb * unpack(jnp.dot(three, self.charge, precision="highest"), nao)
        of_factor = 2 * jnp.einsum("ab,sbi->sai", coulomb, factor, precision="highest")
        density = _packed_density(factor)[:, None]
        if not self.exchange:
            return self.coulomb * density * self.charge[None], of_factor
        i, j = np.tril_indices(nao)
        twice = jnp.asarray(np.where(i == j, 1.0, 2.0), factor.dtype)[:, None]
        short = factor.astype(self.dtype)

        def exchanged(three, of_factor, start, columns, fresh):
            """Columns of (ab|P) give way to their slopes, but for those that are slopes already."""
            size = columns.shape[2]
            products = jax.lax.dynamic_slice_in_dim(self.products, start, size, 3)
            products = products.astype(self.dtype) * fresh[None, None, None]
            half = jnp.einsum("sai,sijp->sajp", short, products, precision="highest")
            part = jnp.einsum("bap,sajp->sbj", columns, half, precision="highest")
            of_factor = of_factor - 2 * self.exchange * part.astype(factor.dtype)
            square = jnp.einsum("sajp,sbj->abp", half, short, precision="highest")
            square = square.astype(factor.dtype)[i, j]
            charge = jax.lax.dynamic_slice_in_dim(self.charge, start, size)
            new = self.coulomb * density * charge[None] - self.exchange * twice * square
            old = jax.lax.dynamic_slice_in_dim(three, start, size, 1)
            new = jnp.where(fresh[None] > 0, new, old)
            return jax.lax.dynamic_update_slice_in_dim(three, new, start, 1), of_factor

        return _replaced_columns(exchanged, three, of_factor, nao, self.dtype)


def _packed_density(factor):
    """The total density matrix, elements off the diagonal doubled, each once."""
    i, j = np.tril_indices(factor.shape[1])
    dm = jnp.einsum("sai,sbi->ab", factor, factor, precision="highest")
    return dm[i, j] * jnp.asarray(np.where(i == j, 1.0, 2.0), dm.dtype)


def _over_columns(add, sums, three, nao, dtype=None, most=None):
    """Goes through (ab|P) unpacked, some P at a time.

    Args:
        add: Of the sums, the first P, (a, b, P) and, for each P, 1, or 0 where it was there before.
        sums: What `add` changes.
        three: (ab|P), packed.
        nao: Number of AOs.
        dtype: Of what is unpacked; by default that of `three`.
        most: P at a time at most.
    """

    def step(sums, window):
        return add(sums, *window(three))

    return _over_windows(step, sums, three, nao, dtype, most)


def _replaced_columns(replace, three, sums, nao, dtype):
    """The same where (ab|P) itself is changed, in its own memory and dtype.

    Args:
        replace: Of (ab|P), the sums, and the rest as in `_over_columns`: both anew.
        three, sums, nao, dtype: As there.
    """

    def step(both, window):
        three, sums = both
        return replace(three, sums, *window(three))

    return _over_windows(step, (three, sums), three, nao, dtype)


def _over_windows(step, state, three, nao, dtype=None, most=None):
    """`step` of the state, and of what takes the next columns from (ab|P), one after another."""
    naux, dtype = three.shape[1], jnp.dtype(three.dtype if dtype is None else dtype)
    ao = jnp.arange(nao)
    index = _packed(ao[:, None], ao[None])
    size = max(1, min(naux, most or naux, _UNPACKED_BYTES // (dtype.itemsize * nao * nao)))
    if size == naux:
        return step(state, lambda three: (0, three.astype(dtype)[index], jnp.ones(naux, dtype)))

    @jax.checkpoint
    def body(state, first):
        start = jnp.minimum(first, naux - size)

        def window(three):
            columns = jax.lax.dynamic_slice_in_dim(three, start, size, 1).astype(dtype)[index]
            fresh = (start + jnp.arange(size, dtype=first.dtype) >= first).astype(dtype)
            return start, columns, fresh

        return step(state, window), None

    return jax.lax.scan(body, state, jnp.arange(0, naux, size, dtype=jnp.int32))[0]


def _weighted_ranges(share, pairs, aux, own, weights, omega):
    """Sum of weights, of three- and two-index integrals, times the integrals of `over_ranges`."""

    def term(pairs, aux, own, three, two):
        if own:
            two = from_device_order(two, aux, own, share)
            return share.total(weighted_3c(pairs, own, three)) + weighted_2c(aux, two)
        return weighted_fitting(pairs, aux, *_filled_up(aux, three, two))

    if omega == 0:
        return term(pairs, aux, own, *weights[0])
    three, two = (jnp.stack(parts) for parts in zip(*weights, strict=True))
    inverse = jnp.asarray([0.0, omega**-2], three.dtype)
    terms = jax.lax.map(
        lambda x: term(*(attenuated(rows, x[0]) for rows in (pairs, aux, own)), x[1], x[2]),
        (inverse, three, two),
    )
    return jnp.sum(terms)
