"""Integration grids: atomic radial and angular rules, joined by Becke's partition of space.

Scheme and tables are those of PySCF's default grids, so that energies agree digit by digit:
Treutler-Ahlrichs M4 radial points, Lebedev angular points, NWChem's pruning, Becke's fuzzy cells
with Treutler's adjustment to Bragg radii. What depends on elements is built once on the host;
points and weights are differentiable functions of the positions.
"""

from collections.abc import Sequence
from functools import lru_cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qchem.compilation import platform
from qchem.errors import InputError
from qchem.molecule import SYMBOLS
from qchem.units import BOHR_IN_ANGSTROM

# Row per level, column per period of the element (H-He, Li-Ne, Na-Ar, K-Kr).
# Source: RAD_GRIDS and ANG_ORDER of pyscf.dft.gen_grid (2.14).
# fmt: off
_RADIAL_SIZE = (
    (10, 15, 20, 30), (30, 40, 50, 60), (40, 60, 65, 75), (50, 75, 80, 90), (60, 90, 95, 105),
    (70, 105, 110, 120), (80, 120, 125, 135), (90, 135, 140, 150), (100, 150, 155, 165),
    (200, 200, 200, 200),
)
_ANGULAR_ORDER = (
    (11, 15, 17, 17), (17, 23, 23, 23), (23, 29, 29, 29), (29, 29, 35, 35), (35, 41, 41, 41),
    (41, 47, 47, 47), (47, 53, 53, 53), (53, 59, 59, 59), (59, 59, 59, 59), (65, 65, 65, 65),
)
_LAST_OF_PERIOD = (2, 10, 18)
_NEAR = 12  # atoms that decide whether a cell has any part of the points
_NEGLIGIBLE = 1e-20  # share of a point
_BLOCK = 256  # points taken at once, of many atoms
_AROUND = 12.0  # bohr around the nuclei where points lie close together
_CURVE_BITS = 8  # per axis

# V. I. Lebedev, D. N. Laikov, Doklady Mathematics 59, 477 (1999): algebraic order -> points.
_LEBEDEV_ORDERS = (*range(3, 32, 2), *range(35, 132, 6))
_LEBEDEV_SIZES = (
    6, 14, 26, 38, 50, 74, 86, 110, 146, 170, 194, 230, 266, 302, 350, 434, 590, 770, 974, 1202,
    1454, 1730, 2030, 2354, 2702, 3074, 3470, 3890, 4334, 4802, 5294, 5810,
)

# J. C. Slater, J. Chem. Phys. 41, 3199 (1964), H to Kr, angstrom; rare gases as in PySCF.
_BRAGG_RADIUS = (
    0.35, 1.40,
    1.45, 1.05, 0.85, 0.70, 0.65, 0.60, 0.50, 1.50,
    1.80, 1.50, 1.25, 1.10, 1.00, 1.00, 1.00, 1.80,
    2.20, 1.80, 1.60, 1.40, 1.35, 1.40, 1.40, 1.40, 1.35, 1.35, 1.35, 1.35,
    1.30, 1.25, 1.15, 1.15, 1.15, 1.90,
)

# Table 1 of O. Treutler, R. Ahlrichs, J. Chem. Phys. 102, 346 (1995), H to Kr, bohr.
_RADIAL_SCALE = (
    0.8, 0.9,
    1.8, 1.4, 1.3, 1.1, 0.9, 0.9, 0.9, 0.9,
    1.4, 1.3, 1.3, 1.2, 1.1, 1.0, 1.0, 1.0,
    1.5, 1.4, 1.3, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2, 1.1, 1.1, 1.1,
    1.1, 1.0, 0.9, 0.9, 0.9, 0.9,
)
# fmt: on


class GridPoints(eqx.Module):
    """Points that ride on atoms; the leading axes are free.

    Attributes:
        atom: The atom that carries the point.
        offsets: Point minus its atom, bohr.
        quadrature: Radial times angular weight, 4 pi r^2 included, before Becke's partition,
            bohr^3; 0 marks padding.
    """

    atom: Int[Array | np.ndarray, "*npoint"]
    offsets: Float[Array | np.ndarray, "*npoint 3"]
    quadrature: Float[Array | np.ndarray, "*npoint"]


class Grid(eqx.Module):
    """Integration grid of a molecule family: elements and sizes, never coordinates.

    Attributes:
        reference: All points, atom by atom, each from the innermost radial shell outwards.
        adjustment: a_ij of Becke (1988), appendix, which moves the border between two atoms
            towards the smaller one.
    """

    reference: GridPoints
    adjustment: Float[Array | np.ndarray, "natom natom"]

    @classmethod
    def from_numbers(
        cls,
        numbers: Sequence[int],
        level: int = 3,
        *,
        sizes: tuple[int, int] | dict[str, tuple[int, int]] | None = None,
        prune: bool = True,
    ) -> "Grid":
        """Grid of PySCF's sizes for a level, or of explicit sizes.

        Args:
            numbers: Atomic numbers, H to Kr.
            level: 0 (coarse) to 9 (fine).
            sizes: Radial and angular number of points, for all elements or by symbol; elements
                without an entry follow `level`.
            prune: Use smaller angular rules near the nucleus and far from it, as NWChem does.

        Raises:
            InputError: for a level, an element or sizes that do not exist.
        """
        numbers = tuple(int(number) for number in numbers)
        if not numbers:
            raise InputError("a grid needs at least one atom; none was given")
        for number in numbers:
            if not 1 <= number <= len(_BRAGG_RADIUS):
                raise InputError(
                    f"no grid for atomic number {number}; grids cover 1 (H) to 36 (Kr)"
                )
        if level not in range(len(_RADIAL_SIZE)):
            raise InputError(
                f"grid level {level} does not exist; levels are 0 (coarse) to 9 (fine)"
            )
        chosen = _sizes_by_number(numbers, level, sizes)
        parts = [_atomic_grid(number, *chosen[number], prune) for number in numbers]
        atom = np.repeat(np.arange(len(parts), dtype=np.int32), [len(q) for _, q in parts])
        offsets = np.concatenate([offsets for offsets, _ in parts])
        quadrature = np.concatenate([quadrature for _, quadrature in parts])
        return cls(GridPoints(atom, offsets, quadrature), _adjustment(numbers))

    def chunks(self, size: int, multiple: int = 1) -> GridPoints:
        """The points in chunks of `size` along a new leading axis, whose length is a multiple.

        The last chunks are filled up with copies of the last point at zero quadrature weight.
        """
        if size < 1:
            raise InputError(f"a chunk of {size} points is impossible; give 1 or more")
        npoint = self.reference.quadrature.shape[0]
        nchunk = multiple * -(-npoint // (multiple * size))
        index = np.minimum(np.arange(nchunk * size), npoint - 1)
        atom, offsets, quadrature = (x[index] for x in jax.tree.leaves(self.reference))
        real = (np.arange(nchunk * size) < npoint).astype(quadrature.dtype)
        filled = GridPoints(atom, offsets, quadrature * real)
        return jax.tree.map(lambda x: x.reshape(nchunk, size, *x.shape[1:]), filled)

    def along_curve(self, positions: Float[Array | np.ndarray, "natom 3"]) -> "Grid":
        """The same points in the order of Morton's curve through space.

        Neighbours in this order are neighbours in space, whatever atoms carry them.
        """
        positions = jax.lax.stop_gradient(jnp.asarray(positions))
        points = positions[self.reference.atom] + self.reference.offsets.astype(positions.dtype)
        # The curve goes through the molecule; far points have the places at its ends.
        low, high = jnp.min(positions, axis=0) - _AROUND, jnp.max(positions, axis=0) + _AROUND
        cells = 2**_CURVE_BITS
        scaled = cells * (points - low[None]) / jnp.max(high - low)
        cell = jnp.clip(scaled, 0, cells - 1).astype(jnp.int32)
        place = jnp.zeros(len(points), jnp.int32)
        for bit in range(_CURVE_BITS):
            for axis in range(3):
                place = place | (((cell[:, axis] >> bit) & 1) << (3 * bit + axis))
        order = jnp.argsort(place)
        return Grid(jax.tree.map(lambda x: jnp.asarray(x)[order], self.reference), self.adjustment)

    def place(
        self, positions: Float[Array | np.ndarray, "natom 3"], part: GridPoints | None = None
    ) -> tuple[Float[Array, "npoint 3"], Float[Array, "npoint"]]:
        """Points and weights at one geometry, differentiable in the positions.

        Values and derivatives need a few arrays of (points) x (atoms): give the points in parts to
        bound the memory.

        Args:
            positions: Nuclei, bohr. Their dtype decides.
            part: Points to place, all if left out.

        Returns:
            Points, bohr, and weights w with sum_p w_p f(r_p) = integral of f, bohr^3.
        """
        part = self.reference if part is None else part
        positions = jnp.asarray(positions)
        dtype = positions.dtype
        atom = jnp.asarray(part.atom)
        points = positions[atom] + jnp.asarray(part.offsets, dtype)
        inverse_separation = _inverse(_distances(positions, positions))
        adjustment = jnp.asarray(self.adjustment, dtype)

        def share(points, atom):
            return _cell_share(_distances(positions, points), inverse_separation, adjustment, atom)

        blocks = _blocks(len(positions), len(atom))
        if blocks == 1:
            return points, jnp.asarray(part.quadrature, dtype) * share(points, atom)
        parts = points.reshape(blocks, -1, 3), atom.reshape(blocks, -1)
        shares = jax.lax.map(lambda x: share(*x), parts).reshape(-1)
        return points, jnp.asarray(part.quadrature, dtype) * shares


def period_of(number: int) -> int:
    """Row of the periodic table, from 0."""
    return sum(number > last for last in _LAST_OF_PERIOD)


def elements_of(period: int) -> range:
    """Atomic numbers of a row."""
    borders = 0, *_LAST_OF_PERIOD, len(_BRAGG_RADIUS)
    return range(borders[period] + 1, borders[period + 1] + 1)


def npoint_of_element(number: int, level: int | tuple[int, int]) -> int:
    """Number of points on an atom, with pruning, for a level or for explicit sizes."""
    chosen = (0, level) if isinstance(level, tuple) else (level, None)
    nradial, nangular = _sizes_by_number((number,), *chosen)[number]
    return int(_pruned_sizes(number, _radial_rule(number, nradial)[0], nangular).sum())


def _sizes_by_number(numbers, level, sizes):
    if sizes is None:
        sizes = {}
    elif not isinstance(sizes, dict):
        sizes = {SYMBOLS[number]: sizes for number in numbers}
    unknown = [symbol for symbol in sizes if symbol not in SYMBOLS[1:]]
    if unknown:
        raise InputError(
            f"grid sizes are given for {', '.join(map(repr, unknown))}, which is no element's "
            "symbol; write for example {'H': (50, 302)}"
        )
    chosen = {}
    for number in numbers:
        period = period_of(number)
        order = _ANGULAR_ORDER[level][period]
        default = (_RADIAL_SIZE[level][period], _lebedev_size(order))
        nradial, nangular = sizes.get(SYMBOLS[number], default)
        if nradial < 1:
            raise InputError(f"{nradial} radial points are impossible; give 1 or more")
        if nangular not in _LEBEDEV_SIZES:
            hint = ""
            if nangular in _LEBEDEV_ORDERS:
                hint = f" (the rule of order {nangular} has {_lebedev_size(nangular)} points)"
            raise InputError(
                f"there is no Lebedev rule of {nangular} points{hint}; "
                f"sizes are {', '.join(map(str, _LEBEDEV_SIZES))}"
            )
        chosen[number] = (nradial, nangular)
    return chosen


def _lebedev_size(order: int) -> int:
    return _LEBEDEV_SIZES[_LEBEDEV_ORDERS.index(order)]


@lru_cache(maxsize=64)
def _atomic_grid(number: int, nradial: int, nangular: int, prune: bool):
    """Offsets, bohr, and quadrature weights, bohr^3, around one atom (shared: do not write)."""
    radii, radial_weights = _radial_rule(number, nradial)
    sizes = _pruned_sizes(number, radii, nangular) if prune else np.full(nradial, nangular)
    offsets, quadrature = [], []
    for r, radial_weight, size in zip(radii, radial_weights, sizes, strict=True):
        directions, angular_weights = _lebedev_rule(int(size))
        offsets.append(r * directions)
        quadrature.append(r * r * radial_weight * angular_weights)
    return np.concatenate(offsets), np.concatenate(quadrature)


def _radial_rule(number: int, n: int):
    """Radii, bohr, ascending, and weights of int_0^inf dr.

    Mapping M4 (alpha = 0.6) of Treutler & Ahlrichs (1995) on Chebyshev points of the second
    kind, x = cos(theta); written with half angles, nothing cancels near x = -1 and 1.
    """
    theta = np.pi * np.arange(n, 0, -1) / (n + 1)
    near, far = np.sin(theta / 2) ** 2, np.cos(theta / 2) ** 2  # (1 - x)/2, (1 + x)/2
    scale = _RADIAL_SCALE[number - 1] / np.log(2) * (2 * far) ** 0.6
    radii = -scale * np.log(near)
    slope = scale * (0.5 / near - 0.3 / far * np.log(near))  # dr/dx
    return radii, np.pi / (n + 1) * np.sin(theta) * slope


def _pruned_sizes(number: int, radii, nangular: int):
    """Angular size of each radial shell, NWChem's five regions in units of the Bragg radius."""
    if nangular < 50:
        return np.full(len(radii), nangular)
    ladder = _LEBEDEV_SIZES[_LEBEDEV_SIZES.index(38) :]
    rung = ladder.index(nangular)
    # 74 points have 86 in the second region, more than in the main one: PySCF's rule, kept.
    regions = (1, 2, 2, 2, 1) if nangular == 50 else (1, 3, rung - 1, rung, rung - 1)
    period = min(period_of(number), 2)
    borders = ((0.25, 0.5, 1.0, 4.5), (0.1667, 0.5, 0.9, 3.5), (0.1, 0.4, 0.8, 2.5))[period]
    bragg = _BRAGG_RADIUS[number - 1] / BOHR_IN_ANGSTROM
    return np.array([ladder[regions[i]] for i in np.searchsorted(borders, radii / bragg)])


@lru_cache(maxsize=len(_LEBEDEV_SIZES))
def _lebedev_rule(size: int):
    """Unit vectors and weights, sum 4 pi."""
    from scipy.integrate import lebedev_rule  # here: half a second that `import qchem` saves

    directions, weights = lebedev_rule(_LEBEDEV_ORDERS[_LEBEDEV_SIZES.index(size)])
    return directions.T, weights


def _adjustment(numbers):
    """a_ij = (chi_ji - chi_ij)/4 within 1/2, chi_ij = sqrt(R_i/R_j): Treutler & Ahlrichs (1995)."""
    radius = np.sqrt(np.array([_BRAGG_RADIUS[number - 1] for number in numbers]))
    ratio = radius[:, None] / radius[None, :]
    return np.clip(0.25 * (ratio.T - ratio), -0.5, 0.5)


def _blocks(natom, npoint):
    """Parts that many points are taken in: few have their arrays in the cache of a core."""
    many = natom > 2 * _NEAR and npoint % _BLOCK == 0 and platform() == "cpu"
    return npoint // _BLOCK if many else 1


def _distances(a, b):
    """|a_i - b_p|; where it vanishes its derivative is 0."""
    # Component by component: a sum over an axis of three costs as much as all the rest.
    square = sum((a[:, None, k] - b[None, :, k]) ** 2 for k in range(3))
    regular = square > 0
    return jnp.where(regular, jnp.sqrt(jnp.where(regular, square, 1)), 0)


def _inverse(x):
    """1/x, and 1 where x = 0: an atom and itself."""
    return 1 / jnp.where(x > 0, x, 1)


@jax.custom_jvp
def _cell_share(
    distance: Float[Array, "natom npoint"],
    inverse_separation: Float[Array, "natom natom"],
    adjustment: Float[Array, "natom natom"],
    atom: Int[Array, "npoint"],
) -> Float[Array, "npoint"]:
    """Share of each point that belongs to its own atom's cell, in [0, 1].

    Eqs. (11), (13), (19)-(22) and (A2) of A. D. Becke, J. Chem. Phys. 88, 2547 (1988). An atom
    paired with itself gives the same factor 1/2 in every cell, which cancels.
    """
    return _partition(distance, inverse_separation, adjustment, atom)[0]


@_cell_share.defjvp
def _cell_share_jvp(primals, tangents):
    """d(log share) = sum_ij (own_i - cell_i/total) d(log s_ij).

    The sum over the pairs is done here, forward, one atom i after another, whose pairs are made
    again in reverse; the adjustment is constant. Atoms that have no share of the points are passed
    over.
    """
    distance, inverse_separation, adjustment, atom = primals
    distance_dot, inverse_separation_dot = tangents[:2]
    share, lead = _partition(distance, inverse_separation, adjustment, atom)

    def of_cell(row):
        """The part of the pairs (i, j) of one atom i."""
        here, here_dot, lead_here, inverse, inverse_dot, a = row
        mu, nu = _border_coordinate(here[None], distance, inverse[:, None], a[:, None])
        numerator, denominator = _log_slope(1 - nu)
        pull = lead_here[None] * (1 - 2 * a[:, None] * mu) * numerator / denominator
        by_separation = jnp.dot(inverse_dot, pull * (here[None] - distance), precision="highest")
        scaled = pull * inverse[:, None]
        by_here = jnp.dot(jnp.ones_like(inverse), scaled, precision="highest")
        return by_separation + by_here * here_dot - jnp.sum(scaled * distance_dot, axis=0)

    def add(change, row):
        if len(distance) <= 2 * _NEAR:
            return change + of_cell(row), None
        counts = jnp.any(jnp.abs(row[2]) > _NEGLIGIBLE)
        return change + jax.lax.cond(counts, of_cell, lambda _: jnp.zeros_like(share), row), None

    rows = distance, distance_dot, lead, inverse_separation, inverse_separation_dot, adjustment
    change, _ = jax.lax.scan(jax.checkpoint(add), jnp.zeros_like(share), rows)
    return share, share * change


def _partition(distance, inverse_separation, adjustment, atom):
    """Share of the own atom, and own_i - share_i for every atom i.

    Of many atoms those nearest to the points are multiplied first; where they leave nothing of a
    cell, to rounding, the others are spared.
    """

    def product(here, there, inverse, a):
        # Becke's s(nu) in y = 1 - nu, where p(p(p(nu))) does not cancel as s goes to zero.
        _, nu = _border_coordinate(here[None], there, inverse[:, None], a[:, None])
        y = 1 - nu
        for _ in range(3):
            y = 0.5 * y * y * (3 - y)
        return jnp.prod(0.5 * y, axis=0)

    others = distance, inverse_separation, adjustment
    if len(distance) <= 2 * _NEAR:
        cell = jax.lax.map(lambda row: product(row[0], distance, *row[1:]), others)
    else:
        order = jnp.argsort(jnp.sum(distance, axis=1))
        there, rows = distance[order], (distance, *(x[:, order] for x in others[1:]))
        # No sum of cells is less than one of them.
        least = _NEGLIGIBLE * product(there[0], there, *(x[order[0]] for x in rows[1:]))

        def of_atom(row):
            here, *pairs = row
            near = product(here, there[:_NEAR], *(x[:_NEAR] for x in pairs))
            far = lambda: near * product(here, there[_NEAR:], *(x[_NEAR:] for x in pairs))  # noqa: E731
            return jax.lax.cond(jnp.any(near > least), far, lambda: jnp.zeros_like(near))

        cell = jax.lax.map(of_atom, rows)
    shares = cell / jnp.maximum(jnp.sum(cell, axis=0), jnp.finfo(cell.dtype).tiny)[None, :]
    own = jax.nn.one_hot(atom, cell.shape[0], dtype=cell.dtype, axis=0)
    return jnp.sum(own * shares, axis=0), own - shares


def _border_coordinate(here, there, inverse_separation, adjustment):
    """mu_ij, from -1 at atom i to 1 at atom j, and nu_ij = mu + a (1 - mu^2), of distances from i
    and from j."""
    mu = (here - there) * inverse_separation
    return mu, mu + adjustment * (1 - mu * mu)


def _log_slope(y):
    """Numerator and denominator of d(log s)/d(nu) at y = 1 - nu, which grows as 8/y for small y."""
    y = jnp.maximum(y, jnp.finfo(y.dtype).tiny ** 0.25)
    numerator, denominator = -1, y
    for _ in range(3):
        numerator, denominator = numerator * (6 - 3 * y), denominator * (3 - y)
        y = 0.5 * y * y * (3 - y)
    return numerator, denominator
