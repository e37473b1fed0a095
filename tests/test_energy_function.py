"""Derivatives of converged energies in what an energy function is made of."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from numpy.testing import assert_allclose

import qchem
from tests import oracle

POSITIONS = jnp.asarray([[0.0, 0.0, 0.1], [0.1, 0.2, 1.5]])
STEP = 2e-3
ATOL = 1e-7  # hartree, against differences of converged energies
WHERE = {
    "exponents": lambda f: f.method.basis.batches[0].exponents,
    "contraction": lambda f: f.method.basis.batches[0].contraction,
    "charges": lambda f: f.method.charges,
    "field": lambda f: f.method.field,
}


@pytest.fixture(scope="module")
def function():
    field = (0.01, -0.02, 0.03)
    return qchem.energy_fn((2, 1), "6-31g", "hf", charge=1, field=field, tolerance=1e-9)


def replaced(function, values):
    """The function with other arrays, by their names in WHERE."""
    for name, value in values.items():
        function = eqx.tree_at(WHERE[name], function, value)
    return function


@pytest.fixture(scope="module")
def compared(function):
    """Derivatives by all arrays at once, and energies on a line through each."""
    start = {name: jnp.asarray(where(function)) for name, where in WHERE.items()}
    lines, directions = [], {}
    for n, name in enumerate(start):
        # Relative, so that exponents stay positive and padding stays zero.
        directions[name] = start[name] * oracle.random_like(start[name], n)
        line = oracle.stencil(start[name], directions[name], STEP)
        others = {k: jnp.repeat(x[None], len(line), 0) for k, x in start.items()}
        lines.append(others | {name: line})
    points = jax.tree.map(lambda *x: jnp.concatenate(x), *lines)

    @oracle.jit
    def measure(start, points):
        energy = lambda values: replaced(function, values)(POSITIONS)  # noqa: E731
        _, forward = jax.jvp(energy, (start,), (directions,))
        return jax.grad(energy)(start), forward, jax.vmap(energy)(points)

    gradients, forward, energies = measure(start, points)
    slopes = [oracle.slope(part, STEP) for part in energies.reshape(len(start), -1)]
    return directions, gradients, forward, dict(zip(start, slopes))


@pytest.mark.parametrize("name", WHERE)
def test_derivatives_by_arrays_of_the_function(compared, name):
    directions, gradients, _, slopes = compared
    assert abs(slopes[name]) > 1e-4
    slope = jnp.vdot(gradients[name], directions[name])
    assert_allclose(slope, slopes[name], rtol=0, atol=ATOL)


def test_forward_mode_adds_them_up(compared):
    _, _, forward, slopes = compared
    assert_allclose(forward, sum(slopes.values()), rtol=0, atol=len(slopes) * ATOL)


def test_derivatives_by_the_whole_function(function, compared):
    gradients = eqx.filter_grad(lambda f: f(POSITIONS))(function)
    for name, where in WHERE.items():
        assert_allclose(where(gradients), compared[1][name], rtol=0, atol=1e-12)


def test_second_derivatives_by_arrays_are_refused(function):
    with pytest.raises(NotImplementedError, match="response of the orbitals"):
        jax.hessian(lambda x: replaced(function, {"field": x})(POSITIONS))(jnp.zeros(3))
