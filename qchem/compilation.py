"""Whole programs: compiled the way that is quickest on a CPU, and kept for the next process.

JAX's cache on disk spares XLA's part of a compilation. Tracing and lowering, which take as long as
everything else of a short calculation, are spared by keeping the executable itself under a
fingerprint of what the program is made from. The platform that it is traced for is part of that.
"""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache, update_wrapper
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from weakref import ref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.serialize_executable import deserialize_and_load, serialize
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import PyTree

from qchem.fingerprint import NoFingerprint, callable_name, fingerprint
from qchem.linear_algebra import prepare_lapack

# XLA's older way to machine code of fused loops, while it has it (jaxlib 0.10): compiles in two
# thirds of the time, and what it makes is as fast (benchmarks/compile_options.py). And no loop is
# split over threads: while several devices are at work, what follows may begin before all parts are
# done (jaxlib 0.10), and the numbers are wrong.
SPLITTING = "cpu-parallel-task-assigner"  # the pass of XLA that does so
QUICK = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_disable_hlo_passes": SPLITTING,
    "xla_cpu_prefer_vector_width": 512,  # of what a processor has; 256 is XLA's own limit
}
FOLDER = "programs"  # within JAX's cache directory
_UNUSED_DAYS = 30  # after which a program is removed
# Parts of the key of JAX's caches: nothing stale is found.
_platform = jax.make_user_context(None)
_together = jax.make_user_context(1)
# Held to trace a program: two threads at once take longer than one after the other, and the
# compiler is free to begin with the first while the second is traced.
_tracing = threading.RLock()
_PATIENCE = 0.2  # seconds: what is made ahead comes after what is needed now


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


def together() -> int:
    """Geometries whose arrays an accelerator holds at once, where programs are traced for them:
    the more, the smaller the chunks of points of each."""
    return 1 if platform() == "cpu" else _together.value


@contextmanager
def held_together(size: int) -> Iterator[None]:
    """Within, programs are traced for this many geometries at once."""
    with _together(size):
        yield


def standing(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's arrays, standing in memory; to be called under `jit`.

    On a CPU the compiler makes an array anew for each array that it goes into, unless another
    function returns it; on a GPU it makes one kernel of all, in which neighbours do different
    things.
    """
    if platform() != "cpu":
        return jax.lax.optimization_barrier(function(*arguments))

    def plain(*arguments):
        # Functions within are not meant. To say nothing of them would do, but for derivatives.
        with set_xla_metadata(inlineable="true"):
            return function(*arguments)

    with set_xla_metadata(inlineable="false"):
        return jax.jit(plain)(*arguments)


def map_together(function: Callable[[Any], Any], rows: Any, size: int) -> Any:
    """function(row) for all rows, stacked; to be called under `jit`.

    Args:
        function: Of one geometry, a pure function.
        rows: Arrays with the geometries along the leading axis.
        size: Geometries that an accelerator holds at once. On a CPU they follow one another: its
            threads work on one at a time, and XLA's batched LAPACK calls can wait for each other
            for ever where there are few threads (jaxlib 0.10).
    """
    size = min(size, len(jax.tree.leaves(rows)[0]))
    if platform() == "cpu" or size <= 1:
        return jax.lax.map(function, rows)
    with held_together(size):
        return jax.lax.map(function, rows, batch_size=size)


def program(function: Callable[..., Any]) -> Program:
    """`equinox.filter_jit` for whole programs.

    Where JAX has a cache directory, the compiled program is kept there and found by a later process
    without tracing, if `function` and all static parts of its arguments are of this package or of
    those that it depends on.
    """
    return Program(function)


class Program:
    """A function that is compiled once for each kind of arguments; see `program`."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self._within = eqx.filter_jit(function)  # another program, which has options of its own
        self._known: dict[Any, _Executable] = {}
        self._lock = threading.Lock()
        update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns, arrays as those of JAX."""
        return self._call(args, kwargs)

    def announced(self, listener: Callable[[Any], None]) -> Callable[..., Any]:
        """The same, which tells what it will return before it is ready for the first time: before
        it is compiled, or taken from the disk.

        Args:
            listener: Of that tree, with `jax.ShapeDtypeStruct` in place of arrays.
        """
        return lambda *args, **kwargs: self._call(args, kwargs, listener)

    def _call(self, args, kwargs, listener=None):
        request = _Request.of(args, kwargs)
        if request is None:
            return self._within(*args, **kwargs)
        return self._executable(request, listener)(request.arrays)

    def ahead(self, *args: Any, **kwargs: Any) -> None:
        """Have the program found, or else compiled, in another thread while this one goes on.

        Not where several processes share the devices: they would have to do it at one time.

        Args:
            *args, **kwargs: As in the call to come, but for the elements of arrays, or
                `jax.ShapeDtypeStruct` in their place.
        """

        def make():
            time.sleep(_PATIENCE)
            # What fails here fails again, and is seen, where the program is called. Some settings
            # are a thread's own.
            with suppress(Exception):
                if request.key == _Request.of(args, kwargs).key:
                    self._executable(request)

        request = _Request.of(args, kwargs)
        if request is not None and jax.process_count() == 1:
            threading.Thread(target=make).start()

    def _executable(self, request, listener=None):
        with self._lock:
            found = self._known.get(request.key)
            if found is None:
                found = _Executable.of(self._function, request, listener or (lambda types: None))
                self._known[request.key] = found
        return found


class _Request:
    """Arguments: their arrays, and all else, which a program is made for."""

    def __init__(self, leaves: list[Any], tree: jax.tree_util.PyTreeDef):
        self.tree = tree
        self.arrays = [x for x in leaves if _is_array(x)]
        self.fixed = [_Abstract.of(x) if _is_array(x) else x for x in leaves]
        settings = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision
        place = platform(), jax.config.jax_default_device
        self.key = tree, tuple((type(x), x) for x in self.fixed), settings, place

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Request | None:
        """None within another program, or where nothing is to be compiled."""
        leaves, tree = jax.tree.flatten((args, kwargs))
        if jax.config.jax_disable_jit or any(isinstance(x, jax.core.Tracer) for x in leaves):
            return None
        return cls(leaves, tree)


def _is_array(x):
    return isinstance(x, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


class _Abstract(NamedTuple):
    """What a program is made for of an array. Where several devices of one process hold it, it is
    taken to where the program that has been made wants it, which is almost always where it is."""

    shape: tuple[int, ...]
    dtype: Any
    weak_type: bool
    place: jax.Device | jax.sharding.Sharding | None  # None where it may be any

    @classmethod
    def of(cls, x) -> _Abstract:
        weak = getattr(x, "weak_type", False)  # keys of random numbers have none
        place = None
        if isinstance(x, jax.Array) and x.committed:
            if len(x.sharding.device_set) == 1:
                (place,) = x.sharding.device_set
            elif not x.is_fully_addressable:
                place = x.sharding
        return cls(x.shape, x.dtype, weak, place)


class _Executable:
    """A compiled program: from arrays to the tree that the function returns."""

    def __init__(self, compiled: Callable[..., Any], types: Any):
        self._compiled = compiled
        self._places = compiled.input_shardings[0]  # None where an array is not used
        self._leaves, self._tree = jax.tree.flatten(types)

    @classmethod
    def of(cls, function, request, listener) -> _Executable:
        """From the disk, or else compiled."""
        path = _path(function, request.tree, request.fixed)
        found = None if path is None else cls._loaded(path, listener)
        if found is None:
            here, hits = threading.get_ident(), _hits()
            before = hits.count(here)
            lowered, types = _lowered(function, request.tree, request.fixed, request.arrays)
            listener(types)
            compiled = lowered.compile()
            found = cls(compiled, types)
            # What XLA has read from JAX's cache it cannot write again (jaxlib 0.10, CPU).
            if path is not None and hits.count(here) == before:
                _keep(path, compiled, types)
        return found

    @classmethod
    def _loaded(cls, path, listener) -> _Executable | None:
        try:
            content = path.read_bytes()
            path.touch()  # it is in use
        except OSError:
            return None
        try:
            serialized, in_tree, out_tree, types, devices = _Unpickler(BytesIO(content)).load()
            listener(types)
            prepare_lapack()
            return cls(
                deserialize_and_load(serialized, in_tree, out_tree, execution_devices=devices),
                types,
            )
        except Exception as error:  # truncated, or of a runtime that differs after all
            warnings.warn(f"{path} cannot be used and is made anew: {error}", stacklevel=2)
            return None

    def __call__(self, arrays):
        values = iter(self._compiled(*map(_placed, arrays, self._places)))
        leaves = [next(values) if _is_array(x) else x for x in self._leaves]
        return jax.tree.unflatten(self._tree, leaves)


def unchanging(tree: PyTree) -> PyTree:
    """The same with NumPy arrays that cannot be changed: programs take them to a device once."""

    def of(x):
        if isinstance(x, np.ndarray):
            x = x.copy()
            x.flags.writeable = False
        return x

    return jax.tree.map(of, tree)


_known_places: dict[Any, tuple[ref, jax.Array]] = {}


def _placed(x, place):
    """An array where a program wants it, if it lies elsewhere, or is known to be wanted again."""
    if isinstance(x, jax.Array):
        at_place = place is None or not x.committed or _are_equal(x.sharding, place, x.ndim)
        return x if at_place else jax.device_put(x, place)
    lasting = type(x) is np.ndarray and not x.flags.writeable and x.flags.owndata
    if not lasting or place is None or not place.is_fully_addressable:
        return x
    key = id(x), place
    found = _known_places.get(key)
    if found is None or found[0]() is not x:
        forget = ref(x, lambda _: _known_places.pop(key, None))
        # A copy, as what JAX takes without one holds its array, which would never be forgotten.
        found = _known_places[key] = forget, jax.device_put(x.copy(), place)
    return found[1]


@lru_cache(maxsize=1024)
def _are_equal(place, other, ndim):
    return place.is_equivalent_to(other, ndim)


def _lowered(function, tree, fixed, arrays):
    """The function of the arrays alone, lowered; and what it returns, types in place of arrays."""
    trees = []

    def of_arrays(*arrays):
        given = iter(arrays)
        leaves = [next(given) if isinstance(x, _Abstract) else x for x in fixed]
        args, kwargs = jax.tree.unflatten(tree, leaves)
        leaves, out_tree = jax.tree.flatten(function(*args, **kwargs))
        trees.append((leaves, out_tree))
        return [jnp.asarray(x) for x in leaves if _is_array(x)]

    of_arrays.__name__ = of_arrays.__qualname__ = callable_name(function)
    with _tracing, _without_collection():
        lowered = jax.jit(of_arrays, compiler_options=program_options()).lower(*arrays)
    types = iter(lowered.out_info)
    leaves, out_tree = trees[-1]
    leaves = [_type(next(types)) if _is_array(x) else x for x in leaves]
    return lowered, jax.tree.unflatten(out_tree, leaves)


def _type(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type)


@contextmanager
def _without_collection():
    """Within, memory that refers to itself is not looked for: it would be done again and again, and
    what a trace is made of is kept to its end anyway."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _path(function, tree, fixed) -> Path | None:
    """Where the program is kept; None where it cannot be."""
    folder = jax.config.jax_compilation_cache_dir
    if not folder or not jax.config.jax_enable_compilation_cache or "://" in folder:
        return None
    if jax.process_count() > 1:
        return None
    shapes = [
        (x.shape, str(x.dtype), x.weak_type, x.place) if isinstance(x, _Abstract) else ("", x)
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
def _hits() -> list[int]:
    """The thread of every program that JAX has found in its cache since the first call."""
    found: list[int] = []

    def listen(event, **_):
        if event == "/jax/compilation_cache/cache_hits":
            found.append(threading.get_ident())

    jax.monitoring.register_event_listener(listen)
    return found


def _keep(path: Path, compiled, types) -> None:
    """Write the file in one step. Some programs cannot be written, those that call the host for
    example; and where a file cannot be, the next process compiles again."""
    content = BytesIO()
    try:
        _Pickler(content).dump((*serialize(compiled), types, _devices(compiled)))
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
    """What `program` gives the compiler of the default device, as far as its XLA knows it."""
    if jax.default_backend() != "cpu":
        return None
    if _are_known(QUICK):
        return QUICK
    return {name: value for name, value in QUICK.items() if _are_known({name: value})}


def _are_known(options):
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:
        return False
    return True
