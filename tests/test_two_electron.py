"""Coulomb interactions: derivative rules, weighted sums, energies of densities, long range."""

from math import erf

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from qchem.basis.layout import Basis
from qchem.basis.library import Shell
from qchem.integrals import tiles, two_electron
from qchem.integrals.auxiliary import coulomb_2c, coulomb_3c, weighted_2c, weighted_3c
from qchem.integrals.coulomb import nhermite
from qchem.integrals.kernel import interaction, weighted_sum
from qchem.integrals.moments import packed_density, unpack
from qchem.integrals.pairs import (
    Distribution,
    attenuated,
    auxiliary_distributions,
    charge_distribution,
    npair,
    pair_distributions,
    plan_pairs,
)
from qchem.integrals.potential import potential, potential_energy
from qchem.integrals.two_electron import coulomb_4c, coulomb_energy
from tests import oracle

RTOL = 1e-12
STEP = 3e-3
SLOPE_RTOL = 1e-7  # of the stencil: its error is of fourth order in the step

POSITIONS = jnp.asarray([[0.1, -0.2, 0.3], [0.9, 0.5, -0.4]])
BASIS = Basis.from_shells(
    [
        [Shell(0, (1.2, 0.3), (0.6, 0.5)), Shell(1, (0.8,), (1.0,))],
        [Shell(0, (0.7,), (1.0,))],
    ]
)
AUX = Basis.from_shells(
    [[Shell(0, (1.1,), (1.0,)), Shell(1, (0.6,), (1.0,))], [Shell(2, (0.9,), (1.0,))]]
)
SMALL = Basis.from_shells(
    [[Shell(0, (1.2, 0.3), (0.6, 0.5)), Shell(0, (0.2,), (1.0,))], [Shell(0, (0.7,), (1.0,))]]
)
PLAN = plan_pairs(BASIS)
NAO, NPAIR = BASIS.nao, npair(BASIS.nao)


def pairs(positions):
    return pair_distributions(BASIS, PLAN, positions)


def distribution(seed, order, lowest, nrow, nfunction, nprim):
    """Any distribution: random centres, widths, coefficients; one pair of centres coincides."""
    rng = np.random.default_rng(seed)
    center = rng.normal(size=(nrow, nprim, 3))
    center[0, 0] = 0.25
    shape = (nrow, nfunction, nprim, nhermite(order, lowest))
    return Distribution(
        order,
        lowest,
        jnp.asarray(rng.uniform(0.3, 2.0, (nrow, nprim))),
        jnp.asarray(center),
        jnp.asarray(rng.normal(size=shape)),
        np.arange(nrow * nfunction, dtype=np.int32).reshape(nrow, nfunction),
    )


BRA, KET = distribution(0, 2, 0, 3, 2, 2), distribution(1, 1, 1, 2, 3, 1)
FIELDS = {
    "width": lambda d: d.width,
    "center": lambda d: d.center,
    "coefficient": lambda d: d.coefficient,
}


def test_interaction_of_two_gaussians():
    """Charges 2 and 3 of widths s and s': 6 erf(r / sqrt(s + s' + 1/omega²)) / r."""
    one, two = (
        charge_distribution(jnp.full((1, 1), q), jnp.full((1, 1), s), POSITIONS[n][None])
        for n, (q, s) in enumerate([(2.0, 0.4), (3.0, 0.0)])
    )
    r = float(jnp.linalg.norm(POSITIONS[0] - POSITIONS[1]))
    for inverse_omega2 in (0.0, 1.7):
        expected = 6 * erf(r / np.sqrt(0.4 + inverse_omega2)) / r
        rows = attenuated((one, two), jnp.asarray(inverse_omega2))
        assert_allclose(interaction(*rows), np.full((1,) * 4, expected), rtol=RTOL)


@pytest.fixture(scope="module")
def along():
    """Interaction and weighted sum at displaced arguments, and their jvp: one program."""
    weight = oracle.random_like(np.zeros((3, 2, 3, 2)), 5)

    def functions(bra, ket, weight):
        return interaction(bra, ket), weighted_sum(bra, ket, weight)

    @oracle.jit
    def measure(arguments, direction):
        leaves, tree = jax.tree.flatten(arguments)
        steps = jax.tree.leaves(direction)

        def moved(t):
            return functions(*jax.tree.unflatten(tree, [x + t * d for x, d in zip(leaves, steps)]))

        values = jax.lax.map(moved, STEP * jnp.asarray([-2.0, -1.0, 1.0, 2.0]))
        return values, jax.jvp(moved, (jnp.zeros(()),), (jnp.ones(()),))

    return (BRA, KET, weight), measure


@pytest.mark.parametrize("side", [0, 1], ids=["bra", "ket"])
@pytest.mark.parametrize("field", FIELDS)
def test_derivative_rules(along, side, field):
    arguments, measure = along
    floats = jax.tree.map(jnp.asarray, arguments)
    direction = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float64), floats)
    wanted = FIELDS[field](arguments[side])
    step = 0.3 * oracle.random_like(wanted, 3)
    direction = eqx.tree_at(lambda d: FIELDS[field](d[side]), direction, step)
    floats = jax.tree.map(lambda x: x.astype(jnp.float64), floats)  # the index plays no part here
    values, (_, tangents) = measure(floats, direction)
    for value, tangent in zip(values, tangents, strict=True):
        expected = oracle.slope(value, STEP)
        assert np.abs(expected).max() > 1e-2
        assert_allclose(tangent, expected, atol=SLOPE_RTOL * np.abs(expected).max())


def test_weighted_sum_is_the_sum_and_has_its_gradients():
    """Value and gradients in one rule, against those of the integrals; forward over reverse."""
    weight = oracle.random_like(np.zeros((3, 2, 3, 2)), 5)

    def arrays(d):
        return d.width, d.center, d.coefficient

    def rebuilt(d, arrays):
        return Distribution(d.order, d.lowest, *arrays, d.index)

    def plain(weight, bra, ket):
        return jnp.vdot(weight, interaction(rebuilt(BRA, bra), rebuilt(KET, ket)))

    def quick(weight, bra, ket):
        return weighted_sum(rebuilt(BRA, bra), rebuilt(KET, ket), weight)

    arguments = weight, arrays(BRA), arrays(KET)
    direction = oracle.random_like(arguments, 7)

    @oracle.jit
    def everything(arguments, direction):
        return [
            jax.jvp(jax.value_and_grad(f, argnums=(0, 1, 2)), arguments, direction)
            for f in (plain, quick)
        ]

    expected, measured = (jax.tree.leaves(x) for x in everything(arguments, direction))
    for one, other in zip(measured, expected, strict=True):
        assert np.abs(other).max() > 1e-2
        assert_allclose(one, other, atol=RTOL * np.abs(other).max())


def dense(packed):
    """(ab|cd) as a four-index array."""
    return unpack(jnp.moveaxis(unpack(unpack(packed, NPAIR), NAO), 0, -1), NAO)


def packed_energy(positions, dm, coulomb, exchange):
    eri = dense(coulomb_4c(pairs(positions), NPAIR))
    density = dm.sum(0)
    energy = 0.5 * coulomb * jnp.einsum("ab,cd,abcd", density, density, eri)
    return energy - 0.5 * exchange * jnp.einsum("sac,sbd,abcd", dm, dm, eri)


def direct_energy(positions, dm, coulomb, exchange, basis=BASIS):
    rows = pair_distributions(basis, plan_pairs(basis), positions)
    return coulomb_energy(rows, dm, coulomb, exchange)


def symmetric(x):
    return 0.5 * (x + jnp.swapaxes(x, 1, 2))


def assert_same(measured, expected):
    for one, other in zip(*map(jax.tree.leaves, (measured, expected)), strict=True):
        assert np.abs(other).max() > 1e-2
        assert_allclose(one, other, atol=RTOL * np.abs(other).max())


def test_coulomb_energy_is_that_of_the_integrals():
    """Value, forces and Fock matrix."""
    dm = symmetric(oracle.random_like(np.zeros((2, NAO, NAO)), 2))

    def derivatives(f, positions, dm):
        energy = lambda r, d: f(r, symmetric(d), 0.7, 0.3)  # noqa: E731
        return jax.value_and_grad(energy, argnums=(0, 1))(positions, dm)

    expected, measured = oracle.jit(
        lambda *x: [derivatives(f, *x) for f in (packed_energy, direct_energy)]
    )(POSITIONS, dm)
    assert_same(measured, expected)


def test_forward_over_reverse():
    """The change of forces and Fock matrix along a direction, by differences."""
    dm = symmetric(oracle.random_like(np.zeros((1, 3, 3)), 2))
    arguments = POSITIONS, dm
    direction = oracle.random_like(POSITIONS, 3), symmetric(oracle.random_like(dm, 4))

    def moved(t):
        moved = [x + t * d for x, d in zip(arguments, direction)]
        energy = lambda r, d: direct_energy(r, symmetric(d), 1.0, 0.5, SMALL)  # noqa: E731
        return jax.grad(energy, argnums=(0, 1))(*moved)

    @oracle.jit
    def compute(steps):
        return jax.lax.map(moved, steps), jax.jvp(moved, (jnp.zeros(()),), (jnp.ones(()),))[1]

    values, tangents = compute(STEP * jnp.asarray([-2.0, -1.0, 1.0, 2.0]))
    for value, tangent in zip(values, tangents, strict=True):
        expected = oracle.slope(value, STEP)
        assert np.abs(expected).max() > 1e-2
        assert_allclose(tangent, expected, atol=SLOPE_RTOL * np.abs(expected).max())


@pytest.fixture(scope="module")
def fitting():
    """(ab|P), (P|Q), the potential of charges, and weighted sums of each; both operators."""
    charges = charge_distribution(jnp.asarray([[3.0, -1.0], [2.0, -0.5]]),
                                  jnp.asarray([[0.0, 0.8], [0.0, 0.3]]), POSITIONS)  # fmt: skip
    dm = oracle.random_like(np.zeros((NAO, NAO)), 2)
    dm = dm + dm.T
    width = sum(rows.index.size for rows in auxiliary_distributions(AUX, POSITIONS))
    assert width > AUX.nao  # there is something that fills up
    w3 = oracle.random_like(np.zeros((NPAIR, width)), 8)
    w2 = oracle.random_like(np.zeros((width, width)), 9)
    w2 = w2 + w2.T

    @oracle.jit
    def compute(positions):
        rows, aux = pairs(positions), auxiliary_distributions(AUX, positions)
        integrals = []
        for inverse_omega2 in (0.0, 1e-12):
            lists = (rows, aux, (charges,))
            lists = [attenuated(x, jnp.asarray(inverse_omega2)) for x in lists]
            three = coulomb_3c(lists[0], lists[1], NPAIR)
            two = coulomb_2c(lists[1])
            integrals.append((three, two, potential(lists[0], lists[2][0], NPAIR)))
        sums = (
            weighted_3c(rows, aux, w3),
            weighted_2c(aux, w2),
            potential_energy(rows, charges, packed_density(dm)),
        )
        return integrals, sums

    return (w3, w2, dm), *compute(POSITIONS)


def test_weighted_sums_of_fitting_integrals(fitting):
    (w3, w2, dm), ((three, two, attraction), _), sums = fitting
    expected = jnp.vdot(w3, three), jnp.vdot(w2, two), jnp.vdot(dm, unpack(attraction, NAO))
    assert_allclose(sums, expected, rtol=RTOL)


def test_a_steep_attenuated_operator_is_the_full_one(fitting):
    _, (full, attenuated), _ = fitting
    for one, other in zip(attenuated, full, strict=True):
        assert_allclose(one, other, atol=1e-9 * np.abs(other).max())


def test_tiles_do_not_change_the_integrals(monkeypatch):
    def compute():
        rows = pair_distributions(SMALL, plan_pairs(SMALL), POSITIONS)
        return oracle.jit(lambda rows: coulomb_4c(rows, npair(SMALL.nao)))(rows)

    monkeypatch.setattr(tiles, "_TILE_BYTES", {})
    whole = compute()
    monkeypatch.setattr(tiles, "_TILE_BYTES", dict.fromkeys(("cpu", "gpu", "tpu"), 500))
    assert_allclose(compute(), whole, atol=RTOL * np.abs(whole).max())


def test_lists_of_single_orders_give_the_same_integrals(monkeypatch):
    @oracle.jit
    def compute(positions):
        monkeypatch.setattr(two_electron, "_MERGED_PAIRS", NPAIR)
        merged = coulomb_4c(pairs(positions), NPAIR)
        monkeypatch.setattr(two_electron, "_MERGED_PAIRS", 0)
        orders = [rows.order for rows in two_electron.in_order(pairs(positions), NPAIR)[0][0]]
        assert len(orders) > len(pairs(positions))
        return coulomb_4c(pairs(positions), NPAIR), merged

    single, merged = compute(POSITIONS)
    assert_allclose(single, merged, atol=RTOL * np.abs(merged).max())
