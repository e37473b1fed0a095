"""The Boys function F_m(T), the only transcendental function of the integral engine."""

from __future__ import annotations

from functools import lru_cache, partial
from math import pi, sqrt

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_SPACING = 1.0 / 16.0  # of the table; the Taylor step is at most half of it
_TERMS = 7  # (1/32)^7 / 7! = 6e-15, relative to F_m
_SERIES_TERMS = 400
_IN_BRANCH = 4  # orders


def _asymptotic_from(order: int) -> float:
    """T beyond which F_order equals its asymptotic form to double precision.

    The relative error of the form is about exp(-T) T^(m - 1/2) / Gamma(m + 1/2).
    """
    return 36.0 + 2.75 * order


@lru_cache(maxsize=64)
def _table(order: int) -> np.ndarray:
    """F_m / (m - order)! on the grid for m = order ... order + 6, shape (7, ngrid).

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
        rows.append(values[order + k] / factorial)
    return np.stack(rows)


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
    table = jnp.asarray(_table(order), t.dtype)
    limit = _asymptotic_from(order)
    near = t < limit
    inside = jnp.where(near, t, 0.0)
    index = jnp.floor(inside * (1.0 / _SPACING) + 0.5).astype(jnp.int32)
    step = index.astype(t.dtype) * _SPACING - inside
    tabulated = table[_TERMS - 1][index]
    for k in range(_TERMS - 2, -1, -1):
        tabulated = tabulated * step + table[k][index]

    inverse = 1.0 / jnp.where(near, limit, t)
    asymptotic = sqrt(pi) / 2 * jnp.sqrt(inverse)
    for m in range(order):
        asymptotic = asymptotic * (m + 0.5) * inverse
    value = jnp.where(near, tabulated, asymptotic)

    arguments = value, jnp.exp(-t), 2.0 * t
    several, at_once = (partial(f, order, lowest) for f in (_lowered_in_branches, _lowered))
    below = jax.lax.platform_dependent(*arguments, cpu=several, default=at_once)
    return jnp.stack([value, *below][::-1])


def _lowered(order, lowest, value, decay, twice):
    """F_(order - 1) ... F_lowest by downward recursion."""
    orders = []
    for m in range(order - 1, lowest - 1, -1):
        value = (twice * value + decay) * (1.0 / (2 * m + 1))
        orders.append(value)
    return orders


def _lowered_in_branches(order, lowest, value, decay, twice):
    """The same on a CPU, where XLA would make all of them anew for each but for branches."""
    orders = []
    fence = ~jnp.any(jnp.ravel(twice)[:1] < 0)  # true
    for start in range(order, lowest, -_IN_BRANCH):
        lowered = partial(_lowered, start, max(start - _IN_BRANCH, lowest))
        zeros = lambda *x, f=lowered: jax.tree.map(jnp.zeros_like, jax.eval_shape(f, *x))  # noqa: E731
        orders += jax.lax.cond(fence, lowered, zeros, value, decay, twice)
        value = orders[-1]
    return orders


@boys.defjvp
def _boys_jvp(order, lowest, primals, tangents):
    (t,), (dt,) = primals, tangents
    values = boys(order + 1, t, lowest)
    return values[:-1], -values[1:] * dt[None]
