"""Sums over chunks whose derivatives need no more memory than one chunk."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, PyTree


def chunked_sum(
    f: Callable[[PyTree, PyTree], Float[Array, ""]], params: PyTree, xs: PyTree
) -> Float[Array, ""]:
    """Sum of f(params, x) over the leading axis of `xs`, one x at a time.

    Plain reverse mode through a loop keeps every chunk's intermediates. Here the derivative rule
    runs one loop over value and gradient together and keeps only the sum of the gradients, so
    that forward mode, reverse mode and forward over reverse all hold one chunk at a time. Only
    what is perturbed is differentiated.

    Args:
        f: Scalar function of the parameters and of one chunk. Traced values that it needs must
            come through `params` or `xs`, never by closure. Its dtype is that of their floats.
        params: What all chunks share; leaves that are not floating point are passed through.
        xs: The chunks, stacked along the leading axis of each leaf.

    Returns:
        The sum, in the order of `xs`.
    """
    params, xs = jax.tree.map(jnp.asarray, (params, xs))
    shared, params_tree = jax.tree.flatten(params)
    scanned, xs_tree = jax.tree.flatten(xs)
    nshared = len(shared)

    def term(shared, scanned):
        return f(jax.tree.unflatten(params_tree, shared), jax.tree.unflatten(xs_tree, scanned))

    @jax.custom_jvp
    def total(*leaves):
        shared, scanned = leaves[:nshared], leaves[nshared:]
        zero = jnp.zeros((), _dtype(leaves))
        return jax.lax.scan(lambda acc, x: (acc + term(shared, x), None), zero, scanned)[0]

    def rule(primals, tangents):
        perturbed = [i for i, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]
        if not perturbed:
            value = total(*primals)
            return value, jnp.zeros_like(value)
        split = sum(i < nshared for i in perturbed)
        value, gradients = _value_and_gradients(term, primals, nshared, perturbed, split)
        tangent = sum(jnp.vdot(g, tangents[i]) for g, i in zip(gradients, perturbed, strict=True))
        return value, tangent.astype(value.dtype)

    total.defjvp(rule, symbolic_zeros=True)
    return total(*shared, *scanned)


def _value_and_gradients(term, leaves, nshared, perturbed, split):
    """The sum and its gradients: the first `split` summed over chunks, the others stacked."""

    # Recomputed, not stored, when this loop is itself differentiated in reverse mode.
    @jax.checkpoint
    def chunk(shared, scanned):
        everything = [*shared, *scanned]

        def varied(values):
            merged = list(everything)
            for i, value in zip(perturbed, values, strict=True):
                merged[i] = value
            return term(merged[:nshared], merged[nshared:])

        value, gradients = jax.value_and_grad(varied)([everything[i] for i in perturbed])
        return (value, gradients[:split]), gradients[split:]

    shared, scanned = leaves[:nshared], leaves[nshared:]

    def step(acc, x):
        summed, stacked = chunk(shared, x)
        return jax.tree.map(jnp.add, acc, summed), stacked

    perturbed_shared = [leaves[i] for i in perturbed[:split]]
    zero = (jnp.zeros((), _dtype(leaves)), [jnp.zeros_like(x) for x in perturbed_shared])
    (value, summed), stacked = jax.lax.scan(step, zero, scanned)
    return value, [*summed, *stacked]


def _dtype(leaves):
    """Of the sum: that of the floating-point leaves."""
    return next(x.dtype for x in leaves if jnp.issubdtype(x.dtype, jnp.floating))
