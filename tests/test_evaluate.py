"""AO values: PySCF, derivatives by position, point, exponent and coefficient, nuclei, dtypes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose

from qchem.basis.evaluate import evaluate_ao
from qchem.basis.layout import Basis
from qchem.basis.library import Shell
from tests.test_basis_layout import pyscf_molecule

RTOL = 1e-12  # of the largest element of each component
NUMBERS = (8, 1, 6)
POSITIONS = np.array([[0.1, -0.2, 0.3], [1.7, 0.2, -0.4], [-0.9, 1.9, 0.8]])
POINTS = np.concatenate([POSITIONS, np.random.default_rng(0).normal(size=(40, 3)) * 2])

evaluate = jax.jit(evaluate_ao, static_argnums=3)


def every_l(lmax):
    rng = np.random.default_rng(1)
    shells = [
        [Shell(l, tuple(rng.uniform(0.2, 4, n)), tuple(rng.uniform(0.2, 1, n))) for l in momenta]
        for n, momenta in ((1, range(lmax, -1, -1)), (3, [0, 1, lmax]), (2, [2, 2, 0]))
    ]
    return shells


@pytest.mark.parametrize("lmax", [4, 6])
@pytest.mark.parametrize("spherical", [True, False])
def test_matches_pyscf(lmax, spherical):
    basis = Basis.from_shells(every_l(lmax), spherical=spherical)
    kind = "sph" if spherical else "cart"
    expected = pyscf_molecule(basis, NUMBERS, POSITIONS).eval_gto(f"GTOval_{kind}_deriv2", POINTS)
    values = evaluate(basis, POSITIONS, POINTS, 2)
    for component in range(10):
        atol = RTOL * np.abs(expected[component]).max()
        assert_allclose(values[component], expected[component], rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["ano-rcc", "6-311++g**"])
def test_matches_pyscf_for_published_sets(name):
    basis = Basis.from_name(NUMBERS, name)
    expected = pyscf_molecule(basis, NUMBERS, POSITIONS).eval_gto("GTOval_sph", POINTS)
    values = evaluate(basis, POSITIONS, POINTS, 0)
    assert_allclose(values[0], expected, rtol=0, atol=RTOL * np.abs(expected).max())


def test_lower_orders_are_parts_of_higher_ones():
    basis = Basis.from_shells(every_l(3))
    values = [evaluate(basis, POSITIONS, POINTS, order) for order in range(3)]
    assert [len(v) for v in values] == [1, 4, 10]
    assert_allclose(values[1], values[2][:4], rtol=0, atol=1e-14)
    assert_allclose(values[0], values[2][:1], rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="not 3"):
        evaluate_ao(basis, POSITIONS, POINTS, 3)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_derivatives_by_position_and_point(order):
    basis = Basis.from_shells([[Shell(l, (0.9,), (1.0,)) for l in (0, 1, 2)], []])
    weights = np.random.default_rng(2).normal(size=((1, 4, 10)[order], 6, basis.nao))

    @jax.jit
    def projected(positions, points):
        return jnp.vdot(evaluate_ao(basis, positions, points, order), weights)

    points = np.concatenate([POINTS[:1], POINTS[5:10]])  # one on a nucleus
    modes = (["fwd", "rev"], ["rev"], ["fwd"])[order]
    check_grads(projected, (POSITIONS[:2], points), (2, 2, 1)[order], modes=modes)


def test_derivatives_at_nuclei_are_finite():
    basis = Basis.from_shells(every_l(4))

    def total(positions):
        return evaluate_ao(basis, positions, POINTS[:4], 1).sum()

    hessian = jax.jit(jax.jacfwd(jax.grad(total)))(POSITIONS)
    assert bool(jnp.isfinite(hessian).all())
    assert float(jnp.abs(hessian).max()) > 0


def test_derivatives_by_exponent_and_coefficient():
    basis = Basis.from_shells([[Shell(0, (1.1, 0.6), (0.3, 0.5)), Shell(1, (0.4,), (1.0,))]])
    parameters, rest = eqx.partition(jax.tree.map(jnp.asarray, basis), eqx.is_inexact_array)

    @jax.jit
    def total(parameters, positions):
        return jnp.sin(evaluate_ao(eqx.combine(parameters, rest), positions, POINTS[3:8])).sum()

    check_grads(total, (parameters, POSITIONS[:1]), 1, eps=1e-5)


def test_one_program_for_every_geometry():
    basis = Basis.from_shells(every_l(2))
    batch = jax.jit(jax.vmap(lambda positions: evaluate_ao(basis, positions, POINTS, 1)))
    shifts = np.random.default_rng(3).normal(size=(3, 3, 3))
    batched = batch(POSITIONS[None] + shifts)
    batch(POSITIONS[None] - shifts)
    assert batch._cache_size() == 1
    one = evaluate(basis, POSITIONS + shifts[1], POINTS, 1)
    assert_allclose(batched[1], one, rtol=0, atol=1e-14)


def test_float32_and_far_points():
    basis = Basis.from_name((8, 1, 6), "def2-svp")
    points = np.concatenate([POINTS, [[400.0, 0.0, 0.0]]])
    double = evaluate(basis, POSITIONS, points, 1)
    single = evaluate(basis, POSITIONS.astype(np.float32), points.astype(np.float32), 1)
    assert single.dtype == jnp.float32
    assert not double[:, -1].any()
    atol = 1e-5 * float(jnp.abs(double).max())
    assert_allclose(single, double, rtol=0, atol=atol)
