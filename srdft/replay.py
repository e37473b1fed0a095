"""Replay buffer of sampled geometries, and the exact share of a batch that it may fill."""

from __future__ import annotations

from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from qchem import InputError


class ReplayBuffer(eqx.Module):
    """The last `capacity` geometries that were pushed; immutable.

    Attributes:
        positions: Storage, bohr; rows from `size` on have never been written.
        pushed: How many geometries were ever pushed; the next goes to row pushed % capacity.
    """

    positions: Float[Array, "capacity natom 3"]
    pushed: Int[Array, ""]

    @classmethod
    def empty(cls, capacity: int, natom: int, dtype: DTypeLike) -> ReplayBuffer:
        """A buffer without geometries."""
        if capacity < 1:
            raise InputError(f"a replay buffer of {capacity} geometries; it must hold 1 or more.")
        return cls(jnp.zeros((capacity, natom, 3), dtype), jnp.zeros((), jnp.int32))

    @property
    def capacity(self) -> int:
        """Number of geometries that are kept."""
        return self.positions.shape[0]

    @property
    def size(self) -> Int[Array, ""]:
        """Number of geometries held now."""
        return jnp.minimum(self.pushed, self.capacity)

    def push(self, positions: Float[Array, "n natom 3"]) -> ReplayBuffer:
        """The buffer with more geometries, in their order; the oldest make room.

        Of more geometries than the buffer holds, the last are kept.
        """
        n = positions.shape[0]
        kept = positions[max(0, n - self.capacity) :]
        rows = (self.pushed + jnp.arange(n - kept.shape[0], n, dtype=jnp.int32)) % self.capacity
        return ReplayBuffer(self.positions.at[rows].set(kept), self.pushed + n)

    def draw(self, n: int, *, key: PRNGKeyArray) -> Float[Array, "n natom 3"]:
        """Geometries drawn uniformly, with replacement, from those held; at least one must be."""
        return self.positions[jax.random.randint(key, (n,), 0, jnp.maximum(self.size, 1))]


def sampled_rows(batch_index: int, batch: int, data_share: float) -> int:
    """How many geometries of a batch may come from the buffer.

    Rounding is carried from batch to batch, so that for every n the first n batches together hold
    the largest number of sampled geometries that leaves the given ones their share:
    floor(n * batch * (1 - data_share)).

    Args:
        batch_index: Counts batches from 0.
        batch: Geometries in each.
        data_share: Smallest part of all geometries that must be given ones, 0 to 1.
    """
    if not 0 <= data_share <= 1:
        raise InputError(f"data_share = {data_share}; a part of the whole lies between 0 and 1.")
    share = 1 - Fraction(repr(float(data_share)))
    before, after = (int(n * batch * share) for n in (batch_index, batch_index + 1))
    return after - before
