"""Derivatives of the Coulomb interaction of two spherical Gaussian charges."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from math import pi, sqrt

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from qchem.integrals.boys import boys, times_power
from qchem.integrals.gather import rows_at


@lru_cache(maxsize=64)
def hermite_powers(order: int, lowest: int = 0) -> np.ndarray:
    """Powers (t, u, v) with lowest <= t + u + v <= order: by total degree, then lexicographic.

    The powers of a lower order are a prefix of those of a higher one.
    """
    powers = [
        (t, u, degree - t - u)
        for degree in range(lowest, order + 1)
        for t in range(degree, -1, -1)
        for u in range(degree - t, -1, -1)
    ]
    return np.array(powers, dtype=np.int32).reshape(-1, 3)


def nhermite(order: int, lowest: int = 0) -> int:
    """Number of Hermite functions of degree `lowest` to `order`."""
    below = lowest * (lowest + 1) * (lowest + 2) // 6
    return (order + 1) * (order + 2) * (order + 3) // 6 - below


@lru_cache(maxsize=64)
def _position(order: int) -> dict[tuple[int, int, int], int]:
    return {tuple(int(x) for x in p): i for i, p in enumerate(hermite_powers(order))}


@lru_cache(maxsize=256)
def sum_index(bra: int, ket: int, bra_lowest: int = 0, ket_lowest: int = 0) -> np.ndarray:
    """Position of p + q among the powers of order bra + ket: (bra's powers, ket's powers)."""
    position = _position(bra + ket)
    p = hermite_powers(bra, bra_lowest)
    q = hermite_powers(ket, ket_lowest)
    total = p[:, None, :] + q[None, :, :]
    return np.array([[position[tuple(int(x) for x in t)] for t in row] for row in total], np.int32)


@lru_cache(maxsize=256)
def lowered_index(
    top: int, top_lowest: int, order: int, lowest: int, axis: int, power: int
) -> np.ndarray:
    """For each power of degree top_lowest ... top: the position, among those of degree
    lowest ... order, of the one lower by `power` along `axis`; their number if there is none."""
    source = {tuple(int(x) for x in p): i for i, p in enumerate(hermite_powers(order, lowest))}
    step = power * np.eye(3, dtype=np.int32)[axis]
    lowered = hermite_powers(top, top_lowest) - step
    return np.array([source.get(tuple(int(x) for x in p), len(source)) for p in lowered], np.int32)


@lru_cache(maxsize=64)
def _raised(order: int) -> np.ndarray:
    """Position of (t, u, v) + 1_x, 1_y, 1_z among the powers of order + 1, shape (3, nhermite)."""
    position = _position(order + 1)
    unit = np.eye(3, dtype=np.int32)
    powers = hermite_powers(order)
    return np.array(
        [[position[tuple(int(x) for x in p + e)] for p in powers] for e in unit], np.int32
    )


@lru_cache(maxsize=64)
def _recursion(order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One level of the recursion: axis, first source, second source and its factor.

    For each power of degree 1 ... order: the axis i that is lowered, the positions of
    (t - 1_i) and (t - 2 1_i), and t_i - 1.
    """
    position = _position(order)
    axis, first, second, factor = [], [], [], []
    for power in hermite_powers(order)[1:]:
        # Lower along the axis with the smallest non-zero power: its second term is often absent.
        i = min((k for k in range(3) if power[k] > 0), key=lambda k: power[k])
        lowered = power.copy()
        lowered[i] -= 1
        axis.append(i)
        first.append(position[tuple(int(x) for x in lowered)])
        factor.append(lowered[i])
        lowered[i] -= 1
        second.append(position[tuple(int(x) for x in lowered)] if lowered[i] >= 0 else 0)
    return (
        np.array(axis, np.int32),
        np.array(first, np.int32),
        np.array(second, np.int32),
        np.array(factor, np.float64),
    )


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def hermite_coulomb(
    order: int, alpha: Float[Array, "*batch"], separation: Float[Array, " 3 *batch"]
) -> Float[Array, " nhermite *batch"]:
    """Derivatives of erf(sqrt(alpha) r) / r, the interaction of two unit Gaussian charges.

    Equals 2 sqrt(alpha / pi) R_tuv of Helgaker, Jørgensen & Olsen (2000), by their recursion
    (9.9.18)-(9.9.20). Two charges of exponents p and q interact with 1/alpha = 1/p + 1/q; a point
    charge has 1/q = 0; the attenuated operator erf(omega r)/r adds 1/omega^2.

    Args:
        order: Highest total degree of derivatives; static.
        alpha: Reduced exponent, bohr⁻².
        separation: Vector between the centres, bohr; components lead.

    Returns:
        Derivatives in the order of `hermite_powers`, hartree / bohr^(degree).
    """
    base = spherical_derivatives(order, alpha, jnp.sum(separation * separation, axis=0))
    return radial_derivatives(list(base), separation)


def spherical_derivatives(
    order: int, alpha: Float[Array, "*batch"], square: Float[Array, "*batch"]
) -> Float[Array, " {order+1} *batch"]:
    """f, f'/r, ... (1/r d/dr)^order f for f = erf(sqrt(alpha) r) / r at r^2 = `square`.

    2 sqrt(alpha / pi) (-2 alpha)^m F_m(alpha r^2), (9.9.13) of Helgaker, Jørgensen & Olsen (2000).
    """
    values = boys(order, alpha * square)
    scale = 2.0 / sqrt(pi) * jnp.sqrt(alpha)
    rows = [times_power(x * scale, -2.0 * alpha, m) for m, x in enumerate(values)]
    return jnp.stack(rows)


def radial_derivatives(
    base: Sequence[Float[Array, "*batch"]], separation: Float[Array, " 3 *batch"]
) -> Float[Array, " nhermite *batch"]:
    """Derivatives of a function f of r from its f, f'/r, (1/r d/dr)^2 f, ...

    (9.9.18)-(9.9.20) of Helgaker, Jørgensen & Olsen (2000); in the order of `hermite_powers`.
    """
    level = base[-1][None]
    for degree in range(1, len(base)):
        level = _next_level(degree, level, base[-1 - degree], separation)
    return level


def _next_level(degree, level, base, separation):
    """R^(m) up to `degree` from R^(m+1) up to `degree - 1`."""
    axis, first, second, factor = _recursion(degree)
    ones = (1,) * (level.ndim - 1)
    new = rows_at(separation, axis) * rows_at(level, first)
    two = np.flatnonzero(factor)
    if two.size:
        weight = jnp.asarray(factor.reshape(-1, *ones), level.dtype)
        new = new + weight * rows_at(level, second)
    return jnp.concatenate([base[None], new])


def _hermite_coulomb_jvp(order, primals, tangents):
    """Raises an index: d/dx R_tuv = R_{t+1,u,v}; alpha by homogeneity (Euler's theorem)."""
    alpha, separation = primals
    dalpha, dseparation = tangents
    raised = hermite_coulomb(order + 1, alpha, separation)
    values = raised[: nhermite(order)]
    index = _raised(order)
    tangent = jnp.zeros_like(values)
    if not isinstance(dseparation, SymbolicZero):
        tangent = sum(rows_at(raised, index[i]) * dseparation[i][None] for i in range(3))
    if not isinstance(dalpha, SymbolicZero):
        radial = sum(rows_at(raised, index[i]) * separation[i][None] for i in range(3))
        degree = hermite_powers(order).sum(1).astype(float)
        degree = degree.reshape(-1, *(1,) * alpha.ndim)
        by_alpha = jnp.asarray(degree + 1.0, values.dtype) * values + radial
        tangent = tangent + by_alpha * (0.5 * dalpha / alpha)[None]
    return values, tangent


hermite_coulomb.defjvp(_hermite_coulomb_jvp, symbolic_zeros=True)
