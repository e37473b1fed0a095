"""Shells that count at a chunk of points: the others are left out, in programs of few sizes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qchem.basis.layout import Basis
from qchem.basis.reach import Counts, Depths, Reach
from qchem.basis.spherical import ncomponent


class Shells(NamedTuple):
    """Some shells of a basis; their rows among those of all (`ao_of_row`), None for all."""

    basis: Basis
    depths: Depths
    rows: Int[Array, " nrow"] | None = None


def over_reaching(
    function: Callable[[Shells], Any],
    basis: Basis,
    depths: Depths,
    reach: Reach,
    positions: Float[Array, "natom 3"],
    points: Float[Array, "npoint 3"],
) -> Any:
    """The function of the shells that reach the points, and of some more up to a capacity.

    Which ones is constant to derivatives. Where there are no capacities, it is the function of all
    shells.
    """
    everything = Shells(basis, depths)
    if not reach.capacities:
        return function(everything)
    excess = excess_reach(basis, reach, positions, points)
    branches = [
        lambda counts=counts: function(_reaching(basis, depths, counts, excess))
        for counts in reach.capacities
    ]
    small = too_small(excess, depths, reach.capacities)
    return jax.lax.switch(small, [*branches, lambda: function(everything)])


def excess_reach(
    basis: Basis,
    reach: Reach,
    positions: Float[Array, "natom 3"],
    points: Float[Array, "npoint 3"],
) -> list[Float[Array, " _"]]:
    """By how much the shells of each batch reach further than to the nearest of the points, bohr;
    constant to derivatives."""
    positions, points = jax.lax.stop_gradient((positions, points))
    high, low = jnp.max(points, axis=0), jnp.min(points, axis=0)
    center = 0.5 * (high + low)
    radius = jnp.sqrt(jnp.max(jnp.sum((points - center[None]) ** 2, axis=1)))
    distance = jnp.sqrt(jnp.sum((positions - center[None]) ** 2, axis=1)) - radius
    pairs = zip(basis.batches, reach.radii, strict=True)
    return [radii - distance[batch.atom] for batch, radii in pairs]


def too_small(
    excess: list[Float[Array, " _"]], depths: Depths, capacities: tuple[Counts, ...]
) -> Int[Array, ""]:
    """How many of the capacities have too little room for the shells that reach."""
    needed = [jnp.sum(x > 0) for x in _grouped(excess, depths)]
    small = []
    for counts in capacities:
        room = [count for of_batch in counts for count in of_batch]
        small.append(jnp.any(jnp.stack([n > m for n, m in zip(needed, room, strict=True)])))
    return jnp.sum(jnp.stack(small).astype(jnp.int32))


def _reaching(basis: Basis, depths: Depths, counts: Counts, excess) -> Shells:
    """As many shells of each group as `counts` says, those that reach furthest."""
    parts = iter(_grouped(excess, depths))
    batches, rows, sizes = [], [], []
    nrow = 0
    for batch, groups, of_batch in zip(basis.batches, depths, counts, strict=True):
        chosen, start = [], 0
        for (size, _), count in zip(groups, of_batch, strict=True):
            chosen.append(start + jax.lax.top_k(next(parts), count)[1])
            start += size
        index = jnp.concatenate(chosen)
        batches.append(jax.tree.map(lambda x, index=index: jnp.asarray(x)[index], batch))
        width = ncomponent(batch.l, basis.spherical)
        first = nrow + start * jnp.arange(width, dtype=index.dtype)
        rows.append((first[:, None] + index[None]).reshape(-1))
        nrow += start * width
        pairs = zip(groups, of_batch, strict=True)
        sizes.append(tuple((count, nprim) for (_, nprim), count in pairs))
    index = jnp.concatenate(rows)
    return Shells(replace(basis, batches=tuple(batches), nao=len(index)), tuple(sizes), index)


def _grouped(excess, depths: Depths) -> list[Array]:
    """Of the shells of each depth, of all batches."""
    found = []
    for of_batch, groups in zip(excess, depths, strict=True):
        start = 0
        for size, _ in groups:
            found.append(of_batch[start : start + size])
            start += size
    return found
