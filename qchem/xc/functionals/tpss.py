"""Meta-GGA of Tao, Perdew, Staroverov and Scuseria.

Exchange by the equations of Phys. Rev. Lett. 91, 146401 (2003), correlation by those of J. Chem.
Phys. 120, 6898 (2004). revTPSS: Perdew, Ruzsinszky, Csonka, Constantin & Sun, Phys. Rev. Lett.
103, 026403 (2009).
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .density import THOMAS_FERMI, SpinDensity
from .pbe import BETA, S2_FACTOR, gradient_correlation
from .pw92 import pw92_energy_per_electron, pw92_of_one_spin

_KAPPA, _B = 0.804, 0.40
_MU_GE = 10 / 81  # of the second-order gradient expansion
_XI2_FACTOR = 1 / (4 * (3 * math.pi**2) ** (2 / 3))
_D = 2.8  # hartree⁻¹
_FULLY_POLARIZED = 1e-12  # of 1 - |zeta|: from here on libxc takes C(1, xi) without xi


class _Exchange(NamedTuple):
    """Parameters of eq. (10); `power` is that of z beside c."""

    c: float
    e: float
    mu: float
    power: int


_TPSS = _Exchange(1.59096, 1.537, 0.21951, 2)
_REVTPSS = _Exchange(2.35203946, 2.16769874, 0.14, 3)
_TPSS_C = (0.53, 0.87, 0.50, 2.26)  # C(zeta, 0), eq. (33), in powers of zeta²
_REVTPSS_C = (0.59, 0.9269, 0.6225, 2.1540)


def mgga_x_tpss(density: SpinDensity) -> Float[Array, " npoint"]:
    """TPSS exchange, energy per volume, eqs. (5), (7) and (10)."""
    return _exchange(density, _TPSS)


def mgga_c_tpss(density: SpinDensity) -> Float[Array, " npoint"]:
    """TPSS correlation, energy per volume, eqs. (24) to (34)."""
    return _correlation(density, BETA, _TPSS_C)


def mgga_x_revtpss(density: SpinDensity) -> Float[Array, " npoint"]:
    """revTPSS exchange, energy per volume."""
    return _exchange(density, _REVTPSS)


def mgga_c_revtpss(density: SpinDensity) -> Float[Array, " npoint"]:
    """revTPSS correlation, energy per volume."""
    return _correlation(density, beta_of_rs, _REVTPSS_C)


def beta_of_rs(rs: Float[Array, " npoint"]) -> Float[Array, " npoint"]:
    """Coefficient of the gradient expansion, Hu & Langreth, Phys. Rev. B 33, 943 (1986)."""
    return BETA * (1 + 0.1 * rs) / (1 + 0.1778 * rs)


def _exchange(density, fit):
    root_e = math.sqrt(fit.e)

    def enhancement(spin):
        p = S2_FACTOR * spin.reduced
        z = spin.single_orbital
        above_one = spin.pauli / THOMAS_FERMI - 1
        q = 0.45 * above_one / jnp.sqrt(1 + _B * above_one * (above_one + 1)) + 2 / 3 * p
        # sqrt(((3/5)² z² + p²) / 2), in which p / z is smooth where both vanish
        size = z * jnp.sqrt((0.36 + (8 * S2_FACTOR * spin.kinetic) ** 2) / 2)
        x = (
            (_MU_GE + fit.c * z**fit.power / (1 + z**2) ** 2) * p
            + 146 / 2025 * q**2
            - 73 / 405 * q * size
            + _MU_GE**2 / _KAPPA * p**2
            + 2 * root_e * _MU_GE * 0.36 * z**2
            + fit.e * fit.mu * p**3
        ) / (1 + root_e * p) ** 2
        return 1 + _KAPPA * x / (_KAPPA + x)

    return density.exchange(enhancement)


def _correlation(density, beta, coefficients):
    z = density.single_orbital
    # At most one, but the rounding of a single orbital's one must not end its derivative.
    z = jnp.where(z > 1 + 16 * float(jnp.finfo(z.dtype).eps), 1.0, z)
    pbe = _pbe(density, pw92_energy_per_electron(density), density.rs, beta)
    c = _spin_factor(density, coefficients)

    def one(spin):
        rs = density.rs * density.cbrt / spin.cbrt
        alone = jnp.maximum(_pbe(spin, pw92_of_one_spin(spin), rs, beta), pbe)
        return spin.rho / density.rho * jnp.where(spin.populated, alone, pbe)

    alone = one(density.alpha) + one(density.beta) if density.polarized else 2 * one(density.alpha)
    revised = (1 + c * z**2) * pbe - (1 + c) * z**2 * alone
    return density.rho * revised * (1 + _D * revised * z**3)


def _pbe(density, local, rs, beta):
    value = beta(rs) if callable(beta) else beta
    return local + gradient_correlation(local, density, value)


def _spin_factor(density, coefficients):
    """C(zeta, xi), eqs. (33) and (34)."""
    if not density.polarized:
        return coefficients[0]
    alpha, beta = density.alpha, density.beta
    zeta2 = density.zeta**2
    c0, c1, c2, c3 = coefficients
    flat = c0 + zeta2 * (c1 + zeta2 * (c2 + zeta2 * c3))
    a, b = alpha.rho / density.rho, beta.rho / density.rho
    mixed = (density.sigma - alpha.sigma - beta.sigma) / 2
    inverse = 1 / (density.rho * density.cbrt)
    # rho² |grad zeta|² / 4 as a sum over spins, in which nothing cancels where one is rare
    spread = b * (b * alpha.sigma - 2 * a * mixed) + a * a * beta.sigma
    up, down = density.cbrt_one_plus_zeta, density.cbrt_one_minus_zeta
    xi2 = _XI2_FACTOR * 4 * spread * inverse * inverse
    slope = 1 + xi2 * (1 / up**4 + 1 / down**4) / 2
    full = 2 * jnp.minimum(a, b) <= _FULLY_POLARIZED
    return jnp.where(full, sum(coefficients), flat * (1 / jnp.where(full, 1.0, slope)) ** 4)
