"""Short-ranged exchange: against libxc at several omega, and against the printed formulas."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from numpy.testing import assert_allclose
from pyscf.dft import libxc

from qchem.xc.functional import Functional
from qchem.xc.functionals import wpbeh
from qchem.xc.functionals.attenuation import attenuation
from tests.test_functionals import densities, from_pyscf

RTOL = 1e-9  # DESIGN section 4
ENHANCEMENT_ATOL = 1e-13  # of numbers up to 1
SECOND_RTOL = 1e-10


@pytest.mark.parametrize("nspin", [1, 2])
@pytest.mark.parametrize("part, omega", [("gga_x_ityh", 0.33), ("gga_x_wpbeh", 0.11)])
def test_component_of_given_omega_agrees_with_libxc(part, omega, nspin):
    # libxc's wpbeh cancels digits at lower densities and where spins differ much
    rho = densities(nspin, -2 if "wpbeh" in part else -5, 0.3)[:, :4]
    functional = Functional.from_name(f"{part}({omega})")
    x = from_pyscf(np.pad(rho, ((0, 0), (0, 1), (0, 0))))[: 3 * nspin - 1]

    def energy(x):
        value = functional.energy_density(x[:nspin], x[nspin:])
        return jnp.sum(value), value

    (_, value), slope = jax.jit(jax.value_and_grad(energy, has_aux=True))(x)
    given = rho if nspin == 2 else rho[0]
    exc, (by_rho, by_sigma, *_) = libxc.eval_xc(part, given, nspin - 1, omega=omega)[:2]
    expected = np.concatenate([np.atleast_2d(row.T) for row in (by_rho, by_sigma)])
    assert_allclose(value, rho[:, 0].sum(0) * exc, rtol=RTOL)
    assert_allclose(slope, expected, rtol=RTOL, atol=1e-30)


def test_attenuation_of_a_homogeneous_gas():
    """Eq. (8) of Gill, Adamson & Pople (1996), in 50 digits, on both sides of the series."""
    y = np.concatenate([10.0 ** np.arange(-12, 7), [0.98, 0.9999, 1.0, 1.0001, 1.3]])

    def printed(y):
        a = 1 / (2 * mpmath.sqrt(y))
        small = mpmath.exp(-1 / (4 * a**2))
        root = mpmath.sqrt(mpmath.pi) * mpmath.erf(1 / (2 * a))
        return 1 - 8 * a / 3 * (root + (2 * a - 4 * a**3) * small - 3 * a + 4 * a**3)

    with mpmath.workdps(50):
        expected = [[float(f) for f in mpmath.taylor(printed, mpmath.mpf(v), 2)] for v in y]
    first = jax.vmap(jax.grad(lambda v: attenuation(v[None])[0]))
    second = jax.vmap(jax.grad(jax.grad(lambda v: attenuation(v[None])[0])))
    value, slope, bend = np.array(expected).T
    assert_allclose(attenuation(jnp.asarray(y)), value, rtol=1e-13)
    assert_allclose(first(jnp.asarray(y)), slope, rtol=1e-12)
    assert_allclose(second(jnp.asarray(y)), 2 * bend, rtol=1e-10)


def printed_wpbe(s2, w):
    """The enhancement as Heyd, Scuseria & Ernzerhof print it, term by term."""
    mp = mpmath
    pi, root = mp.pi, mp.sqrt
    s2, w = mp.mpf(s2), mp.mpf(w)
    s = root(s2)
    if s > 1:
        s = s - mp.log(1 + mp.exp(s - mp.mpf("8.572844")))
    a, b, c, d, e = (mp.mpf(x) for x in (1.0161144, -0.37170836, -0.077215461, 0.57786348,
                                         -0.051955731))  # fmt: skip
    h = (mp.mpf(0.00979681) * s**2 + mp.mpf(0.0410834) * s**4) / (
        1 + mp.mpf(0.187440) * s**4 + mp.mpf(0.00120824) * s**5 + mp.mpf(0.0347188) * s**6
    )
    f = mp.mpf(6.4753871) * h + mp.mpf(0.47965830)
    d_s = d + s**2 * h
    x = 9 * h * s**2 / (4 * a)
    g_a = root(pi) * (15 * e + 6 * c * (1 + f * s**2) * d_s + 4 * b * d_s**2 + 8 * a * d_s**3)
    g_a = g_a / (16 * d_s ** mp.mpf(3.5)) - 3 * pi / 4 * root(a) * mp.exp(x) * mp.erfc(root(x))
    g_b = 15 * root(pi) * s**2 / (16 * d_s ** mp.mpf(3.5))
    small = [mp.mpf(k) for k in (-0.02628417880, -0.07117647788, 0.08534541323)]
    g = -(3 * pi / 4 + g_a) / g_b if s > 0.08 else sum(k * s2**i for i, k in enumerate(small))

    def moments(width, first, second, third):
        """(B y + C' y^3 + E' y^5) exp(-width y²) erfc(w y), integrated term by term."""
        chi = w / root(width + w**2)
        one = (1 - chi) / (2 * width)
        two = (1 - 3 * chi / 2 + chi**3 / 2) / (2 * width**2)
        three = (1 - 15 * chi / 8 + 5 * chi**3 / 4 - 3 * chi**5 / 8) / width**3
        return first * one + second * two + third * three

    total = moments(d_s, b, c * (1 + f * s**2), e + g * s**2)
    k_b = mp.mpf(wpbeh._ERFC_DECAY)
    width = h * s**2 + k_b * w**2

    def integrand(y):
        fit = 1 + sum(mp.mpf(k) * (w * y) ** n for n, k in enumerate(wpbeh._ERFC, start=1))
        # A/y [exp(-D y²) - 1/(1 + 4/9 A y²)] decays as the rest does
        hole = mp.exp(-d * y**2) - 1 / (1 + 4 * a * y**2 / 9)
        return a / y * hole * mp.exp(-width * y**2) * fit

    return -mp.mpf(8) / 9 * (total + mp.quad(integrand, [0, 1, 4, 16, 64, mp.inf]))


@pytest.mark.parametrize("s2", [1e-4, 3e-3, 0.3, 4.0, 90.0])
@pytest.mark.parametrize("w", [0.02, 0.9, 7.0])
def test_short_ranged_pbe_is_the_integral_of_its_hole(s2, w):
    """The attenuated hole integrated numerically: no closed form, so nothing of ours in it."""
    with mpmath.workdps(30):
        expected = float(printed_wpbe(s2, w))
    assert_allclose(enhancement(s2, w), expected, rtol=0, atol=ENHANCEMENT_ATOL)


def enhancement(s2, w):
    w = jnp.asarray([w]) if w else None
    scaled = wpbeh._scaled(jnp.asarray(s2)[None])
    return -8 / 9 * (wpbeh._first(scaled, w) + wpbeh._others(scaled, w))[0]


@pytest.mark.parametrize("s2", [0.01, 0.7])
def test_derivatives_of_the_full_hole(s2):
    """Where libxc's own second derivatives have lost half of their digits."""
    with mpmath.workdps(40):
        step = mpmath.mpf(s2) / 10**8
        values = [printed_wpbe(s2 + n * step, 0.0) for n in (-1, 0, 1)]
        first = float((values[2] - values[0]) / (2 * step))
        second = float((values[0] - 2 * values[1] + values[2]) / step**2)
    slope = jax.grad(enhancement)
    assert_allclose(slope(s2, 0.0), first, rtol=SECOND_RTOL)
    assert_allclose(jax.grad(slope)(s2, 0.0), second, rtol=SECOND_RTOL)
