"""Local correlation of Perdew and Zunger, Phys. Rev. B 23, 5048 (1981), appendix C."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .density import SpinDensity


class _Fit(NamedTuple):
    """Parameters of eqs. (C3) and (C5), table XII, hartree."""

    gamma: float
    beta1: float
    beta2: float
    a: float
    b: float
    c: float
    d: float


_PARAMAGNETIC = _Fit(-0.1423, 1.0529, 0.3334, 0.0311, -0.048, 0.0020, -0.0116)
_FERROMAGNETIC = _Fit(-0.0843, 1.3981, 0.2611, 0.01555, -0.0269, 0.0007, -0.0048)


def lda_c_pz(density: SpinDensity) -> Float[Array, " npoint"]:
    """PZ81, energy per volume."""
    return density.rho * pz81_energy_per_electron(density)


def pz81_energy_per_electron(density: SpinDensity) -> Float[Array, " npoint"]:
    """Correlation energy per electron, hartree."""
    energy = _fit(density.rs, _PARAMAGNETIC)
    if density.polarized:
        rise = _fit(density.rs, _FERROMAGNETIC) - energy
        energy = energy + density.interpolation * rise
    return energy


def _fit(rs, fit):
    dilute = rs >= 1
    outer = jnp.where(dilute, rs, 1.0)
    inner = jnp.where(dilute, 1.0, rs)
    low = fit.gamma / (1 + fit.beta1 * jnp.sqrt(outer) + fit.beta2 * outer)
    high = (fit.a + fit.c * inner) * jnp.log(inner) + fit.b + fit.d * inner
    return jnp.where(dilute, low, high)
