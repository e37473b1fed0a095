"""Different molecules in one batch: the numbers of each alone, and how much is padding."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

import qchem

from . import oracle
from .test_padding import from_ase

OPTIONS = {"basis": "sto-3g", "xc": "pbe", "grid": (12, 26), "tolerance": 1e-9}


@pytest.fixture(scope="module")
def molecules():
    """The first and the last have one bucket."""
    trihydrogen = [[0.0, 0.0, 0.0], [0.1, 0.0, 1.7], [1.5, 0.2, 0.9]]
    ion = qchem.Molecule.from_arrays((1, 1, 1), trihydrogen, unit="bohr", charge=1)
    return [from_ase("CH3OH"), ion, from_ase("C2H4")]


@pytest.fixture(scope="module")
def found(molecules):
    return qchem.energies(molecules, chunk=2, **OPTIONS)


def test_the_numbers_of_each_alone(molecules, found):
    assert found.converged.all()
    for n, molecule in enumerate(molecules):
        alone = qchem.energy(molecule, **OPTIONS)
        assert_allclose(found.energy[n], alone.energy, rtol=0, atol=1e-10)
        assert_allclose(found.forces[n], alone.forces(), rtol=0, atol=1e-8)
        assert found.cycles[n] == alone.cycles


def test_how_much_is_padding(molecules, found):
    assert (found.nbucket, found.padding) == (
        2,
        pytest.approx(1 - (14 + 3 + 14) / (2 * 14 + 2 * 3)),
    )


def test_a_second_batch_compiles_nothing(molecules, found):
    moved = [
        qchem.Molecule.from_arrays(
            m.numbers, 1.01 * np.asarray(m.positions), unit="bohr", charge=m.charge
        )
        for m in molecules
    ]
    with oracle.compilations() as compiled:
        again = qchem.energies(moved, chunk=2, **OPTIONS)
    assert compiled == []
    assert again.converged.all()
    assert (again.energy != found.energy).all()


def test_what_does_not_converge_is_said(molecules):
    few = qchem.energies(molecules[1:2], chunk=1, forces=False, max_cycles=2, **OPTIONS)
    assert few.forces is None
    assert not few.converged[0]
    assert np.isnan(few.energy[0])
    assert few.residual[0] > 1e-9
    moved = qchem.energies(molecules[1:2], chunk=1, max_cycles=2, **OPTIONS).forces
    assert np.isnan(moved[0]).all()


@pytest.mark.parametrize(
    "count, options, match",
    [
        (0, {}, "at least one"),
        (1, {"chunk": 0}, "chunk = 0"),
        (1, {"chunk": True}, "a whole number"),
        (1, {"smearing": 0.1}, "smearing"),
        (1, {"basis": "def2-svpp"}, "molecule 0: .*def2-svp"),
    ],
)
def test_wrong_input(molecules, count, options, match):
    with pytest.raises(qchem.InputError, match=match):
        qchem.energies(molecules[:count], **{"basis": "sto-3g", "xc": "hf"} | options)


def test_dispersion_is_added(molecules, found):
    """Energy and forces of the correction, which is not part of the program."""
    corrected = qchem.energies(molecules[1:2], chunk=2, **OPTIONS | {"xc": "pbe-d3bj"})
    numbers, names = molecules[1].numbers, ("sto-3g", "pbe-d3bj")
    method = qchem.energy_fn(numbers, *names, charge=1, grid=(12, 26)).method
    term, slope = jax.value_and_grad(method.dispersion.energy)(molecules[1].positions)
    assert abs(term) > 1e-6
    assert_allclose(corrected.energy[0] - found.energy[1], term, rtol=0, atol=1e-10)
    change = corrected.forces[0] - found.forces[1]
    assert np.abs(change).max() > 1e-7
    assert_allclose(change, -slope, rtol=0, atol=1e-8)
