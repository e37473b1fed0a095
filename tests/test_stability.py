"""Lowest eigenvalues of the orbital Hessian against dense ones, and the way down from a saddle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from pyscf import scf as pyscf_scf

from qchem.scf import orbital_factor, solve, spin_square
from qchem.scf.rotations import Expansion
from qchem.scf.second_order import second_order
from qchem.scf.stability import UNSTABLE, displaced, lowest_curvature
from tests.oracle import jit
from tests.test_solve import ENERGY_ATOL, core_guess, hartree_fock, molecule

STRETCHED_N2 = "N 0 0 0; N 0 0 2.0"


@pytest.fixture(scope="module")
def nitrogen():
    """Two atoms far apart, forced into a closed shell."""
    h = hartree_fock(molecule(atom=STRETCHED_N2, basis="sto-3g"))
    return h, jit(lambda h: solve(h, (7,), core_guess(h)))(h).require_converged()


def dense_eigenvalues(h, scf, nocc):
    """By differentiating the energy of rotated orbitals twice."""
    copies = len(nocc) // len(scf.mo_coeff)
    mo_coeff, fock = (jnp.concatenate([x] * copies) for x in (scf.mo_coeff, scf.fock))
    here = Expansion.at(h, mo_coeff, fock, jnp.isfinite(scf.mo_energy[0]), nocc)
    place = np.flatnonzero(np.asarray(here.allowed))

    def energy(values):
        kappa = jnp.zeros(here.allowed.size).at[place].set(values).reshape(here.allowed.shape)
        return h.energy_and_fock(orbital_factor(here.rotated(kappa), nocc))[0]

    return np.linalg.eigvalsh(jit(jax.hessian(energy))(jnp.zeros(place.size)))


@pytest.mark.parametrize("unrestricted", [False, True])
def test_lowest_eigenvalue_equals_the_dense_one(nitrogen, unrestricted):
    h, scf = nitrogen
    found = jit(lambda h, scf: lowest_curvature(h, scf, (7,), unrestricted=unrestricted))(h, scf)
    dense = dense_eigenvalues(h, scf, (7, 7) if unrestricted else (7,))
    # A closed shell's rotation turns both spins: its unit length is twice as large.
    expected = dense[0] if unrestricted else dense[0] / 2
    assert found.converged and expected < UNSTABLE
    assert_allclose(found.eigenvalue, expected, rtol=0, atol=1e-5)
    assert_allclose(jnp.linalg.norm(found.direction.ravel()), 1, rtol=1e-10)


def test_downhill_lies_the_broken_symmetry_solution(nitrogen):
    h, scf = nitrogen
    nocc = (7, 7)
    both = jit(lambda h: solve(h, nocc, core_guess(h, 2)))(h).require_converged()
    assert_allclose(both.energy, scf.energy, atol=1e-8)
    found = jit(lambda h, scf: lowest_curvature(h, scf, nocc))(h, both)
    start = displaced(h, both, nocc, found.direction)
    assert start.energy < both.energy - 1e-3 and not start.converged
    end = jit(lambda h, start: second_order(h, start, nocc))(h, start).require_converged()
    # PySCF, from there, stays there and finds it stable.
    mf = pyscf_scf.UHF(molecule(atom=STRETCHED_N2, basis="sto-3g"))
    mf.conv_tol = 1e-11
    mf.kernel(dm0=np.asarray(end.dm))
    assert_allclose(end.energy, mf.e_tot, rtol=0, atol=ENERGY_ATOL)
    assert mf.stability(return_status=True)[2]
    assert spin_square(end.factor, h.overlap) > 2
    again = jit(lambda h, scf: lowest_curvature(h, scf, nocc))(h, end)
    assert again.eigenvalue > UNSTABLE


def test_nothing_to_rotate():
    h = hartree_fock(molecule(atom="He 0 0 0", basis="sto-3g"))
    scf = solve(h, (1,), core_guess(h))
    assert jnp.isposinf(lowest_curvature(h, scf, (1,)).eigenvalue)


def test_one_rotation_in_closed_form():
    """Hydrogen in a minimal basis: 2 (e_2 - e_1) + what (3.133) of Szabo & Ostlund (1989) adds."""
    h = hartree_fock(molecule(atom="H 0 0 0; H 0 0 3.0", basis="sto-3g", unit="bohr"))
    scf = solve(h, (1,), core_guess(h))
    gerade, ungerade = scf.mo_coeff[0].T
    shared = jnp.einsum("ijkl,i,j,k,l", h.eri, *[gerade, ungerade] * 2)
    direct = jnp.einsum("ijkl,i,j,k,l", h.eri, gerade, gerade, ungerade, ungerade)
    gap = scf.mo_energy[0, 1] - scf.mo_energy[0, 0]
    singlet = lowest_curvature(h, scf, (1,)).eigenvalue
    triplet = lowest_curvature(h, scf, (1,), unrestricted=True).eigenvalue
    assert_allclose(singlet, 2 * (gap + 3 * shared - direct), atol=1e-9)
    assert_allclose(triplet, 2 * (gap - shared - direct), atol=1e-9)
    assert triplet < 0 < singlet
