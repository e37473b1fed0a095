"""Operations of a traced function, counted in its jaxpr: loops by their length."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

_FREE = """
broadcast_in_dim reshape squeeze transpose slice dynamic_slice dynamic_update_slice gather
concatenate pad iota select_n convert_element_type copy copy_p rev stop_gradient scatter
bitcast_convert_type reduce_precision sort split random_wrap random_unwrap sharding_constraint
""".split()  # what only moves, makes or chooses data
_SPECIAL = """
exp exp2 expm1 log log1p sqrt rsqrt cbrt div pow tanh sin cos tan asin acos atan atan2 sinh cosh
asinh acosh atanh erf erfc erf_inv lgamma digamma logistic rem
""".split()


@dataclass(frozen=True)
class Operations:
    """Numbers of floating-point operations.

    Attributes:
        matrix: Additions and multiplications of matrix products and factorizations.
        simple: Other additions, multiplications, comparisons.
        special: Divisions, roots, exponentials and the like, each as one.
    """

    matrix: float = 0.0
    simple: float = 0.0
    special: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.matrix + self.simple + self.special

    def __add__(self, other: "Operations") -> "Operations":
        return Operations(
            self.matrix + other.matrix, self.simple + other.simple, self.special + other.special
        )

    def times(self, n: float) -> "Operations":
        """Done n times."""
        return Operations(n * self.matrix, n * self.simple, n * self.special)


def operations(function: Callable, *args: Any) -> Operations:
    """Of one call. A branch counts as its dearest case, so tiles that are screened count too.

    Raises:
        ValueError: A loop whose length is not known beforehand.
    """
    jaxpr, _, _ = eqx.filter_make_jaxpr(lambda *args: function(*args))(*args)
    return _of_jaxpr(jaxpr)


def compulsory_bytes(function: Callable, *args: Any) -> int:
    """Arguments and results: what has to be read and written at least."""
    out = eqx.filter_eval_shape(function, *args)
    leaves = jax.tree.leaves((args, out))
    return sum(x.size * x.dtype.itemsize for x in leaves if hasattr(x, "dtype"))


def equations(function: Callable, *args: Any) -> int:
    """How many the traced program has, those of loops and branches included."""
    return _equations(eqx.filter_make_jaxpr(lambda *args: function(*args))(*args)[0])


def _equations(jaxpr):
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    inner = [
        x
        for equation in jaxpr.eqns
        for x in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr)
        if _is_jaxpr(x)
    ]
    return len(jaxpr.eqns) + sum(map(_equations, inner))


def _is_jaxpr(x):
    return isinstance(x, ClosedJaxpr | Jaxpr)


def _of_jaxpr(jaxpr):
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum((_of_equation(equation) for equation in jaxpr.eqns), Operations())


def _of_equation(equation):
    name, params = equation.primitive.name, equation.params
    shape = equation.outvars[0].aval.shape if equation.outvars else ()
    if name == "scan":
        return _of_jaxpr(params["jaxpr"]).times(params["length"])
    if name == "while":
        raise ValueError(f"a loop of unknown length: {equation.source_info.traceback}")
    if name == "cond":
        return max((_of_jaxpr(branch) for branch in params["branches"]), key=lambda n: n.total)
    inner = [x for x in params.values() if _is_jaxpr(x)]
    if inner:
        return _of_jaxpr(inner[0])
    if name in _FREE or not any(map(_is_float, (*equation.invars, *equation.outvars))):
        return Operations()
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return Operations(matrix=2.0 * prod(shape) * depth)
    if name == "cholesky":
        return Operations(matrix=prod(shape) * shape[-1] / 3)
    if name == "triangular_solve":
        return Operations(matrix=prod(shape) * equation.invars[0].aval.shape[-1])
    size = max(prod(x.aval.shape) for x in (*equation.invars, *equation.outvars))
    if name.startswith("scatter"):
        size = prod(equation.invars[2].aval.shape)
    return Operations(special=size) if name in _SPECIAL else Operations(simple=size)


def _is_float(x):
    return jnp.issubdtype(getattr(x.aval, "dtype", np.int32), np.inexact)
