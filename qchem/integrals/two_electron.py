"""Coulomb integrals (P|Q), (ab|P), (ab|cd), and the potential of given charges."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qchem.chunking import chunked_sum, tiled_sum
from qchem.compilation import platform
from qchem.devices import ALONE, Share
from qchem.integrals.coulomb import nhermite
from qchem.integrals.kernel import interaction, weighted_sum
from qchem.integrals.pairs import Distribution, coulomb_norm, unmerged

SCREENING = 1e-12  # hartree: tiles whose integrals are all smaller are left out
_TILE_BYTES = {"cpu": 1 << 20, "gpu": 1 << 25, "tpu": 1 << 25}  # R held at once; CPU: its cache
_MERGED_PAIRS = 1000  # of AOs: up to here compiling another class costs more than its padding


def tile_bytes() -> int:
    """Memory of the R that are held at once."""
    return _TILE_BYTES.get(platform(), 1 << 25)


def _tile_rows(bra: Distribution, nket: int, mprim: int, ket_order: int) -> int:
    """Rows of the bra per tile, so that R of the tile stays within the stated bytes."""
    budget = tile_bytes()
    per_row = bra.width.shape[1] * nket * mprim * nhermite(bra.order + ket_order)
    return max(1, min(bra.width.shape[0], budget // (8 * per_row)))


def blocks_of(rows: Distribution, size: int, ntarget: int) -> Distribution:
    """The list in blocks of `size` rows; the last is filled with rows that contribute nothing."""
    nrow = rows.width.shape[0]
    padding = -nrow % size

    def split(x, fill):
        x = jnp.asarray(x)
        tail = jnp.full((padding, *x.shape[1:]), fill, x.dtype)
        return jnp.concatenate([x, tail]).reshape(-1, size, *x.shape[1:])

    return Distribution(
        rows.order,
        rows.lowest,
        split(rows.width, 1.0),
        split(rows.center, 0.0),
        split(rows.coefficient, 0.0),
        split(rows.index, ntarget),
    )


def own_rows(
    lists: tuple[Distribution, ...], share: Share, ntarget: int
) -> tuple[Distribution, ...]:
    """A device's rows of each list, dealt out in turn, as their work falls along a list.

    Args:
        ntarget: The index of what is added to nothing.
    """
    if share.alone:
        return lists

    def own(rows):
        dealt = blocks_of(rows, share.count, ntarget)
        return jax.tree.map(lambda x: jnp.take(x, share.index(), axis=1), dealt)

    return tuple(own(rows) for rows in lists)


def potential(
    pairs: tuple[Distribution, ...],
    charges: Distribution,
    npair: int,
) -> Float[Array, npair]:
    """Interaction of every AO pair with the sum of all charges; hartree, signed as the charges."""
    total = jnp.zeros(npair, charges.coefficient.dtype)
    for bra in pairs:
        size = _tile_rows(bra, *charges.width.shape, charges.order)
        blocks = blocks_of(bra, size, npair)

        @jax.checkpoint
        def of_block(block):
            return jnp.sum(interaction(block, charges), axis=(2, 3))

        values = jax.lax.map(of_block, blocks)
        total = total.at[blocks.index.ravel()].add(values.ravel(), mode="drop")
    return total


def contracted(rows: Distribution, weight: Float[Array, "nrow nfunction"]) -> Distribution:
    """One function for each row, the weighted sum of its functions; it adds to nothing."""
    coefficient = jnp.einsum("rf,rfkt->rkt", weight, rows.coefficient, precision="highest")
    index = np.zeros((rows.width.shape[0], 1), np.int32)
    return replace(rows, coefficient=coefficient[:, None], index=index)


def charges_of_density(
    pairs: tuple[Distribution, ...],
    aux: tuple[Distribution, ...],
    density: Float[Array, " npair"],
) -> Float[Array, " ncolumn"]:
    """sum_ab D_ab (ab|P) of a packed density; for P see `auxiliary_columns`; hartree."""
    total = [jnp.zeros(ket.index.size, density.dtype) for ket in aux]
    for rows in pairs:
        bra = contracted(rows, density.at[rows.index].get(mode="fill", fill_value=0.0))
        for n, ket in enumerate(aux):
            size = _tile_rows(bra, *ket.width.shape, ket.order)

            @jax.checkpoint
            def of_block(block, ket=ket):
                return jnp.sum(interaction(block, ket), axis=(0, 1)).ravel()

            def add(total, block, of_block=of_block):
                return total + of_block(block), None

            total[n] = jax.lax.scan(add, total[n], blocks_of(bra, size, 0))[0]
    return jnp.concatenate(total)


def coulomb_3c(
    pairs: tuple[Distribution, ...], aux: tuple[Distribution, ...], npair: int
) -> Float[Array, "npair ncolumn"]:
    """(ab|P) for packed pairs; for P see `auxiliary_columns`."""
    width = sum(rows.index.size for rows in aux)
    total = jnp.zeros((npair, width), aux[0].coefficient.dtype)
    end = 0
    for ket in aux:
        start, end = end, end + ket.index.size
        for bra in pairs:
            size = _tile_rows(bra, *ket.width.shape, ket.order)
            blocks = blocks_of(bra, size, npair)

            @jax.checkpoint
            def of_block(block, ket=ket):
                return interaction(block, ket).reshape(-1, ket.index.size)

            def add(total, block, of_block=of_block, start=start, end=end):
                place = total.at[block.index.ravel(), start:end]
                return place.add(of_block(block), mode="drop"), None

            total = jax.lax.scan(add, total, blocks)[0]
    return total


def coulomb_2c(aux: tuple[Distribution, ...]) -> Float[Array, "ncolumn ncolumn"]:
    """(P|Q); for the order see `auxiliary_columns`."""
    block = {}
    for i, bra in enumerate(aux):
        for j, ket in enumerate(aux[: i + 1]):
            size = _tile_rows(bra, *ket.width.shape, ket.order)
            blocks = blocks_of(bra, size, 0)

            @jax.checkpoint
            def of_block(rows, ket=ket):
                return interaction(rows, ket)

            values = jax.lax.map(of_block, blocks)
            nrow, nfunction = bra.index.shape
            values = values.reshape(-1, nfunction, ket.index.size)[:nrow]
            values = jnp.swapaxes(values, 0, 1).reshape(bra.index.size, ket.index.size)
            block[i, j] = values
            if i != j:
                block[j, i] = values.T
    n = len(aux)
    rows = [jnp.concatenate([block[i, j] for j in range(n)], axis=1) for i in range(n)]
    metric = jnp.concatenate(rows)
    return 0.5 * (metric + metric.T)


def auxiliary_columns(aux: tuple[Distribution, ...], naux: int) -> Int[Array, naux]:
    """Where each auxiliary function stands in `coulomb_3c` and `coulomb_2c`.

    These go through one list after the other, rows minor; what fills up a list has a column too.
    """
    index = jnp.concatenate([jnp.asarray(rows.index).T.ravel() for rows in aux])
    column = jnp.arange(index.size, dtype=jnp.int32)
    return jnp.zeros(naux, jnp.int32).at[index].set(column, mode="drop")


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
) -> tuple[tuple[tuple[Distribution, ...], tuple[Float[Array, _], ...]], Int[Array, " {npair}"]]:
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
    norms: tuple[Float[Array, _], ...],
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


def potential_energy(
    pairs: tuple[Distribution, ...],
    charges: Distribution,
    dm: Float[Array, "nao nao"],
) -> Float[Array, ""]:
    """Energy of the density in the potential of charges: sum_ab D_ab times `potential`."""
    density = packed_density(dm)
    total = jnp.zeros((), dm.dtype)
    for rows in pairs:
        bra = contracted(rows, density.at[rows.index].get(mode="fill", fill_value=0.0))
        size = _tile_rows(bra, *charges.width.shape, charges.order)

        def of_block(charges, block):
            every = jnp.ones((block.width.shape[0], 1, 1, charges.width.shape[0]), dm.dtype)
            return weighted_sum(block, charges, every)

        total = total + chunked_sum(of_block, charges, blocks_of(bra, size, 0))
    return total


def weighted_3c(
    pairs: tuple[Distribution, ...],
    aux: tuple[Distribution, ...],
    weight: Float[Array, "npair ncolumn"],
) -> Float[Array, ""]:
    """Sum of weight times `coulomb_3c`."""
    total, end = jnp.zeros((), weight.dtype), 0
    for ket in aux:
        start, end = end, end + ket.index.size
        for bra in pairs:
            size = _tile_rows(bra, *ket.width.shape, ket.order)

            def of_block(shared, block, start=start, end=end):
                weight, ket = shared  # whole: its columns would be a copy of them
                chosen = weight.at[block.index, start:end].get(mode="fill", fill_value=0.0)
                chosen = chosen.reshape(*block.index.shape, *ket.index.T.shape)
                return weighted_sum(block, ket, chosen)

            blocks = blocks_of(bra, size, weight.shape[0])
            total = total + chunked_sum(of_block, (weight, ket), blocks)
    return total


def weighted_2c(
    aux: tuple[Distribution, ...], weight: Float[Array, "ncolumn ncolumn"]
) -> Float[Array, ""]:
    """Sum of a symmetric weight times `coulomb_2c`."""
    total = jnp.zeros((), weight.dtype)
    ends = np.cumsum([0, *(rows.index.size for rows in aux)])
    for i, bra in enumerate(aux):
        nrow, nfunction = bra.index.shape
        place = np.arange(ends[i], ends[i + 1], dtype=np.int32).reshape(nfunction, nrow).T
        bra = replace(bra, index=place)
        for j, ket in enumerate(aux[: i + 1]):
            size = _tile_rows(bra, *ket.width.shape, ket.order)
            part = weight[:, ends[j] : ends[j + 1]]
            part = part if i == j else 2.0 * part

            def of_block(shared, block):
                part, ket = shared
                chosen = part.at[block.index].get(mode="fill", fill_value=0.0)
                chosen = chosen.reshape(*block.index.shape, *ket.index.T.shape)
                return weighted_sum(block, ket, chosen)

            blocks = blocks_of(bra, size, weight.shape[0])
            total = total + chunked_sum(of_block, (part, ket), blocks)
    return total


def packed_density(dm: Float[Array, "nao nao"]) -> Float[Array, " npair"]:
    """Sum of D_ab and D_ba for each pair a > b, D_aa for a = b."""
    i, j = np.tril_indices(dm.shape[-1])
    return dm[i, j] * jnp.asarray(np.where(i == j, 1.0, 2.0), dm.dtype)


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
    a, b = high[bra][:, :, None, None], low[bra][:, :, None, None]
    c, d = high[ket][None, None], low[ket][None, None]
    gamma = jnp.zeros((), dm.dtype)
    if coulomb is not None:
        density = jnp.sum(dm, axis=0)
        gamma = 0.5 * coulomb * density[a, b] * density[c, d]
    if exchange is not None:
        for spin in dm:
            swapped = spin[a, c] * spin[b, d] + spin[a, d] * spin[b, c]
            gamma = gamma - 0.25 * exchange * swapped
    several = jnp.where(a == b, 1, 2) * jnp.where(c == d, 1, 2)
    return gamma * jnp.where(inside, several, 0).astype(dm.dtype)
