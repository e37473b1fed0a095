"""Local correlation of Vosko, Wilk and Nusair, Can. J. Phys. 58, 1200 (1980)."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .density import STIFFNESS, SpinDensity
from .elementary import arctan


class _Fit(NamedTuple):
    """Parameters of eq. (4.4); A in hartree."""

    a: float
    b: float
    c: float
    x0: float


# Fits to the quantum Monte Carlo energies of Ceperley and Alder, table 5.
_PARAMAGNETIC = _Fit(0.0310907, 3.72744, 12.9352, -0.10498)
_FERROMAGNETIC = _Fit(0.01554535, 7.06042, 18.0578, -0.32500)
_SPIN_STIFFNESS = _Fit(-1 / (6 * math.pi**2), 1.13107, 13.0045, -0.0047584)

# Fits to the random-phase approximation.
_PARAMAGNETIC_RPA = _Fit(0.0310907, 13.0720, 42.7198, -0.409286)
_FERROMAGNETIC_RPA = _Fit(0.01554535, 20.1231, 101.578, -0.743294)


def lda_c_vwn(density: SpinDensity) -> Float[Array, " npoint"]:
    """VWN5, energy per volume: the fits to Monte Carlo and the interpolation of eq. (3.2)."""
    x = jnp.sqrt(density.rs)
    energy = _fit(x, _PARAMAGNETIC)
    if density.polarized:
        zeta4 = density.zeta**4
        bend = _fit(x, _SPIN_STIFFNESS) * (1 - zeta4) / STIFFNESS
        rise = (_fit(x, _FERROMAGNETIC) - energy) * zeta4
        energy = energy + density.interpolation * (bend + rise)
    return density.rho * energy


def lda_c_vwn_rpa(density: SpinDensity) -> Float[Array, " npoint"]:
    """VWN fitted to the random-phase approximation, energy per volume."""
    x = jnp.sqrt(density.rs)
    energy = _fit(x, _PARAMAGNETIC_RPA)
    if density.polarized:
        rise = _fit(x, _FERROMAGNETIC_RPA) - energy
        energy = energy + density.interpolation * rise
    return density.rho * energy


def _fit(x, fit):
    """Eq. (4.4) with x = sqrt(rs); logarithms as log1p, for they nearly cancel at large x."""
    a, b, c, x0 = fit
    q = math.sqrt(4 * c - b**2)
    weight = b * x0 / (x0**2 + b * x0 + c)
    angle = (2 * b / q - weight * 2 * (b + 2 * x0) / q) * arctan(q / (2 * x + b))
    first = -jnp.log1p((b * x + c) / x**2)
    second = jnp.log1p((x0**2 - c - (b + 2 * x0) * x) / (x**2 + b * x + c))
    return a * (first - weight * second + angle)
