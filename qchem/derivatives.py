"""Derivatives with respect to what changes alone."""

from collections.abc import Callable

import jax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, PyTree


def jvp_of_moving(
    function: Callable[..., PyTree], primals: tuple[PyTree, ...], tangents: tuple[PyTree, ...]
) -> tuple[PyTree, PyTree]:
    """Forward derivative of a formula as it stands, with respect to whatever moves.

    For rules with symbolic zeros: `jax.jvp` of all primals would differentiate what is constant,
    such as the exponents in forces, and pay for it.

    Args:
        tangents: As the rule is given them.
    """
    leaves, tree = jax.tree.flatten(primals)
    dots = jax.tree.leaves(tangents)
    moving = [n for n, dot in enumerate(dots) if not isinstance(dot, SymbolicZero)]

    def of_moving(*moved):
        new = list(leaves)
        for n, leaf in zip(moving, moved, strict=True):
            new[n] = leaf
        return function(*jax.tree.unflatten(tree, new))

    return jax.jvp(of_moving, [leaves[n] for n in moving], [dots[n] for n in moving])


def triangular_quotient(
    turn: Float[Array, "nspin n n"], dot: Float[Array, "nspin n n"]
) -> Float[Array, "nspin n n"]:
    """x of dU = U x, for an upper triangular U."""
    return jax.lax.linalg.triangular_solve(turn, dot, left_side=True)
