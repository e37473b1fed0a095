"""Integrated exchange and correlation: against PySCF, and against its own finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from pyscf import dft, gto

from qchem.basis.layout import Basis
from qchem.grids import Grid
from qchem.xc import quadrature
from qchem.xc.functional import Functional
from qchem.xc.quadrature import GridXC
from tests import oracle

ENERGY_ATOL = 1e-9  # hartree
FOCK_ATOL = 1e-8  # PySCF skips AOs below its cutoff
STEP = 1e-4
DIFFERENCE_RTOL = 1e-6  # of central differences with this step
STORE = 1 << 30
# Compilation, not running, is what these tests would spend their time on.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

NUMBERS = (8, 1, 1)
POSITIONS = np.array([[0.0, 0.1, 0.2], [0.1, 1.5, -0.9], [0.0, -1.4, -1.0]])


def random_dm(overlap, nocc, seed=0):
    """Density matrices of random orthonormal orbitals, the lowest favoured."""
    rng = np.random.default_rng(seed)
    values, vectors = np.linalg.eigh(overlap)
    half = vectors / np.sqrt(values)
    orbitals = half @ np.linalg.qr(rng.normal(size=overlap.shape))[0]
    spins = [orbitals[:, :n] @ orbitals[:, :n].T for n in nocc]
    return jnp.asarray(np.stack(spins))


@pytest.fixture(scope="module")
def water():
    """PySCF's molecule and grid, and ours, in def2-SVP."""
    mol = gto.M(
        atom=list(zip("OHH", POSITIONS.tolist(), strict=True)),
        unit="bohr",
        basis="def2-svp",
        verbose=0,
    )
    grids = dft.Grids(mol)
    grids.level = 0
    grids.build()
    overlap = mol.intor("int1e_ovlp")
    return mol, grids, overlap, Basis.from_name(NUMBERS, "def2-svp"), Grid.from_numbers(NUMBERS, 0)


@pytest.fixture(scope="module")
def small():
    """Basis, grid, closed-shell and spin-polarized density matrices; small, for derivatives."""
    basis = Basis.from_name(NUMBERS, "sto-3g")
    grid = Grid.from_numbers(NUMBERS, sizes=(8, 26), prune=False)
    return basis, grid, random_dm(np.eye(7), (5, 4))


@pytest.mark.parametrize(
    ("name", "nspin", "storage_bytes"),
    [
        *[("b3lyp", 1, STORE), ("pbe", 2, 0), ("svwn", 1, 0), ("svwn", 2, STORE)],
        *[("m06_l", 1, STORE), ("r2scan", 2, 0)],
    ],
)
def test_energy_and_fock_agree_with_pyscf(water, name, nspin, storage_bytes):
    mol, grids, overlap, basis, grid = water
    dm = random_dm(overlap, (5, 3))
    numint = dft.numint.NumInt()
    if nspin == 1:
        dm = 2 * dm[:1]
        count, energy, fock = numint.nr_rks(mol, grids, name, np.asarray(dm[0]))
    else:
        count, energy, fock = numint.nr_uks(mol, grids, name, np.asarray(dm))
    xc = GridXC(
        Functional.from_name(name), basis, grid, POSITIONS, chunk=512, storage_bytes=storage_bytes
    )
    assert (xc.ao is not None) == (storage_bytes > 0)
    measured, derivative = jit(GridXC.energy_and_fock)(xc, dm)
    assert_allclose(measured, energy, rtol=0, atol=ENERGY_ATOL)
    assert_allclose(derivative, np.reshape(fock, dm.shape), rtol=0, atol=FOCK_ATOL)
    assert_allclose(xc.nelectron(dm), np.sum(count), rtol=1e-10)


def test_lonely_electron_agrees_with_pyscf():
    mol = gto.M(atom="H 0 0 0", basis="def2-svp", spin=1, verbose=0)
    grids = dft.Grids(mol)
    grids.level = 0
    grids.build()
    dm = random_dm(mol.intor("int1e_ovlp"), (1, 0))
    _, energy, fock = dft.numint.NumInt().nr_uks(mol, grids, "b3lyp", np.asarray(dm))
    functional, basis = Functional.from_name("b3lyp"), Basis.from_name((1,), "def2-svp")
    xc = GridXC(functional, basis, Grid.from_numbers((1,), 0), np.zeros((1, 3)))
    measured, derivative = jit(GridXC.energy_and_fock)(xc, dm)
    assert_allclose(measured, energy, rtol=0, atol=ENERGY_ATOL)
    assert_allclose(derivative[0], fock[0], rtol=0, atol=FOCK_ATOL)
    assert np.all(np.isfinite(derivative[1]))


def energy_of(functional, basis, grid, chunk=64, storage_bytes=0):
    def energy(positions, dm):
        xc = GridXC(functional, basis, grid, positions, chunk=chunk, storage_bytes=storage_bytes)
        return xc.energy(dm)

    return energy


@pytest.mark.parametrize("name", ["pbe", "tpss"])
def test_derivatives_agree_with_finite_differences(small, name):
    basis, grid, dm = small
    energy = energy_of(Functional.from_name(name), basis, grid)
    rng = np.random.default_rng(1)
    step = rng.normal(size=dm.shape)
    steps = jnp.asarray(rng.normal(size=(3, 3))), jnp.asarray(step + step.transpose(0, 2, 1))

    @jit
    def derivatives(scale):
        """Energy and gradient at POSITIONS, dm plus `scale` steps, and their slopes."""
        at = jnp.asarray(POSITIONS) + scale * steps[0], dm + scale * steps[1]
        return jax.jvp(jax.value_and_grad(energy, argnums=(0, 1)), at, steps)

    (_, gradient), (slope, second) = derivatives(0.0)
    (energy_ahead, ahead), _ = derivatives(STEP)
    (energy_behind, behind), _ = derivatives(-STEP)
    assert abs(jnp.vdot(gradient[0], steps[0])) > 1e-3  # otherwise the check could not fail
    forward = sum(jnp.vdot(g, s) for g, s in zip(gradient, steps, strict=True))
    assert_allclose(slope, forward, rtol=1e-12)
    measured = (energy_ahead - energy_behind) / (2 * STEP)
    assert_allclose(slope, measured, rtol=DIFFERENCE_RTOL)
    for exact, plus, minus in zip(second, ahead, behind, strict=True):
        size = np.max(np.abs(exact))
        assert size > 1e-3
        assert_allclose(exact, (plus - minus) / (2 * STEP), rtol=0, atol=DIFFERENCE_RTOL * size)
    assert_allclose(gradient[0].sum(axis=0), 0, atol=1e-12)  # all atoms moved: nothing changes
    assert_allclose(gradient[1], jnp.swapaxes(gradient[1], 1, 2), rtol=0, atol=1e-14)


def test_chunks_and_storage_change_nothing(small):
    basis, grid, dm = small
    functional = Functional.from_name("svwn")
    settings = [(64, 0), (1000, 0), (64, STORE)]
    results = [
        jit(jax.value_and_grad(energy_of(functional, basis, grid, *setting)))(
            jnp.asarray(POSITIONS), dm
        )
        for setting in settings
    ]
    for energy, gradient in results[1:]:
        assert_allclose(energy, results[0][0], rtol=1e-13)
        assert_allclose(gradient, results[0][1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "nspin"), [("b3lyp", 2), ("svwn", 1)])
def test_written_derivatives_are_those_of_stored_values(name, nspin):
    """d functions and shells of unlike depth; orbitals, and the density matrix that they make."""
    basis = Basis.from_name((8, 1), "def2-svp")
    grid = Grid.from_numbers((8, 1), sizes=(6, 14), prune=False)
    orbitals = jnp.asarray(0.3 * np.random.default_rng(2).normal(size=(nspin, basis.nao, 4)))
    functional = Functional.from_name(name)

    def energy(positions, orbitals, storage_bytes, factored):
        how = {"chunk": 64, "storage_bytes": storage_bytes}
        xc = GridXC(functional, basis, grid, positions, **how)
        if factored:
            return xc.energy_of_orbitals(orbitals)
        return xc.energy(orbitals @ jnp.swapaxes(orbitals, 1, 2))

    def results(*how):
        differentiated = jax.value_and_grad(lambda *x: energy(*x, *how), (0, 1))
        return jit(differentiated)(jnp.asarray(POSITIONS[:2]), orbitals)

    expected, expected_slopes = results(STORE, False)
    for factored in (False, True):
        value, slopes = results(0, factored)
        assert_allclose(value, expected, rtol=1e-13)
        for slope, exact in zip(slopes, expected_slopes, strict=True):
            assert_allclose(slope, exact, rtol=0, atol=1e-12 * np.max(np.abs(exact)))


@pytest.mark.parametrize(("name", "nspin"), [("b3lyp", 2), ("svwn", 1), ("tpss", 1)])
def test_turned_orbitals(small, name, nspin):
    basis, grid, _ = small
    xc = GridXC(Functional.from_name(name), basis, grid, POSITIONS, chunk=64)
    orbitals = oracle.random_like(np.zeros((nspin, basis.nao, 3)), 2) * 0.3
    oracle.turns_agree(xc.energy_of_orbitals, orbitals, 1e-10)


@pytest.mark.parametrize(("name", "nspin"), [("svwn", 1), ("pbe", 2)])
def test_fock_by_way_of_orbitals(small, name, nspin):
    """Energy and Fock matrix, and how they change with the orbitals, are those of the density
    matrix alone with stored values."""
    basis, grid, _ = small
    factor, direction = (
        0.3 * oracle.random_like(np.zeros((nspin, basis.nao, 3)), seed) for seed in (2, 3)
    )
    assert 2 * 3 < basis.nao  # else that way is not taken

    def results(storage_bytes):
        how = {"chunk": 64, "storage_bytes": storage_bytes}
        xc = GridXC(Functional.from_name(name), basis, grid, POSITIONS, **how)

        def function(factor):
            dm = factor @ jnp.swapaxes(factor, 1, 2)
            return xc.energy_and_fock(dm, None if storage_bytes else factor)

        return jit(lambda *x: jax.jvp(function, x[:1], x[1:]))(factor, direction)

    for one, other in zip(*map(jax.tree.leaves, map(results, (0, STORE))), strict=True):
        assert np.max(np.abs(other)) > 1e-2
        assert_allclose(one, other, rtol=0, atol=1e-12 * np.max(np.abs(other)))


def test_only_the_symmetric_part_of_dm_counts(small):
    basis, grid, dm = small
    skew = jnp.triu(jnp.ones((7, 7)), 1)
    skew = skew - skew.T
    xc = GridXC(Functional.from_name("svwn"), basis, grid, POSITIONS)
    energy = jit(lambda dm: xc.energy(dm))
    assert_allclose(energy(dm + skew[None]), energy(dm), rtol=1e-13)


def test_batch_of_geometries_compiles_once(small):
    basis, grid, dm = small
    energy = energy_of(Functional.from_name("svwn"), basis, grid)
    batched = jit(jax.vmap(jax.value_and_grad(energy), in_axes=(0, None)))
    batch = jnp.asarray(POSITIONS)[None] + jnp.asarray([0.0, 0.1])[:, None, None] * POSITIONS[None]
    energies, gradients = batched(batch, dm)
    batched(batch + 0.01, dm)
    assert batched._cache_size() == 1
    single = jit(jax.value_and_grad(energy))
    for i, positions in enumerate(batch):
        value, gradient = single(positions, dm)
        assert_allclose(energies[i], value, rtol=1e-13)
        assert_allclose(gradients[i], gradient, rtol=0, atol=1e-12)


def test_positions_decide_the_precision(small):
    basis, grid, dm = small
    functional = Functional.from_name("pbe")

    def energy_and_fock(dtype):
        xc = GridXC(functional, basis, grid, POSITIONS.astype(dtype), chunk=64)
        return jit(GridXC.energy_and_fock)(xc, dm.astype(dtype))

    for single, double in zip(energy_and_fock("float32"), energy_and_fock("float64"), strict=True):
        assert single.dtype == jnp.float32
        assert_allclose(single, double, rtol=1e-5, atol=1e-5)


def test_potential_in_reverse_mode(small):
    """Its derivatives by position and density against finite differences of its values."""
    basis, grid, dm = small
    rng = np.random.default_rng(5)
    weight, dm_step = (rng.normal(size=dm.shape) for _ in range(2))
    step = rng.normal(size=POSITIONS.shape)
    functional = Functional.from_name("pbe")

    @jax.jit
    def projected(positions, dm):
        xc = GridXC(functional, basis, grid, positions, chunk=64)
        return jnp.vdot(weight, quadrature.xc_potential((xc, dm)))

    expected = jax.jit(jax.grad(lambda dm: GridXC(functional, basis, grid, POSITIONS).energy(dm)))(
        dm
    )
    assert_allclose(projected(POSITIONS, dm), jnp.vdot(weight, expected), rtol=1e-12)
    by_position, by_dm = jax.jit(jax.grad(projected, argnums=(0, 1)))(POSITIONS, dm)
    h = 1e-4
    moved = [projected(POSITIONS + s * h * step, dm) for s in (1, -1)]
    assert_allclose(jnp.vdot(by_position, step), (moved[0] - moved[1]) / (2 * h), rtol=1e-6)
    moved = [projected(POSITIONS, dm + s * h * dm_step) for s in (1, -1)]
    assert_allclose(jnp.vdot(by_dm, dm_step), (moved[0] - moved[1]) / (2 * h), rtol=1e-6)


def test_kinetic_energy_density_of_a_single_orbital():
    """One s Gaussian: tau = |grad psi|² / 2 = |grad rho|² / (8 rho)."""
    exponent = 0.7
    r = np.array([[0.3, -0.2, 0.5], [0.0, 0.0, 0.0], [1.0, 2.0, 0.1]])
    value = (2 * exponent / np.pi) ** 0.75 * np.exp(-exponent * np.sum(r**2, axis=1))
    ao = tuple(jnp.asarray(x)[None] for x in [value, *(-2 * exponent * r.T * value)])
    dm = jnp.ones((1, 1, 1))
    rho, sigma = quadrature.density_and_gradient(dm, ao)
    tau = quadrature.kinetic_energy_density(dm, ao)
    assert_allclose(tau, 2 * exponent**2 * np.sum(r**2, axis=1)[None] * rho, rtol=1e-13)
    assert_allclose(8 * rho * tau, sigma, rtol=1e-13)


def test_exact_exchange_alone_leaves_nothing_to_integrate(small):
    basis, grid, dm = small
    xc = GridXC(Functional.from_name("hf"), basis, grid, POSITIONS, storage_bytes=STORE)
    energy, fock = xc.energy_and_fock(dm)
    assert energy == 0
    assert fock.shape == dm.shape
    assert not np.any(fock)
