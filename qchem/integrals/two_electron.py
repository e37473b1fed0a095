"""Coulomb integrals (P|Q), (ab|P), (ab|cd), and the potential of given charges."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from qchem.chunking import chunked_sum
from qchem.integrals.coulomb import hermite_coulomb, lowered_index, nhermite, sum_index
from qchem.integrals.pairs import Distribution, coulomb_norm, hermite_sign

SCREENING = 1e-12  # hartree: tiles whose integrals are all smaller are left out
_TILE_BYTES = {"cpu": 1 << 20, "gpu": 1 << 25, "tpu": 1 << 25}  # R held at once; CPU: its cache


def interaction(
    bra: Distribution, ket: Distribution
) -> Float[Array, "nbra nfunction_bra nfunction_ket nket"]:
    """Coulomb integrals (f|g) between all rows of two lists, in one piece.

    (f|g) = sum_pq E_f[p] R_{p+q}(alpha, P - Q) E_g[q] (-1)^|q|, (9.9.33) of Helgaker, Jørgensen &
    Olsen (2000), with 1/alpha = 1/p + 1/q.

    A change of a distribution's center, width or coefficients is again a distribution of the same
    widths and centers, of higher order; so the derivative is d(f|g) = (df|g) + (f|dg), with the
    same contraction and R of a higher order.

    Args:
        bra, ket: The lists; the ket should be the one of lower order.

    Returns:
        Integrals, hartree; the ket's rows are the minor axis.
    """
    return _interaction(*_operands(bra, ket))


def _operands(bra, ket):
    sides = (bra.order, bra.lowest), (ket.order, ket.lowest)
    first = bra.width, bra.center, bra.coefficient
    return sides, *first, ket.width, ket.center, ket.coefficient


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _interaction(sides, width, center, coefficient, ket_width, ket_center, ket):
    order = sides[0][0] + sides[1][0]
    r = _separated(order, width, center, ket_width, ket_center)
    return _contract(r, *sides, coefficient, ket)


def _interaction_jvp(sides, primals, tangents):
    (width, center, bra), (ket_width, ket_center, ket) = primals[:3], primals[3:]
    dbra, bra_side = _perturbed(sides[0], bra, *tangents[:3])
    dket, ket_side = _perturbed(sides[1], ket, *tangents[3:])
    plain = sides[0][0] + sides[1][0]
    order = max(plain, bra_side[0] + sides[1][0], sides[0][0] + ket_side[0])
    r = _separated(order, width, center, ket_width, ket_center)
    value = _contract(r, *sides, bra, ket)
    tangent = jnp.zeros_like(value)
    if dbra is not None:
        tangent = tangent + _contract(r, bra_side, sides[1], dbra, ket)
    if dket is not None:
        tangent = tangent + _contract(r, sides[0], ket_side, bra, dket)
    return value, tangent


_interaction.defjvp(_interaction_jvp, symbolic_zeros=True)


def _separated(order, width, center, ket_width, ket_center):
    """R of the bra's primitives against all of the ket's: nbra, nprim, nhermite, (mprim nket)."""
    ket_width = ket_width.T
    ket_center = jnp.transpose(ket_center, (2, 1, 0))

    def one(s, p):
        return hermite_coulomb(order, 1.0 / (s + ket_width), p[:, None, None] - ket_center)

    r = jax.vmap(jax.vmap(one))(width, center)
    return r.reshape(*r.shape[:3], -1)


def _contract(r, bra_side, ket_side, bra, ket):
    """sum_pq E_f[p] R_{p+q} E_g[q] (-1)^|q|: bilinear in the coefficients.

    The bra first, as a matrix product with rows of R for a few Hermite functions of the ket at a
    time; then the ket, whose coefficients differ from row to row, element by element.
    """
    mprim, nket = ket.shape[2], ket.shape[0]
    signed = _signed(ket, ket_side)
    total = None
    for block in _hermite_blocks(r, bra_side, ket_side):
        half = _half(r, bra, bra_side, ket_side, block, mprim)
        for n, q in enumerate(block):
            for m in range(mprim):
                term = half[:, :, None, n, m] * signed[q, :, m][None, None]
                total = term if total is None else total + term
    return total.reshape(*bra.shape[:2], -1, nket)


def _half(r, bra, bra_side, ket_side, block, mprim):
    """sum_p E_f[p] R_{p+q} for the ket's Hermite functions q of a block: (i, f, q, m, j)."""
    rows = _rows(r, bra_side, ket_side, block)
    bra = bra.reshape(*bra.shape[:2], -1)
    half = jnp.einsum("ifp,ipj->ifj", bra, rows, precision="highest")
    return half.reshape(*bra.shape[:2], len(block), mprim, -1)


def _rows(r, bra_side, ket_side, block):
    """R_{p+q} for the ket's Hermite functions q of a block: (i, (k, p), (q, m, j))."""
    index = sum_index(bra_side[0], ket_side[0], bra_side[1], ket_side[1])[:, block]
    rows = r[:, :, index]
    return rows.reshape(r.shape[0], r.shape[1] * index.shape[0], -1)


def _hermite_blocks(r, bra_side, ket_side):
    """The ket's Hermite functions in blocks whose rows take about twice the memory of R."""
    total, size = nhermite(*ket_side), max(1, 2 * r.shape[2] // nhermite(*bra_side))
    return [np.arange(start, min(start + size, total)) for start in range(0, total, size)]


def _signed(ket, ket_side):
    """Coefficients of the ket times (-1)^|q|, with its rows as the minor axis: (q, g, m, j)."""
    sign = jnp.asarray(hermite_sign(*ket_side), ket.dtype)
    return jnp.transpose(ket * sign[None, None, None, :], (3, 1, 2, 0))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _weighted(sides, width, center, bra, ket_width, ket_center, ket, weight):
    """sum of weight (f|g): what energies need. Its derivative needs no integral derivatives."""
    arrays = (width, center, bra, ket_width, ket_center, ket)
    return jnp.vdot(weight, _interaction(sides, *arrays))


def _weighted_jvp(sides, primals, tangents):
    width, center, bra, ket_width, ket_center, ket, weight = primals
    dbra, bra_side = _perturbed(sides[0], bra, *tangents[:3])
    dket, ket_side = _perturbed(sides[1], ket, *tangents[3:6])
    dweight = tangents[6]
    order = max(sides[0][0] + sides[1][0], bra_side[0] + sides[1][0], sides[0][0] + ket_side[0])
    r = _separated(order, width, center, ket_width, ket_center)
    value = None
    tangent = jnp.zeros((), bra.dtype)
    if not isinstance(dweight, SymbolicZero):
        integrals = _contract(r, *sides, bra, ket)
        value = jnp.vdot(weight, integrals)
        tangent = tangent + jnp.vdot(integrals, dweight)
    if dket is not None:
        slope = _ket_slope(r, sides[0], ket_side, bra, weight, ket.shape[2])
        tangent = tangent + jnp.vdot(slope, _signed(dket, ket_side))
    if dbra is not None or value is None:
        slope = _bra_slope(r, bra_side, sides[1], ket, weight)
        if dbra is not None:
            tangent = tangent + jnp.vdot(slope, dbra)
        if value is None:
            value = jnp.vdot(slope[..., : bra.shape[-1]], bra)
    return value, tangent


_weighted.defjvp(_weighted_jvp, symbolic_zeros=True)


def _bra_slope(r, bra_side, ket_side, ket, weight):
    """Derivative of the weighted sum in the bra's coefficients: sum_gq w_fg R_{p+q} E_g[q]."""
    signed = _signed(ket, ket_side)
    total = None
    for block in _hermite_blocks(r, bra_side, ket_side):
        chosen = signed[block]  # q, g, m, j
        density = None
        for g in range(chosen.shape[1]):
            term = weight[:, :, g][:, :, None, None] * chosen[:, g][None, None]
            density = term if density is None else density + term
        density = density.reshape(*weight.shape[:2], -1)
        rows = _rows(r, bra_side, ket_side, block)
        term = jnp.einsum("ifj,ipj->ifp", density, rows, precision="highest")
        total = term if total is None else total + term
    return total.reshape(*weight.shape[:2], r.shape[1], -1)


def _ket_slope(r, bra_side, ket_side, bra, weight, mprim):
    """Derivative of the weighted sum in the ket's signed coefficients: (q, g, m, j)."""
    parts = []
    for block in _hermite_blocks(r, bra_side, ket_side):
        half = _half(r, bra, bra_side, ket_side, block, mprim)
        parts.append(jnp.einsum("ifgj,ifqmj->qgmj", weight, half, precision="highest"))
    return jnp.concatenate(parts)


def _perturbed(side, coefficient, dwidth, dcenter, dcoefficient):
    """Coefficients, and (order, lowest), of the change of a distribution; None for no change.

    The derivative with respect to a center raises a Hermite index; that with respect to the
    width s = 1/p of exp(-r^2/s) is a quarter of the Laplacian (heat equation).
    """
    order, lowest = side
    changes = [t for t in (dwidth, dcenter, dcoefficient) if not isinstance(t, SymbolicZero)]
    if not changes:
        return None, side
    top = order + max(
        2 * (not isinstance(dwidth, SymbolicZero)), int(not isinstance(dcenter, SymbolicZero))
    )
    if isinstance(dcoefficient, SymbolicZero) and isinstance(dwidth, SymbolicZero):
        lowest += 1
    total = jnp.zeros((*coefficient.shape[:3], nhermite(top, lowest)), coefficient.dtype)
    if not isinstance(dcoefficient, SymbolicZero):
        missing = total.shape[3] - dcoefficient.shape[3]
        total = total + jnp.pad(dcoefficient, ((0, 0), (0, 0), (0, 0), (0, missing)))
    for axis in range(3):
        if not isinstance(dcenter, SymbolicZero):
            raised = _raised_coefficients(coefficient, side, (top, lowest), axis, 1)
            total = total + raised * dcenter[:, None, :, axis, None]
        if not isinstance(dwidth, SymbolicZero):
            raised = _raised_coefficients(coefficient, side, (top, lowest), axis, 2)
            total = total + raised * (0.25 * dwidth)[:, None, :, None]
    return total, (top, lowest)


def _raised_coefficients(coefficient, side, target, axis, power):
    """Coefficients of the `power`-th derivative along an axis, in the powers of `target`."""
    source = lowered_index(*target, *side, axis, power)
    zero = jnp.zeros_like(coefficient[..., :1])
    return jnp.concatenate([coefficient, zero], axis=-1)[..., source]


def _tile_rows(bra: Distribution, nket: int, mprim: int, ket_order: int) -> int:
    """Rows of the bra per tile, so that R of the tile stays within the stated bytes."""
    budget = _TILE_BYTES.get(jax.default_backend(), 1 << 25)
    per_row = bra.width.shape[1] * nket * mprim * nhermite(bra.order + ket_order)
    return max(1, min(bra.width.shape[0], budget // (8 * per_row)))


def _blocks(rows: Distribution, size: int, ntarget: int) -> Distribution:
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


def potential(
    pairs: tuple[Distribution, ...],
    charges: Distribution,
    npair: int,
) -> Float[Array, npair]:
    """Interaction of every AO pair with the sum of all charges; hartree, signed as the charges."""
    total = jnp.zeros(npair, charges.coefficient.dtype)
    for bra in pairs:
        size = _tile_rows(bra, *charges.width.shape, charges.order)
        blocks = _blocks(bra, size, npair)

        @jax.checkpoint
        def of_block(block):
            return jnp.sum(interaction(block, charges), axis=(2, 3))

        values = jax.lax.map(of_block, blocks)
        total = total.at[blocks.index.ravel()].add(values.ravel(), mode="drop")
    return total


def coulomb_3c(
    pairs: tuple[Distribution, ...],
    aux: tuple[Distribution, ...],
    npair: int,
    naux: int,
) -> Float[Array, "npair naux"]:
    """(ab|P) for packed pairs."""
    columns = []
    for ket in aux:
        width = ket.index.size
        total = jnp.zeros((npair, width), ket.coefficient.dtype)
        for bra in pairs:
            size = _tile_rows(bra, *ket.width.shape, ket.order)
            blocks = _blocks(bra, size, npair)

            @jax.checkpoint
            def of_block(block, ket=ket):
                return interaction(block, ket).reshape(-1, ket.index.size)

            values = jax.lax.map(of_block, blocks)
            total = total.at[blocks.index.ravel()].add(values.reshape(-1, width), mode="drop")
        columns.append(total)
    return jnp.concatenate(columns, axis=1)[:, _auxiliary_columns(aux, naux)]


def coulomb_2c(aux: tuple[Distribution, ...], naux: int) -> Float[Array, "naux naux"]:
    """(P|Q)."""
    block = {}
    for i, bra in enumerate(aux):
        for j, ket in enumerate(aux[: i + 1]):
            size = _tile_rows(bra, *ket.width.shape, ket.order)
            blocks = _blocks(bra, size, 0)

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
    place = _auxiliary_columns(aux, naux)
    metric = jnp.concatenate(rows)[place][:, place]
    return 0.5 * (metric + metric.T)


def _auxiliary_columns(aux, naux):
    """Column of each auxiliary function where the lists follow each other, rows minor."""
    index = jnp.concatenate([jnp.asarray(rows.index).T.ravel() for rows in aux])
    column = jnp.arange(index.size, dtype=jnp.int32)
    return jnp.zeros(naux, jnp.int32).at[index].set(column, mode="drop")


def _tiles(bra: Distribution, ket: Distribution) -> tuple[int, int]:
    """Rows of bra and ket per tile of a four-centre class: a few rows against a long row."""
    budget = _TILE_BYTES.get(jax.default_backend(), 1 << 25)
    order = bra.order + ket.order
    quartets = budget // (8 * bra.width.shape[1] * ket.width.shape[1] * nhermite(order))
    nket = max(1, min(ket.width.shape[0], int((8 * quartets) ** 0.5)))
    return max(1, min(bra.width.shape[0], quartets // nket)), nket


def coulomb_4c(
    pairs: tuple[Distribution, ...], npair: int
) -> Float[Array, npair * (npair + 1) // 2]:
    """(ab|cd) with 8-fold symmetry: packed pairs of packed pairs."""
    size = npair * (npair + 1) // 2
    total = jnp.zeros(size, pairs[0].coefficient.dtype)
    pairs = [_by_norm(rows) for rows in pairs]
    for i, bra in enumerate(pairs):
        for ket in pairs[: i + 1]:
            total = _add_class(total, *bra, *ket, npair)
    return total


def _by_norm(rows):
    """The rows in order of falling norm, so that tiles of negligible integrals form; the norms."""
    norms = coulomb_norm(jax.lax.stop_gradient(rows))
    order = jnp.argsort(-norms)
    return jax.tree.map(lambda x: jnp.asarray(x)[order], rows), norms[order]


def _bounds(norms, size):
    """Largest norm of each block: by Cauchy and Schwarz |(f|g)| is at most the product of two."""
    return norms[::size]


def _add_class(total, bra, bra_norms, ket, ket_norms, npair):
    """Adds one class; within one list, rows i >= j alone."""
    same = bra is ket
    nbra, nket = _tiles(bra, ket)
    bras, kets = _blocks(bra, nbra, npair), _blocks(ket, nket, npair)
    bra_bounds, ket_bounds = _bounds(bra_norms, nbra), _bounds(ket_norms, nket)
    i, j = np.indices((bras.width.shape[0], kets.width.shape[0])).reshape(2, -1)
    if same:
        wanted = (i + 1) * nbra > j * nket
        i, j = i[wanted], j[wanted]

    @jax.checkpoint
    def tile(i, j):
        block_bra = jax.tree.map(lambda x: x[i], bras)
        block_ket = jax.tree.map(lambda x: x[j], kets)
        values = interaction(block_bra, block_ket)
        f = block_bra.index[:, :, None, None]
        g = block_ket.index.T[None, None]
        high, low = jnp.maximum(f, g), jnp.minimum(f, g)
        inside = high < npair
        if same:
            row = (i * nbra + jnp.arange(nbra, dtype=i.dtype))[:, None, None, None]
            column = (j * nket + jnp.arange(nket, dtype=j.dtype))[None, None, None]
            values = jnp.where((row > column) & (f == g), 2.0 * values, values)
            inside &= (row > column) | ((row == column) & (f >= g))
        target = jnp.where(inside, high * (high + 1) // 2 + low, total.size)
        return values.ravel(), target.ravel()

    def nothing(i, j):
        shape = nbra * bra.index.shape[1] * ket.index.shape[1] * nket
        return jnp.zeros(shape, total.dtype), jnp.full(shape, total.size, jnp.int32)

    def step(total, ij):
        i, j = ij
        wanted = bra_bounds[i] * ket_bounds[j] > SCREENING
        values, target = jax.lax.cond(wanted, tile, nothing, i, j)
        return total.at[target].add(values, mode="drop"), None

    return jax.lax.scan(step, total, (i.astype(np.int32), j.astype(np.int32)))[0]


def potential_energy(
    pairs: tuple[Distribution, ...],
    charges: Distribution,
    dm: Float[Array, "nao nao"],
) -> Float[Array, ""]:
    """Energy of the density in the potential of charges: sum_ab D_ab times `potential`."""
    density = _packed_density(dm)
    total = jnp.zeros((), dm.dtype)
    for bra in pairs:
        size = _tile_rows(bra, *charges.width.shape, charges.order)

        def of_block(shared, block):
            density, charges = shared
            weight = density.at[block.index].get(mode="fill", fill_value=0.0)
            weight = jnp.broadcast_to(
                weight[:, :, None, None], (*weight.shape, 1, charges.width.shape[0])
            )
            return weighted_sum(block, charges, weight)

        blocks = _blocks(bra, size, density.size)
        total = total + chunked_sum(of_block, (density, charges), blocks)
    return total


def weighted_sum(
    bra: Distribution,
    ket: Distribution,
    weight: Float[Array, "nbra nfunction_bra nfunction_ket nket"],
) -> Float[Array, ""]:
    """Sum of weight times `interaction`, with cheap derivatives; hartree."""
    return _weighted(*_operands(bra, ket), weight)


def weighted_3c(
    pairs: tuple[Distribution, ...],
    aux: tuple[Distribution, ...],
    weight: Float[Array, "npair naux"],
) -> Float[Array, ""]:
    """Sum of weight times `coulomb_3c`."""
    total = jnp.zeros((), weight.dtype)
    for ket in aux:
        columns = weight.at[:, ket.index.T.ravel()].get(mode="fill", fill_value=0.0)
        for bra in pairs:
            size = _tile_rows(bra, *ket.width.shape, ket.order)

            def of_block(shared, block, shape=ket.index.T.shape):
                columns, ket = shared
                chosen = columns.at[block.index].get(mode="fill", fill_value=0.0)
                chosen = chosen.reshape(*block.index.shape, *shape)
                return weighted_sum(block, ket, chosen)

            blocks = _blocks(bra, size, weight.shape[0])
            total = total + chunked_sum(of_block, (columns, ket), blocks)
    return total


def weighted_2c(
    aux: tuple[Distribution, ...], weight: Float[Array, "naux naux"]
) -> Float[Array, ""]:
    """Sum of a symmetric weight times `coulomb_2c`."""
    total = jnp.zeros((), weight.dtype)
    for i, bra in enumerate(aux):
        for j, ket in enumerate(aux[: i + 1]):
            size = _tile_rows(bra, *ket.width.shape, ket.order)
            part = weight if i == j else 2.0 * weight

            def of_block(shared, block):
                part, ket = shared
                at = block.index[:, :, None, None], ket.index.T[None, None]
                chosen = part.at[at].get(mode="fill", fill_value=0.0)
                return weighted_sum(block, ket, chosen)

            blocks = _blocks(bra, size, weight.shape[0])
            total = total + chunked_sum(of_block, (part, ket), blocks)
    return total


def _packed_density(dm):
    """Sum of D_ab and D_ba for each pair a > b, D_aa for a = b."""
    i, j = np.tril_indices(dm.shape[-1])
    return dm[i, j] * jnp.asarray(np.where(i == j, 1.0, 2.0), dm.dtype)


def coulomb_energy(
    pairs: tuple[Distribution, ...],
    dm: Float[Array, "nspin nao nao"],
    coulomb: float,
    exchange: float,
) -> Float[Array, ""]:
    """Weighted Coulomb and exchange energy of `dm`; integrals are made in tiles, never stored.

    Differentiable in the pairs and in `dm`: its gradients are forces and Fock matrices.

    Args:
        pairs: Distributions of the AO pairs.
        dm: Symmetric density matrices.
        coulomb, exchange: Weights of the two terms.

    Returns:
        coulomb/2 sum D_ab D_cd (ab|cd) - exchange/2 sum_s sum D^s_ac D^s_bd (ab|cd), hartree, with
        D the sum of all D^s.
    """
    total = jnp.zeros((), dm.dtype)
    pairs = [_by_norm(rows) for rows in pairs]
    for i, bra in enumerate(pairs):
        for ket in pairs[: i + 1]:
            total = total + _class_energy(*bra, *ket, dm, coulomb, exchange)
    return total


def _class_energy(bra, bra_norms, ket, ket_norms, dm, coulomb, exchange):
    same = bra is ket
    nao = dm.shape[-1]
    size = nao * (nao + 1) // 2
    nbra, nket = _tiles(bra, ket)
    bras, kets = _blocks(bra, nbra, size), _blocks(ket, nket, size)

    def tile(shared, scanned):
        dm, bra, first, _ = shared
        ket, start, _ = scanned
        gamma = _pair_density(dm, bra.index, ket.index.T, coulomb, exchange)
        if not same:
            return weighted_sum(bra, ket, 2.0 * gamma)
        row = (first + jnp.arange(nbra, dtype=first.dtype))[:, None, None, None]
        column = (start + jnp.arange(nket, dtype=start.dtype))[None, None, None]
        times = jnp.where(row > column, 2, (row == column).astype(jnp.int32))
        return weighted_sum(bra, ket, gamma * times.astype(dm.dtype))

    def wanted_tile(shared, scanned):
        wanted = shared[3] * scanned[2] > SCREENING
        if same:
            wanted &= shared[2] + nbra > scanned[1]
        return jax.lax.cond(wanted, tile, lambda *_: jnp.zeros((), dm.dtype), shared, scanned)

    def of_bra(shared, scanned):
        dm, *kets = shared
        return chunked_sum(wanted_tile, (dm, *scanned), tuple(kets))

    firsts = np.arange(bras.width.shape[0], dtype=np.int32) * nbra
    starts = np.arange(kets.width.shape[0], dtype=np.int32) * nket
    shared = dm, kets, starts, _bounds(ket_norms, nket)
    return chunked_sum(of_bra, shared, (bras, firsts, _bounds(bra_norms, nbra)))


def _pair_density(dm, bra, ket, coulomb, exchange):
    """What multiplies (ab|cd) of packed pairs a >= b, c >= d in the energy."""
    nao = dm.shape[-1]
    high, low = (jnp.asarray(x.astype(np.int32)) for x in np.tril_indices(nao))
    inside = (bra < high.size)[:, :, None, None] & (ket < high.size)[None, None]
    bra, ket = (jnp.minimum(index, high.size - 1) for index in (bra, ket))
    a, b = high[bra][:, :, None, None], low[bra][:, :, None, None]
    c, d = high[ket][None, None], low[ket][None, None]
    gamma = jnp.zeros((), dm.dtype)
    if coulomb:
        density = jnp.sum(dm, axis=0)
        gamma = 0.5 * coulomb * density[a, b] * density[c, d]
    if exchange:
        for spin in dm:
            swapped = spin[a, c] * spin[b, d] + spin[a, d] * spin[b, c]
            gamma = gamma - 0.25 * exchange * swapped
    several = jnp.where(a == b, 1, 2) * jnp.where(c == d, 1, 2)
    return gamma * jnp.where(inside, several, 0).astype(dm.dtype)
