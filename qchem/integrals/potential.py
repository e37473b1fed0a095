"""The potential of given charges, and the energy of a density in it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from qchem.chunking import chunked_sum
from qchem.devices import Share, spread
from qchem.integrals.kernel import interaction, weighted_sum
from qchem.integrals.pairs import Distribution
from qchem.integrals.tiles import (
    any_of_blocks,
    blocks_of,
    density_of,
    if_wanted,
    own_rows,
    own_wanted,
    tile_rows,
    wanted_blocks,
    wanted_rows,
)


def potential(
    pairs: tuple[Distribution, ...],
    charges: Distribution,
    npair: int,
    mesh: Mesh | None = None,
) -> Float[Array, " npair"]:
    """Interaction of every AO pair with the sum of all charges; hartree, signed as the charges.

    Args:
        mesh: Devices that share the pairs.
    """
    share = Share.of(mesh)

    def shared(pairs, charges):
        return share.total(_potential(own_rows(pairs, share, npair), charges, npair))

    return spread(shared, mesh, P(), P())(pairs, charges)


def _potential(pairs, charges, npair):
    total = jnp.zeros(npair, charges.coefficient.dtype)
    for bra in pairs:
        size = tile_rows(bra, *charges.width.shape, charges.order)
        blocks = blocks_of(bra, size, npair)

        @jax.checkpoint
        def of_block(block):
            return jnp.sum(interaction(block, charges), axis=(2, 3))

        values = jax.lax.map(if_wanted(of_block), (blocks, wanted_blocks(bra, size)))
        total = total.at[blocks.index.ravel()].add(values.ravel(), mode="drop")
    return total


def potential_energy(
    pairs: tuple[Distribution, ...],
    charges: Distribution,
    density: Float[Array, " npair"],
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """Energy of a packed density in the potential of charges: sum_ab D_ab times `potential`.

    Args:
        mesh: Devices that share the pairs.
    """
    share = Share.of(mesh)
    # The density contracts the rows beforehand: devices then have little to add up in reverse mode.
    rows = tuple(density_of(x, density) for x in pairs)
    wanted = tuple(wanted_rows(x) for x in pairs)

    def shared(rows, wanted, charges):
        own = tuple(own_wanted(x, share) for x in wanted)
        return share.total(_energy(own_rows(rows, share, 0), own, charges))

    return spread(shared, mesh, P(), P())(rows, wanted, charges)


def _energy(rows, wanted, charges):
    """Of rows of one function each."""
    dtype = charges.coefficient.dtype
    total = jnp.zeros((), dtype)
    for bra, of_bra in zip(rows, wanted, strict=True):
        size = tile_rows(bra, *charges.width.shape, charges.order)

        def of_block(charges, block):
            every = jnp.ones((block.width.shape[0], 1, 1, charges.width.shape[0]), dtype)
            return weighted_sum(block, charges, every)

        blocks = blocks_of(bra, size, 0)
        total = total + chunked_sum(of_block, charges, blocks, any_of_blocks(of_bra, size))
    return total
