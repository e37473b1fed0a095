"""Short-ranged PBE exchange from a model of the exchange hole (HSE06, LC-ωPBE)."""

import math

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc
from jaxtyping import Array, Float

from .density import SpinDensity
from .pbe import S2_FACTOR

# The hole of Ernzerhof & Perdew, J. Chem. Phys. 109, 3313 (1998), table I, eqs. (24) and (25).
_A, _B, _C, _D, _E = 1.0161144, -0.37170836, -0.077215461, 0.57786348, -0.051955731
_H_ABOVE = (0.00979681, 0.0410834)
_H_BELOW = (0.187440, 0.00120824, 0.0347188)
_F1, _F2 = 6.4753871, 0.47965830
_G_SERIES = (-0.02628417880, -0.07117647788, 0.08534541323)
_G_SERIES_BELOW = 0.08**2  # of s²
# erfc(z) = exp(-b z²) sum_k a_k z^k, k = 0 to 8: Heyd, Scuseria & Ernzerhof, J. Chem. Phys. 118,
# 8207 (2003), and at large w a Gaussian alone.
_ERFC = (-1.128223946706117, 1.452736265762971, -1.243162299390327, 0.971824836115601,
         -0.568861079687373, 0.246880514820192, -0.065032363850763, 0.008401793031216)  # fmt: skip
_ERFC_DECAY, _GAUSSIAN_DECAY, _GAUSSIAN_ABOVE = 1.455915450052607, 2.0, 14.0
_S_MAX, _S_SCALED_ABOVE, _S_CONSTANT_ABOVE = 8.572844, 1.0, 15.0

_SERIES_BELOW = 2.0
_RATIONAL_ABOVE = 700.0  # libxc's approximation for an argument this large
_EULER = 0.5772156649015329
_E1_SERIES = [sum(1 / j for j in range(1, k + 1)) / math.factorial(k) for k in range(32)]


def gga_x_wpbeh(density: SpinDensity, omega: float = 0.0) -> Float[Array, " npoint"]:
    """ωPBE exchange for erfc(omega r)/r, energy per volume; omega 0 is the full range.

    Heyd, Scuseria & Ernzerhof (2003), with s scaled as in Henderson et al., J. Chem. Phys. 131,
    044108 (2009).
    """

    def enhancement(spin):
        s2 = _scaled(S2_FACTOR * spin.reduced)
        w = None if omega == 0 else omega / ((6 * math.pi**2) ** (1 / 3) * spin.cbrt)
        return -8 / 9 * (_first(s2, w) + _others(s2, w))

    return density.exchange(enhancement)


def _scaled(s2):
    """s² bounded, so that the Lieb-Oxford bound holds."""
    large = s2 > _S_SCALED_ABOVE**2
    s = jnp.sqrt(jnp.where(large, s2, 1.0))
    bounded = s - jnp.log1p(jnp.exp(jnp.minimum(s, _S_CONSTANT_ABOVE) - _S_MAX))
    bounded = jnp.where(s > _S_CONSTANT_ABOVE, _S_MAX, bounded)
    return jnp.where(large, bounded**2, s2)


def _decay(s2):
    """s² H(s), with which the hole decays."""
    s5 = s2 * s2 * jnp.sqrt(jnp.maximum(s2, 1e-20))  # below, its derivatives would overflow
    below = 1 + _H_BELOW[0] * s2**2 + _H_BELOW[1] * s5 + _H_BELOW[2] * s2**3
    return s2 * s2 * (_H_ABOVE[0] + _H_ABOVE[1] * s2) / below


def _others(s2, w):
    """Integrals of y (B, C y² (1 + F s²), (E + G s²) y⁴) exp(-(D + H s²) y²) erfc(w y).

    In c = w / sqrt(D + H s² + w²) nothing cancels: the factors 1 - c of large w are divided out.
    """
    h = _decay(s2)
    a1 = _D + h
    c_part = _C * (1 + _F1 * h + _F2 * s2)
    e_part = _E + _gradient_part(s2, h, a1)
    if w is None:
        return _B / (2 * a1) + c_part / (2 * a1**2) + e_part / a1**3
    a3 = a1 + w * w
    c = w / jnp.sqrt(a3)
    inverse = 1 / (a3 * (1 + c))
    series = e_part * (1 + c * (9 / 8 + 3 / 8 * c)) * inverse
    return inverse * (_B / 2 + inverse * (c_part * (0.5 + c / 4) + series))


def _gradient_part(s2, h, a1):
    """s² G(s), which makes the hole's energy that of PBE."""
    small = s2 < _G_SERIES_BELOW
    series = s2 * (_G_SERIES[0] + s2 * (_G_SERIES[1] + s2 * _G_SERIES[2]))
    x = 9 / (4 * _A) * jnp.where(small, 1.0, h)
    missing = 1 - math.sqrt(_A) * jnp.exp(x) * erfc(jnp.sqrt(x))
    root = 0.8 * math.sqrt(math.pi) * missing * a1**3 * jnp.sqrt(a1)
    c_part = _C * (1 + _F1 * h + _F2 * s2)
    full = -root - _E - a1 * (0.4 * c_part + a1 * (4 / 15 * _B + 8 / 15 * a1 * _A))
    return jnp.where(small, series, full)


def _first(s2, w):
    """Integral of A / y [...] erfc(w y), by the expansion of erfc.

    With d = H s² + b w², x = 9 d / (4 A), q = w / sqrt(d), r = w / sqrt(D + d) it is A/2 times
    exp(x) E1(x) - ln(1 + D/d) + sum_k a_k [Gamma(k/2) r^k - q^k x I_k],
    I_k = int_0^inf exp(-t) t^(k/2 - 1) / (x + t) dt: libxc's terms with their recurrences undone,
    which cancel all digits where w is large.
    """
    h = _decay(s2)
    if w is None:
        return _A / 2 * _moments(h)[0]
    gaussian = w > _GAUSSIAN_ABOVE
    d = h + jnp.where(gaussian, _GAUSSIAN_DECAY, _ERFC_DECAY) * w * w
    x, moments = 9 / (4 * _A) * d, _moments(d)
    q, r = w / jnp.sqrt(d), w / jnp.sqrt(_D + d)
    expansion = jnp.zeros_like(w)
    for k, coefficient in enumerate(_ERFC, start=1):
        term = math.gamma(k / 2) * r**k - q**k * x * moments[k]
        expansion = expansion + coefficient * term
    expansion = jnp.where(gaussian, 0.0, expansion)
    return _A / 2 * (moments[0] + expansion)


def _rules(npoint=48):
    """Gauss rules of int_0^inf exp(-t) t^a f(t) dt, a = 0 and -1/2, without negligible points."""
    t, weight = np.polynomial.laguerre.laggauss(npoint)
    y, even = np.polynomial.hermite.hermgauss(2 * npoint)
    rules = (t, weight), (y[npoint:] ** 2, 2 * even[npoint:])
    return [(t[w > 1e-22], w[w > 1e-22]) for t, w in rules]


_WHOLE, _HALF = _rules()


def _moments(d):
    """exp(x) E1(x) - ln(1 + D/d), then int_0^inf exp(-t) t^(k/2 - 1) / (x + t) dt, k = 1 to 8.

    By quadrature, exact to rounding from 2 on; below, from two functions and a recurrence, which
    is stable for small x alone, and with both logarithms of x taken out.
    """
    # Added so that derivatives stay in range where the gradient vanishes
    x = 9 / (4 * _A) * d + float(jnp.finfo(d.dtype).tiny) ** 0.4
    small = x < _SERIES_BELOW
    near, far = jnp.where(small, x, 1.0), jnp.where(small, _SERIES_BELOW, x)
    regular, odd, even = _by_recurrence(near)
    odd_far, even_far = _by_quadrature(far)
    even = [jnp.where(small, a, b) for a, b in zip(even, even_far, strict=True)]
    odd = [jnp.where(small, a, b) for a, b in zip(odd, odd_far, strict=True)]
    rational = (far * (far + 4.03640) + 1.15198) / (far * (far * (far + 5.03627) + 4.19160))
    scaled = jnp.where(far > _RATIONAL_ABOVE, rational, even_far[0])
    outer = scaled - jnp.log1p(9 / (4 * _A) * _D / far)
    inner = regular - jnp.log(near + 9 / (4 * _A) * _D)
    first = jnp.where(small, inner, outer)
    return [first, odd[0], even[0], odd[1], even[1], odd[2], even[2], odd[3], even[3]]


def _by_recurrence(x):
    """exp(x) E1(x) + ln(x), and the integrals with half-integer and with integer powers."""
    growth = jnp.exp(x)
    series = jnp.polyval(jnp.array(_E1_SERIES[::-1], x.dtype), x, unroll=len(_E1_SERIES))
    regular = series - _EULER * growth - jnp.expm1(x) * jnp.log(x)
    even = [regular - jnp.log(x)]
    odd = [math.pi * growth * erfc(jnp.sqrt(x)) / jnp.sqrt(x)]
    for k in range(3):
        odd.append(math.gamma(k + 0.5) - x * odd[-1])
        even.append(math.gamma(k + 1) - x * even[-1])
    return regular, odd, even


def _by_quadrature(x):
    values = []
    for t, weight in (_HALF, _WHOLE):
        powers = jnp.asarray(weight * t ** np.arange(4)[:, None], x.dtype)
        inverse = 1 / (x[None, :] + jnp.asarray(t, x.dtype)[:, None])
        values.append(list(jnp.dot(powers, inverse, precision="highest")))
    return values
