"""Charge distributions of AO pairs against auxiliary shells of solid harmonics: the product rule.

A solid harmonic Y_lm of derivatives, acting on a function f of the distance, is Y_lm(r) times
(1/r d/dr)^l f. So (ab|P) = sum_p E_ab[p] (d/dP)^p [Y_lm f_l], in which the primitives of P are
summed in f_l beforehand, and derivatives go no further than the degree of ab, or one more for those
in positions.
"""

from __future__ import annotations

from functools import lru_cache, partial, reduce
from math import comb, perm, prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

from qchem.basis.spherical import angular_matrix
from qchem.compilation import standing
from qchem.derivatives import jvp_of_moving
from qchem.integrals.coulomb import (
    hermite_powers,
    lowered_index,
    nhermite,
    radial_derivatives,
    spherical_derivatives,
)
from qchem.integrals.gather import rows_at
from qchem.integrals.pairs import Distribution


class Kets(eqx.Module):
    """Shells of solid harmonics one after another, list by list.

    Attributes:
        kinds: l, depth, and numbers of shells and of primitives of each list.
        width: 1/p of each primitive, bohr².
        center: Bohr.
        charge: What multiplies the derivatives of the unit-charge Gaussian.
    """

    kinds: tuple[tuple[int, int, int, int], ...] = eqx.field(static=True)
    width: Float[Array, " nprim"]
    center: Float[Array, "nprim 3"]
    charge: Float[Array, " nprim"]


def interaction(bra: Distribution, ket: Kets) -> Float[Array, "nbra nfunction naux"]:
    """Coulomb integrals (f|P) between all rows of a list and all shells, hartree."""
    return _interaction(*operands(bra, ket))


def weighted_sum(
    bra: Distribution, ket: Kets, weight: Float[Array, "nbra nfunction naux"]
) -> Float[Array, ""]:
    """Sum of weight times `interaction`, with cheap derivatives; hartree."""
    return _weighted(*operands(bra, ket), weight)


def single_shells(depth: int, nshell: int, nprim: int) -> int:
    """Number of shells of one primitive; the others have `depth` each."""
    return nshell if depth == 1 else nshell - (nprim - nshell) // (depth - 1)


def operands(bra: Distribution, ket: Kets) -> tuple[Any, ...]:
    """What a tile depends on: what is static, then arrays."""
    sides = bra.order, bra.lowest, ket.kinds
    return sides, bra.width, bra.center, bra.coefficient, ket.width, ket.center, ket.charge


def radial_functions(
    kinds: tuple[tuple[int, int, int, int], ...],
    order: int,
    alpha: Float[Array, "nbra nprim"],
    separation: Float[Array, "3 nbra nprim"],
    charge: Float[Array, " nprim"],
) -> tuple[Float[Array, "nhermite nbra nshell"], list[Float[Array, "3 nbra _"]]]:
    """Derivatives of (1/r d/dr)^l f of shells of each l, in the order of `hermite_powers`.

    Args:
        kinds: Those of `Kets`.
        order: Highest degree of the derivatives.
        alpha: Reduced exponents of the ket's primitives, bohr⁻².
        separation: Vectors from these to what they meet, bohr.
        charge: Of the ket's primitives.

    Returns:
        The derivatives, and the separations from the shells of each l.
    """
    x, y, z = separation
    highest = max(l for l, *_ in kinds)

    def derivatives(alpha, square, charge):
        return spherical_derivatives(order + highest, alpha, square) * charge[None, None]

    signs = np.repeat([(-1.0) ** l for l, *_ in kinds], [nprim for *_, nprim in kinds])
    charge = charge * jnp.asarray(signs, charge.dtype)
    every = standing(derivatives, alpha, x * x + y * y + z * z, charge)
    base, distances, end = [], [], 0
    for l, depth, nshell, nprim in kinds:
        start, end = end, end + nprim
        rows, single = every[l : l + order + 1], start + single_shells(depth, nshell, nprim)
        base.append(rows[:, :, start:single])
        if single < end:
            parts = jnp.split(rows[:, :, single:end], depth, axis=2)
            base.append(reduce(jnp.add, parts))
        distances.append(separation[:, :, start : start + nshell])
    base = list(jnp.concatenate(base, axis=2))
    return radial_derivatives(base, jnp.concatenate(distances, axis=2)), distances


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _potentials(sides, ends, width, center, ket_width, ket_center, charge):
    """Derivatives of the potentials of the ket's shells at the bra's primitives.

    (d/dP)^p (d/dC)_lm f(|P - C|) for degrees lowest ... of p: the solid harmonic of P - C times
    (-1/r d/dr)^l f, by the product rule. One array up to each degree of `ends`, the further ones
    from where the one before ends: to pick rows of one for a product would be a copy. Their shape
    is row, k, p, (l, m, shell).
    """
    _, lowest, kinds = sides
    order = ends[-1]
    nrow, depth = width.shape
    alpha = 1.0 / (width.reshape(-1, 1) + ket_width[None])
    separation = center.reshape(-1, 3).T[:, :, None] - ket_center.T[:, None, :]
    radial, distances = radial_functions(kinds, order, alpha, separation, charge)
    end, parts = 0, [[] for _ in ends]
    for (l, _, nshell, _), distance in zip(kinds, distances):
        start, end = end, end + nshell
        of_shells = radial[:, :, start:end].reshape(radial.shape[0], -1)
        if l == 0:
            of_shells = float(angular_matrix(0, True)[0, 0]) * of_shells
            edges = [nhermite(degree) for degree in range(lowest - 1, order + 1)]
            blocks = [of_shells[a:b, None] for a, b in zip(edges[:-1], edges[1:], strict=True)]
        else:
            product = partial(_products, lowest, order, l)
            blocks = standing(product, distance.reshape(3, -1), of_shells)
        blocks = [x.reshape(-1, 2 * l + 1, nrow, depth, nshell) for x in blocks]
        blocks = [jnp.transpose(x, (2, 3, 0, 1, 4)) for x in blocks]
        for part, rows in zip(parts, _up_to(ends, lowest, blocks), strict=True):
            part.append(rows.reshape(*rows.shape[:3], -1))
    return tuple(jnp.concatenate(part, axis=3) for part in parts)


def _potentials_jvp(sides, ends, primals, tangents):
    """A derivative on a center raises a power."""
    dwidth, dcenter, dket_width, dket_center, dcharge = tangents
    if moves(dwidth, dket_width, dcharge):
        return jvp_of_moving(partial(_potentials.fun, sides, ends), primals, tangents)
    lowest, order = sides[1], ends[-1]
    (raised,) = _potentials(sides, (order + 1,), *primals)
    value, tangent = raised[:, :, : nhermite(order, lowest)], jnp.zeros((), raised.dtype)
    for axis in range(3):
        change = jnp.zeros((), raised.dtype)
        if moves(dcenter):
            change = change + dcenter[:, :, axis][:, :, None, None]
        if moves(dket_center):
            change = change - _per_function(sides, dket_center[:, axis])[None, None, None]
        tangent = tangent + raised[:, :, raised_index(order, lowest, axis)] * change
    sizes = [nhermite(end, lowest) for end in ends]
    return tuple(tuple(jnp.split(x, sizes[:-1], axis=2)) for x in (value, tangent))


_potentials.defjvp(_potentials_jvp, symbolic_zeros=True)


def _up_to(ends, lowest, blocks):
    """Blocks of degrees from the lowest on, put together up to each of the ends."""
    starts = [0, *(end + 1 - lowest for end in ends)]
    return [
        jnp.concatenate(blocks[a:b], axis=2) for a, b in zip(starts[:-1], starts[1:], strict=True)
    ]


def _products(lowest, order, l, separation, radial):
    """Derivatives of solid harmonics times radial functions: (p, m, ...)."""
    slopes = []
    monomials = monomials_of(separation, l)
    for j in range(min(order, l) + 1):
        matrix = jnp.asarray(harmonic_slopes(l, j), separation.dtype)
        slope = matrix if j == l else jnp.dot(matrix, monomials[l - j], precision="highest")
        slopes.append(slope.reshape(-1, 2 * l + 1, slope.shape[1]))
    return product_rule(lowest, order, slopes, radial[:, None])


def monomials_of(
    separation: Float[Array, " 3 *batch"], degree: int
) -> list[Float[Array, " _ *batch"]]:
    """Monomials of degree 0, 1, ... `degree`, in the order of `hermite_powers`."""
    found = [jnp.ones_like(separation[:1])]
    for n in range(1, degree + 1):
        axis, first = _monomial_rows(n)
        found.append(rows_at(separation, axis) * rows_at(found[-1], first))
    return found


def product_rule(
    lowest: int,
    order: int,
    slopes: list[Float[Array, "_ ..."]],
    radial: Float[Array, "nhermite ..."],
) -> list[Float[Array, "_ ..."]]:
    """Derivatives of products of two functions, degrees lowest ... order in one array each.

    Args:
        slopes: Those of the first function of degree 0, 1, ... as far as they do not vanish.
        radial: Those of the second, up to the order.
    """
    terms = [
        (degree, j, *term)
        for degree in range(lowest, order + 1)
        for j in range(min(degree + 1, len(slopes)))
        for term in zip(*_leibniz(degree, j))
    ]
    blocks = [None] * (order + 1 - lowest)
    of_radial = _rows_of_each(radial, [of_second for _, _, _, of_second, _ in terms])
    for (degree, j, of_first, _, times), factor in zip(terms, of_radial, strict=True):
        (slope,) = _rows_of_each(slopes[j], [of_first])
        term = slope * factor
        if (times != 1).any():
            ones = (1,) * (term.ndim - 1)
            term = term * jnp.asarray(times.reshape(-1, *ones), term.dtype)
        total = blocks[degree - lowest]
        blocks[degree - lowest] = term if total is None else total + term
    return blocks


def _rows_of_each(x, indices):
    """x[index] for each index, without a copy where it is one row, or a run of them; the others are
    copied at once, which is one program to compile."""

    def run(index):
        first, last = int(index[0]), int(index[-1])
        if (index == first).all():
            return slice(first, first + 1)
        return slice(first, last + 1) if (np.diff(index) == 1).all() else None

    copied = [index for index in indices if run(index) is None]
    if copied:
        copies = rows_at(x, np.concatenate(copied))
        copies = iter(jax.lax.split(copies, [len(index) for index in copied]))
    return [next(copies) if run(index) is None else x[run(index)] for index in indices]


@lru_cache(maxsize=64)
def _monomial_rows(degree):
    """For each monomial: an axis, and the monomial of one degree less it is a multiple of."""
    lower = {tuple(p): n for n, p in enumerate(hermite_powers(degree - 1, degree - 1).tolist())}
    axes, first = [], []
    for power in hermite_powers(degree, degree).tolist():
        axis = next(k for k in range(3) if power[k])
        power[axis] -= 1
        axes.append(axis)
        first.append(lower[tuple(power)])
    return np.array(axes, np.int32), np.array(first, np.int32)


@lru_cache(maxsize=64)
def harmonic_slopes(l: int, j: int) -> Float[np.ndarray, "slope ncart"]:
    """The j-th derivatives of solid harmonics by monomials of degree l - j: ((i, m), ncart)."""
    target = {tuple(p): n for n, p in enumerate(hermite_powers(l - j, l - j).tolist())}
    harmonics = angular_matrix(l, True)
    derivatives = hermite_powers(j, j).tolist()
    matrix = np.zeros((len(derivatives), len(harmonics), len(target)))
    for n, i in enumerate(derivatives):
        for column, power in enumerate(hermite_powers(l, l).tolist()):
            left = tuple(a - b for a, b in zip(power, i))
            if min(left) >= 0:
                times = prod(perm(a, b) for a, b in zip(power, i))
                matrix[n, :, target[left]] += times * harmonics[:, column]
    return matrix.reshape(-1, len(target))


@lru_cache(maxsize=64)
def _leibniz(degree, j):
    """Terms of the product rule for each power p of a degree, j derivatives on the first factor.

    Returns:
        For each term and p: which i, which p - i, and the product of binomials, 0 for no term.
    """
    first = {tuple(p): n for n, p in enumerate(hermite_powers(j, j).tolist())}
    second = {tuple(p): n for n, p in enumerate(hermite_powers(degree - j).tolist())}
    terms = []
    for p in hermite_powers(degree, degree).tolist():
        of_p = []
        for i, n in first.items():
            rest = tuple(a - b for a, b in zip(p, i))
            if min(rest) >= 0:
                of_p.append((n, second[rest], prod(comb(a, b) for a, b in zip(p, i))))
        terms.append(of_p)
    most = max(map(len, terms))
    padded = [of_p + [(0, 0, 0)] * (most - len(of_p)) for of_p in terms]
    table = np.array(padded, np.int32).transpose(2, 1, 0)
    return table[0], table[1], table[2]


def _interaction(sides, width, center, coefficient, *ket):
    """(f|g) of a block: (row, f, (l, m, shell))."""
    (potentials,) = _potentials(sides, (sides[0],), width, center, *ket)
    return _contracted(coefficient, potentials)


def _contracted(coefficient, potentials):
    coefficient = coefficient.reshape(*coefficient.shape[:2], -1)
    return jnp.matmul(coefficient, _in_rows(potentials), precision="highest")


def _in_rows(potentials):
    """Row, (k, p), (l, m, shell)."""
    return potentials.reshape(len(potentials), -1, potentials.shape[3])


def _per_function(sides, of_primitive):
    """What the first primitives of all shells have, for each function."""
    parts, end = [], 0
    for l, _, nshell, nprim in sides[2]:
        start, end = end, end + nprim
        parts.append(jnp.tile(of_primitive[start : start + nshell], 2 * l + 1))
    return jnp.concatenate(parts)


def moves(*tangents: Any) -> bool:
    """Whether any is not known to be zero."""
    return any(not isinstance(t, SymbolicZero) for t in tangents)


@lru_cache(maxsize=64)
def raised_index(order: int, lowest: int, axis: int) -> Int[np.ndarray, " npower"]:
    """For each power up to an order: the place of the one that is higher along an axis."""
    source = lowered_index(order + 1, lowest, order, lowest, axis, 1)
    return np.argsort(source)[: nhermite(order, lowest)]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _weighted(sides, *arrays):
    """Sum of weight times `_interaction`. Its derivative needs no derivatives of integrals."""
    return jnp.vdot(arrays[-1], _interaction(sides, *arrays[:-1]), precision="highest")


def _weighted_jvp(sides, primals, tangents):
    width, center, coefficient, *ket, weight = primals
    dwidth, dcenter, dcoefficient, dket_width, dket_center, dcharge, dweight = tangents
    if moves(dwidth, dket_width, dcharge):
        return jvp_of_moving(partial(_weighted.fun, sides), primals, tangents)
    order, lowest, _ = sides
    nrow, _, nprim, npower = coefficient.shape
    potentials, highest = _potentials(sides, (order, order + 1), width, center, *ket)
    # Derivative of the sum in coefficients.
    slope = jnp.einsum("rpj,rfj->rpf", _in_rows(potentials), weight, precision="highest")
    slope = jnp.swapaxes(slope, 1, 2).reshape(coefficient.shape)
    value = jnp.vdot(slope, coefficient, precision="highest")
    tangent = jnp.zeros_like(value)
    if moves(dcoefficient):
        tangent = tangent + jnp.vdot(slope, dcoefficient, precision="highest")
    moving = [moves(x) for x in (dcenter, dket_center)]
    if any(moving):
        # Turned first, as a product with what is turned is made by slower code.
        turned = lambda x: jnp.swapaxes(x.reshape(*weight.shape[:2], -1), 1, 2)  # noqa: E731
        charges = standing(turned, coefficient)
        charges = jnp.matmul(charges, weight, precision="highest")
        charges = charges.reshape(potentials.shape)
        split = lambda x: jax.lax.split(x, [1] * x.shape[2], 2)  # noqa: E731
        charges, every = split(charges), [*split(potentials), *split(highest)]
        for axis in range(3):
            # What each primitive feels of each function of the ket, and the reverse.
            raised = raised_index(order, lowest, axis)
            terms = [charge * every[n] for charge, n in zip(charges, raised, strict=True)]
            force = reduce(jnp.add, terms).reshape(nrow * nprim, -1)
            if moving[0]:
                on_bra = jnp.dot(force, jnp.ones_like(force[0]), precision="highest")
                step = dcenter[:, :, axis].ravel()
                tangent = tangent + jnp.vdot(on_bra, step, precision="highest")
            if moving[1]:
                on_ket = jnp.dot(jnp.ones_like(force[:, 0]), force, precision="highest")
                step = _per_function(sides, dket_center[:, axis])
                tangent = tangent - jnp.vdot(on_ket, step, precision="highest")
    if moves(dweight):
        integrals = _contracted(coefficient, potentials)
        tangent = tangent + jnp.vdot(integrals, dweight, precision="highest")
    return value, tangent


_weighted.defjvp(_weighted_jvp, symbolic_zeros=True)
