"""What a traced program consists of, inner programs included."""

from collections.abc import Iterator
from typing import Any

import jax


def values(jaxpr: Any) -> Iterator[tuple[Any, str]]:
    """Every value of a program, constants and arguments too: type, and what makes or uses it."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for variable in (*jaxpr.constvars, *jaxpr.invars):
        yield variable.aval, "argument"
    for equation in equations(jaxpr, inner=False):
        for variable in (*equation.invars, *equation.outvars):
            yield variable.aval, _described(equation)
        for inner in _inner(equation):
            yield from values(inner)


def equations(jaxpr: Any, inner: bool = True) -> Iterator[Any]:
    """The operations of a program."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        if inner:
            for program in _inner(equation):
                yield from equations(program)


def doubles(jaxpr: Any) -> set[str]:
    """Where a program has numbers of 64 bits; Python's own numbers, which take the dtype of what
    they meet, do not count."""
    wide = ("float64", "complex128")
    return {
        f"{aval.str_short()} in {where}"
        for aval, where in values(jaxpr)
        if str(getattr(aval, "dtype", "")) in wide and (aval.shape or not aval.weak_type)
    }


def rounded_products(jaxpr: Any) -> set[str]:
    """Products of matrices of float32 that leave their precision to the device."""
    highest = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
    return {
        _described(equation)
        for equation in equations(jaxpr)
        if equation.primitive.name == "dot_general"
        and equation.invars[0].aval.dtype == "float32"
        and equation.params["precision"] != highest
    }


def _inner(equation):
    leaves = jax.tree.leaves(equation.params, is_leaf=_is_program)
    return [leaf for leaf in leaves if _is_program(leaf)]


def _is_program(x):
    return hasattr(getattr(x, "jaxpr", x), "eqns")


def _described(equation):
    frames = equation.source_info.traceback.frames if equation.source_info.traceback else ()
    ours = [f for f in frames if "/qchem/" in f.file_name or "/srdft/" in f.file_name]
    place = f" at {ours[0].file_name}:{ours[0].line_num}" if ours else ""
    return f"{equation.primitive.name}{place}"
