"""Chunked sums agree with the plain sum in every derivative, and hold one chunk in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose

from qchem.chunking import chunked_sum

RTOL = 1e-12  # rounding: the order of the additions differs
NCHUNK, SIZE, NPARAM = 3, 4, 3


def term(params, x):
    """A small nonlinear function of everything that may be perturbed."""
    phase = x["a"] @ params["w"] + params["shift"]
    return jnp.sum(x["weight"] * jnp.sin(phase) ** 2 * jnp.exp(0.1 * phase)) + x["scale"] * jnp.sum(
        params["w"][params["index"]] ** 3
    )


def plain_sum(f, params, xs):
    return jnp.sum(jax.vmap(lambda x: f(params, x))(xs))


@pytest.fixture(scope="module")
def params():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "w": jax.random.normal(keys[0], (NPARAM,)),
        "shift": jax.random.normal(keys[1], ()),
        "index": np.array([2, 0]),
    }


@pytest.fixture(scope="module")
def xs():
    keys = jax.random.split(jax.random.key(1), 3)
    return {
        "a": jax.random.normal(keys[0], (NCHUNK, SIZE, NPARAM)),
        "weight": jax.random.uniform(keys[1], (NCHUNK, SIZE)),
        "scale": jax.random.normal(keys[2], (NCHUNK,)),
    }


def of_floats(summation, params, xs):
    """The sum as a function of every floating-point input, flattened into one vector."""
    floats, unravel = ravel_pytree({"w": params["w"], "shift": params["shift"], "xs": xs})

    def function(vector):
        parts = unravel(vector)
        shared = {"w": parts["w"], "shift": parts["shift"], "index": params["index"]}
        return summation(term, shared, parts["xs"])

    return function, floats


TRANSFORMS = {
    "value": lambda f: f,
    "grad": jax.grad,
    "jacfwd": jax.jacfwd,
    "forward over reverse": jax.hessian,
    "reverse over reverse": lambda f: jax.jacrev(jax.grad(f)),
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_derivative_is_that_of_the_plain_sum(name, params, xs):
    chunked, floats = of_floats(chunked_sum, params, xs)
    plain, _ = of_floats(plain_sum, params, xs)
    expected = jax.jit(TRANSFORMS[name](plain))(floats)
    assert np.max(np.abs(expected)) > 0.1  # otherwise the check could not fail
    assert_allclose(
        jax.jit(TRANSFORMS[name](chunked))(floats),
        expected,
        rtol=RTOL,
        atol=RTOL * np.max(np.abs(expected)),
    )


def test_vmap_of_value_and_grad(params, xs):
    ws = jnp.stack([params["w"], 2.0 * params["w"], -params["w"]])

    def derivative(summation):
        return jax.vmap(jax.value_and_grad(lambda w: summation(term, params | {"w": w}, xs)))(ws)

    for measured, expected in zip(derivative(chunked_sum), derivative(plain_sum), strict=True):
        assert_allclose(measured, expected, rtol=RTOL)


def test_only_the_perturbed_is_differentiated(params, xs):
    @jax.custom_jvp
    def guarded(x):
        return x

    @guarded.defjvp
    def _(primals, tangents):
        raise AssertionError("differentiated with respect to an unperturbed input")

    def guarded_term(params, x):
        return term(params | {"shift": guarded(params["shift"])}, x)

    def total(w, shift):
        return chunked_sum(guarded_term, params | {"w": w, "shift": shift}, xs)

    measured = jax.grad(total)(params["w"], params["shift"])
    expected = jax.grad(lambda w: plain_sum(term, params | {"w": w}, xs))(params["w"])
    assert_allclose(measured, expected, rtol=RTOL)
    with pytest.raises(AssertionError, match="unperturbed"):
        jax.grad(total, argnums=1)(params["w"], params["shift"])


@pytest.mark.parametrize("order", ["grad", "grad of a directional derivative"])
def test_memory_does_not_grow_with_the_number_of_chunks(order, params):
    def wide(w, x):
        return jnp.sum(jnp.sin(w[:, None] * x[None, :]) ** 2)

    def first(w, xs):
        return chunked_sum(wide, w, xs)

    def second(w, xs):
        return jax.jvp(lambda w: first(w, xs), (w,), (jnp.ones_like(w),))[1]

    def temporary_bytes(nchunk):
        xs = jnp.ones((nchunk, 64))
        w = jnp.ones(1000)
        function = jax.grad(first if order == "grad" else second)
        needed = jax.jit(function).lower(w, xs).compile().memory_analysis().temp_size_in_bytes
        return max(0, needed - xs.nbytes)  # a compiler may copy what the loop goes through

    assert temporary_bytes(32) < 1.5 * temporary_bytes(2)


def test_dtype_is_the_functions(params, xs):
    single = jax.tree.map(
        lambda a: a.astype(np.float32) if a.dtype.kind == "f" else a, (params, xs)
    )
    value, gradient = jax.value_and_grad(
        lambda w: chunked_sum(term, single[0] | {"w": w}, single[1])
    )(single[0]["w"])
    assert value.dtype == gradient.dtype == jnp.float32
