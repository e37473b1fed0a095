"""Points around one atom: radial and angular rules, and how many of them.

Tables and pruning are those of PySCF's default grids.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float

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
LEVELS = range(len(_RADIAL_SIZE))
LAST_ELEMENT = len(_BRAGG_RADIUS)


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
    nradial, nangular = sizes_by_number((number,), *chosen)[number]
    return int(_pruned_sizes(number, _radial_rule(number, nradial)[0], nangular).sum())


def bragg_radii(numbers: Sequence[int]) -> Float[np.ndarray, " natom"]:
    """Radii of atoms in solids, angstrom."""
    return np.array([_BRAGG_RADIUS[number - 1] for number in numbers])


def sizes_by_number(
    numbers: Sequence[int],
    level: int | None,
    sizes: tuple[int, int] | dict[str, tuple[int, int]] | None,
) -> dict[int, tuple[int, int]]:
    """Radial and angular size of the grid of each element; see `qchem.grids.Grid.from_numbers`."""
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
def atomic_grid(
    number: int, nradial: int, nangular: int, prune: bool
) -> tuple[Float[np.ndarray, "npoint 3"], Float[np.ndarray, " npoint"]]:
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
