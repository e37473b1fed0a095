"""Hermite Coulomb integrals: the printed recursion, closed forms, derivatives, both precisions."""

from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose

from qchem.integrals.coulomb import (
    hermite_coulomb,
    hermite_powers,
    lowered_index,
    nhermite,
    sum_index,
)
from tests import oracle

ALPHA = jnp.asarray([0.7, 0.05, 12.0])
SEPARATION = jnp.asarray([[0.6, 3.0, -2.5], [-0.8, 1.0, 2.0], [1.1, -4.0, 1.5]])  # components lead
HIGHEST = 12
PREFACTOR = 2 / np.sqrt(np.pi)


def test_powers():
    powers = hermite_powers(5)
    assert len({tuple(p) for p in powers.tolist()}) == len(powers) == nhermite(5) == 56
    assert_allclose(powers[: nhermite(3)], hermite_powers(3))
    assert_allclose(powers[nhermite(2) :], hermite_powers(5, lowest=3))
    assert nhermite(5, lowest=3) == 56 - nhermite(2)


def test_index_tables():
    bra, ket, total = hermite_powers(3, 2), hermite_powers(2, 1), hermite_powers(5)
    assert_allclose(total[sum_index(3, 2, 2, 1)], bra[:, None] + ket[None])
    source, target = hermite_powers(3, 1), hermite_powers(5, 2)
    for axis in range(3):
        for power in (1, 2):
            step = power * np.eye(3, dtype=int)[axis]
            for p, index in zip(target, lowered_index(5, 2, 3, 1, axis, power)):
                if index < len(source):
                    assert_allclose(source[index], p - step)
                else:
                    assert (p - step).tolist() not in source.tolist()


@pytest.fixture(scope="module")
def every_order():
    """R of each order on its own, one program; an order has tables of its own."""
    make = lambda a, r: [hermite_coulomb(n, a, r) for n in range(HIGHEST + 1)]  # noqa: E731
    return jax.device_get(oracle.jit(make)(ALPHA, SEPARATION))


def test_equals_the_printed_recursion(every_order):
    """To the order of (ff|ff)."""
    powers = hermite_powers(HIGHEST)
    degree = powers.sum(1)
    for n, alpha in enumerate(ALPHA.tolist()):
        separation = tuple(SEPARATION[:, n].tolist())
        expected = [oracle.hermite_coulomb(*power, alpha, separation) for power in powers.tolist()]
        expected = PREFACTOR * np.sqrt(alpha) * np.array(expected)
        for d in range(HIGHEST + 1):  # each degree has a size of its own
            size = np.abs(expected[degree == d]).max()
            for values in every_order[d:]:
                value = values[degree[: len(values)] == d, n]
                assert_allclose(value, expected[degree == d], rtol=0, atol=1e-12 * size)


def test_derivatives_of_the_closed_form():
    """erf(sqrt(alpha) r)/r and its first to third derivatives."""

    def closed(r, alpha):
        distance = jnp.sqrt(jnp.vdot(r, r))
        return jax.lax.erf(jnp.sqrt(alpha) * distance) / distance

    functions = [closed]
    for _ in range(3):
        functions.append(jax.jacfwd(functions[-1]))
    every = jax.vmap(lambda r, a: [f(r, a) for f in functions])
    tensors = oracle.jit(every)(SEPARATION.T, ALPHA)
    values = oracle.jit(lambda a, r: hermite_coulomb(3, a, r))(ALPHA, SEPARATION)
    for value, power in zip(values, hermite_powers(3).tolist(), strict=True):
        axes = [axis for axis in range(3) for _ in range(power[axis])]
        assert_allclose(value, tensors[len(axes)][(slice(None), *axes)], rtol=1e-9, atol=1e-12)


def test_coincident_centres():
    """At r = 0 even derivatives come from the power series of the error function, odd vanish."""
    order, alpha = 8, 0.9
    values = oracle.jit(lambda a, r: hermite_coulomb(order, a, r))(jnp.asarray(alpha), jnp.zeros(3))
    for value, power in zip(values, hermite_powers(order).tolist(), strict=True):
        if any(t % 2 for t in power):
            assert value == 0
        else:
            k = sum(power) // 2
            expected = PREFACTOR * np.sqrt(alpha) * (-alpha) ** k / (2 * k + 1)
            for t in power:
                expected *= factorial(t) / factorial(t // 2)
            assert_allclose(value, expected, rtol=1e-13)


def test_poissons_equation():
    """The Laplacian is -4 pi times a Gaussian charge, at any separation."""
    values = hermite_coulomb(2, ALPHA, SEPARATION)
    trace = sum(values[hermite_powers(2).max(1) == 2])
    charge = (ALPHA / np.pi) ** 1.5 * jnp.exp(-ALPHA * jnp.sum(SEPARATION**2, axis=0))
    assert_allclose(trace, -4 * np.pi * charge, rtol=1e-10, atol=1e-14)
    assert charge[0] > 0.01


def test_derivatives_agree_with_finite_differences():
    """Of alpha and of the separation, coincident centres included; second order as well."""
    separation = jnp.concatenate([SEPARATION, jnp.zeros((3, 1))], axis=1)
    alpha = jnp.append(ALPHA, 0.8)
    function = jax.jit(lambda a, r: hermite_coulomb(2, a, r))
    check_grads(function, (alpha, separation), order=2, rtol=1e-5, atol=1e-5)


def test_single_precision():
    arguments = ALPHA.astype(jnp.float32), SEPARATION.astype(jnp.float32)
    values = oracle.jit(lambda a, r: hermite_coulomb(4, a, r))(*arguments)
    expected = oracle.jit(lambda a, r: hermite_coulomb(4, a, r))(ALPHA, SEPARATION)
    assert values.dtype == jnp.float32
    assert_allclose(values, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
