"""Charge distributions: products of two shells, auxiliary shells, and point charges.

All of them are sums of unit-charge Hermite Gaussians, so one kernel serves every Coulomb integral.
Which rows exist is planned once per basis with NumPy; their values are traced functions of
positions, exponents and coefficients.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import groupby

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qchem.basis.layout import Basis, primitive_depth
from qchem.basis.spherical import angular_matrix, cartesian_powers, ncomponent
from qchem.compilation import platform
from qchem.integrals.coulomb import hermite_powers, nhermite
from qchem.integrals.gather import rows_at
from qchem.integrals.hermite import (
    axis_table,
    axis_table_rows,
    product_expansion,
)

_NPRIM = {0: 4, 1: 3, 2: 3}  # primitive pairs per row by order, else 1: little padding, few rows
_MERGED_NAO = 150  # up to here compiling another class costs more than padding to its order
_MERGED_NAUX = 600  # likewise for auxiliary functions
_SHORT = 0.1  # part of the functions: a list with less is not worth more programs
_PAIR_BLOCK = 1 << 22  # elements of an expansion held at once
_AXIS_TABLE = 1 << 23  # likewise of a table of single axes for classes of any l


class Distribution(eqx.Module):
    """Rows of charge distributions, each a contraction over unit Hermite Gaussians.

    A row is a shell pair (or a part of its primitives), an auxiliary shell, or a set of charges.
    rho_f(r) = sum_k sum_t coefficient[f, k, t] (d/dP_k)^t (p_k/pi)^(3/2) exp(-p_k |r - P_k|^2).

    Attributes:
        order: Highest degree of t; `lowest` the lowest one present.
        width: 1/p of each primitive, bohr²; 0 is a point charge.
        center: P, bohr.
        coefficient: Charge times bohr^(degree).
        index: What each function adds to (an AO pair or an auxiliary function); the number of
            targets where it adds to nothing.
        parts: Of a list merged from several: order, rows, functions and primitives of each.
    """

    order: int = eqx.field(static=True)
    lowest: int = eqx.field(static=True)
    width: Float[Array, "*block nrow nprim"]
    center: Float[Array, "*block nrow nprim 3"]
    coefficient: Float[Array, "*block nrow nfunction nprim nhermite"]
    index: Int[Array | np.ndarray, "*block nrow nfunction"]
    parts: tuple[tuple[int, int, int, int], ...] = eqx.field(static=True, default=())


class PairRows(eqx.Module):
    """Which primitives of which shells make the rows of one class (l_a >= l_b).

    Attributes:
        la, lb: The class.
        order: Of the list that the class goes to, l_a + l_b or more.
        shell: The two shells, counted through all batches.
        primitive: Their primitives, counted likewise, padding too.
        used: False for padding.
        index: Packed AO pair, i >= j at i (i + 1) / 2 + j; npair where nothing is to be added.
        fitted: For density fitting; see `plan_pairs`.
    """

    la: int = eqx.field(static=True)
    lb: int = eqx.field(static=True)
    order: int = eqx.field(static=True)
    shell: Int[Array | np.ndarray, "2 nrow"]
    primitive: Int[Array | np.ndarray, "2 nrow nprim"]
    used: Bool[Array | np.ndarray, "nrow nprim"]
    index: Int[Array | np.ndarray, "nrow nfunction"]
    fitted: bool = eqx.field(static=True)


def plan_pairs(
    basis: Basis, merge: bool | None = None, *, fitted: bool = False
) -> tuple[PairRows, ...]:
    """All pairs of shells of a basis, by class; host side, once per basis.

    Args:
        basis: The basis.
        merge: Put classes of orders 2n - 1 and 2n into one list, padded to 2n: fewer programs to
            compile, more arithmetic. By default where the basis is small.
        fitted: For density fitting, where a primitive pair has a row of its own, and those of s
            functions a list: what they meet is costly to make and cheap to add up, the reverse of
            exact integrals.
    """
    merge = basis.nao <= _MERGED_NAO if merge is None else merge
    rows = []
    for na, a in enumerate(basis.batches):
        for nb, b in enumerate(basis.batches[: na + 1]):
            first, second = _shell_pairs(a.atom.size, b.atom.size, na == nb)
            if first.size:
                order = merged_order(a.l + b.l, merge, 0 if fitted else 1)
                width = 1 if fitted else _NPRIM.get(order, 1)
                rows.append(_rows_of_class(basis, (na, nb), first, second, order, width, fitted))
    return tuple(rows)


def merged_order(order: int, merge: bool, least: int = 1) -> int:
    """Order of the list for distributions of this order: `least`, 1, 2, 4, 6, ... if merged."""
    return max(least, order + order % 2 * (order > 1)) if merge else order


def _shell_pairs(na, nb, same):
    if same:
        return np.tril_indices(na)
    return tuple(x.ravel() for x in np.indices((na, nb)))


def _rows_of_class(basis, sides, first, second, order, width, fitted):
    a, b = (basis.batches[n] for n in sides)
    depth_a, depth_b = primitive_depth(a.contraction), primitive_depth(b.contraction)
    depth = depth_a[first] * depth_b[second]
    parts = -(-depth // width)
    pair = np.repeat(np.arange(first.size), parts)
    part = np.arange(pair.size) - np.repeat(np.cumsum(parts) - parts, parts)
    k = part[:, None] * width + np.arange(width)[None, :]
    used = k < depth[pair][:, None]
    k = np.where(used, k, 0)
    per_b = depth_b[second[pair]][:, None]
    shells, primitives = [], []
    for n, shell, column in ((sides[0], first, k // per_b), (sides[1], second, k % per_b)):
        before, ncolumn = basis.batches[:n], basis.batches[n].exponents.shape[1]
        shells.append(sum(x.atom.size for x in before) + shell[pair])
        start = sum(x.exponents.size for x in before)
        primitives.append(start + shell[pair][:, None] * ncolumn + column)
    shell, primitive = (np.stack(x).astype(np.int32) for x in (shells, primitives))
    index = _pair_index(basis, a, b, first, second)[pair]
    return PairRows(a.l, b.l, order, shell, primitive, used, index, fitted)


def _pair_index(basis, a, b, first, second):
    """Packed AO pair of every function of every shell pair; each unordered pair once."""
    na, nb = ncomponent(a.l, basis.spherical), ncomponent(b.l, basis.spherical)
    i = a.ao[first][:, None, None] + np.arange(na)[None, :, None]
    j = b.ao[second][:, None, None] + np.arange(nb)[None, None, :]
    i, j = np.broadcast_arrays(i.astype(np.int64), j.astype(np.int64))
    high, low = np.maximum(i, j), np.minimum(i, j)
    index = high * (high + 1) // 2 + low
    diagonal = (a.ao[first] == b.ao[second])[:, None, None]
    index = np.where(diagonal & (j > i), npair(basis.nao), index)
    return index.reshape(first.size, na * nb).astype(np.int32)


def npair(nao: int | Int[np.ndarray, " n"]) -> int | Int[np.ndarray, " n"]:
    """Number of AO pairs i >= j."""
    return nao * (nao + 1) // 2


def pair_distributions(
    basis: Basis, rows: tuple[PairRows, ...], positions: Float[Array, "natom 3"]
) -> tuple[Distribution, ...]:
    """Products of AOs as charge distributions, one list per order."""
    return pair_expansions(basis, rows, positions)[0]


def pair_expansions(
    basis: Basis, rows: tuple[PairRows, ...], positions: Float[Array, "natom 3"]
) -> tuple[tuple[Distribution, ...], Float[Array, " npair"]]:
    """Products of AOs as charge distributions, one list per order; and -1/2 <a|nabla^2|b>."""
    rows = _largest_first(basis, rows, positions)
    a, b, ra, rb, charge = _primitive_pairs(basis, rows, positions)
    weight = (a / (a + b))[:, None]
    arrays = 1.0 / (a + b), ra * weight + rb * (1.0 - weight), charge
    arrays = zip(*(_by_class(x, rows) for x in arrays), strict=True)
    kinetic = []
    parts: dict[int, list[Distribution]] = {}
    tables = _axis_tables(rows, a, b, ra - rb)
    for of_class, of_table, (width, center, charge) in zip(rows, tables, arrays, strict=True):
        matrices = [_angular(l, basis.spherical, a.dtype) for l in (of_class.la, of_class.lb)]
        coefficient, laplacian = _expand(of_class, *of_table, matrices, charge)
        kinetic.append(laplacian.ravel())
        part = of_class.la + of_class.lb, *of_class.index.shape, of_class.used.shape[1]
        parts.setdefault(of_class.order, []).append(
            Distribution(of_class.order, 0, width, center, coefficient, of_class.index, (part,))
        )
    lists = tuple(_merge(parts[order], npair(basis.nao)) for order in sorted(parts))
    index = jnp.concatenate([of_class.index.ravel() for of_class in rows])
    total = jnp.zeros(npair(basis.nao), positions.dtype)
    return lists, total.at[index].add(jnp.concatenate(kinetic), mode="drop")


def _largest_first(basis, rows, positions):
    """In density fitting, rows in the order of their exponents ab/p AB^2 where the atoms are: those
    that are negligible stand together, and blocks of them are left out. Elsewhere than on a CPU
    none is."""
    if not rows[0].fitted or platform() != "cpu":
        return rows
    a, b, ra, rb, _ = _primitive_pairs(basis, rows, jax.lax.stop_gradient(positions))
    counts = [len(of_class.used) for of_class in rows]
    of_class = np.repeat(np.arange(len(rows)), counts)
    order = jnp.lexsort((_decay(a, b, ra, rb), of_class))
    sides = jnp.concatenate([jnp.stack([x.shell, x.primitive[:, :, 0]], 2) for x in rows], axis=1)
    shells, primitives = jnp.moveaxis(rows_at(jnp.swapaxes(sides, 0, 1), order), 2, 0)
    ends, found = np.cumsum(counts), []
    for x, start, end in zip(rows, ends - counts, ends, strict=True):
        own = slice(start, end)
        index = rows_at(jnp.asarray(x.index), order[own] - start)
        primitive = primitives[own].T[:, :, None]
        found.append(replace(x, shell=shells[own].T, primitive=primitive, index=index))
    return found


def _axis_tables(rows, a, b, separation):
    """For each class, the coefficients of single axes, and the highest l_b that they are made for.

    They are made for all classes at once, up to the highest l: little more arithmetic, far fewer
    operations to compile. Where that would be large, classes of one l_a have a table of their own.
    """
    highest = max(x.la for x in rows), max(x.lb for x in rows)
    groups = [list(rows)]
    if axis_table_rows(*highest) * 3 * a.size > _AXIS_TABLE:
        groups = [list(group) for _, group in groupby(rows, lambda x: x.la)]
    found, end = [], 0
    for group in groups:
        sizes = [x.used.size for x in group]
        start, end = end, end + sum(sizes)
        own = slice(start, end)
        la, lb = max(x.la for x in group), max(x.lb for x in group)
        table = axis_table(la, lb, a[own], b[own], separation[own].T)
        # In reverse mode pieces are put together, where those of indexing would be added up.
        found += [(part, lb) for part in jax.lax.split(table, sizes, axis=2)]
    return found


def _primitive_pairs(basis, rows, positions):
    """Of the primitive pairs of all classes: exponents a and b, centers A and B, and charge factor.

    All at once, which is few operations to compile. The charge factor holds contraction,
    normalization and the Gaussian product prefactor exp(-ab/p AB^2) (pi/p)^(3/2),
    (9.2.12)-(9.2.15) of Helgaker, Jørgensen & Olsen (2000).
    """
    dtype = positions.dtype
    primitive = jnp.concatenate([x.primitive.reshape(2, -1) for x in rows], axis=1)
    shells = (jnp.broadcast_to(x.shell[:, :, None], x.primitive.shape) for x in rows)
    shell = jnp.concatenate([x.reshape(2, -1) for x in shells], axis=1)
    exponents = [jnp.asarray(batch.exponents, dtype).ravel() for batch in basis.batches]
    factors = [batch.coefficients(dtype).ravel() for batch in basis.batches]
    atoms = jnp.concatenate([jnp.asarray(batch.atom) for batch in basis.batches])
    a, b = rows_at(jnp.concatenate(exponents), primitive)
    first, second = rows_at(jnp.concatenate(factors), primitive)
    ra, rb = rows_at(positions, rows_at(atoms, shell))
    prefactor = jnp.exp(-_decay(a, b, ra, rb)) * (np.pi / (a + b)) ** 1.5
    used = jnp.concatenate([jnp.asarray(x.used).ravel() for x in rows])
    return a, b, ra, rb, jnp.where(used, first * second * prefactor, 0.0)


def _by_class(x, rows):
    """What all primitive pairs have, for each class: (nrow, nprim, ...)."""
    parts = jax.lax.split(x, [of_class.used.size for of_class in rows])
    return [
        part.reshape(*of_class.used.shape, *x.shape[1:])
        for part, of_class in zip(parts, rows, strict=True)
    ]


def _decay(a, b, ra, rb):
    """ab/p AB^2."""
    return a * b / (a + b) * jnp.sum((ra - rb) ** 2, axis=1)


def _spread(vectors, shape):
    return jnp.broadcast_to(vectors[:, None, :], (*shape, 3))


def _angular(l, spherical, dtype):
    return jnp.asarray(angular_matrix(l, spherical), dtype)


def _expand(rows, columns, lb_table, matrices, charge):
    """Hermite coefficients (nrow, nfunction, nprim, nhermite) and kinetic energies of a class.

    (9.5.1) and (9.9.33) of Helgaker, Jørgensen & Olsen (2000), with contraction, normalization and
    angular parts.
    """
    powers = cartesian_powers(rows.la), cartesian_powers(rows.lb)

    def expand(block):
        columns, charge = block
        full = product_expansion(*powers, rows.order, 0, columns, lb_table, kinetic=True)
        full = full * charge[None, None, None]
        full = jnp.einsum("ax,xyhr->ayhr", matrices[0], full, precision="highest")
        full = jnp.einsum("by,ayhr->rabh", matrices[1], full, precision="highest")
        return full.reshape(charge.size, -1, full.shape[-1])

    nrow, nprim = charge.shape
    ncart = matrices[0].shape[1] * matrices[1].shape[1]
    full = _in_blocks(expand, columns, charge.ravel(), ncart * nhermite(rows.order))
    full = jnp.swapaxes(full.reshape(nrow, nprim, *full.shape[1:]), 1, 2)
    return full[..., :-1], jnp.sum(full[..., -1], axis=-1)


def _in_blocks(expand, columns, charge, nelement):
    """expand((columns, charge)), in blocks of primitive pairs where the result is large."""
    block = max(1, _PAIR_BLOCK // nelement)
    if charge.size <= block:
        return expand((columns, charge))
    padding = -charge.size % block
    columns = jnp.pad(columns, ((0, 0), (0, 0), (0, padding)))
    columns = jnp.moveaxis(columns.reshape(*columns.shape[:2], -1, block), 2, 0)
    blocks = columns, jnp.pad(charge, (0, padding)).reshape(-1, block)
    full = jax.lax.map(jax.checkpoint(expand), blocks)
    return full.reshape(-1, *full.shape[2:])[: charge.size]


def _merge(parts, ntarget):
    """Distributions of one order as one list, functions and primitives padded with zeros."""
    if len(parts) == 1:
        return parts[0]
    nfunction = max(part.index.shape[1] for part in parts)
    nprim = max(part.width.shape[1] for part in parts)
    padded = []
    for part in parts:
        functions = (0, nfunction - part.index.shape[1])
        primitives = (0, nprim - part.width.shape[1])
        padded.append(
            (
                jnp.pad(part.width, ((0, 0), primitives), constant_values=1.0),
                jnp.pad(part.center, ((0, 0), primitives, (0, 0))),
                jnp.pad(part.coefficient, ((0, 0), functions, primitives, (0, 0))),
                jnp.pad(part.index, ((0, 0), functions), constant_values=ntarget),
            )
        )
    arrays = [jnp.concatenate(column) for column in zip(*padded, strict=True)]
    every = tuple(part for rows in parts for part in rows.parts)
    return Distribution(parts[0].order, parts[0].lowest, *arrays, every)


def unmerged(lists: tuple[Distribution, ...], ntarget: int) -> tuple[Distribution, ...]:
    """The same with each order in a list of its own: less arithmetic, more programs to compile.

    Merged lists that are short stay as they are.
    """
    found: dict[int, list[Distribution]] = {}
    short = _SHORT * sum(rows.index.size for rows in lists)
    for rows in lists:
        end = 0
        whole = rows.order, *rows.index.shape, rows.width.shape[1]
        for part in (rows.index.size > short and rows.parts) or (whole,):
            order, nrow, nfunction, nprim = part
            here, end = slice(end, end + nrow), end + nrow
            arrays = (
                rows.width[here, :nprim],
                rows.center[here, :nprim],
                rows.coefficient[here, :nfunction, :nprim, : nhermite(order)],
                rows.index[here, :nfunction],
            )
            found.setdefault(order, []).append(Distribution(order, 0, *arrays, (part,)))
    return tuple(_merge(found[order], ntarget) for order in sorted(found))


def auxiliary_distributions(
    aux: Basis, positions: Float[Array, "natom 3"]
) -> tuple[Distribution, ...]:
    """The shells of an auxiliary basis as charge distributions, one list per l.

    A shell is its product with a constant, of exponent 0. A solid harmonic times
    a Gaussian is a pure derivative of degree l, so spherical shells need the top degree alone.
    """
    parts: dict[int, list[Distribution]] = {}
    merge = aux.nao <= _MERGED_NAUX
    for batch in aux.batches:
        a = jnp.asarray(batch.exponents, positions.dtype)
        charge = (batch.coefficients(positions.dtype) * (np.pi / a) ** 1.5).ravel()
        order = merged_order(batch.l, merge)
        lowest = batch.l if aux.spherical and not merge else 0
        table = axis_table(
            batch.l, 0, a.ravel(), jnp.zeros_like(a).ravel(), jnp.zeros((3, a.size), a.dtype)
        )
        powers = cartesian_powers(batch.l), cartesian_powers(0)
        matrix = _angular(batch.l, aux.spherical, a.dtype)

        def expand(block, powers=powers, order=order, lowest=lowest, matrix=matrix):
            columns, charge = block
            full = product_expansion(*powers, order, lowest, columns, 0) * charge[None, None, None]
            return jnp.einsum("ax,xyhr->rah", matrix, full, precision="highest")

        coefficient = _in_blocks(
            expand, table, charge, powers[0].shape[0] * nhermite(order, lowest)
        )
        coefficient = coefficient.reshape(*a.shape, *coefficient.shape[1:])
        ncomp = ncomponent(batch.l, aux.spherical)
        index = batch.ao[:, None] + np.arange(ncomp, dtype=np.int32)[None]
        center = _spread(positions[jnp.asarray(batch.atom)], a.shape)
        parts.setdefault(order, []).append(
            Distribution(order, lowest, 1.0 / a, center, jnp.swapaxes(coefficient, 1, 2), index)
        )
    return tuple(_merge(parts[order], aux.nao) for order in sorted(parts))


def charge_distribution(
    charges: Float[Array, "ncharge nprim"],
    widths: Float[Array, "ncharge nprim"],
    positions: Float[Array, "ncharge 3"],
) -> Distribution:
    """Spherical charges as one list: points where the width 1/p is 0, Gaussians elsewhere."""
    center = jnp.broadcast_to(positions[:, None, :], (*charges.shape, 3))
    index = np.zeros((charges.shape[0], 1), np.int32)
    return Distribution(0, 0, widths, center, charges[:, None, :, None], index)


def attenuated(
    lists: tuple[eqx.Module, ...], inverse_omega2: Float[Array, ""]
) -> tuple[eqx.Module, ...]:
    """The charges to use on both sides for erf(omega r)/r in place of 1/r.

    The operator between two Gaussian charges is the full one between wider charges: 1/alpha grows
    by 1/omega², half of it on each side. Whatever has a `width` will do. `inverse_omega2` is
    1/omega², bohr²; 0 is no change.
    """
    return tuple(
        eqx.tree_at(lambda rows: rows.width, rows, rows.width + 0.5 * inverse_omega2)
        for rows in lists
    )


def coulomb_norm(rows: Distribution) -> Float[Array, " nrow"]:
    """Upper bound of sqrt((f|f)) over the functions of each row, hartree^(1/2).

    The Coulomb norm obeys the triangle inequality, so the norms of the unit Hermite Gaussians,
    weighted with the moduli of the coefficients, bound it: no integral is needed. For one of them
    (t|t) = (-1)^|t| R_2t(0) = 2 sqrt(alpha/pi) (2 alpha)^|t| (2t-1)!! (2u-1)!! (2v-1)!! / (2|t|+1).
    """
    powers = hermite_powers(rows.order, rows.lowest)
    double_factorial = np.array([math.prod(range(1, 2 * t, 2)) for t in range(rows.order + 1)])
    degree = powers.sum(1)
    factor = double_factorial[powers].prod(1) / (2.0 * degree + 1.0) * 2.0 / math.sqrt(math.pi)
    alpha = (0.5 / jnp.maximum(rows.width, float(np.finfo(np.float32).tiny)))[:, None, :, None]
    factor, degree = (x[None, None, None] for x in (factor, degree.astype(float)))
    square = jnp.asarray(factor, alpha.dtype) * jnp.sqrt(alpha)
    square = square * (2.0 * alpha) ** jnp.asarray(degree, alpha.dtype)
    return jnp.max(jnp.sum(jnp.abs(rows.coefficient) * jnp.sqrt(square), axis=(2, 3)), axis=1)


def hermite_sign(order: int, lowest: int) -> np.ndarray:
    """(-1)^(t+u+v): a derivative on the second charge is minus one on the separation."""
    return (-1.0) ** hermite_powers(order, lowest).sum(1)
