"""Converged energies and forces of meta-GGAs against PySCF's, in the same basis and grid."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pyscf import dft, gto, scf

import qchem

from .oracle import slope

scf.hf.MUTE_CHKFILE = True  # no temporary files left open

ENERGY_ATOL = 1e-8  # hartree
FORCE_ATOL = 1e-6  # hartree/bohr
DIFFERENCE_ATOL = 1e-7  # hartree/bohr, of our own energy's differences
STEP = 1e-3
AUX = "def2-universal-jkfit"
WATER = np.array([[0.0, 0.1, 0.2], [0.1, 1.5, -0.9], [0.0, -1.4, -1.0]])
HYDROGEN = np.array([[0.0, 0.1, -0.7], [0.2, 0.0, 0.75]])
FAMILY = ["tpss", "revtpss", "scan", "r2scan", "m06_l", "tpssh", "r2scan0", "m06", "m06_2x", "pw91"]

slow = pytest.mark.slow


def ours(symbols, positions, xc, charge=0, multiplicity=1):
    mol = qchem.Molecule.from_arrays(
        list(symbols), positions, unit="bohr", charge=charge, multiplicity=multiplicity
    )
    options = {"basis": "def2-svp", "two_electron": "df", "aux": AUX, "grid": 0}
    return qchem.energy(mol, xc=xc, **options).require_converged()


def theirs(symbols, positions, xc, charge=0, multiplicity=1):
    mol = gto.M(
        atom=list(zip(symbols, positions.tolist(), strict=True)),
        unit="bohr",
        basis="def2-svp",
        charge=charge,
        spin=multiplicity - 1,
        verbose=0,
    )
    mf = (dft.RKS if multiplicity == 1 else dft.UKS)(mol, xc=xc).density_fit(auxbasis=AUX)
    mf.grids.level = 0
    mf.conv_tol, mf.conv_tol_grad = 1e-11, 1e-7
    mf.kernel()
    assert mf.converged
    return mf


@pytest.mark.parametrize(
    ("symbols", "positions", "multiplicity", "xc"),
    [
        pytest.param("HH", HYDROGEN, 1, "tpss"),
        pytest.param("H", HYDROGEN[:1], 2, "r2scan", marks=slow),
        *(pytest.param("OHH", WATER, 1, name, marks=slow) for name in FAMILY),
        *(pytest.param("OHH", WATER, 2, name, marks=slow) for name in FAMILY[:5]),
    ],
)
def test_converged_energy_agrees_with_pyscf(symbols, positions, multiplicity, xc):
    charge = 1 if symbols == "OHH" and multiplicity == 2 else 0
    result = ours(symbols, positions, xc, charge, multiplicity)
    reference = theirs(symbols, positions, xc, charge, multiplicity)
    assert_allclose(result.energy, reference.e_tot, rtol=0, atol=ENERGY_ATOL)


@slow
@pytest.mark.parametrize(("xc", "charge", "multiplicity"), [("tpss", 0, 1), ("r2scan", 1, 2)])
def test_forces_agree_with_pyscf_and_finite_differences(xc, charge, multiplicity):
    forces = ours("OHH", WATER, xc, charge, multiplicity).forces()
    gradient = theirs("OHH", WATER, xc, charge, multiplicity).nuc_grad_method()
    gradient.grid_response = True
    assert_allclose(forces, -gradient.kernel(), rtol=0, atol=FORCE_ATOL)
    assert np.max(np.abs(forces)) > 1e-3  # otherwise the check could not fail
    direction = np.random.default_rng(0).normal(size=WATER.shape)
    energies = [
        ours("OHH", WATER + n * STEP * direction, xc, charge, multiplicity).energy
        for n in (-2, -1, 1, 2)
    ]
    measured = -slope(energies, STEP)
    assert_allclose(np.vdot(forces, direction), measured, rtol=0, atol=DIFFERENCE_ATOL)
