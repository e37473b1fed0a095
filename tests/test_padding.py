"""Molecules filled up to a bucket: the same numbers, and programs that are shared."""

import ase.build
import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

import qchem
from qchem import calculation, padding
from qchem.atomic_grid import elements_of, npoint_of_element, period_of
from qchem.compilation import _Request
from qchem.grids import Grid
from qchem.padding import LARGEST, Padded
from qchem.scf import converge

from . import oracle

# Five hydrogen atoms, for which there is a bucket of six.
METHANIUM = [
    [0.00, 0.02, 0.00],
    [1.05, 0.30, 0.10],
    [-1.00, 0.45, 0.00],
    [0.05, -0.70, 0.85],
    [0.00, -0.60, -0.95],
    [0.45, 1.10, -0.05],
]
# Programs of s functions alone compile quickly.
HYDROGENS = [[0.1, 0.0, -1.8], [0.0, 0.2, -0.9], [0.3, 0.0, 0.0], [0.0, 0.0, 0.9], [0.0, 0.2, 1.9]]
OPTIONS = {"grid": (12, 26), "tolerance": 1e-9}


def methanium(charge):
    return molecule([6, 1, 1, 1, 1, 1], METHANIUM, charge)


def molecule(numbers, positions, charge):
    """Of an odd number of electrons, less the charge."""
    spin = {"charge": charge, "multiplicity": 1 if charge else 2}
    return qchem.Molecule.from_arrays(numbers, positions, unit="angstrom", **spin)


def from_ase(name):
    atoms = ase.build.molecule(name)
    return qchem.Molecule.from_arrays(atoms.numbers, atoms.positions, unit="angstrom")


@pytest.fixture
def alone(monkeypatch):
    """Turns padding off when called."""

    def switch():
        def unchanged(*names):
            return Padded.unchanged(calculation._cached(calculation._build, names))

        monkeypatch.setattr(calculation, "_padded", unchanged)

    return switch


def padded(mol, basis="def2-svp"):
    names = calculation._names(mol, basis, "b3lyp", "exact", None, 3, False)
    return calculation._cached(calculation._padded, names)


def test_the_program_that_is_expected_is_the_one_that_forces_need(monkeypatch):
    mol, nocc = methanium(0), (5, 4)
    made = padded(mol)
    asked = []

    class Spy:
        def ahead(self, *arguments):
            asked.append(_Request.of(arguments, {}).key)

        def __call__(self, *arguments):
            self.ahead(*arguments)
            return np.zeros((len(made.method.numbers), 3))

    monkeypatch.setattr(padding, "_gradient", Spy())
    made.expect_gradient(mol.positions, nocc)
    assert made.gradient(mol.positions, np.ones((2, made.nao, 5)), np.eye(made.nao)).shape == (6, 3)
    made.gradient(mol.positions, np.ones((1, made.nao, 5)), np.eye(made.nao))
    expected, called, another = asked
    assert expected == called != another


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "mol, options",
    [
        (methanium(1), {"xc": "hf", "two_electron": "df", "aux": "def2-universal-jkfit"}),
        (molecule([1] * 5, HYDROGENS, 0), {"basis": "6-31g", "xc": "hf", "guess": "sad"}),
        pytest.param(methanium(0), {"xc": "cam-b3lyp", "guess": "sad"}, marks=SLOW),
        pytest.param(methanium(1), {"xc": "pbe"}, marks=SLOW),
        pytest.param(
            methanium(0),
            {"xc": "hf", "solver": "second-order", "follow_instability": True},
            marks=SLOW,
        ),
        pytest.param(
            methanium(1), {"xc": "hf", "smearing": 0.05, "field": (0.0, 0.01, 0.0)}, marks=SLOW
        ),
    ],
    ids=["fitted", "hydrogens", "radical", "gga", "second-order", "smeared"],
)
def test_the_same_numbers(mol, options, alone):
    options = {"basis": "sto-3g"} | OPTIONS | options
    programs = converge._diis, padding._gradient
    known = [len(program._known) for program in programs]
    ours = qchem.energy(mol, **options, forces=True).require_converged()
    forces = ours.forces()
    for program, before in zip(programs, known, strict=True):
        assert len(program._known) <= before + 1  # no other than the one expected
    assert_allclose(ours.forces(), forces, rtol=0, atol=0)
    again = {} if "smearing" in options else {"guess": ours}
    second = qchem.energy(mol, **options | again)
    nao = qchem.Basis.from_name(mol.numbers, options["basis"]).nao
    assert ours.nao == ours.mo_coeff.shape[1] == nao == 10
    assert forces.shape == (mol.natom, 3)
    alone()
    theirs = qchem.energy(mol, **options).require_converged()
    for result in (ours, second):
        assert_allclose(result.energy, theirs.energy, rtol=0, atol=1e-10)
        for name in ("dipole", "s2", "mo_energy", "dm"):
            assert_allclose(
                getattr(result, name), getattr(theirs, name), rtol=0, atol=1e-7, err_msg=name
            )
    assert ours.cycles == theirs.cycles
    assert_allclose(forces, theirs.forces(), rtol=0, atol=1e-9)
    if "smearing" not in options:
        found, expected = ours.stability(), theirs.stability()
        assert_allclose(found.internal, expected.internal, rtol=0, atol=1e-4)
        assert found.stable == expected.stable


def test_one_bucket_one_program():
    """Whatever a program depends on is the same for molecules of one bucket."""
    of_bucket = [padded(from_ase(name)) for name in ("CH3CHO", "CH2OCH2", "C3H4_C3v")]
    other = padded(from_ase("CH3OH"))

    def form(x):
        arrays = jax.tree.map(lambda a: (a.shape, a.dtype), x.method)
        return jax.tree.structure(x.method), jax.tree.leaves(arrays), x.room

    first, *rest = map(form, of_bucket)
    assert all(one == first for one in rest)
    assert form(other) != first
    # Two atoms of the second period and four of the first, whichever they are.
    assert form(other) == form(padded(from_ase("C2H4")))


def test_what_is_filled_up():
    ethylamine = padded(from_ase("CH3CH2NH2"))  # seven hydrogen atoms, and one more
    assert ethylamine.natom == 10
    assert ethylamine.method.numbers == (0,) * 11
    assert ethylamine.nao == 3 * 14 + 7 * 5
    assert_allclose(ethylamine.share, 5 / (3 * 14 + 8 * 5))
    assert ethylamine.method.charges.tolist() == [*from_ase("CH3CH2NH2").numbers, 0]
    nocc = ethylamine.occupied((13,))
    assert nocc.count.tolist() == [13]
    assert nocc.width == ethylamine.room == 16
    assert ethylamine.occupied((17, 5)).width == 20
    positions = ethylamine.positions(np.ones((10, 3)))
    assert positions.shape == (11, 3)
    assert positions[10, 0] > 1e4


def test_large_molecules_and_own_shells_are_as_they_are():
    names = (6,) * 11 + (1,) * 4
    mol = qchem.Molecule.from_arrays(names, np.arange(45).reshape(15, 3) * 1.0, unit="bohr")
    assert padded(mol).method.basis.nao == 11 * 14 + 4 * 5 > LARGEST
    basis = qchem.Basis.from_name((1, 1, 1, 1, 1), "sto-3g")
    chain = np.arange(5)[:, None] * [[0.0, 0.0, 2.0]]
    mol = qchem.Molecule.from_arrays([1] * 5, chain, unit="bohr", multiplicity=2)
    assert padded(mol, basis).method.numbers == (1,) * 5
    assert padded(mol, "sto-3g").method.numbers == (0,) * 6


def test_points_of_an_element():
    for number in (1, 6, 8, 17, 26):
        for level in (0, 3):
            grid = Grid.from_numbers([number], level)
            assert npoint_of_element(number, level) == len(grid.reference.quadrature)
        grid = Grid.from_numbers([number], sizes=(12, 26))
        assert npoint_of_element(number, (12, 26)) == len(grid.reference.quadrature)
        assert number in elements_of(period_of(number))


def run(*names, **options):
    for name in names:
        qchem.energy(from_ase(name), **options).forces()


def compilations(name, **options):
    """Of energy and forces."""
    with oracle.compilations() as compiled:
        run(name, **options)
    return len(compiled)


def test_another_molecule_compiles_little():
    options = {"basis": "sto-3g", "xc": "hf"}
    run("CH3OH", **options)
    assert compilations("C2H4", **options) == 0
    # A bucket that none of them has: integrals, SCF, forces.
    assert compilations("H2O", **options) == 3


@pytest.mark.slow
@pytest.mark.parametrize("two_electron", ["exact", "df"])
def test_a_ninth_molecule_compiles_little(two_electron):
    options = {"basis": "def2-svp", "xc": "b3lyp", "two_electron": two_electron}
    run("H2O", "NH3", "CH4", "HCN", "H2CO", "H3CNH2", "CH3OH", "CO2", **options)
    # A known bucket; but nitrogen has other fitting functions than carbon.
    assert compilations("N2H4", **options) == (0 if two_electron == "exact" else 3)
    assert compilations("C2H6", **options) <= 3
