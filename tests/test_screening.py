"""Shells that do not reach a chunk of points are left out, and nothing changes."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from benchmarks.scaling import cluster
from qchem.basis.evaluate import evaluate_ao
from qchem.basis.layout import Basis
from qchem.basis.reach import NEGLIGIBLE, shell_radii
from qchem.basis.rows import plan_rows
from qchem.grids import Grid
from qchem.xc.functional import Functional
from qchem.xc.quadrature import GridXC, xc_potential
from tests.device_program import needed_room

ATOL = 1e-11  # hartree, and hartree/bohr
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# Fragments of a chain, far enough apart for some shells of each to miss the next.
NUMBERS = (1, 1) * 4
POSITIONS = np.array([[0.3 * k, 9.0 * k, 1.8 * h] for k in range(4) for h in range(2)])
BASIS = Basis.from_name(NUMBERS, "def2-svp")
GRID = Grid.from_numbers(NUMBERS, sizes=(8, 26), prune=False)


def integrator(name, positions, rows, **how):
    return GridXC(Functional.from_name(name), BASIS, GRID, positions, chunk=64, rows=rows, **how)


@pytest.fixture(scope="module")
def plans():
    """Room for a half and for three quarters of the shells, and none for fewer than all."""
    plan = plan_rows(BASIS)
    capacities = [
        tuple(tuple(-(-part * size // 4) for size, _ in groups) for groups in plan.depths)
        for part in (2, 3)
    ]
    assert plan.capacities == ()  # so small a molecule does not gain
    return replace(plan, capacities=tuple(capacities)), plan


@pytest.fixture(scope="module")
def orbitals():
    return jnp.asarray(0.3 * np.random.default_rng(2).normal(size=(2, BASIS.nao, 3)))


def test_programs_of_every_size_are_taken(plans):
    """Otherwise the other tests could not fail."""
    found = needed_room(integrator("svwn", POSITIONS, plans[0]))
    assert set(found.tolist()) == {0, 1, 2}
    assert np.mean(np.asarray(found) < 2) > 0.5


@pytest.mark.parametrize(("name", "factored"), [("svwn", False), ("b3lyp", True)])
def test_energy_and_derivatives_are_those_of_all_shells(plans, orbitals, name, factored):
    def energy(positions, orbitals, plan):
        xc = integrator(name, positions, plan)
        if factored:
            return xc.energy_of_orbitals(orbitals)
        return xc.energy(orbitals @ jnp.swapaxes(orbitals, 1, 2))

    results = [
        jit(jax.value_and_grad(lambda *x: energy(*x, plan), (0, 1)))(  # noqa: B023
            jnp.asarray(POSITIONS), orbitals
        )
        for plan in plans
    ]
    (screened, slopes), (exact, exact_slopes) = results
    assert_allclose(screened, exact, rtol=0, atol=ATOL)
    for slope, expected in zip(slopes, exact_slopes, strict=True):
        assert np.abs(expected).max() > 1e-2
        assert_allclose(slope, expected, rtol=0, atol=ATOL)


def test_potential_in_reverse_mode_is_that_of_all_shells(plans, orbitals):
    dm = orbitals @ jnp.swapaxes(orbitals, 1, 2)
    weight = np.random.default_rng(5).normal(size=dm.shape)

    def projected(positions, dm, plan):
        return jnp.vdot(weight, xc_potential((integrator("pbe", positions, plan), dm)))

    screened, exact = (
        jit(jax.grad(lambda *x: projected(*x, plan), (0, 1)))(  # noqa: B023
            jnp.asarray(POSITIONS), dm
        )
        for plan in plans
    )
    for slope, expected in zip(screened, exact, strict=True):
        size = np.abs(expected).max()
        assert size > 1e-2
        assert_allclose(slope, expected, rtol=0, atol=ATOL * max(size, 1))


def test_short_aos_are_screened_too(plans, orbitals):
    def energy(plan, **how):
        xc = integrator("pbe", POSITIONS, plan, **how)
        return jit(lambda orbitals: xc.energy_of_orbitals(orbitals))(orbitals)

    screened, exact = (energy(plan, ao_dtype=jnp.float32) for plan in plans)
    assert screened.dtype == jnp.float64
    assert_allclose(screened, exact, rtol=1e-7)


def test_a_geometry_needs_no_program_of_its_own(plans, orbitals):
    energy = jit(lambda r: integrator("svwn", r, plans[0]).energy_of_orbitals(orbitals))
    stretched = [energy(scale * jnp.asarray(POSITIONS)) for scale in (1.0, 0.5, 3.0)]
    assert energy._cache_size() == 1
    exact = jit(lambda r: integrator("svwn", r, plans[1]).energy_of_orbitals(orbitals))
    for value, scale in zip(stretched, (1.0, 0.5, 3.0), strict=True):
        assert_allclose(value, exact(scale * jnp.asarray(POSITIONS)), rtol=0, atol=ATOL)


def test_beyond_its_reach_a_shell_is_negligible():
    basis = Basis.from_name((8,), "def2-tzvp")
    for batch in basis.batches:
        radii = shell_radii(batch, np.float64, np)
        assert_allclose(shell_radii(batch, np.float64), radii, rtol=1e-12)
        for first, radius in zip(batch.ao, radii, strict=True):
            directions = np.random.default_rng(1).normal(size=(50, 3))
            directions /= np.linalg.norm(directions, axis=1)[:, None]
            near, far = (
                np.abs(evaluate_ao(basis, np.zeros((1, 3)), scale * radius * directions, 2))
                for scale in (0.8, 1.0)
            )
            own = slice(first, first + 2 * batch.l + 1)
            assert far[:, :, own].max() < NEGLIGIBLE < near[:, :, own].max()


def test_shells_reach_as_far_as_their_present_exponents(plans, orbitals):
    """Whoever plans for one basis and moves its exponents loses nothing."""

    def energy(scale, plan):
        batches = tuple(
            replace(batch, exponents=scale * jnp.asarray(batch.exponents))
            for batch in BASIS.batches
        )
        basis = replace(BASIS, batches=batches)
        functional = Functional.from_name("svwn")
        xc = GridXC(functional, basis, GRID, POSITIONS, chunk=64, rows=plan)
        return xc.energy_of_orbitals(orbitals)

    screened, exact = (jit(lambda s: energy(s, plan))(0.2) for plan in plans)  # noqa: B023
    assert abs(exact - jit(lambda s: energy(s, plans[1]))(1.0)) > 1e-2
    assert_allclose(screened, exact, rtol=0, atol=ATOL)


@pytest.mark.parametrize(("count", "sizes"), [(1, 0), (4, 0), (40, 2)])
def test_only_large_molecules_have_smaller_programs(count, sizes):
    numbers = [int(z) for z in cluster(count).numbers]
    assert len(plan_rows(Basis.from_name(numbers, "def2-svp")).capacities) == sizes
