"""Derivatives of converged states, against differences of converged states."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import qchem
from tests import oracle

WATER = np.array([[0.02, -0.01, 0.22], [1.46, 0.05, -0.90], [-1.41, -0.06, -0.93]])
FORMALDEHYDE = np.array(
    [[0.01, 0.0, -1.14], [0.0, 0.02, 1.12], [1.76, 0.0, -2.22], [-1.76, 0.03, -2.24]]
)
# Of a family whose programs compile quickly: no shell of it is beyond s.
HYDROGENS = np.array([[0.0, 0.1, -2.7], [0.2, 0.0, -0.9], [0.0, -0.1, 1.0], [-0.1, 0.0, 2.6]])
STEP = 2e-3


def observed(function, weights, positions):
    """A number that depends on the whole density matrix, and on the energy."""
    state = function.relaxed(positions)
    return jnp.vdot(weights, state.dm) + state.energy


def value(function, weights, positions):
    scf = function.solve(positions)
    return jnp.vdot(weights, scf.dm) + scf.energy


def weights_for(function):
    nao, nspin = function.method.basis.nao, len(function.nocc)
    weights = np.random.default_rng(3).normal(size=(nspin, nao, nao))
    return jnp.asarray(weights + weights.swapaxes(1, 2))


@pytest.mark.parametrize(
    ("numbers", "positions", "basis", "xc", "charge", "multiplicity"),
    [
        ((1, 1, 1, 1), HYDROGENS, "6-31g", "hf", 0, 1),
        pytest.param((6, 8, 1, 1), FORMALDEHYDE, "sto-3g", "hf", 0, 1, marks=pytest.mark.slow),
        pytest.param((6, 8, 1, 1), FORMALDEHYDE, "sto-3g", "pbe", 0, 1, marks=pytest.mark.slow),
        pytest.param((8, 1, 1), WATER, "sto-3g", "svwn", 1, 2, marks=pytest.mark.slow),
    ],
)
def test_densities_follow_the_nuclei(numbers, positions, basis, xc, charge, multiplicity):
    spin = {"charge": charge, "multiplicity": multiplicity}
    function = qchem.energy_fn(numbers, basis, xc, grid=(20, 50), tolerance=1e-10, **spin)
    weights, positions = weights_for(function), jnp.asarray(positions)
    gradient = jax.jit(jax.grad(lambda r: observed(function, weights, r)))(positions)
    direction = jnp.asarray(np.random.default_rng(0).normal(size=positions.shape))
    solved = jax.jit(lambda r: value(function, weights, r))
    values = [solved(r) for r in oracle.stencil(positions, direction, STEP)]
    slope = oracle.slope(values, STEP)
    assert abs(slope) > 1e-2
    assert_allclose(jnp.vdot(gradient, direction), slope, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_forward_and_reverse_mode_agree_on_exponents():
    function = qchem.energy_fn((8, 1, 1), "sto-3g", "hf", tolerance=1e-10)
    weights = weights_for(function)

    def of_exponents(exponents):
        moved = eqx.tree_at(lambda f: f.method.basis.batches[0].exponents, function, exponents)
        return observed(moved, weights, jnp.asarray(WATER))

    exponents = jnp.asarray(function.method.basis.batches[0].exponents)
    reverse = jax.jit(jax.grad(of_exponents))(exponents)
    direction = jnp.asarray(exponents * np.random.default_rng(1).normal(size=exponents.shape))
    _, forward = jax.jit(lambda d: jax.jvp(of_exponents, (exponents,), (d,)))(direction)
    assert_allclose(jnp.vdot(reverse, direction), forward, rtol=1e-9)

    def solved(exponents):
        moved = eqx.tree_at(lambda f: f.method.basis.batches[0].exponents, function, exponents)
        return value(moved, weights, jnp.asarray(WATER))

    solved = jax.jit(solved)
    values = [solved(x) for x in oracle.stencil(exponents, direction, STEP)]
    assert_allclose(forward, oracle.slope(values, STEP), rtol=0, atol=1e-5)


def test_polarizability_equals_pyscf():
    from pyscf import gto, scf

    field = jnp.zeros(3)
    numbers, places = (1, 1, 1, 1), HYDROGENS
    function = qchem.energy_fn(numbers, "6-31g", "hf", field=field, tolerance=1e-10)

    def dipole(field):
        placed = eqx.tree_at(lambda f: f.method.field, function, field)
        return placed.relaxed(jnp.asarray(places)).dipole

    moment, polarizability = jax.jit(lambda f: (dipole(f), jax.jacfwd(dipole)(f)))(field)
    mol = gto.M(atom=[("H", r) for r in places], unit="bohr", basis="6-31g", verbose=0)
    hcore, moments = scf.hf.get_hcore(mol), mol.intor("int1e_r")

    def in_field(field):
        mf = scf.RHF(mol)
        mf.get_hcore = lambda *_: hcore + np.einsum("x,xij->ij", field, moments)
        mf.conv_tol, mf.conv_tol_grad = 1e-13, 1e-9
        mf.kernel()
        return mf.dip_moment(unit="au", verbose=0)

    assert_allclose(moment, in_field(np.zeros(3)), rtol=0, atol=1e-6)
    h = 2e-3
    columns = [oracle.slope([in_field(m * h * e) for m in (-2, -1, 1, 2)], h) for e in np.eye(3)]
    assert_allclose(polarizability, np.stack(columns, 1), rtol=0, atol=1e-5)
    assert_allclose(polarizability, polarizability.T, rtol=0, atol=1e-8)


def test_energy_in_a_field_is_minus_the_dipole_moment_to_first_order():
    mol = qchem.Molecule.from_arrays((1, 1, 1, 1), HYDROGENS, unit="bohr")
    settings = {"basis": "6-31g", "xc": "hf", "tolerance": 1e-10}
    free = qchem.energy(mol, **settings)
    h = 1e-3
    energies = [
        qchem.energy(mol, field=(0.0, 0.0, s * h), **settings).energy for s in (-2, -1, 1, 2)
    ]
    assert_allclose(-oracle.slope(energies, h), free.dipole[2], rtol=0, atol=1e-7)


def test_forces_in_a_field_are_those_of_its_energy():
    settings = {"basis": "6-31g", "xc": "hf", "field": (0.01, -0.02, 0.03)}
    function = qchem.energy_fn((1, 1, 1, 1), **settings)
    positions = jnp.asarray(HYDROGENS)
    gradient = jax.jit(jax.grad(function))(positions)
    direction = jnp.asarray(np.random.default_rng(2).normal(size=positions.shape))
    compiled = jax.jit(function)
    values = [compiled(r) for r in oracle.stencil(positions, direction, STEP)]
    assert_allclose(jnp.vdot(gradient, direction), oracle.slope(values, STEP), rtol=0, atol=1e-7)


def test_a_state_that_has_not_converged_has_no_derivative():
    function = qchem.energy_fn((1, 1), "6-31g", "hf", max_cycles=1)
    positions = jnp.asarray([[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]])

    def energy(positions):
        state = function.relaxed(positions)
        return state.energy, state.converged

    (_, converged), gradient = jax.jit(jax.value_and_grad(energy, has_aux=True))(positions)
    assert not converged
    assert np.isnan(gradient).all()


def test_fields_have_three_components():
    with pytest.raises(qchem.InputError, match="three components"):
        qchem.energy_fn((1, 1), "sto-3g", "hf", field=(0.0, 1.0))
