"""Local correlation of Perdew and Wang, Phys. Rev. B 45, 13244 (1992)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .density import RS_FACTOR, STIFFNESS, SpinChannel, SpinDensity


class _Fit(NamedTuple):
    """Parameters of eq. (10), table I; `a` in hartree."""

    a: float
    alpha1: float
    beta1: float
    beta2: float
    beta3: float
    beta4: float


_PARAMAGNETIC = _Fit(0.031091, 0.21370, 7.5957, 3.5876, 1.6382, 0.49294)
_FERROMAGNETIC = _Fit(0.015545, 0.20548, 14.1189, 6.1977, 3.3662, 0.62517)
_SPIN_STIFFNESS = _Fit(0.016887, 0.11125, 10.357, 3.6231, 0.88026, 0.49671)
_ROUNDED = (_PARAMAGNETIC, _FERROMAGNETIC, _SPIN_STIFFNESS)
_PRECISE = (
    _PARAMAGNETIC._replace(a=0.0310907),
    _FERROMAGNETIC._replace(a=0.01554535),
    _SPIN_STIFFNESS._replace(a=0.0168869),
)


def lda_c_pw(density: SpinDensity) -> Float[Array, " npoint"]:
    """PW92 with the parameters as printed, energy per volume."""
    return density.rho * _energy_per_electron(density, _ROUNDED, 1.709921)


def lda_c_pw_mod(density: SpinDensity) -> Float[Array, " npoint"]:
    """PW92 with more digits, as PBE uses it, energy per volume."""
    return density.rho * pw92_energy_per_electron(density)


def pw92_energy_per_electron(density: SpinDensity) -> Float[Array, " npoint"]:
    """Correlation energy per electron with the more precise parameters, hartree."""
    return _energy_per_electron(density, _PRECISE, STIFFNESS)


def pw92_and_slope(
    density: SpinDensity,
) -> tuple[Float[Array, " npoint"], Float[Array, " npoint"]]:
    """The same energy per electron and its derivative in rs at fixed zeta, hartree and /bohr."""

    def energy(rs):
        return _energy_at(rs, density, _PRECISE, STIFFNESS)

    return jax.jvp(energy, (density.rs,), (jnp.ones_like(density.rs),))


def pw92_of_one_spin(spin: SpinChannel, rounded: bool = False) -> Float[Array, " npoint"]:
    """Correlation energy per electron of the electrons of one spin alone, hartree."""
    return _fit(jnp.sqrt(RS_FACTOR / spin.cbrt), (_ROUNDED if rounded else _PRECISE)[1])


def pw92_pairs(
    density: SpinDensity, rounded: bool = False
) -> tuple[Float[Array, " npoint"], Float[Array, " npoint"], Float[Array, " npoint"]]:
    """Correlation energies per volume among alpha, among beta and between them.

    Stoll, Golka & Preuss, Theor. Chim. Acta 55, 29 (1980): electrons of one spin correlate as
    if the others were not there; what remains of the total belongs to pairs of opposite spins.
    `rounded` takes the parameters as printed.
    """

    def alone(spin):
        return jnp.where(spin.populated, spin.rho * pw92_of_one_spin(spin, rounded), 0.0)

    alpha = alone(density.alpha)
    beta = alone(density.beta) if density.polarized else alpha
    total = lda_c_pw(density) if rounded else lda_c_pw_mod(density)
    return alpha, beta, total - alpha - beta


def _energy_per_electron(density, fits, stiffness):
    return _energy_at(density.rs, density, fits, stiffness)


def _energy_at(rs, density, fits, stiffness):
    """Eq. (8) at the polarization of `density`."""
    x = jnp.sqrt(rs)
    energy = _fit(x, fits[0])
    if density.polarized:
        zeta4 = density.zeta**4
        bend = -_fit(x, fits[2]) * (1 - zeta4) / stiffness
        rise = (_fit(x, fits[1]) - energy) * zeta4
        energy = energy + density.interpolation * (bend + rise)
    return energy


def _fit(x, fit):
    """Eq. (10) with x = sqrt(rs)."""
    series = x * (fit.beta1 + x * (fit.beta2 + x * (fit.beta3 + x * fit.beta4)))
    return -2 * fit.a * (1 + fit.alpha1 * x**2) * jnp.log1p(1 / (2 * fit.a * series))
