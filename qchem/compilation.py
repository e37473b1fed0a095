"""The platform that programs are for, and whole programs, compiled quickest on a CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import equinox as eqx
import jax

# XLA's older way to machine code of fused loops: compiles in two thirds of the time, and what it
# makes is as fast (benchmarks/compile_options.py).
QUICK = {"xla_cpu_use_fusion_emitters": False}
_platform = jax.make_user_context(None)  # part of the key of JAX's caches: nothing stale is found


def platform() -> str:
    """What programs are traced for, "cpu", "gpu" or "tpu": loops, tiles and chunks differ."""
    return _platform.value or jax.default_backend()


@contextmanager
def traced_for(name: str) -> Iterator[None]:
    """Within, programs are traced for another platform than that of the default device.

    For `jax.export`, which lowers for devices that are not at hand but leaves the tracing to us.

    Args:
        name: "cpu", "gpu" or "tpu"; "cuda" and "rocm", as `jax.export` says, are both "gpu".
    """
    with _platform("gpu" if name in ("cuda", "rocm") else name):
        yield


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
