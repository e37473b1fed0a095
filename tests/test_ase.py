"""The ASE calculator: units, reuse between steps, what it refuses."""

import pytest
from ase import Atoms
from ase.optimize import BFGS
from ase.units import Bohr, Hartree
from numpy.testing import assert_allclose

import qchem
from qchem.ase import Calculator
from qchem.errors import ConvergenceError, InputError
from tests import oracle

SETTINGS = {"basis": "sto-3g", "xc": "hf"}


@pytest.fixture(scope="module")
def relaxed():
    """Hydrogen fluoride on its way to the minimum: the atoms, and SCF cycles by step."""
    atoms = Atoms("HF", [[0, 0, 0], [0.1, 0.2, 1.0]])
    atoms.calc = Calculator(**SETTINGS)
    cycles = []
    with BFGS(atoms, logfile=None) as optimizer:
        for _ in optimizer.irun(fmax=1e-3, steps=20):
            cycles.append(atoms.calc.result.cycles)
    return atoms, cycles


def test_units_are_those_of_ase(relaxed):
    atoms, *_ = relaxed
    moved = atoms.copy()
    moved.positions[1, 2] += 0.05
    moved.calc = Calculator(atoms=None, **SETTINGS)
    mol = qchem.Molecule.from_arrays(moved.numbers, moved.positions / Bohr, unit="bohr")
    result = qchem.energy(mol, **SETTINGS)
    assert_allclose(moved.get_potential_energy(), result.energy * Hartree, atol=1e-6)
    assert_allclose(moved.get_forces(), result.forces() * Hartree / Bohr, atol=1e-5)
    assert_allclose(moved.get_dipole_moment(), result.dipole * Bohr, atol=1e-5)
    energies = []
    for step in (-1e-3, 1e-3):
        displaced = moved.copy()
        displaced.positions[1, 2] += step
        displaced.calc = moved.calc
        energies.append(displaced.get_potential_energy())
    slope = (energies[1] - energies[0]) / 2e-3
    assert_allclose(moved.get_forces()[1, 2], -slope, atol=1e-4)


def test_a_failure_is_not_forgotten():
    """ASE asks again for what it does not have, with no change of the atoms."""
    atoms = Atoms("HH", [[0, 0, 0], [0, 0, 0.74]])
    atoms.calc = Calculator(**SETTINGS)
    atoms.get_potential_energy()
    atoms.positions[1, 2] = 0.001
    for _ in range(2):
        with pytest.raises(InputError, match="bohr apart"):
            atoms.get_potential_energy()


def test_relaxation_reuses_programs_and_orbitals(relaxed):
    atoms, cycles = relaxed
    assert_allclose(atoms.get_distance(0, 1), 0.9555, atol=2e-3)  # HF/STO-3G: NIST CCCBDB
    assert len(cycles) > 3 and max(cycles[2:]) < cycles[0]
    # After two geometries every program is compiled.
    later = atoms.copy()
    later.calc = atoms.calc
    later.positions[1, 2] += 0.01
    with oracle.compilations() as compiled:
        later.get_forces()
    assert compiled == []


def test_nothing_is_calculated_twice(relaxed):
    atoms, *_ = relaxed
    atoms.get_forces()
    result = atoms.calc.result
    atoms.get_potential_energy(), atoms.get_dipole_moment(), atoms.get_forces()
    assert atoms.calc.result is result


def test_another_molecule_needs_no_other_calculator(relaxed):
    calculator = relaxed[0].calc
    hydrogen = Atoms("H2", [[0, 0, 0], [0, 0, 0.74]], calculator=calculator)
    assert_allclose(hydrogen.get_potential_energy() / Hartree, -1.11675, atol=1e-4)
    calculator.set(charge=1, multiplicity=2)
    assert calculator.result is None
    assert hydrogen.get_potential_energy() / Hartree > -0.7


def test_bad_input():
    with pytest.raises(InputError, match="unknown option bassis"):
        Calculator(bassis="sto-3g")
    periodic = Atoms("H2", [[0, 0, 0], [0, 0, 0.74]], cell=[5, 5, 5], pbc=True)
    periodic.calc = Calculator(**SETTINGS)
    with pytest.raises(InputError, match="periodic"):
        periodic.get_potential_energy()
    doublet = Atoms("H2", [[0, 0, 0], [0, 0, 0.74]], calculator=Calculator(multiplicity=2))
    with pytest.raises(InputError, match="multiplicity"):
        doublet.get_potential_energy()
    hopeless = Atoms("HF", [[0, 0, 0], [0, 0, 1.0]])
    hopeless.calc = Calculator(max_cycles=2, **SETTINGS)
    with pytest.raises(ConvergenceError, match="2 cycles"):
        hopeless.get_potential_energy()
