"""Total energies, forces, dipole moments and <S^2> against PySCF's, stored and live."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pyscf import dft, scf

import qchem
from qchem.basis.layout import Basis
from qchem.data import read_json
from tests.test_basis_layout import pyscf_molecule

scf.hf.MUTE_CHKFILE = True  # no temporary files left open

ENERGY_ATOL = 1e-8  # hartree
FORCE_ATOL = 1e-6  # hartree/bohr
DIPOLE_ATOL = 1e-5  # e bohr; of first order in the error of the density, unlike the energy
S2_ATOL = 1e-5

# A closed and an open shell, an ion; the others differ in what takes minutes to compile.
QUICK = {"hydrogen, sto-3g, hf, exact", "hydrogen atom, 6-31G*, b3lyp, exact",
         "ammonium, sto-3g, svwn, exact, charge +1"}  # fmt: skip
CASES = read_json("energies.json")["cases"]


def parameter(case):
    marks = () if case["name"] in QUICK else (pytest.mark.slow,)
    return pytest.param(case, id=case["name"], marks=marks)


def test_quick_cases_exist():
    assert QUICK < {case["name"] for case in CASES}


@pytest.mark.parametrize("case", [parameter(case) for case in CASES])
def test_stored_case(case):
    mol = qchem.Molecule.from_arrays(
        case["symbols"],
        np.array(case["positions"]),
        unit="bohr",
        charge=case["charge"],
        multiplicity=case["multiplicity"],
    )
    settings = {key: case[key] for key in ("basis", "xc", "two_electron", "aux", "cartesian")}
    grid = tuple(case["grid"]) if isinstance(case["grid"], list) else case["grid"]
    result = qchem.energy(mol, grid=grid, **settings).require_converged()
    assert result.nao == case["nao"]
    assert_allclose(result.energy, case["energy"], rtol=0, atol=ENERGY_ATOL)
    assert_allclose(result.dipole, case["dipole"], rtol=0, atol=DIPOLE_ATOL)
    assert_allclose(result.s2, case["s2"], rtol=0, atol=S2_ATOL)
    if case["forces"] is not None:
        assert_allclose(result.forces(), case["forces"], rtol=0, atol=FORCE_ATOL)


LIVE = [
    ("CO", "6-31g", "pbe", 1, 0, False),
    ("CH2", "sto-3g", "b3lyp", 3, 0, False),
    ("BeH2", "6-31g*", "pbe0", 1, 0, True),
    ("PN", "sto-3g", "blyp", 1, 0, False),
    ("BH2", "def2-svp", "hf", 2, 0, False),
    ("ClF", "def2-svp", "svwn", 1, -2, False),
]


@pytest.mark.slow
@pytest.mark.parametrize("formula, basis, xc, multiplicity, charge, cartesian", LIVE)
def test_live_case(formula, basis, xc, multiplicity, charge, cartesian):
    """A geometry drawn anew for each molecule, both programs given the same shells."""
    symbols = {"CO": "C O", "CH2": "C H H", "BeH2": "Be H H", "PN": "P N", "BH2": "B H H",
               "ClF": "Cl F"}[formula].split()  # fmt: skip
    rng = np.random.default_rng(len(formula) + 7 * sum(map(ord, formula)))
    spots = np.array([[0.0, 0.0, 0.0], [0.0, 0.3, 2.3], [2.2, 0.2, -0.9]])[: len(symbols)]
    mol = qchem.Molecule.from_arrays(
        symbols, spots + rng.uniform(-0.2, 0.2, spots.shape), unit="bohr",
        charge=charge, multiplicity=multiplicity,
    )  # fmt: skip
    shells = Basis.from_name(mol.numbers, basis, spherical=not cartesian)
    theirs = pyscf_molecule(shells, mol.numbers, mol.positions, charge=charge)
    theirs.spin = multiplicity - 1
    if xc == "hf":
        mf = scf.RHF(theirs) if multiplicity == 1 else scf.UHF(theirs)
    else:
        mf = dft.RKS(theirs, xc=xc) if multiplicity == 1 else dft.UKS(theirs, xc=xc)
        mf.grids.level = 1
    mf.conv_tol, mf.conv_tol_grad = 1e-11, 1e-7
    mf.kernel()
    result = qchem.energy(mol, shells, xc, grid=1).require_converged()
    assert mf.converged
    assert_allclose(result.energy, mf.e_tot, rtol=0, atol=ENERGY_ATOL)
    assert_allclose(result.dipole, mf.dip_moment(unit="au", verbose=0), rtol=0, atol=DIPOLE_ATOL)
