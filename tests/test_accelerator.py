"""On an accelerator the numbers are those of the CPU. Needs one: `pytest -m gpu`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import qchem
from benchmarks.measure import count_compilations
from srdft.family import MoleculeFamily, map_geometries
from srdft.model import OperatorMixture
from srdft.network import Constant

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() == "cpu", reason="there is no accelerator"),
]
WATER = np.array([[0.0, 0.0, 0.2217], [0.0, 1.4309, -0.8867], [0.0, -1.4309, -0.8867]])
BATCH = WATER + 0.05 * np.random.default_rng(0).normal(size=(6, 3, 3))
ENERGY_ATOL = 1e-8  # hartree
FORCE_ATOL = 1e-6  # hartree/bohr


def on_cpu(function, *arguments):
    with jax.default_device(jax.devices("cpu")[0]), qchem.traced_for("cpu"):
        return jax.tree.map(np.asarray, jax.jit(function)(*arguments))


@pytest.mark.parametrize("two_electron", ["df", "exact"])
@pytest.mark.parametrize("xc", ["hf", "pbe", "b3lyp"])
def test_energies_and_gradients_of_a_batch(xc, two_electron):
    settings = {"basis": "def2-svp", "xc": xc, "two_electron": two_electron, "grid": 1}
    energy_fn = qchem.energy_fn((8, 1, 1), chunk=4, **settings)
    function = jax.vmap(jax.value_and_grad(energy_fn))
    energies, gradients = jax.jit(function)(BATCH)
    expected, slopes = on_cpu(function, BATCH)
    assert_allclose(energies, expected, rtol=0, atol=ENERGY_ATOL)
    assert_allclose(gradients, slopes, rtol=0, atol=FORCE_ATOL)


def test_a_second_geometry_compiles_nothing():
    def solve(positions):
        mol = qchem.Molecule.from_arrays("OHH", positions, unit="bohr")
        result = qchem.energy(mol, "def2-svp", "pbe", two_electron="df", grid=1)
        return result.require_converged().forces()

    solve(BATCH[0])
    with count_compilations() as compilations:
        forces = solve(BATCH[1])
    assert compilations == []
    assert_allclose(forces.sum(axis=0), 0, atol=1e-5)


def test_a_model_predicts_the_same():
    family = MoleculeFamily.build((8, 1, 1), "6-31g", "b3lyp", grid=0)
    model = OperatorMixture.build([family], Constant(), steps=1)

    def energies(positions):
        one = jax.value_and_grad(lambda r: family.energy_fn(model, r))
        return map_geometries(one, positions, chunk=3)

    values, slopes = jax.jit(energies)(jnp.asarray(BATCH))
    expected = on_cpu(energies, BATCH)
    assert_allclose(values, expected[0], rtol=0, atol=ENERGY_ATOL)
    assert_allclose(slopes, expected[1], rtol=0, atol=FORCE_ATOL)
