"""Sums over chunks and tiles whose derivatives need no more memory than one of them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int, PyTree


def chunked_sum(
    f: Callable[[PyTree, PyTree], Float[Array, ""]],
    params: PyTree,
    xs: PyTree,
    wanted: Bool[Array, " nchunk"] | None = None,
) -> Float[Array, ""]:
    """Sum of f(params, x) over the leading axis of `xs`, one x at a time; see `tiled_sum`.

    Args:
        f, params: As there.
        xs: Stacked along the leading axis of each leaf.
        wanted: Which count; all do if not given.
    """
    nchunk = len(jax.tree.leaves(xs)[0])
    tiles = np.arange(nchunk), np.zeros(nchunk, int)
    if wanted is None:
        return tiled_sum(lambda params, x, _: f(params, x), params, xs, (), tiles)
    both = lambda params, x, _: f(params, x[0])  # noqa: E731
    return tiled_sum(both, params, (xs, wanted), (), tiles, lambda x, _: x[1])


def tiled_sum(
    f: Callable[[PyTree, PyTree, PyTree], Float[Array, ""]],
    params: PyTree,
    rows: PyTree,
    columns: PyTree,
    tiles: tuple[Int[Array | np.ndarray, " ntile"], Int[Array | np.ndarray, " ntile"]],
    wanted: Callable[[PyTree, PyTree], Bool[Array, ""]] | None = None,
) -> Float[Array, ""]:
    """Sum of f(params, rows[i], columns[j]) over tiles (i, j), one at a time.

    Plain reverse mode through a loop keeps every tile's intermediates. Here the derivative rule
    runs one loop over value and gradient together and keeps only the sums of the gradients, so
    that forward mode, reverse mode and forward over reverse all hold one tile at a time. Only
    what is perturbed is differentiated.

    Args:
        f: Scalar function. Traced values that it needs must come through its arguments, never by
            closure. Its dtype is that of their floats.
        params: What all tiles share; leaves that are not floating point are passed through.
        rows, columns: Stacked along the leading axis of each leaf.
        tiles: The indices i and j; where they are -1 there is none.
        wanted: Whether the tile of a row and a column counts; all do if not given, and then there
            must be no -1.

    Returns:
        The sum, in the order of `tiles`.
    """
    arguments = jax.tree.map(jnp.asarray, (params, rows, columns))
    leaves, tree = jax.tree.flatten(arguments)
    ends = np.cumsum([len(jax.tree.leaves(part)) for part in arguments])
    group = np.searchsorted(ends, np.arange(len(leaves)), side="right")  # of each leaf
    leaves += [jnp.asarray(index, jnp.int32) for index in tiles]
    dtype = next(x.dtype for x in leaves if jnp.issubdtype(x.dtype, jnp.floating))
    zero = np.zeros((), dtype)  # no traced value: the rule would close over it

    def chosen(leaves, tile):
        at = (None, *tile)
        pairs = zip(leaves[:-2], group, strict=True)
        return [x if g == 0 else jax.lax.dynamic_index_in_dim(x, at[g], 0, False) for x, g in pairs]

    def if_wanted(function, parts, tile, nothing):
        if wanted is None:
            return function(parts)
        condition = wanted(*jax.tree.unflatten(tree, parts)[1:]) & (tile[0] >= 0)
        return jax.lax.cond(condition, function, lambda _: nothing, parts)

    def term(parts):
        return f(*jax.tree.unflatten(tree, parts))

    @jax.custom_jvp
    def total(*leaves):
        def step(value, tile):
            return value + if_wanted(term, chosen(leaves, tile), tile, zero), None

        return jax.lax.scan(step, zero, tuple(leaves[-2:]))[0]

    def value_and_gradients(leaves, perturbed):
        # Recomputed, not stored, when this loop is itself differentiated in reverse mode.
        @jax.checkpoint
        def of_tile(parts):
            def varied(values):
                merged = list(parts)
                for k, value in zip(perturbed, values, strict=True):
                    merged[k] = value
                return term(merged)

            return jax.value_and_grad(varied)([parts[k] for k in perturbed])

        def step(sums, tile):
            parts = chosen(leaves, tile)
            nothing = zero, [jnp.zeros_like(parts[k]) for k in perturbed]
            value, gradients = if_wanted(of_tile, parts, tile, nothing)
            at = (None, *tile)
            summed = [
                _added(total, gradient, at[group[k]])
                for total, gradient, k in zip(sums[1], gradients, perturbed, strict=True)
            ]
            return (sums[0] + value, summed), None

        sums = zero, [jnp.zeros_like(leaves[k]) for k in perturbed]
        return jax.lax.scan(step, sums, tuple(leaves[-2:]))[0]

    def rule(primals, tangents):
        perturbed = [k for k, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]
        if not perturbed:
            value = total(*primals)
            return value, jnp.zeros_like(value)
        value, gradients = value_and_gradients(primals, perturbed)
        tangent = sum(
            jnp.vdot(g, tangents[k], precision="highest")
            for g, k in zip(gradients, perturbed, strict=True)
        )
        return value, tangent.astype(value.dtype)

    total.defjvp(rule, symbolic_zeros=True)
    return total(*leaves)


def _added(total, x, at):
    """The total with x added, as a whole or at an index of its leading axis."""
    if at is None:
        return total + x
    x = x + jax.lax.dynamic_index_in_dim(total, at, 0, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(total, x, at, 0)
