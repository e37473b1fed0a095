"""Exchange of a short-ranged interaction, erfc(omega r)/r in place of 1/r."""

import math

import jax.numpy as jnp
from jax.scipy.special import erf
from jaxtyping import Array, Float

from .b88 import b88_enhancement
from .density import SpinChannel, SpinDensity

_SERIES_BELOW = 1.0
_NTERM = 20  # of the series: exact to rounding below 1, derivatives included
_SERIES = [
    (-1) ** n * 4 / 3 * (1 / math.factorial(n + 1) + 0.5 / math.factorial(n + 2) - moment)
    for n in range(1, _NTERM + 1)
    for moment in [2 / (math.factorial(n) * (2 * n + 1))]
]


def gga_x_ityh(density: SpinDensity, omega: float = 0.2) -> Float[Array, " npoint"]:
    """Short-ranged B88 exchange, energy per volume.

    Eqs. (11)-(13) of Iikura, Tsuneda, Yanai & Hirao, J. Chem. Phys. 115, 3540 (2001).
    """

    def enhancement(spin):
        gradient = b88_enhancement(spin)
        # k = sqrt(9 pi / K) rho^(1/3), where K rho^(4/3) is twice the exchange energy
        return gradient * attenuation(_fermi(spin) ** 2 / (gradient * omega**2))

    return density.exchange(enhancement)


def local_attenuation(spin: SpinChannel, omega: float) -> Float[Array, " npoint"]:
    """The short-ranged share of the exchange of a homogeneous gas of one spin."""
    return attenuation(_fermi(spin) ** 2 / omega**2)


def attenuation(y: Float[Array, " npoint"]) -> Float[Array, " npoint"]:
    """Share of the exchange energy that is short-ranged, from y = (k / omega)².

    With k the Fermi wave vector: eq. (8) of Gill, Adamson & Pople, Mol. Phys. 88, 1005 (1996);
    a series where that cancels.
    """
    small = y < _SERIES_BELOW
    dilute = jnp.where(small, y, 0.0)
    dense = jnp.where(small, 1.0, y)
    series = dilute * jnp.polyval(jnp.array(_SERIES[::-1], y.dtype), dilute, unroll=_NTERM)
    x = jnp.sqrt(dense)
    hole = -jnp.expm1(-dense)
    bracket = math.sqrt(math.pi) * erf(x) + (hole * (0.5 / dense - 1) - 0.5) / x
    return jnp.where(small, series, 1 - 4 / (3 * x) * bracket)


def _fermi(spin):
    return (6 * math.pi**2) ** (1 / 3) * spin.cbrt
