"""Time and memory of compiled functions and of whole calculations."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import equinox as eqx
import jax
import jax.monitoring

from qchem.compilation import program_options

_COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclass(frozen=True)
class Measurement:
    """Of one compiled function.

    Attributes:
        compile_s: Tracing, lowering and compilation.
        run_s: Median of the repeats.
        spread_s: Slowest minus fastest of them.
        peak_bytes: Arguments, results and temporary buffers of the program.
    """

    compile_s: float
    run_s: float
    spread_s: float
    peak_bytes: int


def configure_jax() -> None:
    """Use 64-bit numbers, and compile anew whatever an earlier process has kept."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_enable_compilation_cache", False)


def measure(
    function: Callable,
    *args: Any,
    repeats: int = 5,
    compiler_options: dict[str, Any] | None = None,
) -> tuple[Any, Measurement]:
    """Value and cost of a traceable function: compiled, called once to warm up, then repeated.

    Args:
        function: Of the arguments.
        repeats: How often it is timed.
        compiler_options: By default those of `qchem.program`, which calculations are compiled with.
    """
    if compiler_options is None:
        compiler_options = program_options()
    start = perf_counter()
    jitted = eqx.filter_jit(lambda *args: function(*args), compiler_options=compiler_options)
    compiled = jitted.lower(*args).compile()
    compile_s = perf_counter() - start
    value = jax.block_until_ready(compiled(*args))
    seconds = [stopwatch(compiled, *args)[1] for _ in range(repeats)]
    peak_bytes = program_bytes(compiled.compiled)
    return value, Measurement(compile_s, median(seconds), spread(seconds), peak_bytes)


def program_bytes(compiled: Any) -> int:
    """Arguments, results and temporary buffers of a compiled program."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def stopwatch(function: Callable, *args: Any) -> tuple[Any, float]:
    """Value, once it has arrived, and seconds of one call."""
    start = perf_counter()
    value = jax.block_until_ready(function(*args))
    return value, perf_counter() - start


def spread(seconds: list[float]) -> float:
    """Slowest minus fastest."""
    return max(seconds) - min(seconds)


@contextmanager
def count_compilations() -> Iterator[list[float]]:
    """The seconds of each compilation inside the block; empty if there was none."""
    seconds: list[float] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event == _COMPILED:
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def peak_rss() -> int:
    """Largest resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def threads() -> int:
    """Processors that this process may use: XLA's threads, and those that PySCF is given."""
    return len(os.sched_getaffinity(0))


def device() -> str:
    """The device that JAX computes on; its kind, for an accelerator."""
    first = jax.devices()[0]
    return first.platform if first.platform == "cpu" else f"{first.platform}: {first.device_kind}"
