"""The potential of given charges, and the energy of a density in it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qchem.chunking import chunked_sum
from qchem.integrals.kernel import interaction, weighted_sum
from qchem.integrals.pairs import Distribution
from qchem.integrals.tiles import blocks_of, density_of, if_wanted, tile_rows, wanted_blocks


def potential(
    pairs: tuple[Distribution, ...],
    charges: Distribution,
    npair: int,
) -> Float[Array, " npair"]:
    """Interaction of every AO pair with the sum of all charges; hartree, signed as the charges."""
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
) -> Float[Array, ""]:
    """Energy of a packed density in the potential of charges: sum_ab D_ab times `potential`."""
    total = jnp.zeros((), density.dtype)
    for rows in pairs:
        bra = density_of(rows, density)
        size = tile_rows(bra, *charges.width.shape, charges.order)

        def of_block(charges, block):
            every = jnp.ones((block.width.shape[0], 1, 1, charges.width.shape[0]), density.dtype)
            return weighted_sum(block, charges, every)

        blocks = blocks_of(bra, size, 0)
        total = total + chunked_sum(of_block, charges, blocks, wanted_blocks(rows, size))
    return total
