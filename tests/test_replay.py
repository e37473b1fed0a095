"""The replay buffer: what it keeps, how it draws, how much of a batch it may fill."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qchem import InputError
from srdft.replay import ReplayBuffer, sampled_rows


def frames(*numbers):
    return jnp.asarray(numbers, jnp.float64)[:, None, None] * jnp.ones((1, 2, 3))


def held(buffer):
    return sorted(np.asarray(buffer.positions[: int(buffer.size), 0, 0]).tolist())


def test_the_oldest_make_room():
    buffer = ReplayBuffer.empty(4, 2, jnp.float64)
    buffer = buffer.push(frames(1, 2, 3))
    assert held(buffer) == [1, 2, 3]
    buffer = jax.jit(lambda b, x: b.push(x))(buffer, frames(4, 5, 6))
    assert held(buffer) == [3, 4, 5, 6] and int(buffer.pushed) == 6


def test_more_than_it_holds_keeps_the_last():
    buffer = ReplayBuffer.empty(3, 2, jnp.float64).push(frames(1, 2))
    buffer = buffer.push(frames(3, 4, 5, 6, 7))
    assert held(buffer) == [5, 6, 7]
    assert held(buffer.push(frames(8))) == [6, 7, 8]  # the ring goes on in order


def test_draws_are_uniform_over_what_is_held():
    buffer = ReplayBuffer.empty(16, 2, jnp.float64).push(frames(*range(1, 6)))
    drawn = np.asarray(buffer.draw(20_000, key=jax.random.key(0))[:, 0, 0])
    counts = np.array([np.sum(drawn == k) for k in range(1, 6)])
    assert counts.sum() == drawn.size  # never a row that was not written
    assert np.abs(counts - 4000).max() < 5 * np.sqrt(4000 * 0.8)
    alone = buffer.draw(1, key=jax.random.key(1)), buffer.draw(1, key=jax.random.key(4))
    assert alone[0][0, 0, 0] != alone[1][0, 0, 0]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1 / 3, 0.999, 1.0])
def test_the_share_of_sampled_geometries_is_exact(share):
    batch = 4
    rows = [sampled_rows(n, batch, share) for n in range(1000)]
    assert all(0 <= n <= batch for n in rows)
    drawn = np.cumsum(rows)
    allowed = (1 - share) * batch * np.arange(1, 1001)
    assert (drawn <= allowed + 1e-9).all()  # never more
    assert (drawn > allowed - 1 - 1e-9).all()  # and as many as possible


def test_impossible_sizes_are_refused():
    with pytest.raises(InputError, match="1 or more"):
        ReplayBuffer.empty(0, 2, jnp.float64)
    with pytest.raises(InputError, match="0 and 1"):
        sampled_rows(0, 4, 1.5)
