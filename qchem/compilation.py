"""Whole programs: compiled the way that is quickest on a CPU, and kept for the next process.

JAX's cache on disk spares XLA's part of a compilation. Tracing and lowering, which take as long as
everything else of a short calculation, are spared by keeping the executable itself under a
fingerprint of what the program is made from. The platform that it is traced for is part of that.
"""

from __future__ import annotations

import os
import pickle
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, wraps
from io import BytesIO
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.serialize_executable import deserialize_and_load, serialize

from qchem.fingerprint import NoFingerprint, callable_name, fingerprint
from qchem.linear_algebra import prepare_lapack

# XLA's older way to machine code of fused loops: compiles in two thirds of the time, and what it
# makes is as fast (benchmarks/compile_options.py).
QUICK = {"xla_cpu_use_fusion_emitters": False}
FOLDER = "programs"  # within JAX's cache directory
_UNUSED_DAYS = 30  # after which a program is removed
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
    """`equinox.filter_jit` for whole programs.

    Where JAX has a cache directory, the compiled program is kept there and found by a later process
    without tracing, if `function` and all static parts of its arguments are of this package or of
    those that it depends on.
    """
    known: dict[Any, _Executable] = {}
    lock = threading.Lock()

    within = eqx.filter_jit(function)  # another program, which has options of its own

    @wraps(function)
    def call(*args, **kwargs):
        leaves, tree = jax.tree.flatten((args, kwargs))
        if jax.config.jax_disable_jit or any(isinstance(x, jax.core.Tracer) for x in leaves):
            return within(*args, **kwargs)
        arrays = [x for x in leaves if _is_array(x)]
        fixed = [_Abstract.of(x) if _is_array(x) else x for x in leaves]
        settings = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision
        place = platform(), jax.config.jax_default_device
        key = tree, tuple((type(x), x) for x in fixed), settings, place
        with lock:
            executable = known.get(key)
            if executable is None:
                executable = known[key] = _Executable.of(function, tree, fixed, arrays)
        return executable(arrays)

    return call


def _is_array(x):
    return isinstance(x, jax.Array | np.ndarray | np.generic)


class _Abstract(eqx.Module):
    """What a program knows of an array."""

    shape: tuple[int, ...]
    dtype: Any
    weak_type: bool
    sharding: jax.sharding.Sharding | None  # None where JAX may choose

    @classmethod
    def of(cls, x) -> _Abstract:
        if not isinstance(x, jax.Array):
            return cls(x.shape, x.dtype, False, None)
        weak = getattr(x, "weak_type", False)  # keys of random numbers have none
        return cls(x.shape, x.dtype, weak, x.sharding if x.committed else None)


class _Hole:
    """Stands for an array in what a program returns."""


class _Executable:
    """A compiled program: from arrays to the tree that the function returns."""

    def __init__(self, compiled: Callable[..., Any], skeleton: Any):
        self._compiled = compiled
        self._leaves, self._tree = jax.tree.flatten(skeleton)

    @classmethod
    def of(cls, function, tree, fixed, arrays) -> _Executable:
        """From the disk, or else compiled."""
        path = _path(function, tree, fixed)
        found = None if path is None else cls._loaded(path)
        if found is None:
            hits = _hits()
            before = len(hits)
            compiled, skeleton = _compiled(function, tree, fixed, arrays)
            found = cls(compiled, skeleton)
            # What XLA has read from JAX's cache it cannot write again (jaxlib 0.10, CPU).
            if path is not None and len(hits) == before:
                _keep(path, compiled, skeleton)
        return found

    @classmethod
    def _loaded(cls, path) -> _Executable | None:
        try:
            content = path.read_bytes()
            path.touch()  # it is in use
        except OSError:
            return None
        try:
            serialized, in_tree, out_tree, skeleton, devices = _Unpickler(BytesIO(content)).load()
            prepare_lapack()
            return cls(
                deserialize_and_load(serialized, in_tree, out_tree, execution_devices=devices),
                skeleton,
            )
        except Exception as error:  # truncated, or of a runtime that differs after all
            warnings.warn(f"{path} cannot be used and is made anew: {error}", stacklevel=2)
            return None

    def __call__(self, arrays):
        values = iter(self._compiled(*arrays))
        leaves = [next(values) if isinstance(x, _Hole) else x for x in self._leaves]
        return jax.tree.unflatten(self._tree, leaves)


def _compiled(function, tree, fixed, arrays):
    """The function of the arrays alone, compiled; and what it returns without its arrays."""
    skeletons = []

    def of_arrays(*arrays):
        given = iter(arrays)
        leaves = [next(given) if isinstance(x, _Abstract) else x for x in fixed]
        args, kwargs = jax.tree.unflatten(tree, leaves)
        leaves, out_tree = jax.tree.flatten(function(*args, **kwargs))
        holes = [_Hole() if _is_array(x) else x for x in leaves]
        skeletons.append(jax.tree.unflatten(out_tree, holes))
        return [jnp.asarray(x) for x in leaves if _is_array(x)]

    of_arrays.__name__ = of_arrays.__qualname__ = callable_name(function)
    compiled = jax.jit(of_arrays, compiler_options=program_options()).lower(*arrays).compile()
    return compiled, skeletons[-1]


def _path(function, tree, fixed) -> Path | None:
    """Where the program is kept; None where it cannot be."""
    folder = jax.config.jax_compilation_cache_dir
    if not folder or not jax.config.jax_enable_compilation_cache or "://" in folder:
        return None
    if jax.process_count() > 1:
        return None
    shapes = [
        (x.shape, str(x.dtype), x.weak_type, x.sharding) if isinstance(x, _Abstract) else ("", x)
        for x in fixed
    ]
    options = sorted((program_options() or {}).items())
    try:
        digest = fingerprint(function, tree, shapes, platform(), options)
    except NoFingerprint:
        return None
    return Path(folder, FOLDER, f"{callable_name(function)}-{digest}")


class _Pickler(pickle.Pickler):
    """Devices, which meshes hold, are written as their numbers."""

    def persistent_id(self, x):
        return x.id if isinstance(x, jax.Device) else None


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid):
        return next(device for device in jax.devices() if device.id == pid)


def _devices(compiled) -> list[jax.Device]:
    """Those that a program runs on, in its order."""
    shardings = jax.tree.leaves((compiled.input_shardings, compiled.output_shardings))
    for sharding in shardings:
        if isinstance(sharding, jax.sharding.NamedSharding):
            return list(sharding.mesh.devices.flat)
    return list(shardings[0].device_set) if shardings else jax.local_devices()[:1]


@cache
def _hits() -> list[str]:
    """Every program that JAX has found in its cache since the first call."""
    found: list[str] = []

    def listen(event, **_):
        if event == "/jax/compilation_cache/cache_hits":
            found.append(event)

    jax.monitoring.register_event_listener(listen)
    return found


def _keep(path: Path, compiled, skeleton) -> None:
    """Write the file in one step. Some programs cannot be written, those that call the host for
    example; and where a file cannot be, the next process compiles again."""
    content = BytesIO()
    try:
        _Pickler(content).dump((*serialize(compiled), skeleton, _devices(compiled)))
    except (NotImplementedError, ValueError, TypeError, pickle.PicklingError, AttributeError):
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.getbuffer())
        temporary.replace(path)
        remove_unused(path.parent)
    except OSError as error:
        warnings.warn(f"the compiled program {path} is not kept: {error}", stacklevel=2)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_unused(folder: Path) -> None:
    """Remove files and folders that have not been used for a month."""
    for path in folder.iterdir():
        with suppress(OSError):  # another process may be faster
            if time.time() - path.stat().st_mtime > 86400 * _UNUSED_DAYS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@cache
def program_options() -> dict[str, Any] | None:
    """What `program` gives the compiler of the default device, if this version of XLA knows it."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=QUICK)()
    except jax.errors.JaxRuntimeError:
        return None
    return QUICK
