"""Sampling: closed-form distributions, the guard, the ladder, and what is frozen or refreshed."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.diagnostics import effective_sample_size

from qchem import HARTREE_IN_KELVIN, InputError
from srdft.diagnostics import diagnose
from srdft.kernels import KERNELS, Point, kernel_from_name
from srdft.potential import AbstractPotential, TotalDrift
from srdft.sampler import Sampler
from tests.toys import DIATOMIC, HarmonicMolecule, toy_model

KT = 500.0 / HARTREE_IN_KELVIN  # hartree
WIDTH = np.array([[0.05, 0.1, 0.2]])  # bohr
SIGMAS = 5  # of the sampling error; seeds are fixed, so this is no game of chance


def gaussian(model, positions):
    return 0.5 * KT * jnp.sum((positions / WIDTH.astype(positions.dtype)) ** 2)


def make(energy, kernel="mala", numbers=(1,), temperatures=(500.0,), **options):
    potential = energy if isinstance(energy, AbstractPotential) else TotalDrift(energy)
    defaults = {"guard": 0.0, "warmup": 200, "centred": len(numbers) > 1}
    kernel = kernel_from_name(kernel)
    return Sampler(potential, kernel, numbers, temperatures, **(defaults | options))


def run(sampler, start, n, model=None, burn=300, step_size=2e-3, dtype=jnp.float64):
    """Positions along the chains of the first rung, the last state, and the mean info."""

    @jax.jit
    def go(state, key):
        first, later = jax.random.split(key)
        state, _ = sampler.sample(model, state, burn, key=first)

        def step(state, key):
            state, info = sampler.step(model, state, key=key)
            return state, (sampler.at_temperature(state.positions), info)

        return jax.lax.scan(step, state, jax.random.split(later, n))

    state = sampler.init(model, jnp.asarray(start, dtype), step_size)
    state = eqx.filter_jit(sampler.refresh)(model, state)
    state, (positions, info) = go(state, jax.random.key(3))
    return np.asarray(positions), state, jax.tree.map(lambda x: np.mean(x), info)


def assert_mean(series, expected, bias=0.0):
    """The mean of (time, chain) values, within its own sampling error."""
    size = float(effective_sample_size(jnp.asarray(series.T)))
    assert size > 100, "too few samples to tell anything"
    assert abs(series.mean() - expected) < SIGMAS * series.std() / size**0.5 + bias


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != "ula"])
def test_kernels_sample_a_gaussian(kernel):
    sampler = make(gaussian, kernel)
    positions, _, info = run(sampler, np.zeros((8, 1, 3)), 1500)
    for axis in range(3):
        along = positions[:, :, 0, axis]
        assert_mean(along, 0.0)
        assert_mean(along**2, WIDTH[0, axis] ** 2)
    if kernel == "hmc":
        # Its step ends at the limit of stability of the narrowest direction, where acceptance falls
        # from 0.9 to 0 within a few per cent: what the adaptation holds is the mean while it lasts.
        _, _, info = run(make(gaussian, kernel, warmup=10_000), np.zeros((8, 1, 3)), 1500)
    assert abs(info.acceptance - sampler.kernel.target_acceptance) < 0.12
    assert info.impossible == 0 and info.dissociated == 0


def test_unadjusted_langevin_has_the_bias_of_its_step():
    sampler = make(gaussian, "ula")
    positions, state, info = run(sampler, np.zeros((8, 1, 3)), 4000, step_size=1e-3)
    # x -> (1 - epsilon/w^2) x + sqrt(2 epsilon) noise has variance w^2 / (1 - epsilon / (2 w^2)).
    for axis, width in enumerate(WIDTH[0]):
        expected = width**2 / (1 - 1e-3 / (2 * width**2))
        assert_mean(positions[:, :, 0, axis] ** 2, expected)
    assert float(state.step_size[0]) == 1e-3 and info.acceptance == 1


def test_single_precision_follows_positions():
    positions, state, _ = run(make(gaussian), np.zeros((4, 1, 3)), 600, dtype=jnp.float32)
    assert positions.dtype == np.float32 and state.energy.dtype == jnp.float32
    assert_mean((positions[:, :, 0, 2] ** 2).astype(np.float64), 0.04)


class WrongDrift(AbstractPotential):
    """A gradient that is not the derivative of the energy."""

    def energy(self, model, positions):
        return gaussian(model, positions)

    def energy_and_gradient(self, model, positions):
        energy, gradient = jax.value_and_grad(gaussian, argnums=1)(model, positions)
        return energy, 0.5 * gradient + 0.1 * KT


@pytest.mark.parametrize("kernel", ["mala", "hmc"])
def test_any_drift_leaves_the_distribution_exact(kernel):
    positions, _, _ = run(make(WrongDrift(), kernel), np.zeros((8, 1, 3)), 3000)
    for axis in range(3):
        assert_mean(positions[:, :, 0, axis], 0.0)
        assert_mean(positions[:, :, 0, axis] ** 2, WIDTH[0, axis] ** 2)


def radial_moments(energy, kt, low, high):
    """Mean and variance of a bond length of weight r^2 exp(-E(r)/kT), by quadrature, bohr."""
    r = np.linspace(low, high, 20_001)
    weight = r**2 * np.exp(-(energy(r) - energy(r).min()) / kt)
    mean = np.sum(weight * r) / np.sum(weight)
    return mean, np.sum(weight * (r - mean) ** 2) / np.sum(weight), (r, weight / np.sum(weight))


def test_harmonic_molecule_mean_variance_and_equipartition():
    family = HarmonicMolecule((1, 1), stiffness=0.1)
    sampler = make(family.energy_fn, numbers=(1, 1), temperatures=(3000.0,))
    model = eqx.tree_at(lambda m: m.weights, toy_model(), jnp.full(3, 0.3))  # no error
    start = np.broadcast_to(np.array(DIATOMIC), (8, 2, 3))
    positions, state, _ = run(sampler, start, 2500, model)
    lengths = np.linalg.norm(positions[:, :, 0] - positions[:, :, 1], axis=-1)
    kt = 3000.0 / HARTREE_IN_KELVIN
    mean, variance, _ = radial_moments(lambda r: 0.05 * (r - 1.5) ** 2, kt, 0.01, 4.0)
    assert_mean(lengths, mean)
    assert_mean((lengths - mean) ** 2, variance)
    # Half kT in the spring, but for the small part of the volume element r^2.
    energy = 0.05 * (lengths - 1.5) ** 2
    assert_mean(energy, 0.05 * (variance + (mean - 1.5) ** 2))
    assert abs(energy.mean() / kt - 0.5) < 0.15
    np.testing.assert_allclose(np.mean(positions, axis=2), 0, atol=1e-12)  # no drift
    np.testing.assert_allclose(
        state.energy, jax.vmap(lambda r: family.energy_fn(model, r))(state.positions), atol=1e-12
    )


def test_bond_lengths_of_a_morse_hydrogen_molecule():
    depth, width, length = 0.1745, 1.03, 1.40  # hartree, 1/bohr, bohr: those of H2

    def energy(model, positions):
        r = jnp.linalg.norm(positions[0] - positions[1])
        return depth * (1 - jnp.exp(-width * (r - length))) ** 2

    sampler = make(energy, numbers=(1, 1), temperatures=(2000.0,), guard=3.0)
    start = np.broadcast_to([[0.0, 0.0, -0.7], [0.0, 0.0, 0.7]], (8, 2, 3))
    positions, _, info = run(sampler, start, 4000)
    lengths = np.linalg.norm(positions[:, :, 0] - positions[:, :, 1], axis=-1)
    kt = 2000.0 / HARTREE_IN_KELVIN
    mean, variance, (r, weight) = radial_moments(
        lambda r: depth * (1 - np.exp(-width * (r - length))) ** 2, kt, 0.5, 3.5
    )
    assert_mean(lengths, mean)
    assert_mean((lengths - mean) ** 2, variance)
    quantiles = np.interp([0.1, 0.25, 0.5, 0.75, 0.9], np.cumsum(weight), r)
    for part, at in zip([0.1, 0.25, 0.5, 0.75, 0.9], quantiles):
        assert_mean((lengths < at).astype(float), part)
    assert diagnose(lengths.T)[1] < 1.02 and info.dissociated == 0


def test_impossible_proposals_are_rejected_and_counted():
    def energy(model, positions):
        return jnp.where(positions[0, 0] > 0.05, jnp.nan, gaussian(model, positions))

    for kernel in ("mala", "random_walk", "ula"):
        sampler = make(energy, kernel)
        positions, state, info = run(sampler, np.zeros((4, 1, 3)), 300)
        assert positions[..., 0].max() <= 0.05 and np.isfinite(state.energy).all()
        assert 0.005 < info.impossible < 0.9 and info.dissociated == 0
        assert np.isfinite(state.gradient).all()


def test_the_guard_keeps_the_molecule_together_and_can_be_switched_off():
    def energy(model, positions):
        return jnp.zeros((), positions.dtype)  # nothing else holds it

    start = np.broadcast_to(np.array(DIATOMIC), (4, 2, 3))
    bound = 2.0 * 2 * 0.31 / 0.529177210903
    guarded, _, info = run(make(energy, "random_walk", (1, 1), guard=2.0), start, 400)
    lengths = np.linalg.norm(guarded[:, :, 0] - guarded[:, :, 1], axis=-1)
    assert lengths.max() < bound and info.dissociated > 0.05 and info.impossible == 0
    free, _, info = run(make(energy, "random_walk", (1, 1), guard=0.0), start, 400)
    assert np.linalg.norm(free[-1, :, 0] - free[-1, :, 1], axis=-1).max() > bound
    assert info.dissociated == 0


def test_a_ladder_crosses_barriers_and_keeps_the_first_temperature_exact():
    barrier, tilt = 12 * KT, 1.0 * KT

    def energy(model, positions):  # two wells at -1 and 1, the second lower by 2 kT
        x = positions[0, 0]
        return barrier * (x**2 - 1) ** 2 - tilt * x + 5 * KT * jnp.sum(positions[0, 1:] ** 2)

    start = np.broadcast_to([[[-1.0, 0.0, 0.0]]], (16, 1, 3))
    alone, _, _ = run(make(energy, temperatures=(500.0,)), start[:4], 300)
    assert (alone[..., 0, 0] < 0).all()  # the barrier is high
    ladder = make(energy, temperatures=(500.0, 1200.0, 2800.0, 6500.0))
    positions, state, info = run(ladder, start, 6000, burn=1000)
    x = np.linspace(-2, 2, 4001)
    weight = np.exp(-(barrier * (x**2 - 1) ** 2 - tilt * x) / KT)
    assert_mean((positions[:, :, 0, 0] > 0).astype(float), weight[x > 0].sum() / weight.sum())
    assert 0.1 < info.swaps < 0.95
    assert (np.diff(np.asarray(state.step_size)) > 0).all()  # hotter chains take larger steps


def test_the_step_size_freezes_and_the_state_refreshes():
    family = HarmonicMolecule((1, 1))
    sampler = make(family.energy_fn, numbers=(1, 1), warmup=20)
    start = np.broadcast_to(np.array(DIATOMIC), (4, 2, 3))
    model = toy_model()
    state = sampler.init(model, jnp.asarray(start), 1e-3)
    assert np.isnan(state.energy).all()
    state = eqx.filter_jit(sampler.refresh)(model, state)
    sample = eqx.filter_jit(lambda s, k: sampler.sample(model, s, 10, key=k)[0])
    sizes = []
    for i in range(5):
        state = sample(state, jax.random.key(i))
        sizes.append(float(state.step_size[0]))
    assert sizes[0] != 1e-3 and sizes[0] != sizes[1]
    assert sizes[1] == sizes[2] == sizes[4]
    assert int(state.steps) == 50
    other = eqx.tree_at(lambda m: m.weights, model, jnp.full(3, 2.0))
    renewed = eqx.filter_jit(sampler.refresh)(other, state)
    np.testing.assert_array_equal(renewed.positions, state.positions)
    expected = jax.vmap(lambda r: family.energy_fn(other, r))(state.positions)
    np.testing.assert_allclose(renewed.energy, expected, rtol=1e-12)
    slopes = jax.vmap(lambda r: jax.grad(family.energy_fn, argnums=1)(other, r))(state.positions)
    np.testing.assert_allclose(renewed.gradient, slopes, rtol=0, atol=1e-12)
    assert np.abs(renewed.energy - state.energy).min() > 1
    assert int(renewed.steps) == int(state.steps)


@pytest.mark.parametrize("kernel", KERNELS)
def test_sampling_can_begin_with_a_refresh(kernel):
    family = HarmonicMolecule((1, 1))
    sampler = make(family.energy_fn, kernel, (1, 1), (500.0, 900.0), warmup=5)
    start = jnp.asarray(np.broadcast_to(np.array(DIATOMIC), (4, 2, 3)))
    model, other = toy_model(), eqx.tree_at(lambda m: m.weights, toy_model(), jnp.full(3, 1.0))
    sample = eqx.filter_jit(
        lambda m, s, refresh: sampler.sample(m, s, 3, key=jax.random.key(5), refresh=refresh)
    )
    begun, _ = sample(model, sampler.init(model, start, 1e-3), jnp.asarray(True))
    expected = jax.vmap(lambda r: family.energy_fn(model, r))(begun.positions)
    np.testing.assert_allclose(begun.energy, expected, rtol=1e-12)
    at_once, info = sample(other, begun, jnp.asarray(True))
    in_turn, info2 = sample(
        other, eqx.filter_jit(sampler.refresh)(other, begun), jnp.asarray(False)
    )
    assert int(at_once.steps) == 6
    for a, b in zip(jax.tree.leaves((at_once, info)), jax.tree.leaves((in_turn, info2))):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("step_size", "expected"), [(0.0, 1), (1e-3, 7)])
def test_a_refresh_costs_one_evaluation(step_size, expected):
    calls = []

    def log_density(positions):
        jax.debug.callback(lambda: calls.append(1))
        return -0.5 * jnp.sum(positions**2)

    kernel = kernel_from_name("hmc", leapfrogs=7)
    here = jnp.ones((1, 3))
    point = Point(here, log_density(here), -here)
    calls.clear()
    step = jax.jit(lambda e: kernel.step(point, log_density, e, key=jax.random.key(0)))
    moved = jax.block_until_ready(step(jnp.asarray(step_size)))
    jax.effects_barrier()
    assert len(calls) == expected
    assert (moved.proposed.position == here).all() == (step_size == 0)


def test_wrong_input_is_refused():
    start = np.broadcast_to(np.array(DIATOMIC), (4, 2, 3))
    with pytest.raises(InputError, match="unknown kernel 'nut'"):
        kernel_from_name("nut")
    with pytest.raises(InputError, match="above 0 kelvin"):
        make(gaussian, temperatures=(0.0,))
    with pytest.raises(InputError, match="chains = 4 cannot be shared equally by 3 temp"):
        make(gaussian, numbers=(1, 1), temperatures=(1.0, 2.0, 3.0)).init(None, start, 1e-3)
    with pytest.raises(InputError, match="must be positive"):
        make(gaussian, numbers=(1, 1)).init(None, start, 0.0)
    with pytest.raises(InputError, match=r"start geometries \[1, 2, 3, 4\] are more than one"):
        make(gaussian, numbers=(1, 1), guard=1.0).init(None, start, 1e-3)


@pytest.mark.slow
def test_bond_lengths_of_hydrogen_by_the_engine():
    """The exact Boltzmann weight of the converged energy; sto-3g, where symmetry alone gives the
    orbitals, so that an untrained model has the converged energy too."""
    import qchem
    from srdft.config import Config, ModelConfig
    from srdft.experiment import build_model
    from srdft.family import MoleculeFamily

    family = MoleculeFamily.build((1, 1), "sto-3g", "hf", two_electron="exact")
    model = build_model(Config(model=ModelConfig(steps=1)), [family])
    sampler = make(family.energy_fn, numbers=(1, 1), temperatures=(3000.0,), guard=3.5)
    start = np.broadcast_to([[0.0, 0.0, -0.7], [0.0, 0.0, 0.7]], (4, 2, 3))
    positions, _, _ = run(sampler, start, 1000, model)
    lengths = np.linalg.norm(positions[:, :, 0] - positions[:, :, 1], axis=-1)
    converged = qchem.energy_fn((1, 1), "sto-3g", "hf")
    r = np.linspace(0.7, 3.2, 126)
    placed = jnp.asarray(r[:, None, None] * np.array([[0, 0, 0], [0, 0, 1]]))
    curve = np.asarray(jax.vmap(converged)(placed))
    kt = 3000.0 / HARTREE_IN_KELVIN
    mean, variance, _ = radial_moments(lambda x: np.interp(x, r, curve), kt, 0.7, 3.2)
    assert_mean(lengths, mean)
    assert_mean((lengths - mean) ** 2, variance)
