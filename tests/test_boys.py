"""Boys function: against its series in 60 digits, the asymptotic form, and its derivative rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose
from scipy.special import gamma

from qchem.integrals.boys import _asymptotic_from, boys
from tests import oracle

ORDERS = (*range(9), 12, 16, 18, 20, 24)  # (gg|gg) needs 16, its second derivatives 18
RTOL = 1e-13


def arguments(order):
    """Zero, tiny, on and between points of the table, on both sides of the switch."""
    switch = _asymptotic_from(order)
    inside = [0.0, 1e-300, 1e-8, 1 / 32, 0.5, 1.03, 3.0, 9.97, 25.01, 0.7 * switch]
    return np.array([*inside, switch - 1e-9, switch, switch + 0.03, 2 * switch])


@pytest.fixture(scope="module")
def values():
    """boys(order, t) for every order, one program."""
    points = {order: jnp.asarray(arguments(order)) for order in ORDERS}
    return oracle.jit(lambda x: {order: boys(order, t) for order, t in x.items()})(points)


def test_equals_the_series(values):
    worst = 0.0
    for order in ORDERS:
        assert values[order].shape == (order + 1, arguments(order).size)
        for m in {0, 1, order // 2, order}:
            if m <= order:
                expected = np.array([oracle.boys(m, t) for t in arguments(order)])
                worst = max(worst, np.max(np.abs(values[order][m] / expected - 1)))
    assert worst < RTOL


def test_limits(values):
    for order in ORDERS:
        assert_allclose(values[order][:, 0], 1 / (2 * np.arange(order + 1) + 1), rtol=1e-15)
    far = 1e4
    m = np.arange(7)
    expected = gamma(m + 0.5) / (2 * far ** (m + 0.5))
    assert_allclose(oracle.jit(lambda t: boys(6, t))(far), expected, rtol=RTOL)


def test_derivatives_are_the_next_orders(values):
    t = jnp.asarray(arguments(4))
    first = oracle.jit(jax.vmap(jax.jacfwd(lambda x: boys(4, x))))(t)
    second = oracle.jit(jax.vmap(jax.jacfwd(jax.jacrev(lambda x: boys(2, x)))))(t)
    reference = np.array([[oracle.boys(m, x) for x in arguments(4)] for m in range(6)])
    assert_allclose(first.T, -reference[1:], rtol=RTOL)
    assert_allclose(second.T, reference[2:5], rtol=RTOL)


def test_derivatives_agree_with_finite_differences():
    t = jnp.asarray([0.3, 7.1, 50.0])  # table, table, asymptotic form
    check_grads(jax.jit(lambda x: boys(3, x)), (t,), order=2, rtol=1e-6)


def test_single_precision():
    t = jnp.asarray(arguments(6)[2:], jnp.float32)
    result = oracle.jit(lambda x: boys(6, x))(t)
    assert result.dtype == jnp.float32
    expected = [[oracle.boys(m, float(x)) for x in t] for m in range(7)]
    assert_allclose(result, expected, rtol=5e-6)
