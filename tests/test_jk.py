"""Coulomb and exchange matrices of each builder against dense sums over all integrals."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from qchem import fitted_energy as energies
from qchem import fitted_jk, jk
from qchem import metric as metric_of_fit
from qchem.basis.layout import Basis
from qchem.basis.library import Shell
from qchem.integrals.moments import unpack
from qchem.integrals.pairs import (
    attenuated,
    auxiliary_distributions,
    npair,
    pair_distributions,
    plan_pairs,
)
from qchem.integrals.two_electron import coulomb_4c
from qchem.jk import ExchangeWeights
from tests import oracle
from tests.test_two_electron import AUX, NAO, NPAIR, POSITIONS, SMALL, dense, pairs

FITTING = Basis.from_shells([[Shell(0, (1.1,), (1.0,))], [Shell(1, (0.6,), (1.0,))]])
RTOL = 1e-11  # of the largest element; the metric of the fit costs a digit
STEP = 3e-3
SLOPE_RTOL = 1e-7

FACTOR = oracle.random_like(np.zeros((2, NAO, 2)), 4).at[1, :, 1].set(0.0)  # one beta electron
DM = FACTOR @ jnp.swapaxes(FACTOR, 1, 2)


def use_small_windows(monkeypatch):
    """Of seven auxiliary functions: 3 + 3 + 1."""
    monkeypatch.setattr(fitted_jk, "_UNPACKED_BYTES", {"cpu": 8 * NAO * NAO * 3})
    monkeypatch.setattr(fitted_jk, "LEAST_COLUMNS", 1)


def auxiliary(positions):
    return auxiliary_distributions(AUX, positions)


def build(name, positions):
    rows = pairs(positions)
    if name == "packed":
        return jk.PackedJK.build(rows, NAO)
    if name == "direct":
        return jk.DirectJK(rows)
    return fitted_jk.DensityFittedJK.build(rows, auxiliary(positions), NAO, AUX.nao)


@pytest.fixture(scope="module")
def integrals():
    """(ab|cd), exact and fitted, by plain linear algebra."""

    @oracle.jit
    def compute(positions):
        rows, aux = pairs(positions), auxiliary(positions)
        fitting = fitted_jk.fitting_arrays(NAO, AUX.nao, rows, aux)
        return dense(coulomb_4c(rows, NPAIR)), *fitting

    exact, three, two = (np.asarray(x) for x in compute(POSITIONS))
    square = np.asarray(unpack(jnp.asarray(three.T), NAO))
    fitted = np.einsum("pab,pq,qcd->abcd", square, np.linalg.inv(two), square)
    assert np.abs(fitted - exact).max() > 1e-2  # so that one is not taken for the other
    return {"packed": exact, "direct": exact, "df": fitted}


@pytest.mark.parametrize("name", ["packed", "direct", "df"])
def test_matrices(name, integrals):
    def matrices(positions, factor, dm):
        jk = build(name, positions)
        return jk.coulomb(dm), jk.exchange(factor)

    coulomb, exchange = oracle.jit(matrices)(POSITIONS, FACTOR, DM.sum(0))
    eri = integrals[name]
    expected = np.einsum("abcd,cd->ab", eri, DM.sum(0)), np.einsum("abcd,sbd->sac", eri, DM)
    for measured, reference in zip((coulomb, exchange), expected, strict=True):
        assert_allclose(measured, reference, atol=RTOL * np.abs(reference).max())


def test_exchange_in_chunks_is_the_same(monkeypatch):
    """Of auxiliary functions, and of rows up to the diagonal."""
    three = oracle.random_like(np.zeros((NPAIR, 7)), 1)
    fitted = fitted_jk.DensityFittedJK(three)
    whole = jax.value_and_grad(lambda f: jnp.sum(fitted.exchange(f) ** 2))(FACTOR)
    use_small_windows(monkeypatch)
    monkeypatch.setattr(fitted_jk, "_LEAST_ROWS", 1)
    assert NAO % fitted_jk._ROW_BLOCKS
    chunked = jax.value_and_grad(lambda f: jnp.sum(fitted.exchange(f) ** 2))(FACTOR)
    for one, other in zip(chunked, whole, strict=True):
        assert_allclose(one, other, rtol=1e-12)


def test_dependent_auxiliary_functions_do_no_harm():
    twice = Basis.from_shells([2 * [Shell(l, (e,), (1.0,))] for l, e in ((0, 1.1), (1, 0.6))])

    def fitted(aux, positions):
        bras = pair_distributions(SMALL, plan_pairs(SMALL), positions)
        kets = auxiliary_distributions(aux, positions)
        three, two = fitted_jk.fitting_arrays(SMALL.nao, aux.nao, bras, kets)
        two = two - 1e-14 * jnp.eye(aux.nao)  # rounding of the bad kind
        jk = fitted_jk.DensityFittedJK(fitted_jk.fit_of(three, two).columns)
        return two, jk.coulomb(jnp.eye(SMALL.nao))

    def compute(positions):
        def total(aux, positions):
            two, coulomb = fitted(aux, positions)
            return jnp.sum(coulomb**2), (two, coulomb)

        return [
            jax.grad(lambda r, a=a: total(a, r), has_aux=True)(positions) for a in (FITTING, twice)
        ]

    (slope, (_, coulomb)), (slope_twice, (two, coulomb_twice)) = oracle.jit(compute)(POSITIONS)
    assert np.isnan(jnp.linalg.cholesky(two)[-1, -1])
    assert_allclose(coulomb_twice, coulomb, atol=1e-7)
    assert_allclose(slope_twice, slope, atol=1e-6)


# Full range alone, with a part of long range, and short range alone.
RANGES = [ExchangeWeights(0.4), ExchangeWeights(0.2, 0.5, 0.45), ExchangeWeights(0.0, 0.3, -0.6)]


def small_rows(positions):
    bras = pair_distributions(SMALL, plan_pairs(SMALL), positions)
    return bras, auxiliary_distributions(FITTING, positions)


@pytest.mark.parametrize("weights", RANGES[1:], ids=["long", "short"])
def test_separated_ranges(weights):
    """The attenuated builder against integrals of the attenuated interaction, exact and fitted."""
    full, part, omega = weights
    lists, nao, naux = small_rows(POSITIONS), SMALL.nao, FITTING.nao
    factor, size = FACTOR[:, :nao], npair(nao)

    @oracle.jit
    def compute(factor):
        packed = jk.PackedJK.build_separated(lists[0], nao, weights)
        fitted = fitted_jk.DensityFittedJK.build_separated(*lists, nao, naux, omega)
        far = [attenuated(rows, jnp.asarray(omega**-2)) for rows in lists]
        integrals = [
            (coulomb_4c(b, size), *fitted_jk.fitting_arrays(nao, naux, b, a))
            for b, a in (lists, far)
        ]
        return [jk.exchange(factor) for jk in (*packed, *fitted)], integrals

    matrices, (near, far) = compute(factor)
    if omega < 0:
        far = [x - y for x, y in zip(near, far, strict=True)]
    exact, fits = [], []
    for four, three, two in (near, far):
        packed = jnp.moveaxis(unpack(unpack(four, size), nao), 0, -1)
        exact.append(np.asarray(unpack(packed, nao)))
        square = np.asarray(unpack(three.T, nao))
        fits.append(np.einsum("pab,pq,qcd->abcd", square, np.linalg.inv(two), square))
    both = full * exact[0] + part * exact[1]
    dm = factor @ jnp.swapaxes(factor, 1, 2)
    for measured, eri in zip(matrices, (exact[0], both, *fits), strict=True):
        reference = np.einsum("abcd,sbd->sac", eri, dm)
        # The metric of long range is regularized, by 1e-8 of its unit.
        rtol = 1e-6 if eri is fits[1] and omega > 0 else 1e-10
        assert_allclose(measured, reference, atol=rtol * np.abs(reference).max())


def check_energy(energy, expected):
    """`energy(positions, factor)` has the value expected, and derivatives as differences say."""
    start = FACTOR[:, : SMALL.nao]
    direction = oracle.random_like((POSITIONS, start), 6)

    @oracle.jit
    def compute(positions, factor):
        steps = STEP * jnp.asarray([-2.0, -1.0, 1.0, 2.0])
        moved = lambda t: energy(positions + t * direction[0], factor + t * direction[1])  # noqa: E731
        both = jax.value_and_grad(energy, argnums=(0, 1))(positions, factor)
        return both, expected(positions, factor), jax.lax.map(moved, steps)

    (value, gradients), reference, displaced = compute(POSITIONS, start)
    assert_allclose(value, reference, rtol=1e-12)
    slope = sum(jnp.vdot(g, d) for g, d in zip(gradients, direction, strict=True))
    measured = oracle.slope(displaced, STEP)
    assert abs(measured) > 0.1
    assert_allclose(slope, measured, atol=SLOPE_RTOL * np.abs(displaced).max())


def energy_of_matrices(jks, factor, coulomb, fractions):
    dm = factor @ jnp.swapaxes(factor, 1, 2)
    density = jnp.sum(dm, axis=0)
    energy = 0.5 * coulomb * jnp.vdot(jks[0].coulomb(density), density)
    for fraction, builder in zip(fractions, jks, strict=False):
        if fraction:
            energy = energy - 0.5 * fraction * jnp.vdot(builder.exchange(factor), dm)
    return energy


@pytest.mark.parametrize("known", [False, True], ids=["", "known"])
@pytest.mark.parametrize("weights", RANGES, ids=["full", "long", "short"])
def test_fitted_energy(weights, known):
    """Its value is that of the matrices; its derivative rule agrees with differences, of integrals
    that are known too."""
    coulomb = 0.9

    def builders(positions, **how):
        sizes = SMALL.nao, FITTING.nao, weights.omega
        return fitted_jk.DensityFittedJK.build_separated(*small_rows(positions), *sizes, **how)

    def energy(positions, factor):
        rows, settings = small_rows(positions), (FITTING.nao, coulomb, weights)
        fitted = tuple(jk.fit for jk in builders(positions, keep=True)) if known else None
        return energies.fitted_energy(*rows, factor, *settings, fitted=fitted)

    def expected(positions, factor):
        return energy_of_matrices(builders(positions), factor, coulomb, weights[:2])

    check_energy(energy, expected)


@pytest.mark.parametrize("weights", [*RANGES, 0.0], ids=["full", "long", "short", "none"])
def test_fitted_energy_of_turned_orbitals(weights):
    def energy(orbitals, turn):
        settings = FITTING.nao, 0.9, weights
        return energies.fitted_energy(*small_rows(POSITIONS), orbitals, *settings, turn=turn)

    oracle.turns_agree(energy, FACTOR, 1e-10)


def test_fitted_energy_in_chunks_is_the_same(monkeypatch):
    three = oracle.random_like(np.zeros((NPAIR, 7)), 1)
    metric = jnp.eye(7) + 0.1
    lower = jnp.linalg.cholesky(metric)

    def all_of_it():
        parts = energies._Contracted.build(three, lower, FACTOR, 0.9, 0.4)
        slopes = parts.factor_slope(three, FACTOR), parts.column_slope(three, FACTOR)
        return parts.energy, parts.metric_slope(), *slopes

    def fit():
        return fitted_jk.fit_of(three, metric).columns

    whole, fitted = all_of_it(), fit()
    monkeypatch.setattr(metric_of_fit, "_SOLVED_BYTES", 8 * 7 * 4)  # rows
    assert NPAIR % 4
    assert_allclose(fit(), fitted, rtol=1e-12, atol=1e-14)
    use_small_windows(monkeypatch)
    for one, other in zip(all_of_it(), whole, strict=True):
        assert_allclose(one, other, rtol=1e-11)


def test_slopes_copy_no_integrals_for_each_window(monkeypatch):
    """Those of the argument are copied once, as it is not theirs."""
    use_small_windows(monkeypatch)

    def slopes(three, metric, factor):
        parts = energies._Contracted.build(three, metric, factor, 0.9, 0.4)
        return parts.factor_slope(three, factor), parts.column_slope(three, factor)

    arrays = np.zeros((NPAIR, 7)), np.eye(7), np.asarray(FACTOR)
    text = jax.jit(slopes).lower(*arrays).compile().as_text()
    assert len(re.findall(rf"= f64\[{NPAIR},7\]\S* copy\(", text)) == 1


@pytest.mark.parametrize("weights", RANGES[1:], ids=["long", "short"])
def test_exact_energy_of_separated_ranges(weights):
    def energy(positions, factor):
        dm = factor @ jnp.swapaxes(factor, 1, 2)
        return jk.exact_energy(small_rows(positions)[0], dm, weights)

    def expected(positions, factor):
        bras = small_rows(positions)[0]
        jks = jk.PackedJK.build_separated(bras, SMALL.nao, weights)
        return energy_of_matrices(jks, factor, 1.0, (0.0, 1.0))

    check_energy(energy, expected)
