"""Exchange of Becke, Phys. Rev. A 38, 3098 (1988)."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from .density import SLATER, SpinChannel, SpinDensity

_BETA = 0.0042
_SERIES_BELOW = 1e-2  # of x²: eight terms are exact to rounding, second derivatives included
_SERIES = [
    (-1) ** k * math.factorial(2 * k) / (4**k * math.factorial(k) ** 2 * (2 * k + 1))
    for k in range(8)
]


def gga_x_b88(density: SpinDensity) -> Float[Array, " npoint"]:
    """Becke's gradient-corrected exchange, energy per volume, eq. (8)."""
    return density.exchange(b88_enhancement)


def b88_enhancement(spin: SpinChannel) -> Float[Array, " npoint"]:
    """B88 exchange over Slater's."""
    x2 = spin.reduced
    return 1 + _BETA / SLATER * x2 / (1 + 6 * _BETA * x2 * asinh_ratio(x2))


def asinh_ratio(x2: Float[Array, " npoint"]) -> Float[Array, " npoint"]:
    """asinh(x) / x as a function of x², smooth at zero."""
    small = x2 < _SERIES_BELOW
    x = jnp.sqrt(jnp.where(small, 1.0, x2))
    series = jnp.polyval(jnp.array(_SERIES[::-1], x2.dtype), jnp.where(small, x2, 0.0), unroll=8)
    return jnp.where(small, series, jnp.arcsinh(x) / x)
