"""Functions of positive numbers that XLA has no loops for on a CPU.

It calls the C library for one number after the other. These are made of what it has vector code
for, a few times faster, and right to a few units in the last place.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_HALVINGS = 3
_TERMS = {"float32": 5, "float64": 12}


@jax.custom_jvp
def cbrt(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """x^(1/3) of positive x: by its logarithm, then a step of Newton's method."""
    y = jnp.exp(jnp.log(x) / 3)
    return y - (y - x / (y * y)) / 3


@cbrt.defjvp
def _cbrt_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = cbrt(x)
    return y, y / (3 * x) * dx


@jax.custom_jvp
def arctan(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """arctan x of positive x: half the angle, until it is below π/16, then Taylor's series."""
    t = x
    for _ in range(_HALVINGS):
        t = t / (1 + jnp.sqrt(1 + t * t))
    square, series = t * t, 0.0
    for k in reversed(range(_TERMS[str(x.dtype)])):
        series = (-1) ** k / (2 * k + 1) + square * series
    return 2**_HALVINGS * t * series


@arctan.defjvp
def _arctan_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return arctan(x), dx / (1 + x * x)
