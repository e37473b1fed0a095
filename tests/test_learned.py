"""Functionals with learned parts: values, gradients in parameters, files."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import qchem
from qchem import EnhancementNetwork, Functional, LearnedFunctional
from qchem.errors import FunctionalNotFoundError
from tests import oracle

HYDROGEN = np.array([[0.0, 0.0, 0.0], [0.1, 0.2, 1.4]])
SETTINGS = {"basis": "sto-3g", "grid": (20, 50)}
FIRST = lambda m: m.network.layers[0].weight  # noqa: E731
LAST = lambda m: m.network.layers[-1].weight  # noqa: E731


def trained(base="pbe", needs="gga", scale=0.02):
    """A functional whose correction is not zero."""
    key = jax.random.key(1)
    network = EnhancementNetwork(8, 1, needs, key=key)
    weight = scale * jax.random.normal(key, LAST(network).shape)
    return LearnedFunctional(Functional.from_name(base), eqx.tree_at(LAST, network, weight), needs)


def densities(npoint=40, seed=0):
    rng = np.random.default_rng(seed)
    rho = 10.0 ** rng.uniform(-8, 1, size=(2, npoint))
    length = rho ** (4 / 3) * 10.0 ** rng.uniform(-1, 1, size=(2, npoint))
    sigma = np.stack([length[0] ** 2, 0.3 * length[0] * length[1], length[1] ** 2])
    tau = sigma[::2] / (8 * rho) * (1 + rng.random((2, npoint)))
    return jnp.asarray(rho), jnp.asarray(sigma), jnp.asarray(tau)


def test_an_untrained_correction_changes_nothing():
    network = EnhancementNetwork(8, 1, key=jax.random.key(0))
    xc = LearnedFunctional(Functional.from_name("pbe0"), network)
    rho, sigma, _ = densities()
    assert_allclose(xc.energy_density(rho, sigma), xc.base.energy_density(rho, sigma), rtol=1e-15)
    assert xc.exchange_fraction == 0.25 and xc.ingredients == "gga"


@pytest.mark.parametrize("needs", ["lda", "gga", "mgga"])
def test_both_spins_are_alike(needs):
    xc = trained("svwn", needs)
    rho, sigma, tau = densities()
    values = xc.energy_density(rho, sigma, tau)
    assert_allclose(xc.energy_density(rho[::-1], sigma[::-1], tau[::-1]), values, rtol=1e-12)
    assert np.abs(values - xc.base.energy_density(rho, sigma, tau)).max() > 1e-6
    assert xc.ingredients == needs


@pytest.mark.parametrize("needs", ["gga", "mgga"])
def test_derivatives_are_finite_for_any_density(needs):
    xc = trained("pbe", needs)
    zero = jnp.asarray([[0.0, 1e-30, 1e-12, 1.0], [0.0, 0.0, 0.0, 0.0]])
    sigma = jnp.zeros((3, 4))

    def total(rho, sigma, tau):
        return jnp.sum(xc.energy_density(rho, sigma, tau))

    for order in (jax.grad, jax.hessian):
        for part in jax.tree.leaves(order(total, argnums=(0, 1, 2))(zero, sigma, zero)):
            assert np.isfinite(part).all()


def test_gradient_in_parameters_is_that_of_converged_states():
    settings = {"basis": "6-31g", "grid": (20, 50)}
    function = qchem.energy_fn((1, 1), xc=trained(), tolerance=1e-10, **settings)
    rng = np.random.default_rng(0)
    nao = function.method.basis.nao
    weights = jnp.asarray(rng.normal(size=(1, nao, nao)))
    positions = jnp.asarray(HYDROGEN)
    first = lambda f: FIRST(f.method.functional.correction)  # noqa: E731

    def observed(parameters, function):
        state = eqx.tree_at(first, function, parameters).relaxed(positions)
        return jnp.vdot(weights, state.dm) + state.energy

    def solved(parameters, function):
        scf = eqx.tree_at(first, function, parameters).solve(positions)
        return jnp.vdot(weights, scf.dm) + scf.energy

    parameters = first(function)
    gradient = eqx.filter_jit(jax.grad(observed))(parameters, function)
    direction = jnp.asarray(rng.normal(size=parameters.shape))
    compiled = eqx.filter_jit(solved)
    values = [compiled(p, function) for p in oracle.stencil(parameters, direction, 1e-2)]
    slope = oracle.slope(values, 1e-2)
    assert abs(slope) > 1e-4
    assert_allclose(jnp.vdot(gradient, direction), slope, rtol=0, atol=1e-7)


def test_a_saved_functional_gives_the_same_energy(tmp_path):
    xc = trained()
    path = tmp_path / "learned.eqx"
    xc.save(path)
    mol = qchem.Molecule.from_arrays((1, 1), HYDROGEN, unit="bohr")
    energies = [qchem.energy(mol, xc=x, **SETTINGS).energy for x in (xc, str(path), "pbe")]
    assert energies[0] == energies[1]
    assert abs(energies[0] - energies[2]) > 1e-6


def test_files_that_are_no_functionals_are_refused(tmp_path):
    path = tmp_path / "other.eqx"
    path.write_bytes(b"not json")
    with pytest.raises(FunctionalNotFoundError, match="cannot be read"):
        qchem.load_functional(path)
    with pytest.raises(FunctionalNotFoundError, match="no functional at"):
        qchem.load_functional(tmp_path / "missing.eqx")
    xc = trained()
    xc.save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FunctionalNotFoundError, match="cannot be read"):
        qchem.load_functional(path)
    with pytest.raises(qchem.InputError, match="end in .eqx"):
        xc.save(tmp_path / "learned.json")
    with pytest.raises(qchem.InputError, match="hyperparameters"):
        LearnedFunctional(xc.base, jax.nn.relu).save(path)
