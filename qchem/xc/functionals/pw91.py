"""Exchange and correlation of Perdew and Wang 1991: Perdew et al., Phys. Rev. B 46, 6671 (1992)."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from .b88 import asinh_ratio
from .density import SpinDensity
from .pbe import S2_FACTOR, gradient_correlation, reduced_gradient
from .pw92 import lda_c_pw

_A, _B, _C, _D, _F, _ALPHA = 0.19645, 7.7956, 0.2743, -0.1508, 0.004, 100.0  # exchange
_NU = 16 / math.pi * (3 * math.pi**2) ** (1 / 3)
_BETA = _NU * 0.004235
_GAMMA = _BETA**2 / (2 * 0.09)
_C_X = -0.001667
_DECAY = 400 / math.pi * (4 / (9 * math.pi)) ** (1 / 3)  # 100 k_s²/k_F² = decay rs


def gga_x_pw91(density: SpinDensity) -> Float[Array, " npoint"]:
    """PW91 exchange, energy per volume."""

    def enhancement(spin):
        s2 = S2_FACTOR * spin.reduced
        slow = 1 + _A * _B * s2 * asinh_ratio(_B**2 * s2)
        quartic = _F * s2 * s2
        rise = (_C + _D * jnp.exp(-_ALPHA * s2)) * s2
        return 1 + (rise - quartic) / (slow + quartic)

    return density.exchange(enhancement)


def gga_c_pw91(density: SpinDensity) -> Float[Array, " npoint"]:
    """PW91 correlation, energy per volume, eqs. (13) to (15)."""
    local = lda_c_pw(density) / density.rho
    phi = density.spin_scaling
    t2 = reduced_gradient(density)
    rs = density.rs
    # libxc's form of the fit of Rasolt and Geldart: without the cubic term that P86 has.
    fit = (2.568 + rs * (23.266 + rs * 0.007389)) / (1 + rs * (8.723 + rs * 0.472)) / 1000
    coefficient = _NU * (fit - 0.002568 - 3 * _C_X / 7)
    decay = jnp.exp(-_DECAY * rs * phi**4 * t2)
    gain = gradient_correlation(local, density, _BETA, _GAMMA) + coefficient * phi**3 * t2 * decay
    return density.rho * (local + gain)
