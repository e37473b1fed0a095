"""Every component agrees with libxc to the second derivative and is finite at every edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from pyscf.dft import libxc

from qchem.xc.functional import COMPONENTS, Functional

FIRST_RTOL = 1e-9  # DESIGN section 4
SECOND_RTOL = 1e-8  # libxc's own second derivatives cancel digits where spins are unequal
NPOINT = 300
CAPACITY = 4096  # points of every call


def densities(nspin, lowest, fraction):
    """Random rho and gradients as PySCF wants them: (nspin, 4, npoint)."""
    rng = np.random.default_rng(nspin)
    total = 10 ** rng.uniform(lowest, 3, NPOINT)
    share = np.ones((1, NPOINT))
    if nspin == 2:
        minority = 10 ** rng.uniform(np.log10(fraction), np.log10(0.5), NPOINT)
        share = np.stack([1 - minority, minority])
    rho = share * total
    length = rho ** (4 / 3) * 10 ** rng.uniform(-2, 1, (nspin, NPOINT))
    return np.concatenate([rho[:, None], rng.normal(size=(nspin, 3, NPOINT)) * length[:, None]], 1)


def from_pyscf(rho):
    grad = rho[:, 1:]
    pairs = [(i, j) for i in range(len(rho)) for j in range(i, len(rho))]
    sigma = np.stack([np.sum(grad[i] * grad[j], axis=0) for i, j in pairs])
    return jnp.concatenate([jnp.asarray(rho[:, 0]), jnp.asarray(sigma)])


def libxc_derivatives(name, rho):
    """Energy per volume, gradient and Hessian in (rho..., sigma...), sigma left out for an LDA."""
    nspin = len(rho)
    code = name if "_x_" in name or name == "lda_x" else f",{name}"
    local = name.startswith("lda")
    given = rho[:, 0] if local else rho
    exc, vxc, fxc = libxc.eval_xc(code, given if nspin == 2 else given[0], nspin - 1, deriv=2)[:3]
    rows = [np.atleast_2d(v.T) for v in (*vxc[:2], *fxc[:3]) if v is not None]
    threshold = COMPONENTS[name].threshold
    # libxc's energy is per electron of the density raised to its threshold
    energy = np.sum(np.maximum(rho[:, 0], threshold), axis=0) * exc
    nrho = nspin
    nall = nrho if local else nrho + len(rows[1])
    gradient = np.concatenate(rows[:1] if local else rows[:2])
    hessian = np.zeros((nall, nall, rho.shape[-1]))
    hessian[np.triu_indices(nrho)] = rows[1 if local else 2]
    if not local:
        hessian[:nrho, nrho:] = rows[3].reshape(nrho, nall - nrho, -1)
        block = hessian[nrho:, nrho:]
        block[np.triu_indices(nall - nrho)] = rows[4]
    return energy, gradient, np.triu(hessian.transpose(2, 0, 1))


def our_derivatives(name, variables, nspin):
    """Energy, gradient and Hessian; not compiled: the operations are, once for all components."""
    functional = Functional.from_name(name)
    nall = nspin if functional.ingredients == "lda" else 3 * nspin - 1

    def energy(x):
        return functional.energy_density(x[:nspin], x[nspin:])

    gradient = jax.grad(lambda x: jnp.sum(energy(x)))

    def column(tangent):
        directions = jnp.broadcast_to(tangent[:, None], x.shape)
        return jax.jvp(gradient, (x,), (directions,))[1]

    npoint = variables.shape[1]
    x = jnp.resize(variables.T, (CAPACITY, len(variables))).T  # one shape: repeats the points
    second = jax.vmap(column)(jnp.eye(len(x), dtype=x.dtype))
    second = jnp.moveaxis(second[:nall, :nall], -1, 0)
    return energy(x)[:npoint], gradient(x)[:nall, :npoint], np.triu(second[:npoint])


@pytest.mark.parametrize("nspin", [1, 2])
@pytest.mark.parametrize("name", COMPONENTS)
def test_component_agrees_with_libxc(name, nspin):
    rho = densities(nspin, lowest=-9, fraction=1e-3)
    value, first, second = our_derivatives(name, from_pyscf(rho), nspin)
    expected_value, expected_first, expected_second = libxc_derivatives(name, rho)
    assert np.all(expected_value != 0)  # otherwise the check could not fail
    assert_allclose(value, expected_value, rtol=FIRST_RTOL)
    assert_allclose(first, expected_first, rtol=FIRST_RTOL, atol=1e-30)
    # An element that changes sign is compared with the others of its kind at the same point.
    size = np.sqrt(np.einsum("gii,gjj->gij", abs(expected_second), abs(expected_second)))
    assert np.all(abs(second - expected_second) <= SECOND_RTOL * (abs(expected_second) + size))


@pytest.mark.parametrize("nspin", [1, 2])
@pytest.mark.parametrize("name", COMPONENTS)
def test_tiny_and_fully_polarized_densities_agree_with_libxc(name, nspin):
    threshold = COMPONENTS[name].threshold
    total = threshold * 10 ** np.linspace(3, 15, NPOINT)
    rho = np.zeros((nspin, 4, NPOINT))
    rho[0, 0] = total
    rho[0, 1] = 0.7 * total ** (4 / 3)
    value, first, _ = our_derivatives(name, from_pyscf(rho), nspin)
    expected_value, expected_first, _ = libxc_derivatives(name, rho)
    # With one spin alone, LYP is no more than what the threshold leaves of the other.
    scale = 1e-12 * abs(total) ** (4 / 3) if name == "gga_c_lyp" else 0.0
    assert np.all(abs(value - expected_value) <= FIRST_RTOL * abs(expected_value) + scale)
    if name != "gga_c_lyp":
        assert_allclose(first[0], expected_first[0], rtol=FIRST_RTOL)


@pytest.mark.parametrize("nspin", [1, 2])
@pytest.mark.parametrize("name", COMPONENTS)
def test_energy_vanishes_below_the_threshold_only(name, nspin):
    threshold = COMPONENTS[name].threshold
    rho = jnp.array([[0.0, 1e-30, 0.99 * threshold, 3 * threshold]])
    rho = jnp.concatenate([rho, 0 * rho])[:nspin]
    sigma = jnp.concatenate([rho[:1] ** (8 / 3), jnp.zeros((2, 4))])[: 2 * nspin - 1]
    energy = Functional.from_name(name).energy_density(rho, sigma)
    assert np.all(energy[:3] == 0)
    assert energy[3] != 0


EDGES = [0.0, 1e-35, 1e-16, 1e-15, 2e-15, 1e-14, 1e-12, 1e-9, 1e-8, 3e-8, 1e-3, 1.0, 1e4, -1e-9]
REDUCED = [0.0, 1e-4, 1.0, 1e6]


EVERYTHING = " + ".join(COMPONENTS)  # a NaN anywhere is a NaN in the sum


@pytest.mark.parametrize("nspin", [1, 2])
@pytest.mark.parametrize(
    ("name", "dtype"), [(EVERYTHING, np.float32), *((name, np.float64) for name in COMPONENTS)]
)
def test_two_derivatives_are_finite_at_every_edge(name, nspin, dtype):
    if nspin == 1:
        rho, reduced = (x.ravel()[None] for x in np.meshgrid(EDGES, REDUCED))
        sigma = abs(rho) ** (8 / 3) * reduced
    else:
        *rho, xa, xb, cosine = (
            x.ravel() for x in np.meshgrid(EDGES, EDGES, REDUCED, REDUCED, [-1.0])
        )
        aa, bb = (abs(r) ** (8 / 3) * x for r, x in zip(rho, (xa, xb), strict=True))
        sigma = [aa, cosine * np.sqrt(aa * bb), bb]
    variables = jnp.asarray(np.concatenate([np.stack(rho), np.stack(sigma)]), dtype)
    assert variables.shape[1] <= CAPACITY
    for derivative in our_derivatives(name, variables, nspin):
        assert derivative.dtype == dtype
        assert np.all(np.isfinite(derivative))


@pytest.mark.parametrize("name", COMPONENTS)
def test_equal_spins_are_the_closed_shell(name):
    closed = from_pyscf(densities(1, lowest=-6, fraction=1.0))
    functional = Functional.from_name(name)
    rho, sigma = closed[:1], closed[1:]
    spins = functional.energy_density(jnp.tile(rho / 2, (2, 1)), jnp.tile(sigma / 4, (3, 1)))
    assert_allclose(spins, functional.energy_density(rho, sigma), rtol=1e-11)


def test_homogeneous_gas_closed_forms():
    rho = jnp.array([[0.3]])
    exchange = -0.75 * (3 / np.pi) ** (1 / 3) * 0.3 ** (4 / 3)
    for name in ("lda_x", "gga_x_b88", "gga_x_pbe"):
        energy = Functional.from_name(name).energy_density(rho, jnp.zeros((1, 1)))
        assert_allclose(energy, [exchange], rtol=1e-14)
    polarized = Functional.from_name("lda_x").energy_density(jnp.array([[0.3], [0.0]]))
    assert_allclose(polarized, [2 ** (1 / 3) * exchange], rtol=1e-14)
