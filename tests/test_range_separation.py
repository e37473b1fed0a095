"""Total energies and forces of range-separated functionals, and of VV10, against live PySCF."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pyscf import dft, scf

import qchem
from qchem.basis.layout import Basis
from tests.test_basis_layout import pyscf_molecule

scf.hf.MUTE_CHKFILE = True  # no temporary files left open

ENERGY_ATOL = 1e-8  # hartree
FORCE_ATOL = 1e-6  # hartree/bohr
AUX = "def2-universal-jkfit"
# Where PySCF would take part of the name for a difference or a dispersion correction
NAMES = {"lc-wpbe": "lc_wpbe", "b97-d": "gga_xc_b97_d", "wb97x-d": "hyb_gga_xc_wb97x_d"}
WATER = ("O", (0.02, -0.01, 0.22)), ("H", (1.46, 0.05, -0.90)), ("H", (-1.41, -0.06, -0.93))
HYDROGEN = ("H", (0.0, 0.0, 0.0)), ("H", (0.1, 0.2, 1.4))

CASES = [
    (HYDROGEN, "cam-b3lyp", "exact", 0, True),
    (HYDROGEN, "wb97x", "df", 1, False),
    *(
        pytest.param(WATER, xc, two_electron, charge, True, marks=pytest.mark.slow)
        for xc in ("cam-b3lyp", "lc-wpbe", "hse06", "wb97x")
        for two_electron in ("exact", "df")
        for charge in (0, 1)
    ),
    *(
        pytest.param(WATER, xc, "df", charge, False, marks=pytest.mark.slow)
        for xc in ("wb97", "wb97x-d", "b97-d", "b97-2")
        for charge in (0, 1)
    ),
    pytest.param(HYDROGEN, "wb97x-v", "exact", 0, True, marks=pytest.mark.slow),
    pytest.param(HYDROGEN, "wb97m-v", "df", 1, False, marks=pytest.mark.slow),
    pytest.param(WATER, "wb97m-v", "exact", 0, True, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("atoms, xc, two_electron, charge, forces", CASES)
def test_agrees_with_pyscf(atoms, xc, two_electron, charge, forces):
    """A closed shell and, with a charge, a radical."""
    symbols, positions = zip(*atoms, strict=True)
    mol = qchem.Molecule.from_arrays(
        symbols, np.array(positions), unit="bohr", charge=charge, multiplicity=1 + charge
    )
    shells = Basis.from_name(mol.numbers, "6-31g")
    theirs = pyscf_molecule(shells, mol.numbers, mol.positions, charge=charge)
    theirs.spin = charge
    mf = (dft.UKS if charge else dft.RKS)(theirs, xc=NAMES.get(xc, xc))
    if two_electron == "df":
        mf = mf.density_fit(auxbasis=AUX)
    mf.grids.level = 0
    mf.small_rho_cutoff = 0  # as we: no points left out at the start
    mf.conv_tol, mf.conv_tol_grad = 1e-11, 1e-7
    mf.kernel()
    assert mf.converged
    aux = AUX if two_electron == "df" else None
    result = qchem.energy(mol, shells, xc, two_electron=two_electron, aux=aux, grid=0)
    assert result.require_converged().energy == pytest.approx(mf.e_tot, rel=0, abs=ENERGY_ATOL)
    if forces:
        gradient = mf.nuc_grad_method()
        gradient.grid_response = True
        assert_allclose(result.forces(), -gradient.kernel(), rtol=0, atol=FORCE_ATOL)
