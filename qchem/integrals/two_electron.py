"""Coulomb integrals (ab|cd): all of them, or the energy that they give, tile by tile."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qchem.chunking import tiled_sum
from qchem.compilation import platform
from qchem.devices import ALONE, Share
from qchem.integrals.coulomb import nhermite
from qchem.integrals.gather import rows_at
from qchem.integrals.kernel import interaction, weighted_sum
from qchem.integrals.pairs import Distribution, coulomb_norm, unmerged
from qchem.integrals.tiles import blocks_of, tile_bytes

SCREENING = 1e-12  # hartree: tiles whose integrals are all smaller are left out
_MERGED_PAIRS = 1000  # of AOs: up to here compiling another class costs more than its padding


def _tiles(bra: Distribution, ket: Distribution, share: Share) -> tuple[int, int]:
    """Rows of bra and ket per tile of a four-centre class: a few rows against a long row."""
    budget = tile_bytes() // (2 if platform() == "cpu" else 1)  # what R is turned into as well
    order = bra.order + ket.order
    quartets = budget // (8 * bra.width.shape[1] * ket.width.shape[1] * nhermite(order))
    nket = max(1, min(ket.width.shape[0], int((8 * quartets) ** 0.5)))
    return max(1, min(-(-bra.width.shape[0] // share.count), quartets // nket)), nket


def coulomb_4c(pairs: tuple[Distribution, ...], npair: int) -> Float[Array, " nquartet"]:
    """(ab|cd) with 8-fold symmetry: packed pairs of packed pairs."""
    ordered, place = in_order(pairs, npair)
    row = jnp.arange(npair, dtype=jnp.int32)
    size = npair * (npair + 1) // 2
    integrals = coulomb_rows(*ordered, row * (row + 1) // 2, size)
    first = jnp.repeat(row, row + 1, total_repeat_length=size)
    second = jnp.arange(size, dtype=jnp.int32) - first * (first + 1) // 2
    first, second = place[first], place[second]
    high, low = jnp.maximum(first, second), jnp.minimum(first, second)
    return integrals[high * (high + 1) // 2 + low]


def in_order(
    pairs: tuple[Distribution, ...], npair: int
) -> tuple[tuple[tuple[Distribution, ...], tuple[Float[Array, " _"], ...]], Int[Array, " {npair}"]]:
    """The lists as `coulomb_rows` wants them, their norms, and the place of each AO pair.

    In a list pairs of shells follow by falling norm, so that tiles of negligible integrals form;
    the rows of a pair stand together. AO pairs are counted through, function by function, and
    `index` is their place. What adds to nothing is zero, so that it may be added anywhere.
    """
    lists = unmerged(pairs, npair) if npair > _MERGED_PAIRS else pairs
    ends = np.cumsum([rows.width.shape[0] for rows in lists])
    width = max(rows.index.shape[1] for rows in lists)
    norm = jnp.concatenate([coulomb_norm(jax.lax.stop_gradient(rows)) for rows in lists])
    index = jnp.concatenate([_widened(rows.index, width, npair) for rows in lists])
    pair = index[:, 0]  # of functions that all pairs have
    norm = jnp.zeros(npair, norm.dtype).at[pair].max(norm)[pair]
    order = jnp.lexsort((pair, -norm, np.searchsorted(ends, np.arange(ends[-1]), "right")))
    pair, norm, index = pair[order], norm[order], index[order]
    exists = index < npair
    first = jnp.concatenate([jnp.ones(1, bool), pair[1:] != pair[:-1]])[:, None]
    count = jnp.cumsum((exists & first).ravel(), dtype=jnp.int32)
    here = jnp.where(first, index, npair).ravel()
    place = jnp.zeros(npair, jnp.int32).at[here].set(count - 1, mode="drop")
    index = place.at[index].get(mode="fill", fill_value=0)
    ordered, norms = [], []
    for rows, end in zip(lists, ends, strict=True):
        nrow, nfunction = rows.index.shape
        here = slice(end - nrow, end)
        own = order[here] - (end - nrow)
        rows = jax.tree.map(lambda x, own=own: jnp.asarray(x)[own], rows)
        coefficient = jnp.where(exists[here, :nfunction, None, None], rows.coefficient, 0.0)
        ordered.append(
            replace(rows, coefficient=coefficient, index=index[here, :nfunction], parts=())
        )
        norms.append(norm[here])
    return (tuple(ordered), tuple(norms)), place


def _widened(index, width, fill):
    more = (0, 0), (0, width - index.shape[1])
    return jnp.pad(jnp.asarray(index), more, constant_values=fill)


def coulomb_rows(
    lists: tuple[Distribution, ...],
    norms: tuple[Float[Array, " _"], ...],
    starts: Int[Array, " npair"],
    size: int,
    share: Share = ALONE,
) -> Float[Array, " {size}"]:
    """Rows (ab|cd) of pairs cd <= ab, numbered as `in_order` says, where they are to start.

    Args:
        lists, norms: From `in_order`.
        starts: For each ab; `npair` elements from there are within the result.
        size: Of the result.
        share: A device makes its part of the integrals; the others are zero.
    """
    total = jnp.zeros(size, lists[0].coefficient.dtype)
    filled = [_filled(rows) for rows in lists]
    for i, bra in enumerate(lists):
        for j, ket in enumerate(lists[: i + 1]):
            tiles = *_tiles(bra, ket, share), bra.width.shape[0], ket.width.shape[0]
            sides = (filled[i], norms[i]), (filled[j], norms[j])
            total = _add_class(total, *sides, tiles, i == j, starts, share)
    return total


def _filled(rows):
    """A list with as many rows again that contribute nothing: whatever tile begins, ends in it."""
    doubled = blocks_of(rows, 2 * rows.width.shape[0], 0)
    return jax.tree.map(lambda x: x[0], doubled)


def _by_norm(rows):
    """The rows in order of falling norm, so that tiles of negligible integrals form; the norms."""
    norms = coulomb_norm(jax.lax.stop_gradient(rows))
    order = jnp.argsort(-norms)
    return jax.tree.map(lambda x: jnp.asarray(x)[order], rows), norms[order]


def _bounds(norms, size):
    """Largest norm of each block: by Cauchy and Schwarz |(f|g)| is at most the product of two."""
    return norms[::size]


def _tile_indices(nrow, mrow, nbra, nket, same):
    """Blocks i and j of all tiles; within one list, of those alone that have rows i >= j."""
    i, j = np.indices((-(-nrow // nbra), -(-mrow // nket)), np.int32).reshape(2, -1)
    kept = (i + 1) * nbra > j * nket if same else slice(None)
    return i[kept], j[kept]


def _add_class(total, bra, ket, tiles, same, starts, share):
    """Adds one class; within one list, rows i >= j alone."""
    nbra, nket, nrow, mrow = tiles

    @jax.checkpoint
    def tile(row, column):
        block_bra, block_ket = (
            jax.tree.map(lambda x, n=n, m=m: jax.lax.dynamic_slice_in_dim(x, n, m), rows)
            for rows, n, m in ((bra[0], row, nbra), (ket[0], column, nket))
        )
        values = interaction(block_bra, block_ket)
        f = block_bra.index[:, :, None, None]
        g = block_ket.index.T[None, None]
        if same:
            row = (row + jnp.arange(nbra, dtype=row.dtype))[:, None, None, None]
            column = (column + jnp.arange(nket, dtype=row.dtype))[None, None, None]
            one_pair = (f[:, :1] == g[:, :, :1]) & (row > column)
            values = jnp.where(one_pair, values + jnp.swapaxes(values, 1, 2), values)
            values = jnp.where((row >= column) & (f >= g), values, 0.0)
        return values.ravel(), (starts[f] + g).ravel()

    def add(total, row, column):
        values, target = tile(row, column)
        return total.at[target].add(values, mode="promise_in_bounds")

    def step(total, place):
        row, column = place
        # By Cauchy and Schwarz |(f|g)| is at most the product of two norms, which fall.
        wanted = (row >= 0) & (bra[1][row] * ket[1][column] > SCREENING)
        return jax.lax.cond(wanted, add, lambda total, *_: total, total, row, column), None

    i, j = _tile_indices(nrow, mrow, nbra, nket, same)
    i, j = share.dealt(i * nbra, j * nket)
    return jax.lax.scan(step, total, (i, j))[0]


def coulomb_energy(
    pairs: tuple[Distribution, ...],
    dm: Float[Array, "nspin nao nao"],
    coulomb: float | Float[Array, ""],
    exchange: float | Float[Array, ""],
    share: Share = ALONE,
) -> Float[Array, ""]:
    """Weighted Coulomb and exchange energy of `dm`; integrals are made in tiles, never stored.

    Differentiable in the pairs and in `dm`: its gradients are forces and Fock matrices.

    Args:
        pairs: Distributions of the AO pairs.
        dm: Symmetric density matrices.
        coulomb, exchange: Weights of the two terms; what has the number 0 is not computed.
        share: A device adds up its part of the tiles.

    Returns:
        coulomb/2 sum D_ab D_cd (ab|cd) - exchange/2 sum_s sum D^s_ac D^s_bd (ab|cd), hartree, with
        D the sum of all D^s.
    """
    total = jnp.zeros((), dm.dtype)
    pairs = [_by_norm(rows) for rows in pairs]
    density = dm, *(_weight(x, dm.dtype) for x in (coulomb, exchange))
    for i, bra in enumerate(pairs):
        for ket in pairs[: i + 1]:
            total = total + _class_energy(*bra, *ket, density, share)
    return total


def _weight(x, dtype):
    """None for the number 0."""
    return None if isinstance(x, int | float) and x == 0 else jnp.asarray(x, dtype)


def _class_energy(bra, bra_norms, ket, ket_norms, density, share):
    same = bra is ket
    nao, dtype = density[0].shape[-1], density[0].dtype
    size = nao * (nao + 1) // 2
    nbra, nket = _tiles(bra, ket, share)
    bras, kets = blocks_of(bra, nbra, size), blocks_of(ket, nket, size)

    def tile(density, row, column):
        (bra, first, _), (ket, start, _) = row, column
        gamma = _pair_density(*density, bra.index, ket.index.T)
        if not same:
            return weighted_sum(bra, ket, 2.0 * gamma)
        row = (first + jnp.arange(nbra, dtype=first.dtype))[:, None, None, None]
        column = (start + jnp.arange(nket, dtype=start.dtype))[None, None, None]
        times = jnp.where(row > column, 2, (row == column).astype(jnp.int32))
        return weighted_sum(bra, ket, gamma * times.astype(dtype))

    def wanted(row, column):
        return row[2] * column[2] > SCREENING

    indices = _tile_indices(bra.width.shape[0], ket.width.shape[0], nbra, nket, same)
    tiles = share.dealt(*indices)
    firsts = np.arange(bras.width.shape[0], dtype=np.int32) * nbra
    starts = np.arange(kets.width.shape[0], dtype=np.int32) * nket
    rows, columns = (
        (bras, firsts, _bounds(bra_norms, nbra)),
        (kets, starts, _bounds(ket_norms, nket)),
    )
    return tiled_sum(tile, density, rows, columns, tiles, wanted)


def _pair_density(dm, coulomb, exchange, bra, ket):
    """What multiplies (ab|cd) of packed pairs a >= b, c >= d in the energy."""
    nao = dm.shape[-1]
    high, low = (jnp.asarray(x.astype(np.int32)) for x in np.tril_indices(nao))
    inside = (bra < high.size)[:, :, None, None] & (ket < high.size)[None, None]
    bra, ket = (jnp.minimum(index, high.size - 1) for index in (bra, ket))
    a, b = (rows_at(x, bra)[:, :, None, None] for x in (high, low))
    c, d = (rows_at(x, ket)[None, None] for x in (high, low))
    element = lambda matrix, i, j: rows_at(matrix.ravel(), i * nao + j)  # noqa: E731
    gamma = jnp.zeros((), dm.dtype)
    if coulomb is not None:
        density = jnp.sum(dm, axis=0)
        gamma = 0.5 * coulomb * element(density, a, b) * element(density, c, d)
    if exchange is not None:
        for spin in dm:
            swapped = element(spin, a, c) * element(spin, b, d)
            swapped = swapped + element(spin, a, d) * element(spin, b, c)
            gamma = gamma - 0.25 * exchange * swapped
    several = jnp.where(a == b, 1, 2) * jnp.where(c == d, 1, 2)
    return gamma * jnp.where(inside, several, 0).astype(dm.dtype)
