"""The SCF solver on Hartree-Fock matrices: energies against PySCF, robustness, tracing."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from numpy.testing import assert_allclose
from pyscf import gto, scf

from qchem.errors import ConvergenceError, InputError
from qchem.scf import density_matrix, solve, spin_square

scf.hf.MUTE_CHKFILE = True  # no temporary files left open

ENERGY_ATOL = 1e-9
WATER = "O 0 0 0.1173; H 0 0.7572 -0.4692; H 0 -0.7572 -0.4692"
MOLECULES = {
    "ethylene": dict(
        atom="C 0 0 .667; C 0 0 -.667; H 0 .923 1.238; H 0 -.923 1.238; H 0 .923 -1.238; "
        "H 0 -.923 -1.238",
        basis="6-31g",
    ),
    "O2 triplet": dict(atom="O 0 0 0; O 0 0 1.21", basis="6-31g", spin=2),
    "NO2": dict(atom="N 0 0 0; O 0 1.1 0.46; O 0 -1.1 0.46", basis="6-31g", spin=1),
    "CH3": dict(atom="C 0 0 0; H 0 1.08 0; H .935 -.54 0; H -.935 -.54 0", basis="6-31g", spin=1),
    "Fe2+": dict(atom="Fe 0 0 0", basis="sto-3g", charge=2, spin=4),
    "H": dict(atom="H 0 0 0", basis="6-31g", spin=1),
}


class HartreeFock(eqx.Module):
    """Hartree-Fock energy from dense integrals."""

    overlap: Float[Array, "nao nao"]
    hcore: Float[Array, "nao nao"]
    eri: Float[Array, "nao nao nao nao"]
    nuclear_repulsion: Float[Array, ""]

    def energy_and_fock(self, factor):
        dm = density_matrix(factor)
        coulomb = jnp.einsum("ijkl,skl->ij", self.eri, dm)
        exchange = jnp.einsum("ikjl,skl->sij", self.eri, dm) * (len(dm) / 2)
        fock = (self.hcore + coulomb)[None] - exchange
        energy = 0.5 * jnp.vdot(dm, fock + self.hcore[None]) + self.nuclear_repulsion
        return energy, fock


def molecule(**settings):
    return gto.M(verbose=0, **settings)


def hartree_fock(mol, dtype=np.float64):
    parts = mol.intor("int1e_ovlp"), scf.hf.get_hcore(mol), mol.intor("int2e"), mol.energy_nuc()
    return HartreeFock(*(jnp.asarray(part, dtype) for part in parts))


def core_guess(hamiltonian, nspin=1):
    """Orbitals of the bare nuclei: a bad guess."""
    return jnp.stack([hamiltonian.hcore] * nspin)


def reference(mol, dm=None):
    mf = scf.UHF(mol) if mol.spin else scf.RHF(mol)
    mf.conv_tol, mf.conv_tol_grad, mf.max_cycle = 1e-10, 1e-5, 200
    mf.kernel(dm)
    return mf


@pytest.fixture(scope="module")
def water():
    mol = molecule(atom=WATER, basis="6-31g")
    return mol, hartree_fock(mol), reference(mol)


run = jax.jit(solve, static_argnames=("nocc", "max_cycles"))


@jax.jit
def solve_closed(hamiltonian):
    """Five pairs of electrons, as in water."""
    return solve(hamiltonian, (5,), core_guess(hamiltonian))


solve_batch = jax.jit(jax.vmap(solve_closed))


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def test_water_matches_pyscf_in_every_field(water):
    _, h, mf = water
    result = solve_closed(h).require_converged()
    assert_allclose(result.energy, mf.e_tot, rtol=0, atol=ENERGY_ATOL)
    assert_allclose(result.mo_energy[0], mf.mo_energy, atol=1e-6)
    assert_allclose(result.dm[0], mf.make_rdm1(), atol=1e-6)
    assert_allclose(result.fock[0], mf.get_fock(), atol=1e-6)
    assert_allclose(result.mo_occ[0], mf.mo_occ)
    assert result.cycles <= 13


def test_result_is_consistent_with_itself(water):
    _, h, _ = water
    result = solve_closed(h)
    energy, fock = h.energy_and_fock(result.factor)
    assert_allclose(energy, result.energy, rtol=0, atol=1e-11)
    assert_allclose(fock, result.fock, atol=1e-11)
    c, e = result.mo_coeff[0], result.mo_energy[0]
    in_orbitals = c.T @ fock[0] @ c
    assert_allclose(c.T @ h.overlap @ c, np.eye(len(c)), atol=1e-12)
    assert_allclose(in_orbitals[:5, :5], np.diag(e[:5]), atol=1e-11)
    assert_allclose(in_orbitals[5:, 5:], np.diag(e[5:]), atol=1e-11)
    assert_allclose(2 * jnp.max(jnp.abs(in_orbitals[:5, 5:])), 0, atol=10 * result.residual)
    last = int(result.cycles) - 1
    assert result.energy_history[last] == result.energy
    assert result.residual_history[last] == result.residual
    assert jnp.isnan(result.energy_history[last + 1 :]).all()


@pytest.mark.parametrize("name", MOLECULES)
def test_energy_matches_pyscf_from_a_core_guess(name):
    mol = molecule(**MOLECULES[name])
    h = hartree_fock(mol)
    nocc = tuple(map(int, mol.nelec)) if mol.spin else (mol.nelectron // 2,)
    result = run(h, nocc, core_guess(h, len(nocc))).require_converged()
    # PySCF from its own guess ends in one of several states of Fe2+, not always the lowest.
    assert result.energy < reference(mol).e_tot + ENERGY_ATOL
    dm = np.asarray(result.dm if mol.spin else result.dm[0])
    mf = reference(mol, dm)
    assert mf.converged
    assert_allclose(result.energy, mf.e_tot, rtol=0, atol=ENERGY_ATOL)
    assert result.cycles <= 25
    if mol.spin:
        assert_allclose(spin_square(result.factor, h.overlap), mf.spin_square()[0], atol=1e-5)


def test_linearly_dependent_functions_are_dropped_as_in_pyscf():
    atom = "He 0 0 0; ghost-He 0 0 0.0005; He 0 0 1.5"
    mol = molecule(atom=atom, basis={"He": "6-31g", "ghost-He": "6-31g"})
    h, mf = hartree_fock(mol), reference(mol)
    result = run(h, (2,), core_guess(h)).require_converged()
    nmo = mf.mo_coeff.shape[1]
    assert nmo < mol.nao
    assert_allclose(result.energy, mf.e_tot, rtol=0, atol=ENERGY_ATOL)
    assert_allclose(result.mo_energy[0, :nmo], mf.mo_energy, atol=1e-6)
    assert jnp.isposinf(result.mo_energy[0, nmo:]).all()
    assert_allclose(result.mo_coeff[0, :, nmo:], 0, atol=1e-12)


def test_one_program_serves_every_geometry_alone_or_in_a_batch(water):
    stretched = [WATER.replace("0.7572", f"{y}") for y in (0.7, 0.7572, 1.6)]
    alone = [hartree_fock(molecule(atom=atom, basis="6-31g")) for atom in stretched]
    singles = [solve_closed(h) for h in alone]
    result = solve_batch(stacked(alone))
    solve_batch(stacked(alone[::-1]))
    assert solve_batch._cache_size() == 1
    result.require_converged()
    cycles = [int(single.cycles) for single in singles]
    assert len(set(cycles)) > 1  # so that one has to wait for another
    assert result.cycles.tolist() == cycles
    for i, single in enumerate(singles):
        assert_allclose(result.energy[i], single.energy, rtol=0, atol=1e-11)
        assert_allclose(result.dm[i], single.dm, atol=1e-8)


def test_other_options_change_the_path_not_the_answer(water):
    """Shifted, damped, and with a residual that only running out of patience can accept."""
    _, h, mf = water
    result = jax.jit(
        lambda h: solve(
            h,
            (5,),
            core_guess(h),
            level_shift=0.3,
            damping=0.3,
            diis_size=4,
            residual_tolerance=0.0,
            patience=12,
        )
    )(h).require_converged()
    assert_allclose(result.energy, mf.e_tot, rtol=0, atol=ENERGY_ATOL)
    assert_allclose(result.mo_energy[0], mf.mo_energy, atol=1e-6)
    changes = np.abs(np.diff(result.energy_history[: result.cycles]))
    assert (changes[-12:] < 1e-9).all() and changes[-13] > 1e-9
    plain = solve_closed(h)
    assert abs(result.energy_history[1] - plain.energy_history[1]) > 1e-3


def test_single_precision(water):
    mol, _, mf = water
    result = solve_closed(hartree_fock(mol, np.float32)).require_converged()
    assert result.energy.dtype == result.mo_coeff.dtype == jnp.float32
    assert_allclose(result.energy, mf.e_tot, rtol=0, atol=2e-4)


def test_too_few_cycles_are_reported(water):
    _, h, _ = water
    result = run(h, (5,), core_guess(h), max_cycles=2)
    assert not result.converged and result.cycles == 2
    with pytest.raises(ConvergenceError, match="after 2 cycles.*level_shift") as error:
        result.require_converged()
    assert error.value.cycles == 2 and error.value.residual == result.residual


def test_a_broken_geometry_stops_alone(water):
    _, h, _ = water
    broken = eqx.tree_at(lambda h: h.hcore, h, h.hcore * jnp.nan)
    result = solve_batch(stacked([h, broken, h]))  # the size that another test uses
    assert result.converged.tolist() == [True, False, True]
    assert result.cycles[1] == 1
    assert_allclose(result.energy[0], solve_closed(h).energy, rtol=0, atol=1e-11)
    with pytest.raises(ConvergenceError, match="1 of 3 geometries.*not a number"):
        result.require_converged()


@pytest.mark.parametrize(
    "nocc, options, message",
    [
        ((14,), {}, "does not fit 13"),
        ((5, 5), {}, "guess_fock has 1"),
        ((5,), dict(max_cycles=0), "max_cycles"),
        ((5,), dict(damping=1.0), "damping"),
    ],
)
def test_wrong_arguments_are_refused(water, nocc, options, message):
    _, h, _ = water
    with pytest.raises(InputError, match=message):
        solve(h, nocc, core_guess(h), **options)
