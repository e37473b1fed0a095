"""Products of Gaussians: expansions against the products themselves, at points in space."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from qchem.basis.spherical import cartesian_powers
from qchem.integrals.coulomb import hermite_powers
from qchem.integrals.hermite import (
    axis_table,
    hermite_coefficients,
    product_expansion,
)
from tests import oracle

LA, LB = 3, 2
A, B = np.array([0.8, 1.7]), np.array([0.5, 0.3])
CENTRE_A = np.array([[0.3, -0.2, 0.5], [0.1, 0.0, -0.4]])
CENTRE_B = np.array([[-0.6, 0.4, 0.1], [0.1, 0.0, 0.9]])
POINTS = np.linspace(-2.0, 2.5, 41)
RTOL = 1e-13


@pytest.fixture(scope="module")
def computed():
    """Coefficients, and the table of axes, of two primitive pairs."""
    arguments = [jnp.asarray(x) for x in (A, B, (CENTRE_A - CENTRE_B).T)]
    functions = hermite_coefficients, axis_table
    return oracle.jit(lambda *x: [f(LA, LB, *x) for f in functions])(*arguments)


def centre(n):
    return (A[n] * CENTRE_A[n] + B[n] * CENTRE_B[n]) / (A[n] + B[n])


def test_coefficients_expand_the_product(computed):
    """x_A^i x_B^j exp(-p x_P^2) = sum_t E_t (d/dP)^t exp(-p x_P^2)."""
    coefficients, _ = computed
    assert set(coefficients) == {(i, j) for i in range(LA + 1) for j in range(LB + 1)}
    for (i, j), e in coefficients.items():
        assert e.shape == (i + j + 1, 3, 2)
        for n in range(2):
            p = A[n] + B[n]
            for axis in range(3):
                x = POINTS - centre(n)[axis]
                product = (POINTS - CENTRE_A[n, axis]) ** i * (POINTS - CENTRE_B[n, axis]) ** j
                product = product * np.exp(-p * x**2)
                hermite = [oracle.hermite_gaussian(t, p, x) for t in range(i + j + 1)]
                expanded = np.asarray(e[:, axis, n]) @ np.stack(hermite)
                assert_allclose(expanded, product, atol=RTOL * np.abs(product).max())


def test_coefficients_of_three_axes_multiply(computed):
    """In three dimensions, in orders below, equal to and beyond the degree of the pair."""
    _, table = computed
    powers = cartesian_powers(2), cartesian_powers(1)
    points = np.random.default_rng(0).normal(size=(20, 3))
    for order in (3, LA + LB, LA + LB + 1):
        expansion = np.asarray(product_expansion(*powers, order, 0, table, LB))
        assert expansion.shape == (6, 3, len(hermite_powers(order)), 2)
        assert (expansion[:, :, hermite_powers(order).sum(1) > 3] == 0).all()
        n = 1
        p, x = A[n] + B[n], points - centre(n)
        hermite = np.stack(
            [
                np.prod([oracle.hermite_gaussian(t, p, x[:, k]) for k, t in enumerate(tuv)], 0)
                for tuv in hermite_powers(order).tolist()
            ]
        )
        monomials = [
            np.prod((points - c)[:, None, :] ** q, axis=2)
            for c, q in zip((CENTRE_A[n], CENTRE_B[n]), powers, strict=True)
        ]
        product = np.einsum("gi,gj,g->ijg", *monomials, np.exp(-p * (x**2).sum(1)))
        expanded = np.einsum("ijh,hg->ijg", expansion[..., n], hermite)
        assert_allclose(expanded, product, atol=RTOL * np.abs(product).max())


def test_lowest_drops_the_first_columns(computed):
    _, table = computed
    powers = cartesian_powers(1), cartesian_powers(1)
    full = product_expansion(*powers, 2, 0, table, LB)
    assert_allclose(product_expansion(*powers, 2, 1, table, LB), full[:, :, 1:])


def test_kinetic_energy_is_that_of_quadrature(computed):
    """-1/2 <a|nabla^2|b> / (K (pi/p)^(3/2)), on a grid that is exact for smooth functions."""
    _, table = computed
    x, step = np.linspace(-14, 14, 1401, retstep=True)
    powers = cartesian_powers(3), cartesian_powers(2)
    kinetic = product_expansion(*powers, 1, 0, table, LB, kinetic=True)[:, :, -1]
    for n in range(2):
        p = A[n] + B[n]
        factor = np.exp(-A[n] * B[n] / p * (CENTRE_A[n] - CENTRE_B[n]) ** 2) * np.sqrt(np.pi / p)
        overlaps, energies = np.zeros((2, 3, LA + 1, LB + 1))
        for axis in range(3):
            xa, xb = x - CENTRE_A[n, axis], x - CENTRE_B[n, axis]
            for i in range(LA + 1):
                bra = xa**i * np.exp(-A[n] * xa**2) * step / factor[axis]
                for j in range(LB + 1):
                    gauss = np.exp(-B[n] * xb**2)
                    second = (
                        4 * B[n] ** 2 * xb ** (j + 2) - 2 * B[n] * (2 * j + 1) * xb**j
                    ) * gauss
                    if j > 1:
                        second = second + j * (j - 1) * xb ** (j - 2) * gauss
                    overlaps[axis, i, j] = bra @ (xb**j * gauss)
                    energies[axis, i, j] = -0.5 * bra @ second
        expected = np.zeros((len(powers[0]), len(powers[1])))
        for special in range(3):
            product = 1.0
            for axis in range(3):
                source = energies if axis == special else overlaps
                product = product * source[axis][powers[0][:, axis, None], powers[1][None, :, axis]]
            expected += product
        assert_allclose(kinetic[..., n], expected, atol=1e-12 * np.abs(expected).max())
