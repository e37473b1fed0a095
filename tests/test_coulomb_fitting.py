"""Coulomb matrices and energies without exchange: the same numbers as from a whole fit."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from benchmarks.counting import operations
from qchem.coulomb_fitting import FittedCoulomb, fitted_coulomb_energy
from qchem.fitted_energy import fitted_energy
from qchem.fitted_jk import DensityFittedJK
from qchem.integrals.solid import plan_solid, solid_shells
from tests import oracle
from tests.test_jk import DM, FACTOR, FITTING, auxiliary, check_energy, small_rows
from tests.test_two_electron import AUX, NAO, POSITIONS, SMALL, pairs

RTOL = 1e-12


def solid(basis, positions):
    """The auxiliary functions as shells of solid harmonics."""
    return solid_shells(basis, plan_solid(basis), positions)


def solid_rows(positions):
    return small_rows(positions)[0], solid(FITTING, positions)


@pytest.mark.parametrize("stored_bytes, reverse", [(0, False), (1 << 20, False), (0, True)])
@pytest.mark.parametrize("make", [auxiliary, lambda r: solid(AUX, r)], ids=["general", "solid"])
def test_matrices_are_those_of_the_whole_fit(stored_bytes, reverse, make):
    @oracle.jit
    def matrices(positions, dm, factor):
        lists = pairs(positions), make(positions)
        storage = {"stored_bytes": stored_bytes, "reverse": reverse}
        ours = FittedCoulomb.build(*lists, NAO, AUX.nao, **storage)
        assert (ours.three is None) == (stored_bytes == 0 and not reverse)
        whole = DensityFittedJK.build(*lists, NAO, AUX.nao)
        of = [(jk.coulomb(dm), jk.exchange(factor)) for jk in (ours, whole)]
        return of

    ours, whole = matrices(POSITIONS, DM.sum(0), FACTOR)
    for one, other in zip(ours, whole, strict=True):
        assert_allclose(one, other, rtol=0, atol=RTOL * np.abs(other).max())


@pytest.mark.parametrize(
    "rows, known", [(small_rows, False), (solid_rows, False), (solid_rows, True)]
)
def test_energy(rows, known):
    """Its derivative rule agrees with differences, of integrals that are known too; its value with
    the whole fit."""

    def energy(positions, factor):
        dm = jnp.sum(factor @ jnp.swapaxes(factor, 1, 2), axis=0)
        lists, sizes = rows(positions), (SMALL.nao, FITTING.nao)
        fitted = FittedCoulomb.build(*lists, *sizes, stored_bytes=1 << 20).fit if known else None
        return fitted_coulomb_energy(*lists, dm, fitted=fitted)

    def expected(positions, factor):
        return fitted_energy(*small_rows(positions), factor, FITTING.nao, 1.0, 0.0)

    check_energy(energy, expected)


@pytest.mark.parametrize("rows", [small_rows, solid_rows])
def test_second_derivatives(rows):
    """The rule holds the charges in first derivatives alone."""
    direction = oracle.random_like(POSITIONS, 3)
    dm = DM.sum(0)[: SMALL.nao, : SMALL.nao]

    def slope(t):
        def energy(positions):
            return fitted_coulomb_energy(*rows(positions), dm)

        return jnp.vdot(jax.grad(energy)(POSITIONS + t * direction), direction)

    step = 1e-3
    ends = oracle.jit(lambda t: jax.lax.map(slope, t))(step * jnp.asarray([-2.0, -1, 1, 2]))
    curvature = oracle.jit(jax.grad(slope))(jnp.asarray(0.0))
    measured = oracle.slope(ends, step)
    assert abs(measured) > 0.1
    assert_allclose(curvature, measured, rtol=1e-6)


def test_what_does_not_move_costs_nothing():
    """Forces differentiate no widths, which takes integrals of higher orders: counted with general
    lists, but the rule is that of any."""
    dm = DM.sum(0)[: SMALL.nao, : SMALL.nao]

    def energy(positions, scale):
        bras, kets = small_rows(positions)
        return fitted_coulomb_energy(
            bras, tuple(replace(k, width=scale * k.width) for k in kets), dm
        )

    start = POSITIONS, jnp.asarray(1.0)
    forces, with_widths = (operations(jax.grad(energy, x), *start).total for x in (0, (0, 1)))
    assert forces < 0.6 * with_widths
