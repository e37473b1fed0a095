"""Orthonormalization, occupation, density matrices, spin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from qchem.errors import InputError
from qchem.scf import (
    canonical_orthogonalizer,
    density_matrix,
    diagonalize,
    occupation_numbers,
    orbital_factor,
    reorthonormalize,
    spin_square,
)
from qchem.scf.orbitals import held_and_turn, slope_of_orthonormality
from tests import oracle

ROUNDING = 1e-12  # a few operations on matrices of norm near one
NAO = 6


def overlap_matrix(seed, *, dependent=False, dtype=np.float64):
    """A unit-diagonal positive matrix; if `dependent`, the last function repeats the first."""
    rows = np.random.default_rng(seed).normal(size=(NAO, 9))
    if dependent:
        rows[-1] = rows[0] + 1e-6 * rows[-1]
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    return jnp.asarray(rows @ rows.T, dtype)


def symmetric_matrix(seed):
    a = np.random.default_rng(seed).normal(size=(NAO, NAO))
    return jnp.asarray(a + a.T)


def test_orthogonalizer_makes_the_overlap_unity():
    s = overlap_matrix(0)
    x, kept = canonical_orthogonalizer(s)
    assert kept.all()
    assert_allclose(x.T @ s @ x, np.eye(NAO), atol=ROUNDING)


def test_linear_dependence_is_removed_and_never_occupied():
    s, fock = overlap_matrix(1, dependent=True), symmetric_matrix(2)
    x, kept = canonical_orthogonalizer(s)
    assert kept.sum() == NAO - 1
    assert_allclose(x.T @ s @ x, np.diag(kept), atol=ROUNDING)
    energies, vectors = diagonalize(x.T @ fock @ x, kept)
    assert np.isposinf(energies[-1]) and np.isfinite(energies[:-1]).all()
    assert_allclose((x @ vectors)[:, -1], 0, atol=ROUNDING)
    sub = x[:, np.asarray(kept)]
    assert_allclose(energies[:-1], np.linalg.eigvalsh(sub.T @ fock @ sub), atol=1e-10)


def test_threshold_decides_what_is_removed():
    s = jnp.diag(jnp.asarray([1e-4, 1e-2, 1.0]))
    assert canonical_orthogonalizer(s, 1e-3)[1].sum() == 2
    assert canonical_orthogonalizer(s, 1e-5)[1].sum() == 3


def test_single_precision_raises_the_threshold_to_what_it_resolves():
    s = overlap_matrix(1, dependent=True, dtype=np.float32)
    x, kept = canonical_orthogonalizer(s, 0.0)
    assert x.dtype == jnp.float32 and kept.sum() == NAO - 1


@pytest.mark.parametrize("nocc, total", [((2,), 4), ((3, 1), 4), ((2, 0), 2)])
def test_density_holds_the_electrons(nocc, total):
    s = overlap_matrix(3)
    x, _ = canonical_orthogonalizer(s)
    factor = orbital_factor(jnp.stack([x] * len(nocc)), nocc)
    assert factor.shape == (len(nocc), NAO, max(nocc))
    dm = density_matrix(factor)
    assert_allclose(jnp.sum(dm, axis=0).ravel() @ s.ravel(), total, rtol=ROUNDING)
    assert_allclose(occupation_numbers(nocc, NAO, s.dtype).sum(), total)
    per_channel = dm @ s * (len(nocc) / 2)
    assert_allclose(per_channel @ per_channel, per_channel, atol=ROUNDING)  # idempotent


@pytest.mark.parametrize("nocc", [(), (NAO + 1,), (0, 0), (-1, 2), (1, 1, 1)])
def test_impossible_occupations_are_refused(nocc):
    with pytest.raises(InputError, match="nocc"):
        occupation_numbers(nocc, NAO, jnp.dtype(jnp.float64))


def moved_factor():
    x, _ = canonical_orthogonalizer(overlap_matrix(4))
    return orbital_factor(jnp.stack([x, x[:, ::-1]]), (3, 1))  # the second channel is padded


def test_reorthonormalized_orbitals_are_orthonormal_and_span_the_same():
    factor, s = moved_factor(), overlap_matrix(5)
    new = reorthonormalize(factor, s)
    assert_allclose(new[0].T @ s @ new[0], np.eye(3), atol=ROUNDING)
    assert_allclose(new[1].T @ s @ new[1], np.diag([1, 0, 0]), atol=ROUNDING)
    assert np.linalg.matrix_rank(np.hstack([new[0], factor[0]]), tol=1e-9) == 3
    assert_allclose(reorthonormalize(5.0 * factor, s, 2.0), new * 2**0.5, atol=ROUNDING)


def test_reorthonormalization_differentiates_twice():
    """Derivatives of a function of the density, forward over reverse against differences."""
    factor, s, weight = moved_factor(), overlap_matrix(4), symmetric_matrix(6)
    direction = overlap_matrix(7) - overlap_matrix(8)

    @jax.jit
    def value(t):
        dm = density_matrix(reorthonormalize(factor, s + t * direction))
        return jnp.vdot(weight, dm[0]) ** 2 + jnp.vdot(weight, dm[1])

    first, second = jax.jit(jax.grad(value)), jax.jit(jax.jacfwd(jax.grad(value)))
    step = 1e-4
    slope = (value(step) - value(-step)) / (2 * step)
    curvature = (first(step) - first(-step)) / (2 * step)
    assert abs(slope) > 1e-2 and abs(curvature) > 1e-2
    assert_allclose(first(0.0), slope, rtol=1e-5)
    assert_allclose(second(0.0), curvature, rtol=1e-5)
    padded = jax.jit(jax.grad(lambda s: reorthonormalize(factor, s)[1].sum()))
    assert jnp.isfinite(padded(s)).all()


def test_held_and_turn_make_what_is_reorthonormalized():
    """Value and two derivatives; what is held moves with the orbitals alone."""
    factor, s = moved_factor(), overlap_matrix(5)
    direction = overlap_matrix(7) - overlap_matrix(8), oracle.random_like(factor, 3)
    held, turn = held_and_turn(factor, s, 2.0)
    assert_allclose(turn, np.broadcast_to(np.eye(3), (2, 3, 3)), rtol=0, atol=0)
    assert_allclose(held @ turn, reorthonormalize(factor, s, 2.0), atol=ROUNDING)

    def derivatives(orbitals):
        def value(t):
            moved = factor * (1 + t * direction[1])
            return jnp.sum(jnp.sin(orbitals(moved, s + t * direction[0])) ** 2)

        slope = jax.grad(value)
        return jax.jit(lambda t: jax.jvp(slope, (t,), (1.0,)))(0.0)

    found = derivatives(lambda *x: jnp.matmul(*held_and_turn(*x)))
    assert_allclose(found, derivatives(reorthonormalize), rtol=1e-12)
    still = jax.jacfwd(lambda t: held_and_turn(factor, s + t * direction[0])[0])(0.0)
    assert not np.any(still)


@pytest.mark.parametrize("nocc", [(3,), (3, 1)])
def test_slope_of_orthonormality_is_that_of_reorthonormalized_orbitals(nocc):
    """Of NumPy's and of JAX's arrays, of orbitals that diagonalize nothing."""
    s, nspin = overlap_matrix(4), len(nocc)
    x, _ = canonical_orthogonalizer(s)
    mo_coeff, mo_occ = jnp.stack([x, x[:, ::-1]][:nspin]), occupation_numbers(nocc, NAO, s.dtype)
    fock = jnp.stack([symmetric_matrix(2), symmetric_matrix(6)][:nspin])
    factor = orbital_factor(mo_coeff, nocc)

    def energy(s):
        dm = density_matrix(reorthonormalize(factor, (s + s.T) / 2, 2 / nspin))
        return jnp.vdot(fock, dm)

    arrays, expected = (fock, mo_coeff, mo_occ), jax.jit(jax.grad(energy))(s)
    assert_allclose(slope_of_orthonormality(*arrays), expected, atol=1e-10)
    on_host = slope_of_orthonormality(*map(np.asarray, arrays))
    assert isinstance(on_host, np.ndarray)
    assert_allclose(on_host, expected, atol=1e-10)


def test_spin_square_of_pure_and_mixed_determinants():
    s = overlap_matrix(9)
    x, _ = canonical_orthogonalizer(s)
    same = jnp.stack([x, x])
    assert spin_square(orbital_factor(x[None], (2,)), s) == 0
    assert_allclose(spin_square(orbital_factor(same, (2, 2)), s), 0, atol=ROUNDING)
    assert_allclose(spin_square(orbital_factor(same, (3, 1)), s), 2, atol=ROUNDING)  # triplet
    assert_allclose(spin_square(orbital_factor(same, (1, 3)), s), 2, atol=ROUNDING)
    assert_allclose(spin_square(orbital_factor(same, (1, 0)), s), 0.75, atol=ROUNDING)
    orthogonal = jnp.stack([x, x[:, ::-1]])  # one electron in each of two orbitals: half triplet
    assert_allclose(spin_square(orbital_factor(orthogonal, (1, 1)), s), 1, atol=ROUNDING)
