"""The reference implementation's rules as the benchmark of the claim emulates them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from benchmarks.emulation import (
    TEMPERATURE,
    HeldIntegrals,
    ReferenceSampler,
    adapted,
    restarted,
)
from qchem import HARTREE_IN_KELVIN
from srdft.family import MoleculeFamily, PlacedMolecule
from srdft.kernels import kernel_from_name
from srdft.model import OperatorMixture
from srdft.network import Gates
from srdft.potential import TotalDrift
from srdft.replay import ReplayBuffer
from srdft.sampler import Sampler
from srdft.trainer import Samples

BOND = 1.46  # bohr, near HeH+'s minimum
POSITIONS = jnp.array([[0.0, 0.0, 0.0], [0.1, 0.2, BOND]])
STEP = 1e-4  # bohr
FINITE_DIFFERENCE = 1e-8  # hartree/bohr: error of a central difference, with these energies


@pytest.fixture(scope="module")
def family():
    return MoleculeFamily.build((2, 1), "sto-3g", "hf", charge=1, two_electron="exact")


@pytest.fixture(scope="module")
def model(family):
    start = OperatorMixture.build([family], Gates.build([family], 2))
    noise = 0.1 * jax.random.normal(jax.random.key(0), start.weights.shape)
    return eqx.tree_at(lambda m: m.weights, start, noise)


@pytest.fixture(scope="module")
def held(family):
    potential = HeldIntegrals(family)
    return eqx.filter_jit(lambda model, r: potential.energy_and_gradient(model, r))


def test_the_held_force_moves_nuclei_and_features_alone(family, model, held):
    energy, gradient = held(model, POSITIONS)
    fixed = family.place(POSITIONS).hamiltonian

    @eqx.filter_jit
    def moved(r):
        factor = model.orbitals(PlacedMolecule(family, r, fixed)).factor
        parts = fixed.energies(factor)
        return sum(parts.values()) - parts["nuclear"] + 2 / jnp.linalg.norm(r[0] - r[1])

    assert_allclose(energy, moved(POSITIONS), atol=1e-12)
    for place in ((0, 2), (1, 0)):
        step = STEP * jnp.zeros_like(POSITIONS).at[place].set(1)
        expected = (moved(POSITIONS + step) - moved(POSITIONS - step)) / (2 * STEP)
        assert_allclose(gradient[place], expected, atol=FINITE_DIFFERENCE)


def test_the_held_force_is_far_from_the_total_derivative(family, held):
    """In ethanol 2.7 against 0.06 hartree/bohr; constants leave the repulsion of the nuclei."""
    constants = OperatorMixture.build([family])
    _, gradient = held(constants, POSITIONS)
    total = jax.grad(family.energy_fn, argnums=1)(constants, POSITIONS)
    apart = POSITIONS[1] - POSITIONS[0]
    repulsion = -2 * apart / jnp.linalg.norm(apart) ** 3
    assert_allclose(gradient, jnp.stack([-repulsion, repulsion]), atol=1e-12)
    assert jnp.linalg.norm(gradient) > 5 * jnp.linalg.norm(total)


def gaussian(stiffness):
    """Chains of the reference in a harmonic trap."""
    potential = TotalDrift(lambda model, r: 0.5 * stiffness * jnp.sum(r**2))
    sampler = Sampler(potential, kernel_from_name("mala"), (1,), (TEMPERATURE,), 0.0, 0, False)
    return ReferenceSampler(sampler)


def test_the_target_is_at_one_hartree(family):
    like = gaussian(1.0).sampler
    built = ReferenceSampler.build(like, family).sampler
    assert HARTREE_IN_KELVIN / built.temperatures[0] == 1.0
    sampler = gaussian(4.0)
    state = sampler.init(None, jnp.zeros((64, 1, 3)), 2e-3)

    @jax.jit
    def go(state, key):
        def one(state, key):
            state, _ = sampler.sample(None, state, 10, key=key, refresh=True)
            return state, state.positions

        return jax.lax.scan(one, state, jax.random.split(key, 100))

    _, positions = go(state, jax.random.key(0))
    assert_allclose(jnp.var(positions[30:]), 1 / 4.0, rtol=0.1)  # kT/k, k = 4 hartree/bohr²


def test_the_step_size_never_freezes():
    size = jnp.array([1e-3])
    assert_allclose(adapted(size, jnp.asarray(0.56)), 1.1e-3)
    assert_allclose(adapted(size, jnp.asarray(0.52)), 1e-3)
    assert_allclose(adapted(size, jnp.asarray(0.49)), 1e-3 / 1.1)
    sampler = gaussian(1e-6)  # everything is accepted
    state = sampler.init(None, jnp.zeros((2, 1, 3)), 2e-3)
    state, _ = sampler.sample(None, state, 40, key=jax.random.key(0), refresh=True)
    assert_allclose(state.step_size[0], 2e-3 * 1.1**40, rtol=1e-12)


def test_chains_begin_at_stored_geometries():
    given = jnp.arange(2.0)[:, None, None] * jnp.ones((2, 1, 3))
    chains = gaussian(1.0).init(None, jnp.full((16, 1, 3), 9.0), 1e-3)
    empty = Samples(chains, ReplayBuffer.empty(4, 1, given.dtype))
    start = restarted(empty, given, jax.random.key(0)).chains.positions
    assert set(np.unique(start)) == {0.0, 1.0}
    filled = Samples(chains, empty.buffer.push(jnp.full((4, 1, 3), 5.0)))
    start = restarted(filled, given, jax.random.key(0)).chains.positions
    assert set(np.unique(start)) == {0.0, 1.0, 5.0}
