"""Angular parts of Gaussian shells: Cartesian monomials and real solid harmonics."""

from functools import cache
from math import comb, factorial, pi, sqrt

import numpy as np
from jaxtyping import Float, Int


@cache
def cartesian_powers(l: int) -> Int[np.ndarray, "ncart 3"]:
    """Powers (i, j, k) of the monomials x^i y^j z^k of degree `l`: xx, xy, xz, yy, yz, zz, ..."""
    powers = [(i, j, l - i - j) for i in range(l, -1, -1) for j in range(l - i, -1, -1)]
    return _frozen(np.array(powers, dtype=np.int32))


def ncomponent(l: int, spherical: bool) -> int:
    """Number of functions in a shell: 2l + 1, or (l + 1)(l + 2)/2 Cartesian ones."""
    return 2 * l + 1 if spherical else (l + 1) * (l + 2) // 2


@cache
def angular_matrix(l: int, spherical: bool) -> Float[np.ndarray, "ncomponent ncart"]:
    """Angular parts of the AOs of a shell, as combinations of `cartesian_powers(l)`.

    An AO is `row @ monomials` times a radial factor normalized to ∫ (r^l R)² r² dr = 1.
    Spherical rows are the real solid harmonics r^l Y_lm, without the Condon-Shortley sign,
    for m = -l..l (p: x, y, z). Cartesian rows are the bare monomials for l ≥ 2 (only xx, yy, ...
    are then normalized alike), and carry the factor of Y_lm for s and p.

    Returns:
        One row per AO, one column per monomial.
    """
    if l == 0:
        return _frozen(np.full((1, 1), sqrt(1 / (4 * pi))))
    if l == 1:
        return _frozen(np.eye(3) * sqrt(3 / (4 * pi)))
    if not spherical:
        return _frozen(np.eye(ncomponent(l, False)))
    return _frozen(np.stack([_solid_harmonic(l, m) for m in range(-l, l + 1)]))


def _solid_harmonic(l: int, m: int) -> np.ndarray:
    """r^l Y_lm; (6.4.47)-(6.4.49) of Helgaker, Jørgensen & Olsen (2000), on the unit sphere."""
    column = {tuple(power): c for c, power in enumerate(cartesian_powers(l).tolist())}
    row = np.zeros(len(column))
    n = abs(m)
    odd = int(m < 0)  # sine (odd powers of y) or cosine
    for t in range((l - n) // 2 + 1):
        for u in range(t + 1):
            for y in range(odd, n + 1, 2):  # y is 2v of the book
                sign = (-1) ** (t + (y - odd) // 2)
                value = sign * comb(l, t) * comb(l - t, n + t) * comb(t, u) * comb(n, y) / 4**t
                row[column[2 * t + n - 2 * u - y, 2 * u + y, l - 2 * t - n]] += value
    norm = sqrt((2 if m else 1) * factorial(l + n) * factorial(l - n)) / (2**n * factorial(l))
    return row * norm * sqrt((2 * l + 1) / (4 * pi))


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)  # cached: shared by all callers
    return array
