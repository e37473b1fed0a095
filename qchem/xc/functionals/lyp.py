"""Correlation of Lee, Yang and Parr, Phys. Rev. B 37, 785 (1988)."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from .density import SpinDensity

_A, _B, _C, _D = 0.04918, 0.132, 0.2533, 0.349
_FERMI = 0.3 * (3 * math.pi**2) ** (2 / 3)  # Thomas-Fermi constant


def gga_c_lyp(density: SpinDensity) -> Float[Array, " npoint"]:
    """LYP without second derivatives of the density, energy per volume.

    Eq. (2) of Miehlich, Savin, Stoll & Preuss, Chem. Phys. Lett. 157, 200 (1989), divided by
    the density so that only fractions and reduced gradients appear: nothing overflows.
    """
    alpha, beta = density.alpha, density.beta
    radius = 1 / density.cbrt
    damping = 1 / (1 + _D * radius)
    delta = radius * (_C + _D * damping)
    a, b = alpha.rho / density.rho, beta.rho / density.rho
    powers = (alpha.cbrt * radius) ** 8 + (beta.cbrt * radius) ** 8
    inverse = radius / density.rho  # rho^(-4/3)
    xx = density.sigma * inverse * inverse
    xa, xb = alpha.sigma * inverse * inverse, beta.sigma * inverse * inverse

    pair = (
        2 ** (11 / 3) * _FERMI * powers
        + (47 - 7 * delta) / 18 * xx
        - (45 - delta) / 18 * (xa + xb)
        - (delta - 11) / 9 * (a * xa + b * xb)
    )
    rest = (2 / 3 - b**2) * xa + (2 / 3 - a**2) * xb - 2 / 3 * xx
    decay = _B * jnp.exp(-_C * radius)
    return -_A * density.rho * damping * (4 * a * b + decay * (a * b * pair + rest))
