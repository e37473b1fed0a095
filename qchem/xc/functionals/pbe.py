"""Exchange and correlation of Perdew, Burke and Ernzerhof, Phys. Rev. Lett. 77, 3865 (1996)."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from .density import SpinDensity
from .pw92 import pw92_energy_per_electron

_BETA = 0.06672455060314922
_GAMMA = (1 - math.log(2)) / math.pi**2
_KAPPA = 0.804
_MU = _BETA * math.pi**2 / 3
_S2_FACTOR = 1 / (4 * (6 * math.pi**2) ** (2 / 3))  # s² = factor x_s², of twice one spin's density
_T2_FACTOR = math.pi / (16 * (3 * math.pi**2) ** (1 / 3))  # t² = factor x² rho^(1/3) / phi²


def gga_x_pbe(density: SpinDensity) -> Float[Array, " npoint"]:
    """PBE exchange, energy per volume, eq. (14)."""
    return _exchange(density, _KAPPA, _MU)


def gga_c_pbe(density: SpinDensity) -> Float[Array, " npoint"]:
    """PBE correlation, energy per volume, eqs. (7) and (8)."""
    return _correlation(density, _BETA)


def gga_x_pbe_r(density: SpinDensity) -> Float[Array, " npoint"]:
    """revPBE exchange of Zhang & Yang, Phys. Rev. Lett. 80, 890 (1998), energy per volume."""
    return _exchange(density, 1.245, _MU)


def gga_x_rpbe(density: SpinDensity) -> Float[Array, " npoint"]:
    """RPBE exchange of Hammer, Hansen & Nørskov, Phys. Rev. B 59, 7413 (1999), per volume."""

    def enhancement(spin):
        return 1 - _KAPPA * jnp.expm1(-_MU * _S2_FACTOR / _KAPPA * spin.reduced)

    return density.exchange(enhancement)


def gga_x_pbe_sol(density: SpinDensity) -> Float[Array, " npoint"]:
    """PBEsol exchange of Perdew et al., Phys. Rev. Lett. 100, 136406 (2008), per volume."""
    return _exchange(density, _KAPPA, 10 / 81)


def gga_c_pbe_sol(density: SpinDensity) -> Float[Array, " npoint"]:
    """PBEsol correlation, energy per volume; the same reference."""
    return _correlation(density, 0.046)


def _exchange(density, kappa, mu):
    def enhancement(spin):
        rise = mu * _S2_FACTOR * spin.reduced
        return 1 + kappa * rise / (kappa + rise)

    return density.exchange(enhancement)


def _correlation(density, beta):
    local = pw92_energy_per_electron(density)
    phi = density.spin_scaling
    scale = _GAMMA * phi**3
    t2 = density.reduced * density.cbrt * _T2_FACTOR / phi**2
    ratio = beta / _GAMMA
    at2 = ratio / jnp.expm1(-local / scale) * t2
    # (1 + A t²) / (1 + A t² + A² t⁴), where the square could overflow
    gain = jnp.log1p(ratio * t2 / (1 + at2 * (at2 / (1 + at2))))
    return density.rho * (local + scale * gain)
