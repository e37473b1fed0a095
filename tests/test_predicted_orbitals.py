"""Occupied orbitals of a Fock matrix: derivatives, also where energies coincide; estimates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from srdft import orbitals as module
from tests import oracle

NAO = 7
STEP = 1e-3
RTOL = 1e-8  # of differences correct to STEP^4


def random_symmetric(seed, shift=0.0):
    matrix = np.random.default_rng(seed).normal(size=(NAO, NAO))
    return jnp.asarray(0.1 * (matrix + matrix.T) + shift * np.eye(NAO))


def degenerate_pair():
    """F and S with threefold occupied and twofold virtual orbital energies."""
    x = np.linalg.inv(np.asarray(random_symmetric(0, 1.0)))
    energies = np.diag([-2.0, -1.0, -1.0, -1.0, 0.5, 0.5, 0.9])
    inverse = np.linalg.inv(x)
    return jnp.asarray(inverse.T @ energies @ inverse), jnp.asarray(inverse.T @ inverse)


def density(nocc, fock, overlap):
    fock = fock[None] if fock.ndim == 2 else fock
    solved = module.orbitals(fock, overlap)
    factor = module.occupied_orbitals(fock, overlap, *solved, nocc)
    return factor @ jnp.swapaxes(factor, 1, 2)


def test_orbitals_are_orthonormal_and_solve_the_equation():
    fock, overlap = random_symmetric(1), random_symmetric(2, 1.0)
    (c,), (e,) = module.orbitals(fock[None], overlap)
    assert_allclose(c.T @ overlap @ c, np.eye(NAO), atol=1e-12)
    assert_allclose(fock @ c, overlap @ c * e[None], atol=1e-12)
    dm = density((3,), fock, overlap)[0]
    assert_allclose(jnp.vdot(dm, overlap), 6)
    assert_allclose(dm, 2 * c[:, :3] @ c[:, :3].T, atol=1e-12)


@pytest.mark.parametrize("kind", ["different", "degenerate"])
def test_the_density_has_the_right_derivative(kind):
    if kind == "degenerate":
        fock, overlap = degenerate_pair()
    else:
        fock, overlap = random_symmetric(1), random_symmetric(2, 1.0)
    direction = random_symmetric(3), random_symmetric(4)
    weight = random_symmetric(5)

    def value(fock, overlap):
        return jnp.vdot(weight, density((4,), fock, overlap)[0])

    _, forward = jax.jvp(value, (fock, overlap), direction)
    backward = jax.grad(value, argnums=(0, 1))(fock, overlap)
    values = [
        value(fock + m * STEP * direction[0], overlap + m * STEP * direction[1])
        for m in (-2, -1, 1, 2)
    ]
    measured = oracle.slope(values, STEP)
    assert abs(measured) > 1e-2
    assert_allclose(forward, measured, rtol=RTOL)
    assert_allclose(sum(map(jnp.vdot, backward, direction)), measured, rtol=RTOL)


def test_spins_are_independent_and_a_channel_may_be_empty():
    focks = jnp.stack([random_symmetric(1), random_symmetric(6)])
    overlap = random_symmetric(2, 1.0)
    dm = density((2, 0), focks, overlap)
    assert_allclose(dm[0], density((2,), focks[0], overlap)[0] / 2, atol=1e-12)
    assert (dm[1] == 0).all()
    slope = jax.grad(lambda f: jnp.sum(density((2, 0), f, overlap) ** 2))(focks)
    assert np.isfinite(slope).all() and (slope[1] == 0).all()


def test_no_gap_gives_finite_derivatives():
    fock, overlap = degenerate_pair()
    slope = jax.grad(lambda f: jnp.sum(density((2,), f, overlap) ** 2))(fock)
    assert np.isfinite(slope).all()


def test_semicanonical_orbitals_keep_the_density_and_diagonalize_both_blocks():
    fock, overlap = random_symmetric(1), random_symmetric(2, 1.0)
    (c,), _ = module.orbitals(random_symmetric(7)[None], overlap)
    (new,), (e,) = module.semicanonical(fock[None], c[None], (3,))
    assert_allclose(new[:, :3] @ new[:, :3].T, c[:, :3] @ c[:, :3].T, atol=1e-12)
    assert_allclose(new.T @ overlap @ new, np.eye(NAO), atol=1e-12)
    inner = new.T @ fock @ new
    for block in (slice(0, 3), slice(3, None)):
        assert_allclose(inner[block, block], np.diag(e[block]), atol=1e-12)
    residual = module.largest_residual(fock[None], c[None], (3,))
    assert_allclose(residual, np.abs(c[:, :3].T @ fock @ c[:, 3:]).max())


def test_the_estimate_is_exact_for_small_rotations_without_interaction():
    """A fixed F has no response: the second-order gain is the true one, to higher order."""
    fock, overlap = degenerate_pair()
    exact = jnp.vdot(fock, density((4,), fock, overlap)[0])
    errors, ratios = [], []
    for size in (0.04, 0.02):
        (c,), _ = module.orbitals((fock + size * random_symmetric(8))[None], overlap)
        c, e = module.semicanonical(fock[None], c[None], (4,))
        energy = 2 * jnp.vdot(fock, c[0, :, :4] @ c[0, :, :4].T)
        errors.append(energy - exact)
        ratios.append(module.error_estimate(fock[None], c, e, (4,)) / errors[-1])
    assert errors[1] > 1e-7
    assert_allclose(ratios, 1, atol=1e-3)
    assert abs(ratios[1] - 1) < 0.6 * abs(ratios[0] - 1)
