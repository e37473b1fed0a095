"""Families: what predicted orbitals mean; derivatives of their energy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from qchem import InputError, SCFResult
from qchem.xc import nonlocal_correlation
from srdft.family import MoleculeFamily, Orbitals, Prediction, map_geometries
from srdft.model import OperatorMixture
from srdft.network import Gates
from srdft.orbitals import occupied_orbitals, orbitals
from tests import oracle

STEP = 2e-3
GRADIENT_ATOL = 1e-6  # hartree/bohr; the promise
ENERGY_ATOL = 1e-9

NUMBERS = (1, 1)
POSITIONS = jnp.asarray([[0.0, 0.1, -0.7], [0.2, 0.0, 0.8]])
SETTINGS = {"basis": "6-31g", "xc": "pbe", "two_electron": "exact", "grid": (8, 26)}


class Given(eqx.Module):
    """The orbitals of a Fock matrix that is given."""

    fock: jax.Array

    def orbitals(self, molecule):
        overlap, nocc = molecule.hamiltonian.overlap, molecule.family.nocc
        mo_coeff, mo_energy = orbitals(self.fock, overlap)
        factor = occupied_orbitals(self.fock, overlap, mo_coeff, mo_energy, nocc)
        return Orbitals(factor, mo_coeff)


@pytest.fixture(scope="module")
def family():
    return MoleculeFamily.build(NUMBERS, **SETTINGS)


@pytest.fixture(scope="module")
def measured(family) -> tuple[SCFResult, Prediction, Prediction, jax.Array]:
    """Converged; predicted at the converged and at a wrong Fock matrix; a gradient. One program."""

    @oracle.jit
    def measure(positions):
        scf = family.solve(positions)
        right = family.predict(Given(scf.fock), positions)
        off = 0.005 * oracle.random_like(np.zeros(scf.fock.shape))
        wrong = family.predict(Given(scf.fock + off + jnp.swapaxes(off, 1, 2)), positions)
        return scf, right, wrong, family.held(right.factor, positions)[1]

    return measure(POSITIONS)


def test_what_a_family_knows(family):
    assert (family.name, family.numbers, family.nocc) == ("H2", (1, 1), (1,))
    assert [shell.atom for shell in family.shells] == [0, 0, 1, 1]
    assert [shell.index for shell in family.shells] == [0, 1, 0, 1]
    assert sum(shell.size for shell in family.shells) == family.method.basis.nao
    water = MoleculeFamily.build((8, 1, 1), "def2-svp", "hf", charge=1, multiplicity=2, name="w")
    assert (water.name, water.nocc, water.guess_dm.shape) == ("w", (5, 4), (2, 24, 24))
    assert [shell.l for shell in water.shells] == [0, 0, 0, 1, 1, 2, 0, 0, 1, 0, 0, 1]
    assert water.shells[5][2:] == (2, 9, 5)
    assert_allclose(water.guess_dm[0], water.guess_dm[1])


def test_impossible_families_are_refused():
    with pytest.raises(InputError, match="multiplicity"):
        MoleculeFamily.build((1, 1), "6-31g", "hf", multiplicity=2)


def test_the_guess_holds_all_electrons_wherever_the_atoms_are(family, measured):
    predicted = measured[1]
    overlap = np.linalg.inv(predicted.mo_coeff[0] @ predicted.mo_coeff[0].T)
    blocks = np.kron(np.eye(2), np.ones((2, 2)))
    assert_allclose(np.vdot(family.guess_dm, blocks * overlap), 2, rtol=1e-8)


def test_converged_orbitals_have_no_error(measured):
    scf, right, _, _ = measured
    assert scf.converged
    assert_allclose(right.energy, scf.energy, rtol=0, atol=ENERGY_ATOL)
    assert_allclose(right.dm, scf.dm, atol=1e-6)
    assert_allclose(right.mo_energy, scf.mo_energy, atol=1e-6)
    assert right.residual < 1e-6 and right.error_estimate < 1e-11


def test_other_orbitals_lie_higher_and_the_estimate_says_how_much(measured):
    scf, _, wrong, _ = measured
    error = wrong.energy - scf.energy
    assert error > 1e-6 and wrong.residual > 1e-3
    assert 0.5 < wrong.error_estimate / error < 2
    assert_allclose(sum(wrong.energies.values()), wrong.energy, rtol=1e-14)
    assert_allclose(wrong.dm, wrong.factor @ jnp.swapaxes(wrong.factor, 1, 2), atol=1e-14)
    inner = wrong.mo_coeff[0].T @ wrong.fock[0] @ wrong.mo_coeff[0]
    assert_allclose(inner[1:, 1:], np.diag(wrong.mo_energy[0, 1:]), atol=1e-10)


def test_a_prediction_shortens_the_scf(family, measured):
    scf, right, _, _ = measured
    again = family.solve(POSITIONS, right.fock)
    assert again.cycles < scf.cycles
    assert_allclose(again.energy, scf.energy, rtol=0, atol=ENERGY_ATOL)


def random_weights(model, size=0.02):
    leaves, tree = jax.tree.flatten(model)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(
        tree,
        [x + size * rng.normal(size=x.shape) if eqx.is_inexact_array(x) else x for x in leaves],
    )


def check_total_gradient(family, positions, steps, step=STEP):
    """Of a model with random weights: every part of the energy changes with the positions."""
    model = OperatorMixture.build([family], Gates.build([family], degree=2), steps=steps)
    model = random_weights(model)
    direction = oracle.random_like(positions, 1)
    points = oracle.stencil(positions, direction, step)
    value_and_grad = oracle.jit(jax.value_and_grad(lambda r: family.energy_fn(model, r)))
    energies = [value_and_grad(r)[0] for r in points]
    energy, gradient = value_and_grad(positions)
    measured = oracle.slope(energies, step)
    assert abs(measured) > 1e-3
    assert_allclose(jnp.vdot(gradient, direction), measured, rtol=0, atol=GRADIENT_ATOL)
    assert_allclose(gradient.sum(0), 0, atol=1e-9)
    predicted = oracle.jit(lambda r: family.predict(model, r))(positions)
    held_energy, held = oracle.jit(lambda *x: family.held(*x))(predicted.factor, positions)
    assert_allclose([predicted.energy, held_energy], [energy] * 2, rtol=1e-12)
    assert np.abs(held - gradient).max() > 1e-3  # the total derivative holds more
    return model


def test_the_gradient_is_total(family):
    check_total_gradient(family, POSITIONS, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "numbers, options",
    [
        ((8, 1, 1), {"xc": "hf"}),
        ((8, 1, 1), {"xc": "b3lyp", "grid": (12, 26)}),
        ((8, 1), {"xc": "pbe0", "grid": (12, 26), "multiplicity": 2}),
        ((8, 1, 1), {"xc": "hf", "two_electron": "exact", "charge": 1, "multiplicity": 2}),
        ((3, 1), {"xc": "cam-b3lyp", "grid": (12, 26)}),
        ((3, 1), {"xc": "wb97m-v", "grid": (12, 26)}),
    ],
    ids=["hf", "b3lyp", "radical", "cation", "range-separated", "meta-GGA and VV10"],
)
def test_the_gradient_is_total_for(numbers, options, monkeypatch):
    # The density from which points take part in VV10 is a step of 5e-9 hartree for differences.
    monkeypatch.setattr(nonlocal_correlation, "_THRESHOLD", 1e-14)
    family = MoleculeFamily.build(numbers, "6-31g", **options)
    positions = [[0.0, 0.0, 0.2], [0.1, 1.4, -0.9], [0.0, -1.5, -0.8]]
    # On a coarse grid a meta-GGA is too rough for longer steps.
    step = 2e-4 if family.method.functional.ingredients == "mgga" else STEP
    check_total_gradient(family, jnp.asarray(positions[: len(numbers)]), steps=2, step=step)


def test_at_the_minimum_the_held_gradient_is_the_gradient(family, measured):
    def energy(positions):
        return family.solve(positions).energy

    direction = oracle.random_like(POSITIONS, 1)
    energies = oracle.jit(lambda points: map_geometries(energy, points))(
        oracle.stencil(POSITIONS, direction, STEP)
    )
    assert_allclose(
        jnp.vdot(measured[3], direction), oracle.slope(energies, STEP), rtol=0, atol=1e-7
    )


def test_geometries_follow_one_another():
    points = oracle.random_like(np.zeros((5, 2, 3)))
    values = map_geometries(lambda r: {"norm": jnp.sum(r**2)}, points, chunk=2)
    assert_allclose(values["norm"], jnp.sum(points**2, axis=(1, 2)))
