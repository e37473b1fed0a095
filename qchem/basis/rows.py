"""Shells at points in space as rows, one per shell, whose sums over AOs cost little.

A shell's functions are R(r²) A_c(r): one radial part, a contraction of Gaussians, times homogeneous
polynomials of degree l. A sum Σ_c X_c A_c over its functions is again such a polynomial, so that
densities and their derivatives need a few rows per shell, and no derivative of an AO is stored.
Coordinates, polynomials and their coefficients are lists of rows (nshell npoint); None is zero.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import combinations_with_replacement, groupby
from math import factorial, log

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from qchem.basis.layout import Basis, ShellBatch, primitive_depth
from qchem.basis.reach import Counts, Depths, plan_capacities
from qchem.basis.spherical import angular_matrix, cartesian_powers, ncomponent
from qchem.compilation import standing

Rows = list[Array | None]
_UNROLLED = 10  # monomials; sums of more are products with a matrix, which compile sooner


class ShellRows:
    """The shells of one batch: r - R of their atoms, and R, 2 dR/d(r²), 4 d²R/d(r²)², ...

    Attributes:
        l, nshell: Angular momentum and number of shells.
        r: x, y and z.
        radial: R and its derivatives, as far as asked for.
    """

    def __init__(self, batch: ShellBatch, spherical: bool, r: list[Array], radial: list[Array]):
        self.l, self.nshell = batch.l, radial[0].shape[0]
        self.r, self.radial = r, radial
        self._angular = angular_matrix(batch.l, spherical)
        self._monomials: list[Rows] = [[None]]  # of degree 0 there is one, which is not multiplied
        for degree in range(1, batch.l + 1):
            self._monomials.append(_next_monomials(self._monomials[-1], r, degree))

    @property
    def size(self) -> int:
        """How many functions there are."""
        return len(self._angular) * self.nshell

    def columns(self) -> Rows:
        """The functions R A_c, one after another, each of all shells."""
        return [times(self.radial[0], a) for a in self._polynomials()]

    def columns_along(self, b: Sequence[Array], br: Array) -> Rows:
        """Their derivatives along b: R (b · ∇A_c) + R₁ (b · r) A_c, with `br` = b · r."""
        along, columns = times(self.radial[1], br), []
        for a, *slope in zip(self._polynomials(), *map(self._polynomials, range(3)), strict=True):
            change = summed(times(x[None], s) for x, s in zip(b, slope, strict=True))
            columns.append(summed([times(along, a), times(self.radial[0], change)]))
        return columns

    def components(self, derivative: int) -> list[Array]:
        """Functions and derivatives by the point to order 0, 1 or 2, as `evaluate_ao` has them."""
        a, (R, *more), r = lru_cache(self._stacked), self.radial, self.r
        found = [times(R[None], a())]
        for i in range(3) if derivative > 0 else ():
            found.append(summed([times(R[None], a(i)), (more[0] * r[i])[None] * a()]))
        for i, j in combinations_with_replacement(range(3), 2) if derivative > 1 else ():
            bend = summed([more[1] * r[i] * r[j], more[0] if i == j else None])
            slopes = [times(more[0][None], times(r[i][None], a(j)))]
            slopes.append(times(more[0][None], times(r[j][None], a(i))))
            found.append(summed([times(R[None], a(i, j)), *slopes, bend[None] * a()]))
        return [x.reshape(-1, x.shape[-1]) for x in found]

    def contracted(self, x: Array) -> "Polynomial":
        """Σ_c x_c A_c of rows in the order of `columns`."""
        n = self.nshell
        parts = [x[c * n : (c + 1) * n] for c in range(len(self._angular))]
        return Polynomial(self._monomials, self.l, _combined(self._angular.T, parts))

    def _polynomials(self, *axes: int) -> Rows:
        """A_c, or what remains of them when they are differentiated along some axes."""
        matrix, degree = self._differentiated(axes)
        if degree == 0:
            return [_constant(row[0], self.radial[0].dtype) for row in matrix]
        return _combined(matrix, self._monomials[degree])

    def _stacked(self, *axes: int) -> Array | None:
        """The same as one array, function by function; None where nothing remains."""
        matrix, degree = self._differentiated(axes)
        if not matrix.any():
            return None
        dtype = self.radial[0].dtype
        if degree == 0:
            return jnp.asarray(matrix[:, :1, None], dtype)
        if len(self._monomials[degree]) > _UNROLLED:
            matrix = jnp.asarray(matrix, dtype)
            return jnp.tensordot(matrix, jnp.stack(self._monomials[degree]), 1, precision="highest")
        zero = jnp.zeros_like(self._monomials[degree][0])
        rows = _combined(matrix, self._monomials[degree])
        return jnp.stack([zero if row is None else row for row in rows])

    def _differentiated(self, axes):
        """The matrix of A_c, or of what remains of them, and the degree of its monomials."""
        matrix, degree = self._angular, self.l
        for axis in axes:
            if degree == 0:
                return np.zeros((len(matrix), 1)), 0
            matrix, degree = matrix @ _gradient(degree)[axis], degree - 1
        return matrix, degree


class Polynomial:
    """A homogeneous polynomial for each shell, by its coefficients."""

    def __init__(self, monomials: list[Rows], degree: int, coefficients: Rows):
        self._monomials, self.degree, self._coefficients = monomials, degree, coefficients

    def value(self) -> Array | None:
        """At the points."""
        if self.degree <= 0:
            return self._coefficients[0] if self.degree == 0 else None
        pairs = zip(self._coefficients, self._monomials[self.degree], strict=True)
        return summed(times(c, m) for c, m in pairs)

    def slopes(self) -> "list[Polynomial]":
        """Derivatives along x, y and z."""
        if self.degree <= 0:
            return [Polynomial(self._monomials, -1, [])] * 3
        lower = [_combined(m.T, self._coefficients) for m in _gradient(self.degree)]
        return [Polynomial(self._monomials, self.degree - 1, c) for c in lower]


def coordinates(
    positions: Float[Array, "natom 3"], points: Float[Array, "npoint 3"], dtype: DTypeLike
) -> list[Float[Array, "natom npoint"]]:
    """x, y and z of all points minus all nuclei, bohr, rounded last."""
    return [(points[:, i][None] - positions[:, i][:, None]).astype(dtype) for i in range(3)]


def ao_of_row(basis: Basis) -> Int[Array | np.ndarray, " nao"]:
    """The number of the AO of each row of `ShellRows.columns`, batch by batch."""
    numpy = all(isinstance(batch.ao, np.ndarray) for batch in basis.batches)
    aos = []
    for batch in basis.batches:
        function = np.arange(ncomponent(batch.l, basis.spherical), dtype=np.int32)
        aos.append((function[:, None] + batch.ao[None]).reshape(-1))
    return (np if numpy else jnp).concatenate(aos)


class RowPlan(eqx.Module):
    """Which shells have how many primitives, so that padding costs nothing.

    Attributes:
        order: Of the shells of each batch: those of most primitives first.
        depths: Numbers of shells and of their primitives, one group after another, of each batch.
        capacities: Numbers of shells that programs for a part of them are made for.
    """

    order: tuple[Int[Array | np.ndarray, " _"], ...]
    depths: Depths = eqx.field(static=True)
    capacities: tuple[Counts, ...] = eqx.field(static=True)

    def ordered(self, basis: Basis) -> Basis:
        """The same functions, the shells of each batch in this order."""

        def ordered(batch, order):
            array = np.asarray if isinstance(order, np.ndarray) else jnp.asarray
            known = lambda x: x if isinstance(x, jax.Array) else array(x)  # noqa: E731
            return jax.tree.map(lambda x: known(x)[order], batch)

        batches = tuple(map(ordered, basis.batches, self.order))
        return replace(basis, batches=batches)


def plan_rows(basis: Basis) -> RowPlan:
    """Host side, once per basis; where contractions are traced, padding counts."""
    orders, groups = [], []
    for batch in basis.batches:
        counts = primitive_depth(batch.contraction)
        order = np.argsort(-counts, kind="stable").astype(np.int32)
        counts = counts[order].tolist()
        orders.append(order)
        groups.append(tuple((len(list(same)), count) for count, same in groupby(counts)))
    plan = RowPlan(tuple(orders), tuple(groups), ())
    return replace(plan, capacities=plan_capacities(plan.ordered(basis), plan.depths))


def shell_rows(
    basis: Basis,
    apart: list[Float[Array, "natom npoint"]],
    order: int,
    depths: Depths | None = None,
) -> list[ShellRows]:
    """The rows of each batch.

    Args:
        apart: x, y and z of all points minus all nuclei; their dtype is that of the result.
        order: Highest derivative of R.
        depths: Of the `RowPlan` that the basis has been ordered by; by default padding counts.
    """
    dtype = apart[0].dtype
    if depths is None:
        depths = tuple((batch.contraction.shape,) for batch in basis.batches)
    square = apart[0] ** 2 + apart[1] ** 2 + apart[2] ** 2
    groups = []  # exponents and factors (nprim nshell 1) and atoms of shells of one depth
    for batch, sizes in zip(basis.batches, depths, strict=True):
        a, c = jnp.asarray(batch.exponents, dtype), batch.coefficients(dtype)
        start = 0
        for size, nprim in sizes:
            part = slice(start, start := start + size)
            of_part = [x[part, :nprim].T[:, :, None] for x in (a, c)]
            groups.append((*of_part, batch.atom[part]))

    def gaussians():
        return [exponential(-(a * square[atom][None])) for a, _, atom in groups]

    def radial(gaussians):
        left = iter(zip(groups, gaussians, strict=True))
        every = []
        for sizes in depths:
            parts = []
            for _ in sizes:
                (a, scale, _), g = next(left)
                parts.append([])
                for _ in range(order + 1):
                    parts[-1].append(summed(scale[k] * g[k] for k in range(len(g))))
                    scale = -2 * a * scale
            every.append([jnp.concatenate(x) for x in zip(*parts, strict=True)])
        return every

    every = standing(radial, standing(gaussians))
    found = []
    for batch, orders in zip(basis.batches, every, strict=True):
        r = [x[batch.atom] for x in apart]
        found.append(ShellRows(batch, basis.spherical, r, orders))
    return found


@jax.custom_jvp
def exponential(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """exp(x) for x <= 0 to an ulp or two; zero where that is no normal number.

    2^n exp(f), |f| <= ln(2)/2, n put into the exponent's bits: arithmetic that a compiler
    vectorizes in any loop, which XLA's own it does only in the simplest ones on a CPU.
    """
    info = jnp.finfo(x.dtype)
    integer = jnp.int32 if info.bits == 32 else jnp.int64
    high = 0.693145751953125 if info.bits == 32 else 0.6931471803691238  # few bits: n * high exact
    low = 1.42860682030941723e-6 if info.bits == 32 else 1.9082149292705877e-10
    x = jnp.maximum(x, (1 - info.maxexp) * log(2))  # where all bits are zero
    n = jnp.floor(x * (1 / log(2)) + 0.5)
    f = (x - n * high) - n * low
    degree = 8 if info.bits == 32 else 12
    series = jnp.full_like(f, 1 / factorial(degree))
    for k in range(degree - 1, -1, -1):
        series = series * f + 1 / factorial(k)
    bits = (n.astype(integer) + (info.maxexp - 1)) << info.nmant
    power = jax.lax.bitcast_convert_type(bits, x.dtype)
    return series * power


@exponential.defjvp
def _exponential_jvp(primals, tangents):
    value = exponential(*primals)
    return value, value * tangents[0]


def times(a: Array | None, b: Array | None) -> Array | None:
    """The product of rows."""
    return None if a is None or b is None else a * b


def summed(terms: Iterable[Array | None]) -> Array | None:
    """The sum of rows; None if all are."""
    terms = [x for x in terms if x is not None]
    return sum(terms[1:], terms[0]) if terms else None


def _constant(value: float, dtype: DTypeLike) -> Array | None:
    return jnp.full((1, 1), value, dtype) if value else None


def _combined(matrix: np.ndarray, rows: Rows) -> Rows:
    """A constant matrix, of which few elements are not zero, times rows."""
    found = []
    for elements in matrix:
        pairs = zip(elements.tolist(), rows, strict=True)
        found.append(summed(x if c == 1 else c * x for c, x in pairs if c and x is not None))
    return found


def _next_monomials(lower: Rows, r: list[Array], l: int) -> Rows:
    """Monomials of degree l from those of degree l - 1, each times one coordinate."""
    column = _column_of_power(l - 1)
    monomials = []
    for power in cartesian_powers(l):
        axis = int((power > 0).argmax())
        parent = lower[column[tuple((power - np.eye(3, dtype=int)[axis]).tolist())]]
        monomials.append(r[axis] if parent is None else parent * r[axis])
    return monomials


@lru_cache
def _gradient(l: int) -> tuple[np.ndarray, ...]:
    """For each axis the matrix from monomials of degree l to those of degree l - 1."""
    column = _column_of_power(l - 1)
    matrices = np.zeros((3, ncomponent(l, False), len(column)))
    for row, power in enumerate(cartesian_powers(l).tolist()):
        for axis in range(3):
            lower = list(power)
            lower[axis] -= 1
            if power[axis]:
                matrices[axis, row, column[tuple(lower)]] = power[axis]
    return tuple(matrices)


def _column_of_power(l: int) -> dict[tuple[int, ...], int]:
    return {tuple(power): c for c, power in enumerate(cartesian_powers(l).tolist())}
