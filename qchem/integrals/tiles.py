"""Lists of distributions in tiles: how many rows at once, and which device takes which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qchem.compilation import platform
from qchem.devices import Share
from qchem.integrals.coulomb import nhermite
from qchem.integrals.pairs import Distribution, coulomb_norm

NEGLIGIBLE = 1e-16  # hartree^(1/2): norm of rows of pairs; those of auxiliary functions are ten
_TILE_BYTES = {"cpu": 1 << 20}  # R held at once by each geometry; CPU: its cache
_ELSEWHERE = 1 << 25  # however many go together: derivative rules are traced where none know that


def tile_bytes() -> int:
    """Memory of the R that are held at once."""
    return _TILE_BYTES.get(platform(), _ELSEWHERE)


def tile_rows(bra: Distribution, nket: int, mprim: int, ket_order: int) -> int:
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


def wanted_blocks(rows: Distribution, size: int) -> Bool[Array, " nblock"]:
    """Which blocks of `size` rows have `wanted_rows`."""
    return any_of_blocks(wanted_rows(rows), size)


def any_of_blocks(wanted: Bool[Array, " nrow"], size: int) -> Bool[Array, " nblock"]:
    """Whether any row of a block is wanted."""
    return jnp.any(jnp.pad(wanted, (0, -wanted.size % size)).reshape(-1, size), axis=1)


def wanted_rows(rows: Distribution) -> Bool[Array, " nrow"]:
    """Which rows have integrals that are not negligible, or not numbers.

    Coulomb norms bound integrals with auxiliary functions, and, times the fourth root of an
    exponent, potentials at nuclei. They are those of the rows themselves, not of their sum with a
    density, whose derivative would miss what a small density leaves out.
    """
    return ~(coulomb_norm(jax.lax.stop_gradient(rows)) <= NEGLIGIBLE)


def if_wanted(function: Callable[[Distribution], Array]) -> Callable[..., Array]:
    """The function of blocks that are wanted, zero for others; of both, to be mapped over them.

    What it returns should be small: under `vmap` both are made, and one is chosen.
    """

    function = jax.jit(function, inline=True)  # to be traced once

    def chosen(blocks):
        block, wanted = blocks
        made = jax.eval_shape(function, block)
        nothing = jnp.zeros(made.shape, made.dtype)
        return jax.lax.cond(wanted, function, lambda _: nothing, block)

    return chosen


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
        return jax.tree.map(lambda x: share.one_of(x, 1), dealt)

    return tuple(own(rows) for rows in lists)


def own_wanted(wanted: Bool[Array, " nrow"], share: Share) -> Bool[Array, " own"]:
    """Which of a list of `own_rows` are wanted."""
    if share.alone:
        return wanted
    filled = jnp.pad(wanted, (0, -wanted.size % share.count))
    return share.one_of(filled.reshape(-1, share.count), 1)


def contracted(rows: Distribution, weight: Float[Array, "nrow nfunction"]) -> Distribution:
    """One function for each row, the weighted sum of its functions; it adds to nothing."""
    coefficient = jnp.einsum("rf,rfkt->rkt", weight, rows.coefficient, precision="highest")
    index = np.zeros((rows.width.shape[0], 1), np.int32)
    return replace(rows, coefficient=coefficient[:, None], index=index)


def density_of(rows: Distribution, density: Float[Array, " npair"]) -> Distribution:
    """One function for each row of a list of AO pairs: what it is of a packed density."""
    return contracted(rows, density.at[rows.index].get(mode="fill", fill_value=0.0))
