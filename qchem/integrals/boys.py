"""The Boys function F_m(T), the only transcendental function of the integral engine."""

from __future__ import annotations

from functools import lru_cache, partial
from math import gamma

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qchem.integrals.gather import rows_at

_SPACING = 1.0 / 16.0  # of the table; the Taylor step is at most half of it
_TERMS = 7  # (1/32)^7 / 7! = 6e-15, relative to F_m
_SERIES_TERMS = 400


def _asymptotic_from(order: int) -> float:
    """T beyond which F_order equals its asymptotic form to double precision.

    The relative error of the form is about exp(-T) T^(m - 1/2) / Gamma(m + 1/2).
    """
    return 36.0 + 2.75 * order


@lru_cache(maxsize=64)
def _table(order: int, dtype: np.dtype) -> list[np.ndarray]:
    """F_m / (m - order)! on the grid for m = order ... order + 6.

    The highest order by the all-positive series
    F_m(T) = exp(-T) sum_k (2T)^k / ((2m+1)(2m+3)...(2m+2k+1)), the rest by downward recursion.
    """
    t = np.arange(int(np.ceil(_asymptotic_from(order) / _SPACING)) + 2) * _SPACING
    top = order + _TERMS - 1
    term = np.full_like(t, 1.0 / (2 * top + 1))
    total = term.copy()
    for k in range(1, _SERIES_TERMS):
        term = term * (2.0 * t) / (2 * top + 2 * k + 1)
        total += term
    values = {top: np.exp(-t) * total}
    for m in range(top, order, -1):
        values[m - 1] = (2.0 * t * values[m] + np.exp(-t)) / (2 * m - 1)
    factorial = 1.0
    rows = []
    for k in range(_TERMS):
        factorial *= max(k, 1)
        rows.append((values[order + k] / factorial).astype(dtype))
    return rows


@partial(jax.custom_jvp, nondiff_argnums=(0, 2))
def boys(
    order: int, t: Float[Array, "*batch"], lowest: int = 0
) -> Float[Array, " {order-lowest+1} *batch"]:
    """F_lowest(T) ... F_order(T), with F_m(T) the integral of u^2m exp(-T u^2) over u from 0 to 1.

    F_order by a short Taylor step from a table, F_order(T) = sum_k F_{order+k}(T0) (T0 - T)^k / k!,
    or by its asymptotic form; the lower orders by the stable downward recursion
    (9.8.14) of Helgaker, Jørgensen & Olsen (2000). dF_m/dT = -F_{m+1}.

    Args:
        order, lowest: Highest and lowest order; static.
        t: Argument, not negative.

    Returns:
        Values with the order as leading axis; relative accuracy about 1e-14 in float64.
    """
    table = _table(order, np.dtype(t.dtype))
    limit = _asymptotic_from(order)
    near = t < limit
    inside = jnp.where(near, t, 0.0)
    index = jnp.floor(inside * (1.0 / _SPACING) + 0.5).astype(jnp.int32)
    step = index.astype(t.dtype) * _SPACING - inside
    tabulated = rows_at(table[-1], index)
    for row in table[-2::-1]:
        tabulated = tabulated * step + rows_at(row, index)

    inverse = 1.0 / jnp.where(near, limit, t)
    asymptotic = 0.5 * gamma(order + 0.5) * times_power(jnp.sqrt(inverse), inverse, order)
    value = jnp.where(near, tabulated, asymptotic)

    if order == lowest:
        return value[None]

    # On a CPU as a loop, for XLA to keep each order instead of making all of them anew for each.
    def lowered(value, decay, twice, unroll):
        def lower(value, inverse):
            value = (twice * value + decay) * inverse
            return value, value

        inverse = jnp.asarray(1.0 / (2.0 * np.arange(lowest, order) + 1.0), t.dtype)
        return jax.lax.scan(lower, value, inverse, reverse=True, unroll=unroll)[1]

    loop, flat = (partial(lowered, unroll=unroll) for unroll in (1, True))
    arguments = value, jnp.exp(-t), 2.0 * t
    below = jax.lax.platform_dependent(*arguments, cpu=loop, default=flat)
    return jnp.concatenate([below, value[None]])


def times_power(value: Array, x: Array, n: int) -> Array:
    """value x^n in few products; XLA would leave a power to the library of mathematics."""
    while n:
        if n % 2:
            value = value * x
        x, n = x * x, n // 2
    return value


@boys.defjvp
def _boys_jvp(order, lowest, primals, tangents):
    (t,), (dt,) = primals, tangents
    values = boys(order + 1, t, lowest)
    return values[:-1], -values[1:] * dt[None]
