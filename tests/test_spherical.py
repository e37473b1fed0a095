"""Angular parts: harmonicity, orthonormality on the sphere, PySCF's order and phases."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pyscf import gto
from scipy.integrate import lebedev_rule

from qchem.basis.spherical import angular_matrix, cartesian_powers, ncomponent

ATOL = 1e-13  # a few roundings of coefficients below 10


def test_cartesian_order():
    assert cartesian_powers(2).tolist() == [
        [2, 0, 0], [1, 1, 0], [1, 0, 1], [0, 2, 0], [0, 1, 1], [0, 0, 2]
    ]  # fmt: skip


@pytest.mark.parametrize("l", range(7))
def test_spherical_rows_are_orthonormal_on_the_sphere(l):
    points, weights = lebedev_rule(17)
    monomials = np.prod(points[None] ** cartesian_powers(l)[:, :, None], axis=1)
    rows = angular_matrix(l, True)
    assert rows.shape == (ncomponent(l, True), ncomponent(l, False))
    values = rows @ monomials
    assert_allclose(np.einsum("mg,ng,g->mn", values, values, weights), np.eye(2 * l + 1), atol=ATOL)


@pytest.mark.parametrize("l", range(7))
@pytest.mark.parametrize("spherical", [True, False])
def test_matches_pyscf(l, spherical):
    exponent = 0.7
    atom = gto.M(atom="He", basis={"He": [[l, [exponent, 1.0]]]}, cart=not spherical, verbose=0)
    points = np.random.default_rng(l).normal(size=(20, 3))
    monomials = np.prod(points.T[None] ** cartesian_powers(l)[:, :, None], axis=1)
    radial = gto.gto_norm(l, exponent) * np.exp(-exponent * (points**2).sum(1))
    expected = atom.eval_gto("GTOval_sph" if spherical else "GTOval_cart", points)
    assert_allclose((angular_matrix(l, spherical) @ monomials * radial).T, expected, atol=ATOL)
