"""VV10: against PySCF, against its own finite differences, and in total energies."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from pyscf import dft, gto

from qchem.basis.layout import Basis
from qchem.grids import Grid
from qchem.xc import nonlocal_correlation
from qchem.xc.nonlocal_correlation import NonlocalCorrelation, SummedXC, vv10_energy
from tests import oracle
from tests.test_quadrature import NUMBERS, POSITIONS, random_dm

ENERGY_ATOL = 1e-8  # hartree; PySCF skips AOs below its cutoff
FOCK_ATOL = 1e-8
STEP = 1e-3
DIFFERENCE_ATOL = 1e-9  # of energies around 0.04 hartree
SIZES = (12, 26)


@pytest.fixture(scope="module")
def water():
    """PySCF's molecule and grid, a density matrix, and our integrator of the positions."""
    mol = gto.M(
        atom=list(zip("OHH", POSITIONS.tolist(), strict=True)),
        unit="bohr",
        basis="sto-3g",
        verbose=0,
    )
    grids = dft.Grids(mol)
    grids.atom_grid = {"O": SIZES, "H": SIZES}
    grids.prune = None
    grids.build(sort_grids=False)
    basis = Basis.from_name(NUMBERS, "sto-3g")
    grid = Grid.from_numbers(NUMBERS, sizes=SIZES, prune=False)

    def integrator(positions):
        return NonlocalCorrelation(((1.0, 6.0, 0.01),), basis, grid, positions, chunk=100)

    return mol, grids, random_dm(mol.intor("int1e_ovlp"), (5, 4)), integrator


def test_energy_and_fock_agree_with_pyscf(water):
    mol, grids, dm, integrator = water
    numint = dft.numint.NumInt()
    _, energy, fock = numint.nr_nlc_vxc(mol, grids, "wb97x_v", np.asarray(dm.sum(0)))
    measured, derivative = oracle.jit(lambda dm: integrator(POSITIONS).energy_and_fock(dm))(dm)
    assert energy > 0.01
    assert_allclose(measured, energy, rtol=0, atol=ENERGY_ATOL)
    for spin in derivative:
        assert_allclose(spin, fock, rtol=0, atol=FOCK_ATOL)


def test_derivatives_agree_with_finite_differences(water):
    """The energy's, in positions and in dm, and the Fock matrix's: both points of a pair move."""
    _, _, dm, integrator = water
    step = oracle.random_like(dm, 3)
    step = 0.05 * (step + jnp.swapaxes(step, 1, 2))
    start, change = jnp.asarray(POSITIONS), oracle.random_like(POSITIONS, 2)

    def along(t):
        def energy(t, s):
            return integrator(start + t * change).energy(dm + s * step)

        def slope(s):
            return jnp.vdot(integrator(start).energy_and_fock(dm + s * step)[1], step)

        moved, (by_positions, _) = jax.value_and_grad(energy, argnums=(0, 1))(t, 0.0)
        changed, (_, by_dm) = jax.value_and_grad(energy, argnums=(0, 1))(0.0, t)
        focks, bend = jax.jvp(slope, (t,), (jnp.ones_like(t),))
        return (moved, changed, focks), (by_positions, by_dm, bend)

    steps = STEP * jnp.asarray([-2.0, -1.0, 1.0, 2.0, 0.0])
    displaced, slopes = oracle.jit(lambda steps: jax.lax.map(along, steps))(steps)
    for values, exact in zip(displaced, slopes, strict=True):
        measured = oracle.slope(values, STEP)
        assert abs(measured) > 1e-5
        assert_allclose(exact[4], measured, rtol=0, atol=DIFFERENCE_ATOL)


def test_pair_sum_in_tiles_is_the_plain_sum(monkeypatch):
    """Eqs. (3)-(14) written out; points without density take no part, however many tiles."""
    rng = np.random.default_rng(0)
    n, b, c = 23, 5.9, 0.0093
    rho = 10 ** rng.uniform(-7, 1, n)
    rho[::4] = [0.0, 1e-12, 9e-9, 1e-30, 0.0, 5e-9]
    sigma = rho ** (8 / 3) * rng.uniform(0, 9, n)
    weights, points = rng.uniform(0.1, 1, n), rng.normal(size=(3, n))
    on = rho > 1e-8
    gap = np.sqrt(c * (sigma[on] / rho[on] ** 2) ** 2 + 4 * np.pi / 3 * rho[on])
    kappa = b * 1.5 * np.pi * (rho[on] / (9 * np.pi)) ** (1 / 6)
    r2 = np.sum((points[:, on, None] - points[:, None, on]) ** 2, axis=0)
    g = gap[:, None] * r2 + kappa[:, None]
    charge = weights[on] * rho[on]
    phi = -1.5 / (g * g.T * (g + g.T))
    expected = charge.sum() * (3 / b**2) ** 0.75 / 32 + 0.5 * charge @ phi @ charge
    energy = partial(vv10_energy, b=b, c=c)
    arguments = [jnp.asarray(x) for x in (weights, rho, sigma, points)]
    for tile in ((64, 4096), (3, 7)):
        monkeypatch.setattr(nonlocal_correlation, "_TILE", tile)
        value, slopes = jax.value_and_grad(energy, argnums=(0, 1, 2, 3))(*arguments)
        assert_allclose(value, expected, rtol=1e-13)
        assert all(np.all(np.isfinite(slope)) for slope in slopes)
        assert not np.any(slopes[1][~on])


def test_positions_decide_the_precision(water):
    _, _, dm, integrator = water

    def energy(dtype):
        positions = POSITIONS.astype(dtype)
        return oracle.jit(lambda dm: integrator(positions).energy(dm))(dm.astype(dtype))

    assert energy("float32").dtype == jnp.float32
    assert_allclose(energy("float32"), energy("float64"), rtol=1e-5)


def test_sum_of_integrators(water):
    _, _, dm, integrator = water
    one = integrator(POSITIONS)
    both = SummedXC((one, one))

    @oracle.jit
    def measure(dm):
        return one.energy_and_fock(dm), both.energy_and_fock(dm), both.energy(dm)

    (energy, fock), (total, summed), again = measure(dm)
    assert_allclose(total, 2 * energy, rtol=1e-13)
    assert_allclose(summed, 2 * fock, rtol=1e-13)
    assert_allclose(again, total, rtol=1e-13)


def test_second_derivatives_hold_a_tile():
    npoint = 8192
    one, three = (jax.ShapeDtypeStruct((*n, npoint), float) for n in ((), (3,)))

    def change(weights, rho, sigma, points, direction):
        energy = partial(vv10_energy, weights, sigma=sigma, points=points, b=6.0, c=0.01)
        return jax.jvp(energy, (rho,), (direction,))[1]

    program = oracle.jit(jax.grad(change, (0, 1, 2, 3))).lower(one, one, one, three, one).compile()
    assert program.memory_analysis().temp_size_in_bytes < 8 * npoint**2 / 10
