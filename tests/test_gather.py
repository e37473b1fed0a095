"""Rows by index: NumPy's, one operation, with derivatives and in batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from qchem.integrals.gather import rows_at


@pytest.mark.parametrize("rest", [(), (2,), (2, 3)])
@pytest.mark.parametrize("batch", [(4,), (2, 2)])
def test_rows(rest, batch):
    random = np.random.default_rng(0)
    x, index = random.normal(size=(5, *rest)), random.integers(0, 5, batch, np.int32)
    np.testing.assert_array_equal(rows_at(x, index), x[index])
    traced = jax.jit(rows_at)(x, index)  # the index is not known
    np.testing.assert_array_equal(traced, x[index])
    several = jax.vmap(rows_at, (None, 0))(x, jnp.stack([index, index[::-1]]))
    np.testing.assert_array_equal(several[1], x[index[::-1]])
    check_grads(lambda x: rows_at(x, index) ** 2, (x,), 2)
    for axis in range(x.ndim):
        moved, expected = np.moveaxis(x, 0, axis), np.take(np.moveaxis(x, 0, axis), index, axis)
        np.testing.assert_array_equal(rows_at(moved, index, axis), expected)
        np.testing.assert_array_equal(rows_at(moved, index, axis - x.ndim), expected)


def test_known_rows_are_one_operation():
    x, index = np.ones((3, 4)), np.array([2, 0], np.int32)
    operations = jax.make_jaxpr(lambda x: rows_at(x, index))(x).eqns
    assert [operation.primitive.name for operation in operations] == ["gather"]
