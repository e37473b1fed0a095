"""Weights of past cycles: the smallest commutator, and the lowest energy on the simplex."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from qchem.scf.extrapolation import FAR, NEAR, History, extrapolate

NMO = 4
SIZE = 5
compiled = jax.jit(extrapolate)


def history(seed, *, curvature=1.0):
    """Past cycles of an energy that is quadratic in the density matrix."""
    rng = np.random.default_rng(seed)
    dm, commutator = (rng.normal(size=(SIZE, 1, NMO, NMO)) for _ in range(2))
    fock = curvature * dm + rng.normal(size=(1, 1, NMO, NMO))
    return History(*(jnp.asarray(m) for m in (fock, dm, commutator)))


def weights_of(past, newest, residual, used):
    """The weights that the trial Fock matrix reveals."""
    trial = compiled(past, jnp.int32(newest), jnp.asarray(residual))
    columns = np.asarray(past.fock[:used]).reshape(used, -1).T
    weights, *_ = np.linalg.lstsq(columns, np.ravel(trial))
    assert_allclose(columns @ weights, np.ravel(trial), atol=1e-10)
    return weights


@pytest.mark.parametrize("newest", [1, 4, 7])
def test_near_the_solution_the_commutator_is_smallest(newest):
    past, used = history(0), min(newest + 1, SIZE)
    weights = weights_of(past, newest, NEAR / 2, used)
    gram = np.einsum("isab,jsab->ij", past.commutator, past.commutator)[:used, :used]
    expected = np.linalg.solve(gram, np.ones(used))
    assert_allclose(weights, expected / expected.sum(), atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("curvature", [1.0, -0.3])  # concave: the minimum is a corner
@pytest.mark.parametrize("newest", [2, 8])
def test_far_from_it_no_mixture_has_a_lower_energy(seed, curvature, newest):
    past, used = history(seed, curvature=curvature), min(newest + 1, SIZE)
    reference = newest % SIZE
    fock, dm = (np.asarray(m).reshape(SIZE, -1)[:used] for m in (past.fock, past.dm))

    def energy(w):
        change = w @ dm - dm[reference]
        return change @ fock[reference] + 0.5 * change @ (w @ fock - fock[reference])

    weights = weights_of(past, newest, 2 * FAR, used)
    assert_allclose(weights.sum(), 1, atol=1e-9)
    assert weights.min() > -1e-9
    others = np.random.default_rng(seed).dirichlet(np.full(used, 0.3), size=2000)
    lowest = min(map(energy, [*others, *np.eye(used)]))
    assert energy(weights) <= lowest + 1e-9
    assert lowest - energy(weights) < 0.5  # the search came close, so that it means something


def test_between_both_are_mixed():
    past = history(1)
    near, middle, far = (weights_of(past, 4, r, SIZE) for r in (NEAR, 0.5 * (NEAR + FAR), FAR))
    assert np.abs(near - far).max() > 1e-2
    assert_allclose(middle, 0.5 * (near + far), atol=1e-9)


def test_repeated_cycles_leave_the_trial_finite():
    past = jax.tree.map(lambda m: jnp.broadcast_to(m[:1], m.shape), history(2))
    for residual in (NEAR / 2, 2 * FAR):
        trial = compiled(past, jnp.int32(9), jnp.asarray(residual))
        assert_allclose(trial, past.fock[0], atol=1e-9)
