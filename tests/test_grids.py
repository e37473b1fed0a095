"""Integration grids against PySCF's, their sum rules, their derivatives, their errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from pyscf import dft, gto
from pyscf.dft import radi
from scipy.spatial import cKDTree

from qchem import becke
from qchem.errors import InputError
from qchem.grids import Grid, GridPoints
from qchem.units import BOHR_IN_ANGSTROM

SAME_POINT = 1e-11  # bohr: radii reach 60 bohr and carry rounding only
SAME_SHARE = 1e-13  # products of cell functions, each a few roundings
INNERMOST_RTOL = 1e-10  # PySCF's radial rule cancels next to the nucleus; ours does not
DERIVATIVE_RTOL = 1e-7  # four-point differences at EPS
EPS = 1e-3

place = jax.jit(Grid.place)

WATER = (8, 1, 1)
WATER_POSITIONS = np.array([[0.0, 0.1, 0.2], [0.3, 1.5, -0.9], [-0.2, -1.4, -1.1]])
HEAVY = (26, 35, 16, 11, 1)
HEAVY_POSITIONS = np.array(
    [[0.1, 0.0, 0.2], [4.2, 0.3, -0.4], [-1.5, 3.6, 0.5], [-2.9, -4.1, 1.7], [-3.6, 3.9, 2.2]]
)
# On the axes: Lebedev points beyond a nucleus have mu = 1 exactly.
LINEAR = (6, 8, 8)
LINEAR_POSITIONS = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 2.2], [0.0, 0.0, -2.2]])


def pyscf_grid(numbers, positions, level=3, atom_grid=None, prune=True):
    atoms = [(int(z), tuple(r)) for z, r in zip(numbers, positions, strict=True)]
    mol = gto.M(atom=atoms, unit="bohr", spin=sum(numbers) % 2, basis="sto-3g", verbose=0)
    grid = dft.Grids(mol)
    grid.level, grid.alignment = level, 1
    grid.atom_grid = atom_grid or {}
    if not prune:
        grid.prune = None
    return grid.build(sort_grids=False)


def in_order_of(expected, points):
    """Index that puts `points` in the order of `expected`, one to one."""
    distance, index = cKDTree(points).query(expected)
    assert len(points) == len(expected) == len(set(index))
    assert distance.max() < SAME_POINT
    return index


def assert_same_grid(numbers, positions, *, level=3, sizes=None, atom_grid=None, prune=True):
    expected = pyscf_grid(numbers, positions, level, atom_grid, prune)
    grid = Grid.from_numbers(numbers, level, sizes=sizes, prune=prune)
    points, weights = map(np.asarray, place(grid, positions))
    for atom in range(len(numbers)):
        ours, theirs = grid.reference.atom == atom, expected.atm_idx == atom
        index = in_order_of(expected.coords[theirs], points[ours])
        quadrature = expected.quadrature_weights[theirs]
        assert_allclose(grid.reference.quadrature[ours][index], quadrature, rtol=INNERMOST_RTOL)
        share = (weights[ours] / grid.reference.quadrature[ours])[index]
        assert_allclose(share, expected.weights[theirs] / quadrature, atol=SAME_SHARE, rtol=0)


@pytest.mark.parametrize("level", range(6))
def test_water_equals_pyscf(level):
    assert_same_grid(WATER, WATER_POSITIONS, level=level)


@pytest.mark.parametrize("level", [0, 1])
def test_heavy_molecule_equals_pyscf(level):
    assert_same_grid(HEAVY, HEAVY_POSITIONS, level=level)


def test_linear_molecule_equals_pyscf():
    assert_same_grid(LINEAR, LINEAR_POSITIONS, level=1)


@pytest.mark.parametrize("size", [38, 50, 74, 86, 194])
def test_explicit_sizes_equal_pyscf(size):
    assert_same_grid(WATER, WATER_POSITIONS, sizes=(20, size), atom_grid=(20, size))


def test_sizes_of_one_element_leave_the_level_for_the_others():
    sizes = {"H": (12, 26), "S": (10, 50)}
    assert_same_grid(WATER, WATER_POSITIONS, level=1, sizes=sizes, atom_grid=sizes)


def test_unpruned_grid_equals_pyscf():
    assert_same_grid(WATER, WATER_POSITIONS, level=1, prune=False)


@pytest.mark.parametrize("level", range(10))
def test_every_element_has_pyscfs_radial_shells(level):
    """Number of angular points and their weight, shell by shell, H to Kr."""
    for number in range(1, 37):
        reference = Grid.from_numbers((number,), level).reference
        radius = np.linalg.norm(reference.offsets, axis=1)
        starts = np.concatenate([[0], np.flatnonzero(np.diff(radius) > 1e-9 * radius[1:]) + 1])
        radii, slope = radi.treutler_ahlrichs(dft.gen_grid._default_rad(number, level), number)
        nangular = dft.gen_grid._default_ang(number, level)
        counts = dft.gen_grid.nwchem_prune(number, radii, nangular)
        assert_allclose(np.diff(starts, append=len(radius)), counts)
        assert_allclose(radius[starts], radii, rtol=INNERMOST_RTOL)
        shell_weight = np.add.reduceat(reference.quadrature, starts)
        assert_allclose(shell_weight, 4 * np.pi * radii**2 * slope, rtol=INNERMOST_RTOL)


def test_pyscf_reads_the_same_bragg_radii():
    numbers = tuple(range(1, 37))
    radius = np.sqrt(radi.BRAGG_RADII[1:37])
    expected = 0.25 * (radius[None, :] / radius[:, None] - radius[:, None] / radius[None, :])
    adjustment = Grid.from_numbers(numbers, 0, sizes=(1, 6)).adjustment
    assert np.abs(expected).max() > 0.5  # otherwise the bound is not tried
    assert_allclose(adjustment, np.clip(expected, -0.5, 0.5), atol=1e-15)
    assert_allclose(radi.BRAGG_RADII[1] * BOHR_IN_ANGSTROM, 0.35, rtol=1e-8)


def test_integrates_normalized_gaussians():
    exponent, centre = 0.7, WATER_POSITIONS[1] + 0.3
    points, weights = place(Grid.from_numbers(WATER), WATER_POSITIONS)
    square = jnp.sum((points - centre[None, :]) ** 2, axis=1)
    total = jnp.vdot(weights, (exponent / np.pi) ** 1.5 * jnp.exp(-exponent * square))
    assert_allclose(total, 1.0, atol=1e-5)  # level 3: the grid's own error


def test_single_atom_keeps_its_quadrature_and_has_no_derivative():
    grid = Grid.from_numbers((18,), 0)
    positions = np.array([[0.1, -0.2, 0.3]])
    assert_allclose(place(grid, positions)[1], grid.reference.quadrature, rtol=1e-15)
    gradient = jax.jit(jax.grad(lambda r: jnp.sum(grid.place(r)[1])))(positions)
    assert_allclose(gradient, 0.0, atol=0)


@pytest.mark.parametrize(
    "numbers, positions", [(HEAVY, HEAVY_POSITIONS), (LINEAR, LINEAR_POSITIONS)]
)
def test_cells_share_every_point_of_space(numbers, positions):
    grid = Grid.from_numbers(numbers, 0)
    points = np.concatenate(
        [np.random.default_rng(0).normal(scale=4.0, size=(200, 3)), positions, 3.0 * positions]
    )
    shares = np.stack(
        [place(grid, positions, carried_by(a, points, positions))[1] for a in range(len(numbers))]
    )
    assert shares.min() >= 0 and 0.1 < shares[:, :200].max(axis=0).min() < 0.9
    assert_allclose(shares.sum(axis=0), 1.0, rtol=1e-14)


def carried_by(atom, points, positions):
    n = len(points)
    return GridPoints(np.full(n, atom, np.int32), points - positions[atom], np.ones(n))


def test_weights_turn_with_the_molecule_and_its_points():
    grid = Grid.from_numbers(HEAVY, 0)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    turned = dataclasses.replace(grid.reference, offsets=grid.reference.offsets @ turn)
    shift = np.array([[3.0, -2.0, 5.0]])
    weights = place(grid, HEAVY_POSITIONS)[1]
    again = place(grid, HEAVY_POSITIONS @ turn + shift, turned)[1]
    assert_allclose(
        again / grid.reference.quadrature, weights / grid.reference.quadrature, atol=1e-12
    )


def test_chunks_hold_all_points_and_no_more_weight():
    grid = Grid.from_numbers(WATER, 0)
    npoint = len(grid.reference.quadrature)
    size = 1000
    assert npoint % size  # otherwise there is no padding
    chunks = grid.chunks(size)
    assert chunks.offsets.shape == (-(-npoint // size), size, 3)
    placed = jax.lax.map(lambda part: grid.place(WATER_POSITIONS, part), chunks)
    points, weights = (np.asarray(x).reshape(-1, *x.shape[2:]) for x in placed)
    expected = place(grid, WATER_POSITIONS)
    assert_allclose(points[:npoint], expected[0], atol=1e-15)
    assert_allclose(weights[:npoint], expected[1], rtol=1e-13)
    assert np.all(weights[npoint:] == 0) and np.all(np.isfinite(points))
    assert grid.reference.quadrature.all()  # the padding has not leaked into the grid


def probe(positions, grid):
    """Integral of a smooth function that is no constant anywhere near the atoms."""
    points, weights = grid.place(positions)
    square = jnp.sum((points - jnp.array([[0.1, -0.1, -0.5]])) ** 2, axis=1)
    wave = 1 + jnp.sin(points @ jnp.array([0.3, 0.9, -2.4]))
    return jnp.vdot(weights, wave * jnp.exp(-0.4 * square))


@jax.jit
def derivatives(positions, grid, step):
    """Value and gradient, then their derivatives along `step`: forward and forward over reverse."""
    value_step = jax.jvp(lambda r: probe(r, grid), (positions,), (step,))[1]
    gradient, gradient_step = jax.jvp(jax.grad(lambda r: probe(r, grid)), (positions,), (step,))
    return probe(positions, grid), gradient, value_step, gradient_step


@pytest.mark.parametrize(
    "numbers, positions",
    [(WATER, WATER_POSITIONS), (HEAVY, HEAVY_POSITIONS), (LINEAR, LINEAR_POSITIONS)],
)
def test_derivatives_are_those_of_finite_differences(numbers, positions):
    grid = Grid.from_numbers(numbers, sizes=(8, 26))
    step = np.random.default_rng(2).normal(size=positions.shape)
    _, gradient, value_step, gradient_step = derivatives(positions, grid, step)
    around = [derivatives(positions + k * EPS * step, grid, step)[:2] for k in (-2, -1, 1, 2)]
    measured, measured_gradient = (
        (far - 8 * near + 8 * ahead - beyond) / (12 * EPS)
        for far, near, ahead, beyond in zip(*around, strict=True)
    )
    assert abs(measured) > 1e-2 and np.abs(measured_gradient).max() > 1e-2
    assert_allclose(value_step, measured, rtol=DERIVATIVE_RTOL)
    assert_allclose(jnp.vdot(gradient, step), value_step, rtol=1e-11)
    atol = DERIVATIVE_RTOL * np.abs(measured_gradient).max()
    assert_allclose(gradient_step, measured_gradient, rtol=0, atol=atol)


def test_cells_without_a_share_are_passed_over(monkeypatch):
    """Weights and their derivatives, first and second, of points near one atom of a chain."""
    chain = np.random.default_rng(3).normal(scale=0.3, size=(7, 3))
    chain[:, 2] += 3.0 * np.arange(7)
    grid = Grid.from_numbers((6,) * 7, sizes=(12, 14))
    part = jax.tree.map(lambda x: x[:100], grid.reference)
    random = np.random.default_rng(4).normal(size=len(part.quadrature))
    step = np.random.default_rng(5).normal(size=chain.shape)

    def derivatives(positions):
        gradient = jax.grad(lambda r: jnp.vdot(grid.place(r, part)[1], random))
        return grid.place(positions, part)[1], *jax.jvp(gradient, (positions,), (step,))

    def shares():
        points = chain[part.atom] + part.offsets
        distance = jnp.linalg.norm(chain[:, None] - points[None], axis=2)
        inverse = becke.inverse_separations(jnp.asarray(chain))
        own = (np.arange(len(chain))[:, None] == part.atom[None]).astype(float)
        return own - becke._partition(distance, inverse, grid.adjustment, part.atom)[1]

    assert len(chain) <= 2 * becke._NEAR and np.all(shares().max(axis=1) > 0)
    together = jax.jit(lambda r: derivatives(r))(chain)
    monkeypatch.setattr(becke, "_NEAR", 3)
    assert 1 <= np.sum(~np.any(shares(), axis=1)) < len(chain)  # passed over
    screened = jax.jit(lambda r: derivatives(r))(chain)
    for one, other in zip(screened, together, strict=True):
        assert np.abs(other).max() > 1e-2
        assert_allclose(one, other, rtol=0, atol=1e-12 * np.abs(other).max())


def test_moving_all_atoms_leaves_the_weights():
    grid = Grid.from_numbers(HEAVY, sizes=(6, 14))
    random = np.random.default_rng(3).normal(size=len(grid.reference.quadrature))
    mean = jax.jit(lambda r: jnp.vdot(grid.place(r)[1] / grid.reference.quadrature, random))
    gradient = jax.jit(jax.grad(mean))(HEAVY_POSITIONS)
    assert np.abs(gradient).max() > 1e-2
    assert_allclose(gradient.sum(axis=0), 0.0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_derivatives_are_finite_on_nuclei_and_where_weights_vanish(dtype):
    """Points on the axis, on another nucleus, on their own, and far away."""
    grid = Grid.from_numbers(LINEAR, 0)
    axis = np.array([[0, 0, z] for z in (-400, -2.2 - 1e-9, -2.2, 0, 1e-9, 2.2, 2.2 + 1e-9, 400)])
    positions = jnp.asarray(LINEAR_POSITIONS, dtype)
    parts = [carried_by(atom, axis, LINEAR_POSITIONS) for atom in range(3)]
    part = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    jacobian = jax.jacrev(lambda r: grid.place(r, part)[1])
    for derivative in jax.jit(lambda r: (jacobian(r), jax.jacfwd(jacobian)(r)))(positions):
        assert derivative.dtype == dtype
        assert np.all(np.isfinite(derivative))


@pytest.mark.parametrize("dtype, atol", [(np.float64, 1e-12), (np.float32, 2e-5)])
def test_slopes_of_pairs_at_the_ends_of_borders(dtype, atol):
    """Leads, or the share that slopes are to be multiplied by, vanish there as the cells do."""
    near = np.logspace(-20, 0, 400)
    nu = np.concatenate([1 - near, near - 1]).astype(dtype)

    def cell(y):
        for _ in range(3):
            y = y * y * (3 - y) / 2
        return y / 2

    exact = nu.astype(np.longdouble)
    s, s_of_other, slope = cell(1 - exact), cell(1 + exact), np.longdouble(-27) / 16
    for _ in range(3):
        slope, exact = slope * (1 - exact**2), exact * (3 - exact**2) / 2
    slopes = becke._pair_slope((0.3 * s).astype(dtype), (0.7 * s_of_other).astype(dtype), nu)
    assert_allclose(slopes, -0.4 * slope, rtol=0, atol=atol)
    of_share = becke._pair_slope(np.ones_like(nu), np.zeros_like(nu), nu)
    assert_allclose(np.asarray(of_share) * s, slope, rtol=0, atol=atol)


def test_float32_keeps_its_dtype_and_most_of_its_digits():
    grid = Grid.from_numbers(HEAVY, 0)
    points, weights = place(grid, HEAVY_POSITIONS.astype(np.float32))
    assert points.dtype == weights.dtype == jnp.float32
    expected = place(grid, HEAVY_POSITIONS)[1]
    assert_allclose(
        np.asarray(weights) / grid.reference.quadrature,
        np.asarray(expected) / grid.reference.quadrature,
        atol=1e-5,
    )


def test_geometries_share_one_program():
    grid = Grid.from_numbers(WATER, 0)
    integral = jax.jit(jax.value_and_grad(lambda r: probe(r, grid)))
    batch = np.stack([WATER_POSITIONS, 1.1 * WATER_POSITIONS])
    one_by_one = np.array([integral(positions)[0] for positions in batch])
    assert integral._cache_size() == 1
    assert abs(one_by_one[0] - one_by_one[1]) > 1e-6
    assert_allclose(jax.vmap(integral)(batch)[0], one_by_one, rtol=1e-12)


@pytest.mark.parametrize(
    "numbers, arguments, message",
    [
        (WATER, {"level": 10}, r"level 10 does not exist; levels are 0 .* to 9"),
        (WATER, {"level": -1}, r"level -1 does not exist"),
        ((92, 1), {}, r"no grid for atomic number 92; grids cover 1 \(H\) to 36 \(Kr\)"),
        ((), {}, r"at least one atom"),
        (
            WATER,
            {"sizes": (50, 300)},
            r"no Lebedev rule of 300 points; sizes are 6, .* 302, .* 5810",
        ),
        (WATER, {"sizes": (50, 29)}, r"29 points \(the rule of order 29 has 302 points\)"),
        (WATER, {"sizes": (0, 302)}, r"0 radial points"),
        (WATER, {"sizes": {"O": (50, 300)}}, r"no Lebedev rule of 300 points"),
        (WATER, {"sizes": {"Q": (50, 302)}}, r"'Q', which is no element's symbol"),
    ],
)
def test_impossible_grids_are_refused(numbers, arguments, message):
    with pytest.raises(InputError, match=message):
        Grid.from_numbers(numbers, **arguments)


def test_impossible_chunks_are_refused():
    with pytest.raises(InputError, match="chunk of 0 points"):
        Grid.from_numbers(WATER, 0).chunks(0)
