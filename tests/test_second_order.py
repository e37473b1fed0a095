"""Second-order SCF on Hartree-Fock matrices: its derivatives, energies against PySCF, descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from qchem.errors import InputError
from qchem.scf import orbital_factor, solve
from qchem.scf.rotations import Expansion
from qchem.scf.second_order import second_order
from tests.oracle import jit
from tests.test_solve import (
    ENERGY_ATOL,
    MOLECULES,
    WATER,
    core_guess,
    hartree_fock,
    molecule,
    reference,
    stacked,
)

ROUNDING = 1e-10  # hartree; of an energy


def first_cycle(hamiltonian):
    """Water after one cycle from the bare nuclei: far from converged."""
    return solve(hamiltonian, (5,), core_guess(hamiltonian), max_cycles=1)


def from_core(hamiltonian):
    return second_order(hamiltonian, first_cycle(hamiltonian), (5,))


compiled_first_cycle, compiled_from_core = jit(first_cycle), jit(from_core)


@pytest.fixture(scope="module")
def water():
    return hartree_fock(molecule(atom=WATER, basis="6-31g"))


@pytest.mark.parametrize("nocc", [(4,), (4, 2)])
def test_expansion_is_that_of_the_energy(nocc):
    """Gradient and Hessian by differentiating the energy of rotated orbitals, off the solution."""
    h = hartree_fock(molecule(atom=MOLECULES["CH3"]["atom"], basis="sto-3g", spin=1))
    scf = solve(h, nocc, core_guess(h, len(nocc)), max_cycles=1)
    exists = jnp.isfinite(scf.mo_energy[0])
    here = Expansion.at(h, scf.mo_coeff, scf.fock, exists, nocc)
    rng = np.random.default_rng(0)
    kappa = jnp.where(here.allowed, jnp.asarray(rng.normal(size=here.allowed.shape)), 0)

    def energy(kappa):
        return h.energy_and_fock(orbital_factor(here.rotated(kappa), nocc))[0]

    gradient, product = jit(lambda k: jax.jvp(jax.grad(energy), (0 * k,), (k,)))(kappa)
    assert float(here.residual) > 1e-2
    assert_allclose(here.gradient, jnp.where(here.allowed, gradient, 0), atol=1e-10)
    assert_allclose(here.product(kappa), jnp.where(here.allowed, product, 0), atol=1e-9)
    rotated = here.rotated(kappa)
    metric = jnp.swapaxes(rotated, 1, 2) @ h.overlap @ rotated
    assert_allclose(metric, np.broadcast_to(np.eye(exists.size), metric.shape), atol=1e-11)


@pytest.mark.parametrize("name", ["NO2", "H", pytest.param("Fe2+", marks=pytest.mark.slow)])
def test_energy_matches_pyscf_and_never_rises(name):
    mol = molecule(**MOLECULES[name])
    h, mf = hartree_fock(mol), reference(mol)
    nocc = tuple(map(int, mol.nelec))

    @jit
    def converge(h):
        start = solve(h, nocc, core_guess(h, 2), max_cycles=3)
        return second_order(h, start, nocc)

    result = converge(h).require_converged()
    # Newton's method stays in the valley it starts in; here it is never a higher one.
    assert result.energy <= mf.e_tot + ENERGY_ATOL
    assert mf.converged and result.residual < 1e-7
    energies = np.asarray(result.energy_history[2 : result.cycles])
    assert (np.diff(energies) <= ROUNDING).all()
    assert result.cycles <= 30


def test_far_from_the_solution_it_descends_to_the_same(water):
    result, diis = (
        compiled_from_core(water).require_converged(),
        solve(water, (5,), core_guess(water)),
    )
    assert_allclose(result.energy, diis.energy, rtol=0, atol=ENERGY_ATOL)
    assert_allclose(result.mo_energy, diis.mo_energy, atol=1e-6)
    assert_allclose(result.dm, diis.dm, atol=1e-6)
    energies = np.asarray(result.energy_history[: result.cycles])
    assert (np.diff(energies) <= ROUNDING).all() and np.ptp(energies) > 1
    assert result.products > result.cycles
    last = int(result.cycles) - 1
    assert result.energy_history[last] == result.energy
    assert result.residual_history[last] == result.residual


def test_nothing_is_done_where_the_start_has_converged(water):
    diis = solve(water, (5,), core_guess(water))
    result = jit(lambda h, scf: second_order(h, scf, (5,)))(water, diis)
    assert result.converged and result.products == 0 and result.cycles == diis.cycles
    assert_allclose(result.energy, diis.energy, rtol=0, atol=0)
    assert_allclose(result.dm, diis.dm, atol=1e-10)


def test_direct_minimization_is_one_product_a_cycle(water):
    start = compiled_first_cycle(water)
    result = jit(lambda h, s: second_order(h, s, (5,), max_products=1, max_cycles=200))(
        water, start
    )
    result.require_converged()
    assert_allclose(result.energy, compiled_from_core(water).energy, rtol=0, atol=ENERGY_ATOL)
    assert result.products == result.cycles - start.cycles


def test_a_batch_equals_one_after_another_and_a_broken_one_stops_alone(water):
    stretched = hartree_fock(molecule(atom=WATER.replace("0.7572", "1.3"), basis="6-31g"))
    broken = jax.tree.map(lambda x: x * jnp.nan, water)
    batch = jit(jax.vmap(from_core))(stacked([water, stretched, broken]))
    assert batch.converged.tolist() == [True, True, False]
    for n, h in enumerate((water, stretched)):
        assert_allclose(batch.energy[n], compiled_from_core(h).energy, rtol=0, atol=1e-10)


def test_linearly_dependent_functions_stay_out():
    atom = "He 0 0 0; ghost-He 0 0 0.0005; He 0 0 1.5"
    mol = molecule(atom=atom, basis={"He": "6-31g", "ghost-He": "6-31g"})
    h = hartree_fock(mol)
    start = solve(h, (2,), core_guess(h), max_cycles=1)
    result = jit(lambda h, s: second_order(h, s, (2,)))(h, start).require_converged()
    assert_allclose(result.energy, reference(mol).e_tot, rtol=0, atol=ENERGY_ATOL)
    missing = ~jnp.isfinite(result.mo_energy[0])
    assert missing.any()
    assert_allclose(result.mo_coeff[0][:, np.asarray(missing)], 0, atol=1e-12)


def test_single_precision(water):
    h = jax.tree.map(lambda x: x.astype(jnp.float32), water)
    result = compiled_from_core(h).require_converged()
    assert result.energy.dtype == jnp.float32
    assert_allclose(result.energy, compiled_from_core(water).energy, rtol=0, atol=2e-4)


def test_too_few_cycles_are_reported(water):
    start = compiled_first_cycle(water)
    result = second_order(water, start, (5,), max_cycles=2)
    assert not result.converged and result.cycles == 2
    assert result.energy < start.energy


def test_wrong_arguments_are_refused(water):
    start = compiled_first_cycle(water)
    with pytest.raises(InputError, match="max_products = 0"):
        second_order(water, start, (5,), max_products=0)
    with pytest.raises(InputError, match="does not fit 13"):
        second_order(water, start, (14,))
