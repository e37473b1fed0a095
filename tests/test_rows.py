"""Rows of shells at points: the exponential that they are made from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from qchem.basis.rows import exponential


@pytest.mark.parametrize("dtype, ulps", [(np.float64, 3), (np.float32, 3)])
def test_exponential(dtype, ulps):
    """NumPy's, and zero far below the smallest number; its derivative is itself."""
    info = np.finfo(dtype)
    smallest = float(info.minexp) * np.log(2)
    x = np.linspace(0.99 * smallest, 0, 10001).astype(dtype)
    value, slope = jax.jvp(exponential, (jnp.asarray(x),), (jnp.ones_like(x),))
    assert_allclose(value, np.exp(x.astype(float)), rtol=ulps * float(info.eps))
    np.testing.assert_array_equal(value, slope)
    below = exponential(jnp.asarray([1.01 * smallest, 10 * smallest, 1e6 * smallest], dtype))
    assert not np.asarray(below).any()
