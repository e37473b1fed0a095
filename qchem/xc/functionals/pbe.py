"""Exchange and correlation of Perdew, Burke and Ernzerhof, Phys. Rev. Lett. 77, 3865 (1996)."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from .density import SpinChannel, SpinDensity
from .pw92 import pw92_energy_per_electron

BETA = 0.06672455060314922
GAMMA = (1 - math.log(2)) / math.pi**2
_KAPPA = 0.804
_MU = BETA * math.pi**2 / 3
S2_FACTOR = 1 / (4 * (6 * math.pi**2) ** (2 / 3))  # s² = factor x_s², of twice one spin's density
_T2_FACTOR = math.pi / (16 * (3 * math.pi**2) ** (1 / 3))  # t² = factor x² rho^(1/3) / phi²


def gga_x_pbe(density: SpinDensity) -> Float[Array, " npoint"]:
    """PBE exchange, energy per volume, eq. (14)."""
    return density.exchange(pbe_enhancement)


def gga_c_pbe(density: SpinDensity) -> Float[Array, " npoint"]:
    """PBE correlation, energy per volume, eqs. (7) and (8)."""
    return _correlation(density, BETA)


def gga_x_pbe_r(density: SpinDensity) -> Float[Array, " npoint"]:
    """revPBE exchange of Zhang & Yang, Phys. Rev. Lett. 80, 890 (1998), energy per volume."""
    return _exchange(density, 1.245, _MU)


def gga_x_rpbe(density: SpinDensity) -> Float[Array, " npoint"]:
    """RPBE exchange of Hammer, Hansen & Nørskov, Phys. Rev. B 59, 7413 (1999), per volume."""

    def enhancement(spin):
        return 1 - _KAPPA * jnp.expm1(-_MU * S2_FACTOR / _KAPPA * spin.reduced)

    return density.exchange(enhancement)


def gga_x_pbe_sol(density: SpinDensity) -> Float[Array, " npoint"]:
    """PBEsol exchange of Perdew et al., Phys. Rev. Lett. 100, 136406 (2008), per volume."""
    return _exchange(density, _KAPPA, 10 / 81)


def gga_c_pbe_sol(density: SpinDensity) -> Float[Array, " npoint"]:
    """PBEsol correlation, energy per volume; the same reference."""
    return _correlation(density, 0.046)


def pbe_enhancement(spin: SpinChannel) -> Float[Array, " npoint"]:
    """PBE exchange over Slater's, eq. (14)."""
    return _enhancement(spin, _KAPPA, _MU)


def gradient_correlation(
    local: Float[Array, " npoint"],
    density: SpinDensity | SpinChannel,
    beta: Float[Array, " npoint"] | float,
    gamma: float = GAMMA,
) -> Float[Array, " npoint"]:
    """H of eq. (7), what the gradient adds to the energy per electron, hartree.

    Args:
        local: The local correlation energy per electron, hartree.
        density: Of both spins, or of one alone.
        beta, gamma: Coefficients of the gradient expansion and of the limit of high density.
    """
    scale = gamma * density.spin_scaling**3
    ratio = beta / gamma
    t2 = reduced_gradient(density)
    at2 = ratio / jnp.expm1(-local / scale) * t2
    # (1 + A t²) / (1 + A t² + A² t⁴), where the square could overflow
    return scale * jnp.log1p(ratio * t2 / (1 + at2 * (at2 / (1 + at2))))


def reduced_gradient(density: SpinDensity | SpinChannel) -> Float[Array, " npoint"]:
    """t² = (|grad rho| / (2 phi k_s rho))² with k_s = 2 (3 rho / pi)^(1/6)."""
    return density.reduced * density.cbrt * _T2_FACTOR / density.spin_scaling**2


def _exchange(density, kappa, mu):
    return density.exchange(lambda spin: _enhancement(spin, kappa, mu))


def _enhancement(spin, kappa, mu):
    rise = mu * S2_FACTOR * spin.reduced
    return 1 + kappa * rise / (kappa + rise)


def _correlation(density, beta):
    local = pw92_energy_per_electron(density)
    return density.rho * (local + gradient_correlation(local, density, beta))
