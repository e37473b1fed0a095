"""Integrals of solid harmonics by the product rule: the numbers of the general kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from qchem.basis.layout import Basis
from qchem.basis.library import Shell
from qchem.compilation import traced_for
from qchem.fitted_energy import fitted_energy
from qchem.integrals import solid, tiles
from qchem.integrals.auxiliary import auxiliary_columns, coulomb_2c, coulomb_3c
from qchem.integrals.pairs import attenuated, auxiliary_distributions, charge_distribution
from qchem.integrals.potential import potential, potential_energy
from qchem.integrals.solid import (
    plan_solid,
    solid_2c,
    solid_3c,
    solid_functions,
    solid_shells,
    weighted_solid_2c,
    weighted_solid_3c,
)
from tests import oracle
from tests.test_two_electron import NAO, NPAIR, POSITIONS, STEP, pairs

# Shells of one, two and three primitives, s to g; the last atoms have none.
DEEP = Shell(0, (9.0, 2.0, 0.7), (0.2, 0.5, 0.4))
PLAIN = Shell(4, (0.8,), (1.0,))
AUX = Basis.from_shells(
    [
        [
            DEEP,
            Shell(0, (0.5,), (1.0,)),
            Shell(1, (1.1, 0.3), (0.6, 0.5)),
            Shell(4, (0.8,), (1.0,)),
        ],
        [Shell(0, (0.9,), (1.0,)), Shell(2, (1.3,), (1.0,)), Shell(3, (0.9, 0.4), (0.3, 0.8))],
        *[[] for _ in POSITIONS[2:]],
    ]
)
PLAN = plan_solid(AUX)


def both(positions, inverse_omega2=0.0):
    """(ab|P) and (P|Q) by the product rule, and from the general kernel in the same order."""
    lists = pairs(positions), auxiliary_distributions(AUX, positions)
    shells = solid_shells(AUX, PLAN, positions)
    lists = [attenuated(x, jnp.asarray(inverse_omega2)) for x in (*lists, shells)]
    columns = auxiliary_columns(lists[1], AUX.nao)[solid_functions(shells)]
    ours = solid_3c(lists[0], lists[2], NPAIR), solid_2c(lists[2])
    return ours, (
        coulomb_3c(*lists[:2], NPAIR)[:, columns],
        coulomb_2c(lists[1])[columns][:, columns],
    )


def assert_same(ours, general, rtol):
    for one, other in zip(ours, general, strict=True):
        assert one.shape == other.shape
        assert_allclose(one, other, rtol=0, atol=rtol * np.abs(other).max())


@pytest.mark.parametrize("inverse_omega2", [0.0, 4.0])
@pytest.mark.parametrize("tile", [None, 2000])
def test_values(inverse_omega2, tile, monkeypatch):
    if tile:
        monkeypatch.setattr(tiles, "_TILE_BYTES", dict.fromkeys(("cpu", "gpu"), tile))
    ours, general = oracle.jit(both)(POSITIONS, inverse_omega2)
    assert ours[0].shape == (NPAIR, AUX.nao)
    assert_same(ours, general, 1e-13)


def test_other_platforms_add_rows_up_alike():
    with traced_for("cuda"):
        ours, general = oracle.jit(both)(POSITIONS)
    assert_same(ours, general, 1e-13)


def test_derivatives():
    """Of the integrals, in positions and in widths: those of the general kernel."""
    direction = oracle.random_like(POSITIONS, 2)

    @oracle.jit
    def slopes(positions):
        by_position = jax.jvp(both, (positions,), (direction,))[1]
        by_width = jax.jvp(lambda s: both(positions, s), (jnp.asarray(1.0),), (jnp.asarray(1.0),))
        return by_position, by_width[1]

    for ours, general in slopes(POSITIONS):
        assert_same(ours, general, 1e-12)
        assert np.abs(general[0]).max() > 1e-3


def weighted(positions):
    """Sums of the integrals times fixed weights, by the product rule."""
    three, two = weights()
    shells = solid_shells(AUX, PLAN, positions)
    return weighted_solid_3c(pairs(positions), shells, three) + weighted_solid_2c(shells, two)


def weights():
    three = oracle.random_like(np.zeros((NPAIR, AUX.nao)), 3)
    two = oracle.random_like(np.zeros((AUX.nao, AUX.nao)), 4)
    return three, two + two.T


def test_weighted_sums():
    """Value and forces."""

    def plain(positions):
        (integrals, metric), _ = both(positions)
        three, two = weights()
        return jnp.vdot(three, integrals) + jnp.vdot(two, metric)

    @oracle.jit
    def compute(positions):
        return [jax.value_and_grad(f)(positions) for f in (weighted, plain)]

    ours, expected = compute(POSITIONS)
    assert_same(ours, expected, 1e-12)
    assert np.abs(ours[1]).max() > 0.1


def test_far_apart_pairs_are_left_out(monkeypatch):
    """Blocks of pairs without overlap are not made; values and forces are those of all of them."""
    monkeypatch.setattr(tiles, "_TILE_BYTES", dict.fromkeys(("cpu", "gpu"), 2000))
    far = 20 * POSITIONS
    made = np.concatenate([tiles.wanted_blocks(rows, 1) for rows in pairs(far)])
    assert made.any() and not made.all()

    density, charge = weights()[0][:, 0], weights()[0][0]
    nuclei = charge_distribution(-jnp.ones((len(far), 1)), jnp.zeros((len(far), 1)), far)

    def compute(positions):
        lists = pairs(positions), solid_shells(AUX, PLAN, positions)
        values = [solid_3c(*lists, NPAIR), solid.charges_of_density(*lists, density)]
        values += [solid.potential_of_charges(*lists, charge, NPAIR)]
        values += [potential(lists[0], nuclei, NPAIR)]
        energies = lambda r: weighted(r) + potential_energy(pairs(r), nuclei, density)  # noqa: E731
        return *values, jax.grad(energies)(positions)

    few = oracle.jit(compute)(far)
    monkeypatch.setattr(tiles, "NEGLIGIBLE", -1.0)
    everything = oracle.jit(lambda positions: compute(positions))(far)
    assert_same(few, everything, 1e-14)
    assert min(np.abs(x).max() for x in few) > 1e-3


def test_broken_geometries_are_not_left_out():
    nan = jnp.asarray(POSITIONS).at[1, 0].set(jnp.nan)
    made = np.concatenate([tiles.wanted_blocks(rows, 1) for rows in pairs(nan)])
    assert made.all()


def test_charges_and_their_potential():
    """Sums over (ab|P) that is never made: charges of a density, their potential and energy."""
    density, charge = weights()[0][:, 0], weights()[0][0]

    @oracle.jit
    def compute(positions):
        lists = pairs(positions), solid_shells(AUX, PLAN, positions)
        sums = solid.charges_of_density(*lists, density)
        sums = sums, solid.potential_of_charges(*lists, charge, NPAIR)
        return *sums, solid.energy_of_charges(*lists, density, charge), solid_3c(*lists, NPAIR)

    charges, potential, energy, three = compute(POSITIONS)
    assert_same((charges, potential), (density @ three, three @ charge), 1e-13)
    assert_allclose(energy, density @ three @ charge, rtol=1e-12)


def test_energy_of_charges_has_derivatives(monkeypatch):
    """In positions, density and charges, of any order; in widths."""
    monkeypatch.setattr(solid, "_LEAST", 1)
    monkeypatch.setattr(tiles, "_TILE_BYTES", dict.fromkeys(("cpu", "gpu"), 2000))
    moving = jnp.asarray(POSITIONS), weights()[0][:, 0], weights()[0][0], jnp.asarray(0.3)
    direction = oracle.random_like(POSITIONS, 2)

    def lists(positions, inverse_omega2):
        both = pairs(positions), solid_shells(AUX, PLAN, positions)
        return [attenuated(x, inverse_omega2) for x in both]

    def energy(positions, density, charge, inverse_omega2):
        return solid.energy_of_charges(*lists(positions, inverse_omega2), density, charge)

    def plain(positions, density, charge, inverse_omega2):
        three = solid_3c(*lists(positions, inverse_omega2), NPAIR)
        return density @ three @ charge

    @oracle.jit
    def compute(*moving):
        found = []
        for f in (energy, plain):
            slopes = jax.grad(f, argnums=(0, 1, 2))
            at_width = lambda *x, slopes=slopes: slopes(*x, moving[3])  # noqa: E731
            second = jax.jvp(at_width, moving[:3], (direction, *moving[1:3]))[1]
            found.append((*slopes(*moving), *second, jax.grad(f, argnums=3)(*moving)[None]))
        return found

    ours, expected = compute(*moving)
    assert_same(ours, expected, 1e-12)
    assert min(np.abs(x).max() for x in expected) > 1e-3


@pytest.mark.slow
def test_second_derivatives_of_weighted_sums():
    """The change of forces along a direction."""
    direction = oracle.random_like(POSITIONS, 5)

    @oracle.jit
    def compute(positions):
        along = lambda t: jax.grad(weighted)(positions + t * direction)  # noqa: E731
        steps = STEP * jnp.asarray([-2.0, -1.0, 1.0, 2.0])
        change = jax.jvp(along, (jnp.zeros(()),), (jnp.ones(()),))[1]
        return change, jax.lax.map(along, steps)

    change, displaced = compute(POSITIONS)
    measured = oracle.slope(displaced, STEP)
    assert_allclose(change, measured, rtol=0, atol=1e-7 * np.abs(measured).max())
    assert np.abs(measured).max() > 0.1


@pytest.mark.slow
def test_fitted_energy():
    """The same energy and gradients as with the general kernel's lists."""
    factor = oracle.random_like(np.zeros((1, NAO, 2)), 4)

    def energy(positions, factor, solid):
        aux = auxiliary_distributions(AUX, positions)
        aux = solid_shells(AUX, PLAN, positions) if solid else aux
        return fitted_energy(pairs(positions), aux, factor, AUX.nao, 1.0, 0.4)

    @oracle.jit
    def compute(positions, factor):
        gradient = jax.value_and_grad(energy, argnums=(0, 1))
        ours, general = (jax.tree.leaves(gradient(positions, factor, x)) for x in (True, False))
        along = jax.jvp(lambda r: energy(r, factor, True), (positions,), (positions,))[1]
        return ours, general, along

    ours, general, along = compute(POSITIONS, factor)
    assert_same(ours, general, 1e-11)
    assert_allclose(along, jnp.vdot(ours[1], POSITIONS), rtol=1e-10)


def test_the_plan_counts_primitives():
    of_s = PLAN[0]
    assert (of_s.depth, len(of_s.order), len(of_s.shell)) == (3, 3, 2 + 3)
    assert of_s.used.all()
    cartesian = Basis.from_shells([[Shell(2, (1.0,), (1.0,))]], spherical=False)
    assert plan_solid(cartesian) == ()
