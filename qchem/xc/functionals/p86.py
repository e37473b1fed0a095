"""Correlation of Perdew, Phys. Rev. B 33, 8822 (1986)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .density import SpinDensity
from .pz81 import pz81_energy_per_electron

_CONSTANT, _NUMERATOR = 0.001667, 0.002568
_ALPHA, _BETA, _GAMMA, _DELTA = 0.023266, 7.389e-6, 8.723, 0.472
_DECAY = 1.745 * 0.11
_SMALLEST = 1e-20  # of the squared variable: below, the root's derivatives would overflow


def gga_c_p86(density: SpinDensity) -> Float[Array, " npoint"]:
    """P86 on top of PZ81, energy per volume, eqs. (1), (6) and (9)."""
    rs = density.rs
    above = _NUMERATOR + rs * (_ALPHA + rs * _BETA)
    below = 1 + rs * (_GAMMA + rs * (_DELTA + rs * 1e4 * _BETA))
    c = _CONSTANT + above / below
    x2 = density.reduced * density.cbrt
    x = jnp.sqrt(jnp.maximum(x2, _SMALLEST))
    decay = _DECAY * (_CONSTANT + _NUMERATOR) / c * x
    gradient = x2 * jnp.exp(-decay) * c
    if density.polarized:
        powers = density.cbrt_one_plus_zeta**5 + density.cbrt_one_minus_zeta**5
        gradient = gradient * jnp.sqrt(2 / powers)
    return density.rho * (pz81_energy_per_electron(density) + gradient)
