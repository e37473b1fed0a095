"""The first Fock matrix: neutral atoms, screened nuclei, orbitals close to the converged ones."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from qchem.scf.guess import screened_charges


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
