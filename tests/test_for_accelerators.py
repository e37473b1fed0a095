"""What is traced for an accelerator computes the same, a CPU executing it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import qchem
from qchem.compilation import held_together, map_together, together
from qchem.memory import estimated_bytes

WATER = np.array([[0.0, 0.0, 0.2217], [0.0, 1.4309, -0.8867], [0.0, -1.4309, -0.8867]])
ENERGY_ATOL = 1e-10  # hartree; sums in another order
GRADIENT_ATOL = 1e-8  # hartree/bohr


def method_of(xc="b3lyp", basis="6-31g*", grid=0):
    return qchem.energy_fn((8, 1, 1), basis=basis, xc=xc, two_electron="df", grid=grid).method


def evaluated(function, platform):
    """One geometry at a time: a CPU's batched LAPACK calls can wait for each other for ever."""
    with qchem.traced_for(platform):
        return jax.jit(function)(WATER)


def orbitals_of(method):
    return jnp.asarray(0.3 * np.random.default_rng(1).normal(size=(1, method.basis.nao, 5)))


def test_exchange_and_correlation_of_given_orbitals():
    def results(positions):
        method = method_of("pbe")
        factor = orbitals_of(method)
        energy = lambda r: method._xc(r).energy_of_orbitals(factor)  # noqa: E731
        dm = jnp.einsum("smi,sni->smn", factor, factor)
        fock = method._xc(positions).energy_and_fock(dm, factor)
        return *jax.value_and_grad(energy)(positions), *fock

    expected = evaluated(results, "cpu")
    found = evaluated(results, "cuda")
    for x, y in zip(found, expected, strict=True):
        assert_allclose(x, y, rtol=0, atol=ENERGY_ATOL)


@pytest.mark.slow  # nothing but compilations
def test_energy_and_gradient_of_given_orbitals():
    def energy(positions):
        method = method_of()
        return jax.value_and_grad(method.energy)(positions, orbitals_of(method))

    expected, gradient = evaluated(energy, "cpu")
    found, slope = evaluated(energy, "cuda")
    assert_allclose(found, expected, rtol=0, atol=ENERGY_ATOL)
    assert_allclose(slope, gradient, rtol=0, atol=GRADIENT_ATOL)


@pytest.mark.slow
def test_converged_energy_and_gradient():
    def energy(positions):
        settings = {"basis": "6-31g", "xc": "pbe", "two_electron": "df", "grid": 0}
        return jax.value_and_grad(qchem.energy_fn((8, 1, 1), **settings))(positions)

    expected, gradient = evaluated(energy, "cpu")
    found, slope = evaluated(energy, "cuda")
    assert_allclose(found, expected, rtol=0, atol=1e-8)  # both as far as they converge
    assert_allclose(slope, gradient, rtol=0, atol=1e-6)


def test_many_geometries_at_once_have_small_chunks_each():
    method = method_of(grid=3)
    every = len(method.grid.reference.quadrature)
    with qchem.traced_for("cuda"):
        assert every <= method.npoint < every + 256  # one molecule: all in one
        with held_together(4096):
            few = method.npoint
        assert few < every and few & (few - 1) == 0
    alone = method.npoint
    with held_together(4096):
        assert method.npoint == alone  # geometries follow one another on a CPU


def test_the_memory_of_a_batch_is_less_than_that_many_times_one():
    method = method_of(grid=3)
    with qchem.traced_for("cuda"):
        one = sum(estimated_bytes(method, (5,), forces=True).values())
        with held_together(256):
            many = estimated_bytes(method, (5,), forces=True)
    assert many["three-index integrals"] > 200 * method.aux.nao * 8
    assert sum(many.values()) < 64 * one


def test_rows_are_told_how_many_go_side_by_side():
    seen = []

    def function(x):
        seen.append(together())
        return 2 * x

    x = np.arange(7.0)
    for platform, expected in ("cpu", 1), ("cuda", 3):
        seen.clear()
        with qchem.traced_for(platform):
            assert_allclose(jax.jit(lambda x: map_together(function, x, 3))(x), 2 * x)
        assert set(seen) == {expected}
