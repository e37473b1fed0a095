"""Cube root and arc tangent, with their derivatives, against NumPy and formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qchem.xc.functionals.elementary import arctan, cbrt

X = np.geomspace(1e-30, 1e12, 5001)
ULPS = 4


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("ours, theirs", [(cbrt, np.cbrt), (arctan, np.arctan)])
def test_values_are_right_to_a_few_units_in_the_last_place(ours, theirs, dtype):
    x = X[X > 1e-18].astype(dtype)
    found = np.asarray(jax.jit(ours)(jnp.asarray(x)))
    assert found.dtype == dtype
    expected = theirs(x.astype(float))
    np.testing.assert_allclose(found, expected, rtol=ULPS * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(
    "function, first, second",
    [
        (cbrt, lambda x: np.cbrt(x) / (3 * x), lambda x: -2 / 9 * np.cbrt(x) / x**2),
        (arctan, lambda x: 1 / (1 + x**2), lambda x: -2 * x / (1 + x**2) ** 2),
    ],
)
def test_derivatives_in_both_modes(function, first, second):
    x = jnp.asarray(X)
    slope = jax.vmap(jax.grad(function))
    np.testing.assert_allclose(slope(x), first(X), rtol=1e-14)
    for second_order in (jax.grad(jax.grad(function)), jax.jacfwd(jax.grad(function))):
        np.testing.assert_allclose(jax.vmap(second_order)(x), second(X), rtol=1e-14)


@pytest.mark.parametrize("function", [cbrt, arctan])
def test_what_is_not_a_number_stays_so(function):
    assert np.isnan(function(jnp.asarray(np.nan)))
