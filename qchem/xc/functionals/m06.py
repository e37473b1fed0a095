"""Minnesota functionals of 2006: Zhao & Truhlar, J. Chem. Phys. 125, 194101 (2006) for M06-L and
Theor. Chem. Acc. 120, 215 (2008) for M06 and M06-2X.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .density import THOMAS_FERMI, SpinDensity
from .pbe import pbe_enhancement
from .pw92 import pw92_pairs

_ALPHA_X, _ALPHA_SAME, _ALPHA_OPPOSITE = 0.00186726, 0.00515088, 0.00304966
_GAMMA_SAME, _GAMMA_OPPOSITE = 0.06, 0.0031
_TAU_SCALE = 1e-10  # libxc: tau / rho^(5/3) about and below which same-spin pairs vanish


class _Exchange(NamedTuple):
    """Coefficients in powers of w, and of the VSXC part."""

    a: tuple[float, ...]
    d: tuple[float, ...] | None


class _Correlation(NamedTuple):
    """Coefficients of the B97 series and of the VSXC part, for same and opposite spins."""

    c_same: tuple[float, ...]
    c_opposite: tuple[float, ...]
    d_same: tuple[float, ...]
    d_opposite: tuple[float, ...]


_M06L_X = _Exchange(
    (
        *(0.3987756, 0.2548219, 0.3923994, -2.103655, -6.302147, 10.97615),
        *(30.97273, -23.18489, -56.73480, 21.60364, 34.21814, -9.049762),
    ),
    (0.6012244, 0.004748822, -0.008635108, -0.000009308062, 0.00004482811, 0.0),
)
_M06_X = _Exchange(
    (
        *(0.5877943, -0.1371776, 0.2682367, -2.515898, -2.978892, 8.710679),
        *(16.88195, -4.489724, -32.99983, -14.49050, 20.43747, 12.56504),
    ),
    (0.1422057, 0.0007370319, -0.01601373, 0.0, 0.0, 0.0),
)
_M062X_X = _Exchange(
    (
        *(0.46, -0.2206052, -0.09431788, 2.164494, -2.556466, -14.22133),
        *(15.55044, 35.98078, -27.22754, -39.24093, 15.22808, 15.22227),
    ),
    None,
)
_M06L_C = _Correlation(
    (0.5349466, 0.5396620, -31.61217, 51.49592, -29.19613),
    (0.6042374, 177.6783, -251.3252, 76.35173, -12.55699),
    (0.4650534, 0.1617589, 0.1833657, 0.00046921, -0.004990573, 0.0),
    (0.3957626, -0.5614546, 0.01403963, 0.0009831442, -0.003577176, 0.0),
)
_M06_C = _Correlation(
    (0.5094055, -1.491085, 17.23922, -38.59018, 28.45044),
    (3.741539, 218.7098, -453.1252, 293.6479, -62.87470),
    (0.4905945, -0.1437348, 0.2357824, 0.001871015, -0.003788963, 0.0),
    (-2.741539, -0.6720113, -0.07932688, 0.001918681, -0.002032902, 0.0),
)
_M062X_C = _Correlation(
    (0.3097855, -5.528642, 13.47420, -32.13623, 28.46742),
    (0.8833596, 33.57972, -70.43548, 49.78271, -18.52891),
    (0.6902145, 0.09847204, 0.2214797, -0.001968264, -0.006775479, 0.0),
    (0.1166404, -0.09120847, -0.06726189, 0.0000672058, 0.0008448011, 0.0),
)


def mgga_x_m06_l(density: SpinDensity) -> Float[Array, " npoint"]:
    """M06-L exchange, energy per volume."""
    return _exchange(density, _M06L_X)


def hyb_mgga_x_m06(density: SpinDensity) -> Float[Array, " npoint"]:
    """M06 exchange without the exact part, energy per volume."""
    return _exchange(density, _M06_X)


def hyb_mgga_x_m06_2x(density: SpinDensity) -> Float[Array, " npoint"]:
    """M06-2X exchange without the exact part, energy per volume."""
    return _exchange(density, _M062X_X)


def mgga_c_m06_l(density: SpinDensity) -> Float[Array, " npoint"]:
    """M06-L correlation, energy per volume."""
    return _correlation(density, _M06L_C)


def mgga_c_m06(density: SpinDensity) -> Float[Array, " npoint"]:
    """M06 correlation, energy per volume."""
    return _correlation(density, _M06_C)


def mgga_c_m06_2x(density: SpinDensity) -> Float[Array, " npoint"]:
    """M06-2X correlation, energy per volume."""
    return _correlation(density, _M062X_C)


def _exchange(density, fit):
    def enhancement(spin):
        t = spin.kinetic
        w = (THOMAS_FERMI - t) / (THOMAS_FERMI + t)
        factor = pbe_enhancement(spin) * _polynomial(fit.a, w)
        if fit.d is None:
            return factor
        return factor + _vsxc(fit.d, _ALPHA_X, spin.reduced, 2 * (t - THOMAS_FERMI))

    return density.exchange(enhancement)


def _correlation(density, fit):
    def same(spin):
        x2, z = spin.reduced, 2 * (spin.kinetic - THOMAS_FERMI)
        series = _b97(fit.c_same, _GAMMA_SAME, x2) * _damping(spin.kinetic)
        return (series + _vsxc(fit.d_same, _ALPHA_SAME, x2, z)) * (1 - spin.single_orbital)

    alpha, beta = density.alpha, density.beta
    pairs = pw92_pairs(density)
    factor = same(alpha)
    energy = pairs[0] * factor + pairs[1] * (same(beta) if density.polarized else factor)
    x2 = alpha.reduced + beta.reduced
    z = 2 * (alpha.kinetic + beta.kinetic - 2 * THOMAS_FERMI)
    opposite = _b97(fit.c_opposite, _GAMMA_OPPOSITE, x2)
    return energy + pairs[2] * (opposite + _vsxc(fit.d_opposite, _ALPHA_OPPOSITE, x2, z))


def _damping(t):
    """1 - exp(-(2 t / scale)²), for libxc's sake: one wherever there are electrons."""
    tiny = t < 100 * _TAU_SCALE
    return jnp.where(tiny, -jnp.expm1(-((2 * jnp.where(tiny, t, 0.0) / _TAU_SCALE) ** 2)), 1.0)


def _b97(c, gamma, x2):
    """Power series of Becke, J. Chem. Phys. 107, 8554 (1997), in gamma x² / (1 + gamma x²)."""
    return _polynomial(c, gamma * x2 / (1 + gamma * x2))


def _vsxc(d, alpha, x2, z):
    """h(x, z) of Van Voorhis & Scuseria, J. Chem. Phys. 109, 400 (1998)."""
    inverse = 1 / (1 + alpha * (x2 + z))
    u, v = x2 * inverse, z * inverse
    return inverse * (d[0] + d[1] * u + d[2] * v + u * (d[3] * u + d[4] * v) + d[5] * v * v)


def _polynomial(coefficients, x):
    """Sum of c_n x^n."""
    total = jnp.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = total * x + coefficient
    return total
