"""Whole programs, compiled the way that is quickest on a CPU."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import equinox as eqx
import jax

# XLA's older way to machine code of fused loops: compiles in two thirds of the time, and what it
# makes is as fast (benchmarks/compile_options.py).
QUICK = {"xla_cpu_use_fusion_emitters": False}


def program(function: Callable[..., Any]) -> Callable[..., Any]:
    """`equinox.filter_jit` for what no other compiled function calls."""

    @cache
    def compiled():
        return eqx.filter_jit(function, compiler_options=_options())

    @wraps(function)
    def call(*args, **kwargs):
        return compiled()(*args, **kwargs)

    return call


@cache
def _options() -> dict[str, Any] | None:
    """Those of the default device that this version of XLA knows."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=QUICK)()
    except jax.errors.JaxRuntimeError:
        return None
    return QUICK
