"""The network of the benchmarks that predicts orbital coefficients without a guess."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.direct import DirectOrbitals
from benchmarks.models import adam
from srdft.family import MoleculeFamily

BOND = jnp.array([[0.0, 0.0, -0.7], [0.1, 0.0, 0.8]])


@pytest.fixture(scope="module")
def family():
    return MoleculeFamily.build((1, 2), "6-31g", "hf", charge=1, two_electron="exact")


@pytest.fixture(scope="module")
def model(family):
    return DirectOrbitals.build([family], width=8, key=jax.random.key(0))


def test_orbitals_are_orthonormal(family, model):
    molecule = family.place(BOND)
    found, overlap = model.orbitals(molecule), molecule.hamiltonian.overlap
    factor, every = found.factor[0] / 2**0.5, found.mo_coeff[0]
    np.testing.assert_allclose(factor.T @ overlap @ factor, np.eye(1), atol=1e-12)
    np.testing.assert_allclose(every.T @ overlap @ every, np.eye(4), atol=1e-12)
    projected = factor @ factor.T - every[:, :1] @ every[:, :1].T
    np.testing.assert_allclose(projected, 0, atol=1e-12)


def test_training_lowers_the_energy_that_is_bounded_below(family, model):
    exact = float(family.solve(BOND).energy)
    before = float(family.energy_fn(model, BOND))
    with jax.numpy_dtype_promotion("standard"):  # Optax counts in integers
        trained, *_ = adam(model, family, BOND[None], 40, 1e-2)
    after = float(family.energy_fn(trained, BOND))
    assert exact < after < before - 0.1
    assert eqx.tree_equal(jax.tree.structure(trained), jax.tree.structure(model))
