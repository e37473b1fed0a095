"""Gauss-Newton steps on batches that change: those that do not hold elsewhere are taken back."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from srdft.family import MoleculeFamily
from srdft.model import OperatorMixture
from srdft.objective import GaussNewton
from srdft.optimizers import SecondOrder
from srdft.parallel import Workers
from tests import oracle


def h2(*lengths):
    positions = np.zeros((len(lengths), 2, 3))
    positions[:, 1, 2] = lengths
    return jnp.asarray(positions)


def with_weights(model, weights):
    return eqx.tree_at(lambda m: m.weights, model, weights)


@pytest.fixture(scope="module")
def update():
    """Of weights and state by a batch, and what comes before the first step."""
    family = MoleculeFamily.build((1, 1), "6-31g", "hf", two_electron="exact")
    model = OperatorMixture.build([family], steps=2)
    optimizer = SecondOrder(GaussNewton())

    @oracle.jit
    def update(weights, state, positions):
        now = with_weights(model, weights)
        changed, state, judgement = optimizer.update(now, state, [family], [positions], Workers())
        return changed.weights, state, judgement

    return update, model.weights, optimizer.init(model)


def test_steps_that_hold_lower_the_ridge(update):
    update, weights, first = update
    state, cautions, errors = first, [], []
    for lengths in ((1.2, 1.6), (1.3, 1.7), (1.1, 1.9)):
        before = weights
        weights, state, judgement = update(weights, state, h2(*lengths))
        assert_array_equal(state.before, before)
        cautions.append(float(state.caution / first.caution))
        errors.append(float(judgement.error))
    assert cautions == [1 / 2, 1 / 4, 1 / 8]
    assert errors[2] < 0.3 * errors[0]


@pytest.mark.parametrize("wild", [30.0, np.nan])
def test_a_step_that_is_wild_elsewhere_is_taken_back(update, wild):
    update, weights, state = update
    for lengths in ((1.2, 1.6), (1.3, 1.7)):
        good = weights
        weights, state, judgement = update(weights, state, h2(*lengths))
    thrown = weights + wild * np.random.default_rng(1).normal(size=weights.shape)
    thrown, after, seen = update(thrown, eqx.tree_at(lambda s: s.before, state, good), h2(1.1, 1.9))
    assert not seen.error < 10 * judgement.error  # as it was: reported, not hidden
    assert_array_equal(after.before, good)
    assert_array_equal(after.equations.matrix, state.equations.matrix)
    assert after.caution == 10 * state.caution
    _, _, now = update(thrown, after, h2(1.1, 1.9))
    assert now.error < 2 * judgement.error
