"""Becke's 1997 family: power series in the reduced gradient, by pairs of spins."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .attenuation import local_attenuation
from .density import THOMAS_FERMI, SpinDensity
from .pw92 import pw92_pairs

_GAMMA_X, _GAMMA_SAME, _GAMMA_OPPOSITE = 0.004, 0.2, 0.006


class _Series(NamedTuple):
    """Coefficients of exchange, of correlation of like and of unlike spins."""

    x: tuple[float, ...]
    same: tuple[float, ...]
    opposite: tuple[float, ...]


_B97 = _Series((0.8094, 0.5073, 0.7481), (0.1737, 2.3487, -2.4868), (0.9454, 0.7471, -4.5961))
_B97_1 = _Series(
    (0.789518, 0.573805, 0.660975),
    (0.0820011, 2.71681, -2.87103),
    (0.955689, 0.788552, -5.47869),
)
_B97_2 = _Series(
    (0.827642, 0.04784, 1.76125),
    (0.585808, -0.691682, 0.394796),
    (0.999849, 1.40626, -7.4406),
)
_B97_3 = _Series(
    (0.7334648, 0.292527, 3.338789, -10.51158, 10.60907),
    (0.5623649, -1.32298, 6.359191, -7.464002, 1.827082),
    (1.13383, -2.811967, 7.431302, -1.969342, -11.74423),
)
_B97_D = _Series(
    (1.08662, -0.52127, 3.25429), (0.2234, -1.56208, 1.94293), (0.69041, 6.3027, -14.9712)
)
_WB97 = _Series(
    (1.0, 1.13116, -2.74915, 12.09, -5.71642),
    (1.0, -2.55352, 11.8926, -26.9452, 17.0927),
    (1.0, 3.99051, -17.0066, 1.07292, 8.88211),
)
_WB97X = _Series(
    (0.842294, 0.726479, 1.0476, -5.70635, 13.2794),
    (1.0, -4.33879, 18.2308, -31.743, 17.2901),
    (1.0, 2.37031, -11.3995, 6.58405, -3.78132),
)
_WB97X_D = _Series(
    (0.777964, 0.66116, 0.574541, -5.25671, 11.6386),
    (1.0, -6.90539, 31.3343, -51.0533, 26.4423),
    (1.0, 1.79413, -12.0477, 14.0847, -8.50809),
)
_WB97X_D3 = _Series(
    (0.804272, 0.6989, 0.50894, -3.744903, 10.06079),
    (1.0, -4.868902, 21.295726, -36.020866, 19.177018),
    (1.0, 2.433266, -15.446008, 17.64439, -8.879494),
)
_WB97X_V = _Series((0.833, 0.603, 1.194), (0.556, -0.257), (1.219, -1.85))
# ωB97M-V: coefficients with the powers of w and of u that they multiply.
_WB97M_V_X = ((0.85, 0, 0), (1.007, 0, 1), (0.259, 1, 0))
_WB97M_V_SAME = ((0.443, 0, 0), (-1.437, 0, 4), (-4.535, 1, 0), (-3.39, 2, 0), (4.278, 4, 3))
_WB97M_V_OPPOSITE = ((1.0, 0, 0), (1.358, 1, 0), (2.924, 2, 0), (-8.812, 2, 1), (-1.39, 6, 0),
                     (9.142, 6, 1))  # fmt: skip


def hyb_gga_xc_b97(density: SpinDensity) -> Float[Array, " npoint"]:
    """B97 without exact exchange: Becke, J. Chem. Phys. 107, 8554 (1997); energy per volume."""
    return _energy(density, _B97)


def hyb_gga_xc_b97_1(density: SpinDensity) -> Float[Array, " npoint"]:
    """B97-1: Hamprecht, Cohen, Tozer & Handy, J. Chem. Phys. 109, 6264 (1998)."""
    return _energy(density, _B97_1)


def hyb_gga_xc_b97_2(density: SpinDensity) -> Float[Array, " npoint"]:
    """B97-2: Wilson, Bradley & Tozer, J. Chem. Phys. 115, 9233 (2001)."""
    return _energy(density, _B97_2)


def hyb_gga_xc_b97_3(density: SpinDensity) -> Float[Array, " npoint"]:
    """B97-3: Keal & Tozer, J. Chem. Phys. 123, 121103 (2005)."""
    return _energy(density, _B97_3)


def gga_xc_b97_d(density: SpinDensity) -> Float[Array, " npoint"]:
    """B97-D without dispersion: Grimme, J. Comput. Chem. 27, 1787 (2006)."""
    return _energy(density, _B97_D)


def hyb_gga_xc_wb97(density: SpinDensity) -> Float[Array, " npoint"]:
    """ωB97: Chai & Head-Gordon, J. Chem. Phys. 128, 084106 (2008)."""
    return _energy(density, _WB97, 0.4)


def hyb_gga_xc_wb97x(density: SpinDensity) -> Float[Array, " npoint"]:
    """ωB97X: the same paper."""
    return _energy(density, _WB97X, 0.3)


def hyb_gga_xc_wb97x_d(density: SpinDensity) -> Float[Array, " npoint"]:
    """ωB97X-D without dispersion: Chai & Head-Gordon, PCCP 10, 6615 (2008)."""
    return _energy(density, _WB97X_D, 0.2)


def hyb_gga_xc_wb97x_d3(density: SpinDensity) -> Float[Array, " npoint"]:
    """ωB97X-D3 without dispersion: Lin, Li, Mao & Chai, J. Chem. Theory Comput. 9, 263 (2013)."""
    return _energy(density, _WB97X_D3, 0.25)


def hyb_gga_xc_wb97x_v(density: SpinDensity) -> Float[Array, " npoint"]:
    """ωB97X-V without VV10: Mardirossian & Head-Gordon, PCCP 16, 9904 (2014)."""
    return _energy(density, _WB97X_V, 0.3)


def hyb_mgga_xc_wb97m_v(density: SpinDensity) -> Float[Array, " npoint"]:
    """ωB97M-V without VV10: Mardirossian & Head-Gordon, J. Chem. Phys. 144, 214110 (2016)."""

    def like(spin, terms, gamma):
        w = (THOMAS_FERMI - spin.kinetic) / (THOMAS_FERMI + spin.kinetic)
        return _double_series(terms, w, _fraction(gamma, spin.reduced))

    def enhancement(spin):
        return local_attenuation(spin, 0.3) * like(spin, _WB97M_V_X, _GAMMA_X)

    alpha, beta, opposite = pw92_pairs(density)
    a, b = density.alpha, density.beta
    same = alpha * like(a, _WB97M_V_SAME, _GAMMA_SAME)
    same = same + (beta * like(b, _WB97M_V_SAME, _GAMMA_SAME) if density.polarized else same)
    # Harmonic mean of both kinetic energies over that of a homogeneous gas
    share = b.kinetic / (a.kinetic + b.kinetic) if density.polarized else 0.5
    t = 2 * a.kinetic * share / THOMAS_FERMI
    u = _fraction(_GAMMA_OPPOSITE, (a.reduced + b.reduced) / 2)
    unlike = opposite * _double_series(_WB97M_V_OPPOSITE, (1 - t) / (1 + t), u)
    return density.exchange(enhancement) + same + unlike


def _energy(density, series, omega=0.0):
    """Eqs. (3)-(5) of Becke (1997); exchange short-ranged where omega is given."""

    def enhancement(spin):
        local = local_attenuation(spin, omega) if omega else 1.0
        return local * _power_series(series.x, _GAMMA_X, spin.reduced)

    alpha, beta, opposite = pw92_pairs(density, rounded=True)
    xa = density.alpha.reduced
    same = alpha * _power_series(series.same, _GAMMA_SAME, xa)
    if density.polarized:
        xb = density.beta.reduced
        same = same + beta * _power_series(series.same, _GAMMA_SAME, xb)
        mean = (xa + xb) / 2
    else:
        same, mean = 2 * same, xa
    unlike = opposite * _power_series(series.opposite, _GAMMA_OPPOSITE, mean)
    return density.exchange(enhancement) + same + unlike


def _power_series(coefficients, gamma, x2):
    """Sum of c_i u^i with u = gamma x² / (1 + gamma x²)."""
    u = _fraction(gamma, x2)
    total = jnp.full_like(u, coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * u + c
    return total


def _double_series(terms, w, u):
    return sum(c * w**i * u**j for c, i, j in terms)


def _fraction(gamma, x2):
    return gamma * x2 / (1 + gamma * x2)
