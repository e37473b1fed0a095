"""Meta-GGA of Sun, Ruzsinszky and Perdew, Phys. Rev. Lett. 115, 036402 (2015), and r²SCAN.

r²SCAN: Furness, Kaplan, Ning, Perdew & Sun, J. Phys. Chem. Lett. 11, 8208 (2020), with equations
numbered as in its supporting information.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .density import THOMAS_FERMI, SpinDensity
from .pbe import GAMMA, S2_FACTOR, reduced_gradient
from .pw92 import pw92_and_slope, pw92_energy_per_electron
from .tpss import beta_of_rs

_MU = 10 / 81
_H0, _K1 = 1.174, 0.065
_A1 = 4.9479
_A1_NEGLIGIBLE = 60.0  # exp(-this) is nothing beside one, second derivatives included
_B2 = math.sqrt(5913 / 405000)
_B1 = 511 / 13500 / (2 * _B2)
_B3 = 0.5
_B4 = _MU**2 / _K1 - 1606 / 18225 - _B1**2
_B1C, _B2C, _B3C = 0.0285764, 0.0889, 0.125541
_CHI = 0.12802585262625815
_G_FACTOR = 2.363 * (2 ** (1 / 3) - 1)  # libxc's digits
_S2_OF_TOTAL = 2 ** (2 / 3) * S2_FACTOR  # s² = factor x², of the density of both spins

_ETA, _DP2 = 0.001, 0.361
_SMOOTH_BELOW = 2.5  # the polynomial's range of alpha


class _Switch(NamedTuple):
    """Parameters of f(alpha) and its polynomial in r²SCAN, lowest power first."""

    c1: float
    c2: float
    d: float
    polynomial: tuple[float, ...]


_EXCHANGE = _Switch(
    0.667,
    0.8,
    1.24,
    (
        1.0,
        -0.667,
        -0.4445555,
        -0.663086601049,
        1.451297044490,
        -0.887998041597,
        0.234528941479,
        -0.023185843322,
    ),
)
_CORRELATION = _Switch(
    0.64,
    1.5,
    0.7,
    (
        1.0,
        -0.64,
        -0.4352,
        -1.535685604549,
        3.061560252175,
        -1.915710236206,
        0.516884468372,
        -0.051848879792,
    ),
)


def mgga_x_scan(density: SpinDensity) -> Float[Array, " npoint"]:
    """SCAN exchange, energy per volume."""

    def enhancement(spin):
        p = S2_FACTOR * spin.reduced
        alpha = spin.pauli / THOMAS_FERMI
        rest = 1 - alpha
        bend = _B1 * p + _B2 * rest * jnp.exp(-_B3 * rest**2)
        x = _MU * p + _B4 * p**2 * jnp.exp(-_B4 / _MU * p) + bend**2
        return _interpolated(x, p, _switch(alpha, _EXCHANGE))

    return density.exchange(enhancement)


def mgga_x_r2scan(density: SpinDensity) -> Float[Array, " npoint"]:
    """r²SCAN exchange, energy per volume, eqs. (S6) to (S12)."""
    slope = sum((n + 1) * c for n, c in enumerate(_EXCHANGE.polynomial))
    gradient = (20 / 27 + 5 / 3 * _ETA) * slope * (_H0 - 1)

    def enhancement(spin):
        x2 = spin.reduced
        p = S2_FACTOR * x2
        alpha = spin.pauli / (THOMAS_FERMI + _ETA / 8 * x2)
        x = (gradient * jnp.exp(-(p**2) / _DP2**4) + _MU) * p
        return _interpolated(x, p, _smooth_switch(alpha, _EXCHANGE))

    return density.exchange(enhancement)


def mgga_c_scan(density: SpinDensity) -> Float[Array, " npoint"]:
    """SCAN correlation, energy per volume."""
    local = pw92_energy_per_electron(density)
    alpha = density.pauli / _homogeneous(density)
    uniform = local + _gradient_correlation(density, local)
    single = _local_single(density.rs) + _gradient_single(density)
    single = single * _single_orbital_spin(density)
    switch = _switch(alpha, _CORRELATION)
    return density.rho * (uniform + switch * (single - uniform))


def mgga_c_r2scan(density: SpinDensity) -> Float[Array, " npoint"]:
    """r²SCAN correlation, energy per volume, eqs. (S24) to (S41)."""
    rs = density.rs
    local, slope = pw92_and_slope(density)
    homogeneous = _homogeneous(density)
    alpha = density.pauli / (homogeneous + _ETA / 8 * density.reduced)
    spin = _single_orbital_spin(density)
    single = _local_single(rs) * spin
    root = jnp.sqrt(rs)
    below = 1 + _B2C * root + _B3C * rs
    single_slope = _B1C * (_B2C / 2 / root + _B3C) / below**2 * spin
    difference = 20 * rs * (single_slope - slope) - 45 * _ETA * (single - local)
    s2 = _S2_OF_TOTAL * density.reduced
    powers = homogeneous / (2 ** (-2 / 3) * THOMAS_FERMI)
    curvature = sum(n * c for n, c in enumerate(_CORRELATION.polynomial))
    shift = curvature / 27 / powers * difference * s2 * jnp.exp(-(s2**2) / _DP2**4)
    uniform = local + _gradient_correlation(density, local, shift)
    single = single + _gradient_single(density) * spin
    switch = _smooth_switch(alpha, _CORRELATION)
    return density.rho * (uniform + switch * (single - uniform))


def _interpolated(x, p, switch):
    """Exchange over Slater's between a slowly varying density and a single orbital."""
    slow = 1 + _K1 * x / (_K1 + x)
    steep = p > (_A1 / _A1_NEGLIGIBLE) ** 4
    root = jnp.sqrt(jnp.sqrt(jnp.where(steep, p, 1.0)))
    # Not expm1, whose derivative JAX takes from its value, rounded: it is far smaller here.
    limit = jnp.where(steep, 1 - jnp.exp(-_A1 / root), 1.0)
    return (slow + switch * (_H0 - slow)) * limit


def _switch(alpha, fit):
    """f(alpha): zero with its derivatives, to rounding, about alpha = 1."""
    largest = -math.log(float(np.finfo(np.float64).eps))
    left = alpha < largest / (largest + fit.c1)
    largest += math.log(fit.d)
    right = alpha > (largest + fit.c2) / largest
    below = jnp.where(left, alpha, 0.0)
    above = jnp.where(right, alpha, 2.0)
    rise = jnp.exp(-fit.c1 * below / (1 - below))
    fall = -fit.d * jnp.exp(fit.c2 / (1 - above))
    return jnp.where(left, rise, jnp.where(right, fall, 0.0))


def _smooth_switch(alpha, fit):
    """f(alpha) with a polynomial in place of the essential singularity, eq. (S7)."""
    negative, steep = alpha <= 0, alpha > _SMOOTH_BELOW
    between = jnp.where(negative | steep, 0.0, alpha)
    polynomial = jnp.zeros_like(alpha)
    for coefficient in reversed(fit.polynomial):
        polynomial = polynomial * between + coefficient
    below, above = jnp.where(negative, alpha, 0.0), jnp.where(steep, alpha, _SMOOTH_BELOW)
    rise = jnp.exp(-fit.c1 * below / (1 - below))
    fall = -fit.d * jnp.exp(fit.c2 / (1 - above))
    return jnp.where(negative, rise, jnp.where(steep, fall, polynomial))


def _homogeneous(density):
    """tau / rho^(5/3) of the homogeneous gas with this polarization."""
    if not density.polarized:
        return 2 ** (-2 / 3) * THOMAS_FERMI
    powers = density.cbrt_one_plus_zeta**5 + density.cbrt_one_minus_zeta**5
    return 2 ** (-5 / 3) * THOMAS_FERMI * powers


def _gradient_correlation(density, local, shift=0.0):
    """H₁ per electron, hartree; `shift` is gamma phi³ w₁ times the Δy of eq. (S34)."""
    scale = GAMMA * density.spin_scaling**3
    weight = jnp.expm1(-local / scale)
    beta = beta_of_rs(density.rs) / GAMMA
    y = (beta * reduced_gradient(density) - shift / scale) / weight
    return scale * jnp.log1p(weight * _one_less_root(4 * y))


def _local_single(rs):
    """Local energy per electron of a single, doubly occupied orbital, hartree."""
    return -_B1C / (1 + _B2C * jnp.sqrt(rs) + _B3C * rs)


def _gradient_single(density):
    """H₀, what the gradient adds to that, hartree."""
    s2 = _S2_OF_TOTAL * density.reduced
    weight = jnp.expm1(-_local_single(density.rs) / _B1C)
    return _B1C * jnp.log1p(weight * _one_less_root(4 * _CHI * s2))


def _single_orbital_spin(density):
    """G_c(zeta): zero where the spin is full, for one electron has no correlation."""
    if not density.polarized:
        return 1.0
    return (1 - _G_FACTOR * density.interpolation) * (1 - density.zeta**12)


def _one_less_root(y):
    """1 - (1 + y)^(-1/4) without cancellation."""
    return -jnp.expm1(-jnp.log1p(y) / 4)
