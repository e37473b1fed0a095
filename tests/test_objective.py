"""Training: gradients of the mean energy, Gauss-Newton steps, and what they reach."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from qchem import InputError
from srdft import objective
from srdft.family import MoleculeFamily
from srdft.model import OperatorMixture
from srdft.network import Gates
from srdft.objective import GaussNewton, mean_energy
from tests import oracle

LENGTHS = np.linspace(1.0, 4.6, 8)  # bohr
TRAINED_ERROR = 1e-5  # hartree, over those lengths
STEP = 1e-3


def h2(lengths):
    positions = np.zeros((len(lengths), 2, 3))
    positions[:, 1, 2] = lengths
    return jnp.asarray(positions)


def random_weights(model, size=0.02):
    weights = size * np.random.default_rng(0).normal(size=model.weights.shape)
    return eqx.tree_at(lambda m: m.weights, model, jnp.asarray(weights))


@pytest.fixture(scope="module")
def family():
    return MoleculeFamily.build((1, 1), "6-31g", "hf", two_electron="exact")


@pytest.fixture(scope="module")
def model(family):
    return OperatorMixture.build([family], Gates.build([family], degree=1), steps=2)


@pytest.fixture(scope="module")
def training(family, model):
    """Passes over the same geometries, each half of the way; what the first one gathered."""
    method = GaussNewton()

    @oracle.jit
    def gather(weights, positions):
        now = eqx.tree_at(lambda m: m.weights, model, weights)
        state, quality = method.accumulate(method.init(now), family, now, positions)
        return state, quality, method.step(state, now, 0.5).weights

    weights, qualities, states = model.weights, [], []
    for _ in range(12):
        state, quality, weights = gather(weights, h2(LENGTHS))
        qualities.append(quality)
        states.append(state)
    return gather, states, qualities, weights


def test_gauss_newton_reaches_the_minimum(family, training):
    _, _, qualities, _ = training
    converged = oracle.jit(lambda points: jax.lax.map(lambda r: family.solve(r).energy, points))
    errors = np.array([q.energy for q in qualities]) - np.asarray(converged(h2(LENGTHS)))[None]
    assert errors.min() > -1e-9  # variational
    assert errors[0].mean() > 1e-4
    assert errors[-1].max() < TRAINED_ERROR
    # What is known without labels says the same.
    estimates = np.array([q.error_estimate for q in qualities])
    large = errors > 1e-8
    assert large.sum() > 20
    ratios = estimates[large] / errors[large]
    assert 0.3 < ratios.min() and ratios.max() < 4


def test_the_equations_are_those_of_the_fock_matrix(family, training):
    """Matrix times weights less vector is, but for a factor, the gradient of the energy."""
    model = OperatorMixture.build([family], steps=1)
    model = random_weights(model, 0.001)
    method = GaussNewton(block_weight=0.0)

    @oracle.jit
    def measure(weights, position):
        now = eqx.tree_at(lambda m: m.weights, model, weights)
        state, _ = method.accumulate(method.init(now), family, now, position[None])
        return state, family.energy_fn(now, position)

    position = h2([1.7])[0]
    direction = oracle.random_like(model.weights, 4)
    state, _ = measure(model.weights, position)
    matrix, vector = state.matrix[0, 0], state.vector[0, 0]
    flat = model.weights.ravel()
    # E changes by n * 2 * (-F) (dF) / gap: the equations hold the same product, up to 2n = 4.
    predicted = -4 * jnp.vdot(vector - matrix @ flat, direction.ravel())
    points = oracle.stencil(model.weights, direction, STEP)
    measured = oracle.slope([measure(w, position)[1] for w in points], STEP)
    assert abs(measured) > 1e-3
    # Semicanonical and model energies differ, which the diagonal Hessian does not know.
    assert 0.7 < predicted / measured < 1.4
    assert_allclose(matrix, matrix.T, atol=1e-12)
    assert np.linalg.eigvalsh(matrix).min() > -1e-10


def test_equations_add_up_and_fade(family, model, training):
    gather, states, _, _ = training
    halves = [gather(model.weights, h2(part))[0] for part in (LENGTHS[:4], LENGTHS[4:])]
    total = jax.tree.map(jnp.add, *halves)
    assert total.count == 8
    scale = float(np.abs(states[0].matrix).max())
    assert_allclose(total.matrix, states[0].matrix, atol=1e-11 * scale)
    assert_allclose(total.vector, states[0].vector, atol=1e-10 * np.abs(total.vector).max())


def test_no_step_without_equations_and_none_of_length_zero(model, training):
    method, (_, states, _, _) = GaussNewton(), training
    moved = random_weights(model)
    assert_allclose(method.step(method.init(moved), moved).weights, moved.weights)
    assert_allclose(method.step(states[0], moved, 0.0).weights, moved.weights)


def test_equations_that_do_not_fit_the_memory_are_refused(family, model, monkeypatch):
    nstep, nspin, *of_weight = model.weights.shape
    n, nao = int(np.prod(of_weight)), family.method.basis.nao
    equations = 8 * nstep * nspin * 3 * n**2
    rows = 8 * nstep * nspin * n * nao * (nao + 1)
    method, state = GaussNewton(), GaussNewton().init(model)
    assert 3 * state.matrix.nbytes == equations
    monkeypatch.setattr(objective, "available_bytes", lambda: equations)
    method.init(model)
    refusal = f"{n} weights .* about {equations + rows} bytes .* has {equations} .* 'adam'"
    with pytest.raises(InputError, match=refusal):
        method.accumulate(state, family, model, h2(LENGTHS[:1]))
    monkeypatch.setattr(objective, "available_bytes", lambda: equations - 1)
    with pytest.raises(InputError, match=f"about {equations} bytes"):
        method.init(model)


def test_the_memory_of_the_device_is_known():
    assert 2**28 < objective.available_bytes() < 2**50


def test_the_gradient_of_the_mean_energy(family, model):
    model = random_weights(model)
    direction = oracle.random_like(model.weights, 5)
    points = h2(LENGTHS[[1, 4]])

    @oracle.jit
    def measure(weights):
        def mean(weights):
            now = eqx.tree_at(lambda m: m.weights, model, weights)
            return mean_energy(now, family, points)

        return jax.value_and_grad(mean)(weights)

    values = [measure(w)[0] for w in oracle.stencil(model.weights, direction, STEP)]
    measured = oracle.slope(values, STEP)
    assert abs(measured) > 1e-2
    assert_allclose(jnp.vdot(measure(model.weights)[1], direction), measured, rtol=1e-7)


def test_random_combinations_keep_scalar_products_on_average():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(400, 3000))
    kept = np.arange(0, 3000, 10)
    short = objective._shortened(kept, jnp.asarray(x))
    assert short.shape == (400, kept.size + objective._COMBINATIONS)
    assert_allclose(short[:, : kept.size], x[:, kept], rtol=0, atol=0)
    lengths = np.sum(np.asarray(short) ** 2, axis=1) / np.sum(x**2, axis=1)
    assert_allclose(lengths.mean(), 1, rtol=0, atol=0.02)
    few = objective._shortened(kept[:10], jnp.asarray(x[:, :200]))
    assert_allclose(np.sum(np.asarray(few) ** 2, axis=1), np.sum(x[:, :200] ** 2, axis=1))
