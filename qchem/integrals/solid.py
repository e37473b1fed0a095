"""(ab|P) and (P|Q) with auxiliary shells of solid harmonics, by the product rule.

A solid harmonic Y_lm of derivatives, acting on a function f of the distance, is Y_lm(r) times
(1/r d/dr)^l f. So (ab|P) = sum_p E_ab[p] (d/dP)^p [Y_lm f_l], in which the primitives of P are
summed in f_l beforehand, and derivatives go no further than the degree of ab, or one more for those
in positions.
"""

from __future__ import annotations

from functools import lru_cache, partial
from math import comb, perm, pi, prod, sqrt

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int

from qchem.basis.layout import Basis, primitive_depth
from qchem.basis.spherical import angular_matrix
from qchem.chunking import chunked_sum
from qchem.compilation import platform
from qchem.devices import ALONE, Share
from qchem.integrals.boys import boys
from qchem.integrals.coulomb import (
    hermite_powers,
    lowered_index,
    nhermite,
    radial_derivatives,
)
from qchem.integrals.pairs import Distribution
from qchem.integrals.two_electron import blocks_of, own_rows, tile_bytes

_LOW = 2  # l of auxiliary shells whose metric is made together, with the powers of the highest


class SolidRows(eqx.Module):
    """Which primitives make the auxiliary shells of one l.

    Shells of one primitive come first, then those of several, `depth` each: first the first
    primitives of all of these, then the second ones.

    Attributes:
        l: Angular momentum.
        depth: Primitives of each of the latter.
        shell: Row of the shell batch for each primitive; `primitive` is the column.
        used: False for what fills up the depth.
        order: Row of the shell batch for each shell.
    """

    l: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    shell: Int[Array | np.ndarray, " nprim"]
    primitive: Int[Array | np.ndarray, " nprim"]
    used: Bool[Array | np.ndarray, " nprim"]
    order: Int[Array | np.ndarray, " nshell"]


class SolidShells(eqx.Module):
    """Auxiliary shells of one l.

    Attributes:
        l, depth: As in `SolidRows`.
        width: 1/p of each primitive, bohr².
        center: Bohr.
        charge: What multiplies the derivatives of the unit-charge Gaussian.
        index: The functions of each shell.
    """

    l: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    width: Float[Array, " nprim"]
    center: Float[Array, "nprim 3"]
    charge: Float[Array, " nprim"]
    index: Int[Array | np.ndarray, "nshell ncomponent"]


def plan_solid(aux: Basis) -> tuple[SolidRows, ...]:
    """The shells of each l; host side, once per basis. None of Cartesian functions."""
    plans = []
    for batch in aux.batches if aux.spherical else ():
        depths = primitive_depth(batch.contraction)
        single, several = np.flatnonzero(depths == 1), np.flatnonzero(depths != 1)
        depth = int(depths.max())
        shell = np.concatenate([single, np.tile(several, depth)])
        column = np.repeat(np.arange(depth), several.size)
        primitive = np.concatenate([np.zeros(single.size, int), column])
        used = primitive < depths[shell]
        primitive = np.where(used, primitive, 0)
        order = np.concatenate([single, several])
        shell, primitive, order = (x.astype(np.int32) for x in (shell, primitive, order))
        plans.append(SolidRows(batch.l, depth, shell, primitive, used, order))
    return tuple(plans)


def solid_shells(
    aux: Basis, plan: tuple[SolidRows, ...], positions: Float[Array, "natom 3"]
) -> tuple[SolidShells, ...]:
    """The auxiliary shells where the atoms are."""
    lists = []
    for rows, batch in zip(plan, aux.batches):
        at = rows.shell, rows.primitive
        a = jnp.asarray(batch.exponents, positions.dtype)[at]
        charge = batch.coefficients(positions.dtype)[at] * (np.pi / a) ** 1.5 / (2 * a) ** rows.l
        center = positions[jnp.asarray(batch.atom)[rows.shell]]
        first = jnp.asarray(batch.ao)[rows.order][:, None]
        index = first + np.arange(2 * rows.l + 1, dtype=np.int32)[None]
        charge = jnp.where(rows.used, charge, 0)
        lists.append(SolidShells(rows.l, rows.depth, 1 / a, center, charge, index))
    return tuple(lists)


class _Kets(eqx.Module):
    """All auxiliary shells one after another.

    Attributes:
        kinds: l, depth, and numbers of shells and of primitives of each list.
        width, center, charge: As in `SolidShells`.
    """

    kinds: tuple[tuple[int, int, int, int], ...] = eqx.field(static=True)
    width: Float[Array, " nprim"]
    center: Float[Array, "nprim 3"]
    charge: Float[Array, " nprim"]

    @classmethod
    def of(cls, shells: tuple[SolidShells, ...]) -> _Kets:
        kinds = tuple((rows.l, *_kind(rows)) for rows in shells)
        arrays = [[getattr(rows, x) for rows in shells] for x in ("width", "center", "charge")]
        return cls(kinds, *map(jnp.concatenate, arrays))


def solid_functions(shells: tuple[SolidShells, ...]) -> Int[Array, " naux"]:
    """The auxiliary function of each column of `solid_3c`."""
    return jnp.concatenate([jnp.asarray(rows.index).T.ravel() for rows in shells])


def solid_3c(
    pairs: tuple[Distribution, ...], shells: tuple[SolidShells, ...], npair: int
) -> Float[Array, "npair naux"]:
    """(ab|P) for packed pairs, hartree; for P see `solid_functions`."""
    ket, width = _Kets.of(shells), _width(shells)
    total = jnp.zeros((npair, width), ket.charge.dtype)
    for bra in pairs:

        @jax.checkpoint
        def of_block(ket, block):
            return _interaction(*_operands(block, ket)).reshape(-1, width)

        def add(total, block, of_block=of_block):
            return _with_rows(total, block.index.ravel(), of_block(ket, block)), None

        total = jax.lax.scan(add, total, blocks_of(bra, _rows_together(bra, shells), npair))[0]
    return total


def solid_2c(shells: tuple[SolidShells, ...], share: Share = ALONE) -> Float[Array, "naux naux"]:
    """(P|Q), hartree; for the order see `solid_functions`. Devices that share it all have it."""
    metric, start = [], 0
    for group, kets in _groups(shells):
        size = _width(group)
        values = solid_3c(own_rows((_as_pairs(group),), share, size), kets, size)
        rows = jnp.concatenate([0.5 * values[:, :size], values[:, size:]], axis=1)
        metric.append(jnp.pad(rows, ((0, 0), (start, 0))))
        start += size
    metric = share.total(jnp.concatenate(metric))
    return metric + metric.T


def weighted_solid_3c(
    pairs: tuple[Distribution, ...],
    shells: tuple[SolidShells, ...],
    weight: Float[Array, "npair naux"],
) -> Float[Array, ""]:
    """Sum of weight times `solid_3c`."""
    total = jnp.zeros((), weight.dtype)

    def of_block(shared, block):
        weight, ket = shared
        chosen = weight.at[block.index].get(mode="fill", fill_value=0.0)
        return _weighted(*_operands(block, ket), chosen)

    shared = weight, _Kets.of(shells)
    for bra in pairs:
        blocks = blocks_of(bra, _rows_together(bra, shells), weight.shape[0])
        total = total + chunked_sum(of_block, shared, blocks)
    return total


def weighted_solid_2c(
    shells: tuple[SolidShells, ...], weight: Float[Array, "naux naux"], share: Share = ALONE
) -> Float[Array, ""]:
    """Sum of a symmetric weight times `solid_2c`, or a device's part of it."""
    total, end = jnp.zeros((), weight.dtype), 0
    for group, kets in _groups(shells):
        start, end = end, end + _width(group)
        own, rest = weight[start:end, start:end], weight[start:end, end:]
        rows = jnp.concatenate([own, 2.0 * rest], axis=1)
        bras = own_rows((_as_pairs(group),), share, end - start)
        total = total + weighted_solid_3c(bras, kets, rows)
    return total


def _with_rows(total, index, rows):
    """Adds rows to those of the total that have these indices, if there are any."""
    if platform() != "cpu":
        return total.at[index].add(rows, mode="drop")
    last = total.shape[0] - 1
    rows = jnp.where((index <= last)[:, None], rows, 0.0)

    def add(total, row):  # XLA's own loop takes several times as long
        place, row = row
        row = row + jax.lax.dynamic_index_in_dim(total, place, 0, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(total, row, place, 0), None

    return jax.lax.scan(add, total, (jnp.minimum(index, last), rows))[0]


def shell_counts(rows: SolidShells) -> tuple[int, int]:
    """Numbers of shells of one primitive, and of several."""
    nshell = rows.index.shape[0]
    single = _single(rows.depth, nshell, rows.width.size)
    return single, nshell - single


def _width(shells):
    return sum(rows.index.size for rows in shells)


def _kind(shell):
    return shell.depth, shell.index.shape[0], shell.width.size


def _groups(shells):
    """Lists of low l to meet all, and those of high l to meet these alone."""
    low = tuple(rows for rows in shells if rows.l <= _LOW)
    high = shells[len(low) :]
    return [(group, kets) for group, kets in ((low, shells), (high, high)) if group]


def _as_pairs(shells):
    """The shells in one list of rows, one for each primitive: few programs to compile."""
    order, width = max(rows.l for rows in shells), _width(shells)
    parts, end = [], 0
    for rows in shells:
        start, end = end, end + rows.index.size
        matrix = np.zeros((2 * order + 1, nhermite(order)))
        harmonics = angular_matrix(rows.l, True)
        below = nhermite(rows.l) - harmonics.shape[1]
        matrix[: len(harmonics), below : nhermite(rows.l)] = harmonics
        matrix = jnp.asarray(matrix, rows.charge.dtype)
        place = np.full((rows.index.shape[0], len(matrix)), width, np.int32)
        place[:, : len(harmonics)] = np.arange(start, end).reshape(len(harmonics), -1).T
        coefficient = rows.charge[:, None, None, None] * matrix[None, :, None]
        index = jnp.asarray(place[_shell_of(*_kind(rows))])
        parts.append((rows.width[:, None], rows.center[:, None], coefficient, index))
    return Distribution(order, 0, *map(jnp.concatenate, zip(*parts)))


def _single(depth, nshell, nprim):
    """Number of shells of one primitive; the others have `depth` each."""
    return nshell if depth == 1 else nshell - (nprim - nshell) // (depth - 1)


def _shell_of(depth, nshell, nprim):
    """The shell of each primitive."""
    single = _single(depth, nshell, nprim)
    several = np.tile(np.arange(single, nshell), depth if single < nshell else 0)
    return np.concatenate([np.arange(single), several])


def _summed(depth, nshell, nprim, x):
    """Sums over the primitives of each shell, which are the last axis."""
    single = _single(depth, nshell, nprim)
    if depth == 1:
        return x
    several = x[..., single:].reshape(*x.shape[:-1], depth, -1)
    return jnp.concatenate([x[..., :single], jnp.sum(several, axis=-2)], axis=-1)


def _rows_together(bra, shells):
    """Rows of pairs whose integrands stay within the bytes of a tile."""
    nprim = sum(rows.width.size for rows in shells)
    of_row = 4 * nprim + 2 * _width(shells) * nhermite(bra.order + 1, bra.lowest)
    return max(1, min(bra.width.shape[0], tile_bytes() // (8 * of_row * bra.width.shape[1])))


def _operands(bra, ket):
    """What a tile depends on: what is static, then arrays."""
    sides = bra.order, bra.lowest, ket.kinds
    return sides, bra.width, bra.center, bra.coefficient, ket.width, ket.center, ket.charge


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _potentials(sides, order, width, center, ket_width, ket_center, charge):
    """Derivatives of the potentials of the ket's shells at the bra's primitives.

    (d/dP)^p (d/dC)_lm f(|P - C|) for degrees lowest ... order of p: the solid harmonic of P - C
    times (-1/r d/dr)^l f, by the product rule. Shape: row, (k, p), (l, m, shell).
    """
    _, lowest, kinds = sides
    nrow, depth = width.shape
    alpha = 1.0 / (width.reshape(-1, 1) + ket_width[None])
    separation = center.reshape(-1, 3).T[:, :, None] - ket_center.T[:, None, :]
    t = alpha * jnp.sum(separation * separation, axis=0)
    highest = max(l for l, *_ in kinds)
    values = boys(order + highest, t.ravel()).reshape(-1, *t.shape)
    scale = charge[None] * ((2.0 / sqrt(pi)) * jnp.sqrt(alpha))
    bases, distances, end = [], [], 0
    for l, *kind in kinds:
        start, end = end, end + kind[2]
        twice = 2.0 * alpha[:, start:end]
        factor = scale[:, start:end] * twice**l
        rows = []
        for j in range(order + 1):
            rows.append(values[l + j, :, start:end] * factor)
            factor = -twice * factor
        bases.append(_summed(*kind, jnp.stack(rows)))
        distances.append(separation[:, :, start : start + kind[1]])
    radial = radial_derivatives(
        list(jnp.concatenate(bases, axis=2)), jnp.concatenate(distances, axis=2)
    )
    end, parts = 0, []
    skipped = nhermite(order) - nhermite(order, lowest)
    for (l, _, nshell, _), distance in zip(kinds, distances):
        start, end = end, end + nshell
        of_shells = radial[:, :, start:end].reshape(radial.shape[0], -1)
        if l == 0:
            blocks = [float(angular_matrix(0, True)[0, 0]) * of_shells[skipped:, None]]
        else:
            blocks = _products(lowest, order, l, distance.reshape(3, -1), of_shells)
        blocks = [x.reshape(-1, 2 * l + 1, nrow, depth, nshell) for x in blocks]
        blocks = [jnp.transpose(x, (2, 3, 0, 1, 4)) for x in blocks]
        parts.append(jnp.concatenate(blocks, axis=2).reshape(nrow, -1, (2 * l + 1) * nshell))
    return jnp.concatenate(parts, axis=2)


def _potentials_jvp(sides, order, primals, tangents):
    """A derivative on a center raises a power."""
    dwidth, dcenter, dket_width, dket_center, dcharge = tangents
    if _widths_move(dwidth, dket_width, dcharge):
        tangents = _instantiated(primals, tangents)
        return jax.jvp(partial(_potentials.fun, sides, order), primals, tangents)
    lowest = sides[1]
    nrow, nprim = primals[0].shape
    raised = _potentials(sides, order + 1, *primals).reshape(
        nrow, nprim, nhermite(order + 1, lowest), -1
    )
    size = nhermite(order, lowest)
    value, tangent = raised[:, :, :size], jnp.zeros((), raised.dtype)
    for axis in range(3):
        change = jnp.zeros((), raised.dtype)
        if not isinstance(dcenter, SymbolicZero):
            change = change + dcenter[:, :, axis][:, :, None, None]
        if not isinstance(dket_center, SymbolicZero):
            change = change - _per_function(sides, dket_center[:, axis])[None, None, None]
        source = lowered_index(order + 1, lowest, order, lowest, axis, 1)
        place = np.argsort(source)[:size]  # of the power that is one higher
        tangent = tangent + raised[:, :, place] * change
    shape = nrow, nprim * size, raised.shape[3]
    return value.reshape(shape), tangent.reshape(shape)


_potentials.defjvp(_potentials_jvp, symbolic_zeros=True)


def _products(lowest, order, l, separation, radial):
    """Derivatives of solid harmonics times radial functions, by the product rule: (p, m, ...)."""
    slopes = []
    monomials = jnp.ones_like(separation[:1])
    stacks = [monomials]
    for degree in range(1, l + 1):
        axis, first = _monomial_rows(degree)
        monomials = separation[axis] * monomials[first]
        stacks.append(monomials)
    for j in range(min(order, l) + 1):
        matrix = jnp.asarray(_harmonic_slopes(l, j), separation.dtype)
        slope = matrix if j == l else jnp.dot(matrix, stacks[l - j], precision="highest")
        slopes.append(slope.reshape(-1, 2 * l + 1, slope.shape[1]))
    blocks = []
    for degree in range(lowest, order + 1):
        total = None
        for j in range(min(degree, l) + 1):
            for of_harmonic, of_radial, times in zip(*_leibniz(degree, j)):
                term = slopes[j][of_harmonic] * radial[of_radial][:, None]
                if (times != 1).any():
                    term = term * jnp.asarray(times, term.dtype)[:, None, None]
                total = term if total is None else total + term
        blocks.append(total)
    return blocks


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
def _harmonic_slopes(l, j):
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
    return _contracted(coefficient, _potentials(sides, sides[0], width, center, *ket))


def _contracted(coefficient, potentials):
    coefficient = coefficient.reshape(*coefficient.shape[:2], -1)
    return jnp.matmul(coefficient, potentials, precision="highest")


def _per_function(sides, of_primitive):
    """What the first primitives of all shells have, for each function."""
    parts, end = [], 0
    for l, _, nshell, nprim in sides[2]:
        start, end = end, end + nprim
        parts.append(jnp.tile(of_primitive[start : start + nshell], 2 * l + 1))
    return jnp.concatenate(parts)


def _widths_move(*tangents):
    return any(not isinstance(t, SymbolicZero) for t in tangents)


def _instantiated(primals, tangents):
    return tuple(
        jnp.zeros_like(x) if isinstance(t, SymbolicZero) else t for x, t in zip(primals, tangents)
    )


def _padded(sides, coefficient):
    """With the powers of one order more."""
    order, lowest, *_ = sides
    missing = nhermite(order + 1, lowest) - coefficient.shape[3]
    return jnp.pad(coefficient, ((0, 0), (0, 0), (0, 0), (0, missing)))


def _raised(sides, coefficient):
    """Coefficients of the derivatives along each axis, among the powers of one order more."""
    order, lowest, *_ = sides
    zero = jnp.zeros_like(coefficient[..., :1])
    padded = jnp.concatenate([coefficient, zero], axis=-1)
    return [
        padded[..., lowered_index(order + 1, lowest, order, lowest, axis, 1)] for axis in range(3)
    ]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _weighted(sides, width, center, coefficient, ket_width, ket_center, charge, weight):
    """Sum of weight times `_interaction`. Its derivative needs no derivatives of integrals."""
    return _weighted_integrals(
        sides, width, center, coefficient, ket_width, ket_center, charge, weight
    )


def _weighted_integrals(sides, *arrays):
    return jnp.vdot(arrays[-1], _interaction(sides, *arrays[:-1]), precision="highest")


def _weighted_jvp(sides, primals, tangents):
    width, center, coefficient, *ket, weight = primals
    dwidth, dcenter, dcoefficient, dket_width, dket_center, dcharge, dweight = tangents
    if _widths_move(dwidth, dket_width, dcharge):
        tangents = _instantiated(primals, tangents)
        return jax.jvp(partial(_weighted_integrals, sides), primals, tangents)
    potentials = _potentials(sides, sides[0] + 1, width, center, *ket)
    nrow, nfunction, nprim, npower = coefficient.shape
    # Derivative of the sum in coefficients of any power.
    slope = jnp.einsum("rfj,rpj->rfp", weight, potentials, precision="highest")
    slope = slope.reshape(nrow, nfunction, nprim, -1)
    value = jnp.vdot(slope[..., :npower], coefficient, precision="highest")
    raised = _raised(sides, coefficient)
    tangent = jnp.zeros_like(value)
    if not isinstance(dcoefficient, SymbolicZero):
        tangent = tangent + jnp.vdot(slope[..., :npower], dcoefficient, precision="highest")
    if not isinstance(dcenter, SymbolicZero):
        for axis in range(3):
            force = jnp.sum(slope * raised[axis], axis=(1, 3))
            tangent = tangent + jnp.vdot(force, dcenter[..., axis], precision="highest")
    if not isinstance(dket_center, SymbolicZero):
        every = jnp.stack(raised, axis=2).reshape(nrow, 3 * nfunction, nprim, -1)
        values = _contracted(every, potentials).reshape(nrow * nfunction, 3, -1)
        values = (values * weight.reshape(-1, 1, weight.shape[2])).reshape(len(values), -1)
        force = jnp.dot(jnp.ones(len(values), values.dtype), values, precision="highest")
        force = force.reshape(3, -1)
        steps = jnp.stack([_per_function(sides, dket_center[:, n]) for n in range(3)])
        tangent = tangent - jnp.vdot(force, steps, precision="highest")
    if not isinstance(dweight, SymbolicZero):
        integrals = _contracted(_padded(sides, coefficient), potentials)
        tangent = tangent + jnp.vdot(integrals, dweight, precision="highest")
    return value, tangent


_weighted.defjvp(_weighted_jvp, symbolic_zeros=True)
