"""Coulomb integrals (ab|P) and (P|Q) of any distributions."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qchem.chunking import chunked_sum
from qchem.integrals.kernel import interaction, weighted_sum
from qchem.integrals.pairs import Distribution
from qchem.integrals.potential import potential, potential_energy
from qchem.integrals.tiles import blocks_of, contracted, density_of, tile_rows


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
            size = tile_rows(bra, *ket.width.shape, ket.order)
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
            size = tile_rows(bra, *ket.width.shape, ket.order)
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


def auxiliary_columns(aux: tuple[Distribution, ...], naux: int) -> Int[Array, " naux"]:
    """Where each auxiliary function stands in `coulomb_3c` and `coulomb_2c`.

    These go through one list after the other, rows minor; what fills up a list has a column too.
    """
    index = jnp.concatenate([jnp.asarray(rows.index).T.ravel() for rows in aux])
    column = jnp.arange(index.size, dtype=jnp.int32)
    return jnp.zeros(naux, jnp.int32).at[index].set(column, mode="drop")


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
            total = total + _weighted(bra, ket, weight, start, end)
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
            times = 1.0 if i == j else 2.0
            total = total + times * _weighted(bra, ket, weight, ends[j], ends[j + 1])
    return total


def _weighted(bra, ket, weight, start, end):
    """Sum of the integrals of two lists times the weight's rows of the one and columns from start
    to end of the other."""

    def of_block(shared, block):
        weight, ket = shared  # whole: its columns would be a copy of them
        chosen = weight.at[block.index, start:end].get(mode="fill", fill_value=0.0)
        return weighted_sum(block, ket, chosen.reshape(*block.index.shape, *ket.index.T.shape))

    size = tile_rows(bra, *ket.width.shape, ket.order)
    return chunked_sum(of_block, (weight, ket), blocks_of(bra, size, weight.shape[0]))


def charges_of_density(
    pairs: tuple[Distribution, ...],
    aux: tuple[Distribution, ...],
    density: Float[Array, " npair"],
) -> Float[Array, " ncolumn"]:
    """sum_ab D_ab (ab|P) of a packed density; for P see `auxiliary_columns`; hartree."""
    total = [jnp.zeros(ket.index.size, density.dtype) for ket in aux]
    for rows in pairs:
        bra = density_of(rows, density)
        for n, ket in enumerate(aux):
            size = tile_rows(bra, *ket.width.shape, ket.order)

            @jax.checkpoint
            def of_block(block, ket=ket):
                return jnp.sum(interaction(block, ket), axis=(0, 1)).ravel()

            def add(total, block, of_block=of_block):
                return total + of_block(block), None

            total[n] = jax.lax.scan(add, total[n], blocks_of(bra, size, 0))[0]
    return jnp.concatenate(total)


def potential_of_charges(
    pairs: tuple[Distribution, ...],
    aux: tuple[Distribution, ...],
    charge: Float[Array, " ncolumn"],
    npair: int,
) -> Float[Array, " {npair}"]:
    """sum_P (ab|P) d_P of packed pairs; hartree."""
    return sum(potential(pairs, rows, npair) for rows in _charged(aux, charge))


def energy_of_charges(
    pairs: tuple[Distribution, ...],
    aux: tuple[Distribution, ...],
    density: Float[Array, " npair"],
    charge: Float[Array, " ncolumn"],
) -> Float[Array, ""]:
    """sum_ab D_ab sum_P (ab|P) d_P of a packed density; hartree."""
    return sum(potential_energy(pairs, rows, density) for rows in _charged(aux, charge))


def _charged(aux, charge):
    """The lists with each row's functions added up, times the charge of each."""
    ends = np.cumsum([0, *(rows.index.size for rows in aux)])
    lists = []
    for rows, start, end in zip(aux, ends, ends[1:]):
        weight = charge[start:end].reshape(rows.index.T.shape).T
        lists.append(contracted(rows, weight))
    return lists
