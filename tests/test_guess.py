"""Where the SCF starts: screened nuclei of neutral atoms, and densities of free atoms."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pyscf import gto, scf

from qchem import Basis
from qchem.scf.guess import atomic_densities, screened_charges

# Hartree-Fock of the spherical atom in the same basis, fractional occupation (PySCF 2.14, atom_hf).
_SPHERICAL_ATOM = {2: -2.855160, 8: -74.195262, 24: -1042.162847, 36: -2751.679509}


@pytest.mark.parametrize("number", range(1, 37))
def test_atoms_are_neutral_and_nuclei_are_points(number):
    charges, widths = screened_charges((number,))
    assert charges[0, 0] == number and widths[0, 0] == 0
    assert_allclose(charges.sum(), 0, atol=1e-6 * number)
    assert (widths[0, 1:] > 0).all()


def test_atoms_of_different_depth_share_one_array():
    charges, widths = screened_charges((1, 29, 1))
    alone = screened_charges((1,))[0]
    assert charges.shape == widths.shape == (3, screened_charges((29,))[0].shape[1])
    assert_allclose(charges[0], charges[2])
    assert_allclose(charges[0, : alone.shape[1]], alone[0])
    assert (charges[0, alone.shape[1] :] == 0).all() and np.isfinite(widths).all()


@pytest.mark.parametrize(
    ("number", "name", "spherical"),
    [
        (2, "cc-pvdz", True),
        (8, "def2-svp", True),
        (8, "def2-svp", False),
        (24, "def2-svp", True),
        (36, "6-31g*", False),
    ],
)
def test_atomic_densities_hold_the_electrons_close_to_the_hartree_fock_energy(
    number, name, spherical
):
    basis = Basis.from_name((number,), name, spherical=spherical)
    dm = atomic_densities((number,), basis)
    mol = gto.M(atom=[(number, (0, 0, 0))], basis=name, cart=not spherical, spin=number % 2)
    assert_allclose(np.vdot(dm, mol.intor("int1e_ovlp")), number, rtol=1e-12)
    coulomb, exchange = scf.hf.get_jk(mol, dm)
    energy = np.vdot(dm, scf.hf.get_hcore(mol) + coulomb / 2 - exchange / 4)
    assert energy == pytest.approx(_SPHERICAL_ATOM[number], rel=3e-4, abs=0.03)


def test_atomic_densities_stand_side_by_side():
    basis = Basis.from_name((8, 1, 1), "def2-svp")
    dm = atomic_densities((8, 1, 1), basis)
    oxygen = atomic_densities((8,), Basis.from_name((8,), "def2-svp"))
    assert_allclose(dm[:14, :14], oxygen)
    assert (dm[:14, 14:] == 0).all() and (dm[14:19, 19:] == 0).all()
    assert_allclose(dm[14:19, 14:19], dm[19:, 19:])
