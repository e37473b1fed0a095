"""Every component agrees with libxc to the second derivative and is finite at every edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from pyscf.dft import libxc

from qchem.xc.functional import COMPONENTS, Functional

from .oracle import slope, stencil

FIRST_RTOL = 1e-9  # DESIGN section 4
SECOND_RTOL = 1e-8  # libxc's own second derivatives cancel digits where spins are unequal
NPOINT = 300
CAPACITY = 640  # points of every call; at least as many as there are edges
STEP = 1e-4  # relative, of finite differences
DIFFERENCE_RTOL = 2e-9
META = [name for name in COMPONENTS if "mgga" in name]


def densities(nspin, lowest, fraction):
    """Random rho, gradients and tau as PySCF wants them: (nspin, 5, npoint)."""
    rng = np.random.default_rng(nspin)
    total = 10 ** rng.uniform(lowest, 3, NPOINT)
    share = np.ones((1, NPOINT))
    if nspin == 2:
        minority = 10 ** rng.uniform(np.log10(fraction), np.log10(0.5), NPOINT)
        share = np.stack([1 - minority, minority])
    rho = share * total
    length = rho ** (4 / 3) * 10 ** rng.uniform(-2, 1, (nspin, NPOINT))
    grad = rng.normal(size=(nspin, 3, NPOINT)) * length[:, None]
    excess = rho ** (5 / 3) * 10 ** rng.uniform(-2, 1.5, (nspin, NPOINT))
    tau = single_orbital(rho, np.sum(grad**2, axis=1)) + excess
    return np.concatenate([rho[:, None], grad, tau[:, None]], 1)


def single_orbital(rho, sigma):
    """tau where one orbital makes the density: the least there can be."""
    return sigma / (8 * rho)


def from_pyscf(rho):
    """Rows of rho, sigma and tau."""
    grad = rho[:, 1:4]
    pairs = [(i, j) for i in range(len(rho)) for j in range(i, len(rho))]
    sigma = np.stack([np.sum(grad[i] * grad[j], axis=0) for i, j in pairs])
    return jnp.asarray(np.concatenate([rho[:, 0], sigma, rho[:, 4]]))


def rung(name):
    return name.removeprefix("hyb_").split("_")[0]


def nvariable(name, nspin):
    return {"lda": nspin, "gga": 3 * nspin - 1, "mgga": 4 * nspin - 1}[rung(name)]


def libxc_derivatives(name, rho):
    """Energy per volume, gradient and upper half of the Hessian in the variables there are."""
    nspin, nall = len(rho), nvariable(name, len(rho))
    code = f",{name}" if "_c_" in name else name
    given = {"lda": rho[:, 0], "gga": rho[:, :4], "mgga": rho}[rung(name)]
    rows = libxc.eval_xc1(code, given if nspin == 2 else given[0], nspin - 1, deriv=2)
    # libxc's energy is per electron of the density raised to its threshold
    energy = np.sum(np.maximum(rho[:, 0], COMPONENTS[name].threshold), axis=0) * rows[0]
    hessian = np.zeros((nall, nall, rho.shape[-1]))
    hessian[np.triu_indices(nall)] = rows[1 + nall :]
    return energy, rows[1 : 1 + nall], hessian.transpose(2, 0, 1)


def sum_of(*components):
    """Without the exact exchange that may belong to a component."""
    return Functional(" + ".join(components), 0.0, tuple((1.0, name) for name in components))


def our_energy(functional, nspin):
    """Energy per volume as a function of the rows of `from_pyscf`."""
    split = 3 * nspin - 1

    def energy(x):
        tau = x[split:] if functional.ingredients == "mgga" else None
        return functional.energy_density(x[:nspin], x[nspin:split], tau)

    return energy


def our_derivatives(functional, variables, nspin, order=2):
    """Energy, gradient and Hessian; not compiled: the operations are, once for all components."""
    nall = max(nvariable(part, nspin) for _, part in functional.components)
    energy = our_energy(functional, nspin)
    gradient = jax.grad(lambda x: jnp.sum(energy(x)))

    def column(tangent):
        directions = jnp.broadcast_to(tangent[:, None], x.shape)
        return jax.jvp(gradient, (x,), (directions,))[1]

    npoint = variables.shape[1]
    x = filled(variables)
    results = energy(x)[:npoint], gradient(x)[:nall, :npoint]
    if order == 1:
        return results
    second = jax.vmap(column)(jnp.eye(len(x), dtype=x.dtype))
    second = jnp.moveaxis(second[:nall, :nall], -1, 0)
    return *results, np.triu(second[:npoint])


def filled(variables):
    """Points repeated up to one number for all tests, so that they share compiled operations."""
    return jnp.resize(variables.T, (CAPACITY, len(variables))).T


@pytest.mark.parametrize("nspin", [1, 2])
@pytest.mark.parametrize("name", COMPONENTS)
def test_component_agrees_with_libxc(name, nspin):
    lowest = max(-9, np.log10(COMPONENTS[name].threshold) + 4)
    rho = densities(nspin, lowest, fraction=1e-3)
    # Seconds of time for each: the closed shell's are those of the same formula.
    value, first, *second = our_derivatives(sum_of(name), from_pyscf(rho), nspin, order=nspin)
    expected_value, expected_first, expected_second = libxc_derivatives(name, rho)
    assert np.all(expected_value != 0)  # otherwise the check could not fail
    assert_allclose(value, expected_value, rtol=FIRST_RTOL)
    error, bound = abs(first - expected_first), FIRST_RTOL * abs(expected_first) + 1e-30
    if "b97" in name:  # its power series change sign, and cancel where they do
        x = abs(from_pyscf(rho)[: len(first)]) + 1e-300
        bound = bound + 1e-11 * np.sum(x * abs(expected_first), axis=0, keepdims=True) / x
    if name == "gga_x_wpbeh":  # where the gradient is small libxc's terms cancel
        sigma = np.sum(rho[:, 1:4] ** 2, axis=1)
        bound[nspin::2] *= 1 + 1e-3 * rho[:, 0] ** (8 / 3) / sigma
    assert np.all(error <= bound)
    if second and name != "gga_x_wpbeh":  # which test_attenuation compares with 40 digits
        assert np.all(close_second_derivatives(name, rho, second[0], expected_second))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMPONENTS if name != "gga_x_wpbeh"])
def test_second_derivatives_of_closed_shells_agree_with_libxc(name):
    lowest = max(-9, np.log10(COMPONENTS[name].threshold) + 4)
    rho = densities(1, lowest, fraction=1e-3)
    *_, second = our_derivatives(sum_of(name), from_pyscf(rho), 1)
    *_, expected = libxc_derivatives(name, rho)
    assert np.any(expected != 0)  # otherwise the check could not fail
    assert np.all(close_second_derivatives(name, rho, second, expected))


def close_second_derivatives(name, rho, second, expected_second):
    """Which elements agree with libxc's."""
    # An element that changes sign is compared with the others of its kind at the same point.
    size = np.sqrt(np.einsum("gii,gjj->gij", abs(expected_second), abs(expected_second)))
    close = abs(second - expected_second) <= SECOND_RTOL * (abs(expected_second) + size)
    if name in ("mgga_c_tpss", "mgga_c_revtpss") and len(rho) == 2:
        # libxc's gradient of the polarization is a difference that loses the rarer spin's part:
        # up to 1e-6 of the second derivative, where 80 digits confirm ours to 1e-8.
        close |= (rho[-1, 0] < 0.05 * rho[0, 0])[:, None, None]
    return close


@pytest.mark.parametrize("nspin", [1, 2])
@pytest.mark.parametrize("name", COMPONENTS)
def test_tiny_and_fully_polarized_densities_agree_with_libxc(name, nspin):
    # In SCAN's correlation libxc loses digits of exp(x) - 1, and more in its derivative.
    lowest = 7 if "scan" in name else 3
    total = COMPONENTS[name].threshold * 10 ** np.linspace(lowest, 15, NPOINT)
    rho = np.zeros((nspin, 5, NPOINT))
    rho[0, 0] = total
    rho[0, 1] = 0.7 * total ** (4 / 3)
    rho[0, 4] = 1.7 * single_orbital(total, rho[0, 1] ** 2)
    value, first = our_derivatives(sum_of(name), from_pyscf(rho), nspin, order=1)
    expected_value, expected_first, _ = libxc_derivatives(name, rho)
    # With one spin alone, LYP is no more than what the threshold leaves of the other.
    scale = 1e-12 * abs(total) ** (4 / 3) if name == "gga_c_lyp" else 0.0
    assert np.all(abs(value - expected_value) <= FIRST_RTOL * abs(expected_value) + scale)
    if name != "gga_c_lyp":
        assert_allclose(first[0], expected_first[0], rtol=FIRST_RTOL)


@pytest.mark.parametrize("nspin", [1, 2])
@pytest.mark.parametrize("name", META)
def test_limits_of_tau_and_gradient_agree_with_libxc(name, nspin):
    """A single orbital, less than that, a flat density, and one without kinetic energy."""
    rho = densities(nspin, lowest=-4, fraction=0.1)
    kind = np.arange(NPOINT) % 4
    rho[:, 1:4] *= kind < 2
    least = single_orbital(rho[:, 0], np.sum(rho[:, 1:4] ** 2, axis=1))
    rho[:, 4] = np.select([kind == 0, kind == 1, kind == 2], [least, 0.6 * least, rho[:, 4]], 0.0)
    value, first = our_derivatives(sum_of(name), from_pyscf(rho), nspin, order=1)
    expected_value, expected_first, _ = libxc_derivatives(name, rho)
    assert_allclose(value, expected_value, rtol=FIRST_RTOL)
    smooth = np.full(NPOINT, True)
    if name in ("mgga_c_tpss", "mgga_c_revtpss") and nspin == 1:
        smooth = kind > 1  # libxc's tau_W / tau has a kink at one, and rounding takes a side
    if name == "hyb_mgga_xc_wb97m_v":
        smooth = kind < 3  # without kinetic energy libxc's slope in tau is rounding alone
    assert_allclose(first[:, smooth], expected_first[:, smooth], rtol=FIRST_RTOL, atol=1e-30)


@pytest.mark.parametrize("name", ["tpss", "revtpss", "scan", "r2scan", "m06_l"])
def test_second_derivatives_agree_with_finite_differences(name):
    """At the polarizations and gradients of molecules, where differences keep their digits."""
    functional = Functional.from_name(name)
    rng = np.random.default_rng(3)
    rho = 10 ** rng.uniform(-3, 0.5, (2, NPOINT))
    aa, bb = rho ** (8 / 3) * 10 ** rng.uniform(0, 1.5, (2, NPOINT))
    sigma = np.stack([aa, 0.4 * np.sqrt(aa * bb), bb])
    tau = single_orbital(rho, sigma[::2]) + rho ** (5 / 3) * 10 ** rng.uniform(-0.5, 1, rho.shape)
    x = jnp.asarray(np.concatenate([rho, sigma, tau]))
    step = jnp.asarray(rng.normal(size=x.shape)) * x
    upper = our_derivatives(functional, x, 2)[2]
    hessian = upper + np.triu(upper, 1).swapaxes(1, 2)
    exact = np.einsum("gij,jg->ig", hessian, step)
    gradients = [our_derivatives(functional, at, 2, order=1)[1] for at in stencil(x, step, STEP)]
    measured = slope(gradients, STEP)
    # Each row at its size in the energy, for some elements change sign.
    size = np.sum(np.abs(x * exact), axis=0, keepdims=True)
    assert np.all(np.abs(x * (exact - measured)) <= DIFFERENCE_RTOL * size)


@pytest.mark.parametrize("nspin", [1, 2])
@pytest.mark.parametrize("name", COMPONENTS)
def test_energy_vanishes_below_the_threshold_only(name, nspin):
    threshold = COMPONENTS[name].threshold
    rho = jnp.array([[0.0, 1e-30, 0.99 * threshold, 3 * threshold]])
    rho = jnp.concatenate([rho, 0 * rho])[:nspin]
    sigma = jnp.concatenate([rho[:1] ** (8 / 3), jnp.zeros((2, 4))])[: 2 * nspin - 1]
    tau = rho ** (5 / 3) if rung(name) == "mgga" else None
    energy = sum_of(name).energy_density(rho, sigma, tau)
    assert np.all(energy[:3] == 0)
    assert energy[3] != 0


EDGES = [0.0, 1e-35, 1e-16, 1e-15, 2e-15, 1e-14, 1e-12, 1e-9, 1e-8, 3e-8, 1e-3, 1.0, 1e4, -1e-9]
REDUCED = [0.0, 1e-4, 1.0, 1e6]
# tau: shares of a single orbital's, and multiples of rho^(5/3) beyond it
KINETIC = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1e-3], [1.0, 3.0], [1.0, 1e3], [0.5, 0.0]])


@pytest.mark.parametrize("nspin", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_two_derivatives_are_finite_at_every_edge(nspin, dtype):
    if nspin == 1:
        rho, reduced = (x.ravel()[None] for x in np.meshgrid(EDGES, REDUCED))
        sigma = abs(rho) ** (8 / 3) * reduced
    else:
        *rho, xa, xb, cosine = (
            x.ravel()[::5] for x in np.meshgrid(EDGES, EDGES, REDUCED, REDUCED, [-1.0])
        )
        aa, bb = (abs(r) ** (8 / 3) * x for r, x in zip(rho, (xa, xb), strict=True))
        sigma = [aa, cosine * np.sqrt(aa * bb), bb]
    least = single_orbital(np.maximum(np.abs(rho), 1e-300), np.stack(sigma[::2]))
    index = np.arange(least.shape[1])
    share, excess = KINETIC[np.stack([index, index // 7])[:nspin] % len(KINETIC)].transpose(2, 0, 1)
    tau = share * least + excess * np.abs(rho) ** (5 / 3)
    assert least.shape[1] <= CAPACITY
    variables = np.concatenate([np.stack(rho), np.stack(sigma), tau])
    variables = filled(jnp.asarray(variables, dtype))
    # A NaN or an infinity anywhere is one in the sum over components, and over the Hessian's row.
    energy = our_energy(sum_of(*COMPONENTS), nspin)
    gradient = jax.grad(lambda x: jnp.sum(energy(x)))
    ones = jnp.ones_like(variables)
    for derivative in (energy(variables), *jax.jvp(gradient, (variables,), (ones,))):
        assert derivative.dtype == dtype
        assert np.all(np.isfinite(derivative))


@pytest.mark.parametrize("name", COMPONENTS)
def test_equal_spins_are_the_closed_shell(name):
    closed = from_pyscf(densities(1, lowest=-6, fraction=1.0))
    functional = sum_of(name)
    rho, sigma, tau = closed[:1], closed[1:2], closed[2:]
    halves = (jnp.tile(x, (n, 1)) for x, n in ((rho / 2, 2), (sigma / 4, 3), (tau / 2, 2)))
    spins = functional.energy_density(*halves)
    assert_allclose(spins, functional.energy_density(rho, sigma, tau), rtol=1e-11)


def test_homogeneous_gas_closed_forms():
    rho = jnp.array([[0.3]])
    exchange = -0.75 * (3 / np.pi) ** (1 / 3) * 0.3 ** (4 / 3)
    tau = 0.3 * (3 * np.pi**2) ** (2 / 3) * rho ** (5 / 3)
    for name in ("lda_x", "gga_x_b88", "gga_x_pbe", "gga_x_pw91", "mgga_x_tpss", "mgga_x_scan"):
        energy = Functional.from_name(name).energy_density(rho, jnp.zeros((1, 1)), tau)
        assert_allclose(energy, [exchange], rtol=1e-14)
    polarized = Functional.from_name("lda_x").energy_density(jnp.array([[0.3], [0.0]]))
    assert_allclose(polarized, [2 ** (1 / 3) * exchange], rtol=1e-14)
