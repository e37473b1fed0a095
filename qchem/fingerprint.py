"""A name for what a compiled program depends on, the same in every process that would make it."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import os
import platform
import sys
from collections.abc import Callable
from enum import Enum
from functools import cache, partial
from importlib import metadata, util
from pathlib import Path
from types import MethodType
from typing import Any

import jax
import numpy as np

# Functions and classes of these change with their versions; ours with their source.
_OURS = ("qchem", "srdft")
_PACKAGES = ("jax", "jaxlib", "equinox", "optax", "blackjax", "lineax", "numpy", "scipy")
_TRUSTED = {*_OURS, *_PACKAGES, *sys.stdlib_module_names}
_SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_numpy_dtype_promotion")


class NoFingerprint(Exception):
    """Something that another process could have under the same name and yet not be the same."""


def fingerprint(*values: Any) -> str:
    """A hexadecimal digest of the values and of all that programs made here depend on.

    Arrays count with their elements: what a program takes as an argument must not be among the
    values. Functions and classes count with their names, so only those of known packages will do.

    Raises:
        NoFingerprint: A value that has none.
    """
    return _digest(repr((_surroundings(), tuple(_described(value) for value in values))).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _described(x: Any) -> Any:
    """Nested tuples of text that tell the value from any other."""
    match x:
        case None | bool() | int() | float() | complex() | str() | bytes():
            return type(x).__name__, repr(x)
        case np.ndarray() | np.generic() | jax.Array():
            x = np.asarray(x)
            return "array", x.dtype.str, x.shape, _digest(x.tobytes())
        case np.dtype() | inspect.Signature():
            return type(x).__name__, str(x)
        case tuple() | list():
            return _named(type(x)), *map(_described, x)
        case dict():
            return "dict", *((_described(k), _described(v)) for k, v in x.items())
        case partial():
            return "partial", *map(_described, (x.func, x.args, x.keywords))
        case MethodType():
            return "method", _described(x.__func__), _described(x.__self__)
        case Enum():
            return _named(type(x)), x.name
        case jax.tree_util.PyTreeDef():
            return "tree", _described(x.node_data()), *map(_described, x.children())
        case jax.sharding.Mesh():
            return "mesh", x.axis_names, x.devices.shape, *map(_device, x.devices.flat)
        case jax.Device():
            return "device", *_device(x)
    if not isinstance(x, type) and dataclasses.is_dataclass(x):
        fields = ((f.name, _described(getattr(x, f.name))) for f in dataclasses.fields(x))
        return _named(type(x)), *fields
    if not callable(x) and not getattr(x, "__dict__", None) and not hasattr(x, "__slots__"):
        return "instance", _named(type(x))  # which carries nothing
    return _named(x)


def _named(x: Any) -> str:
    """Where a function or class is found by its name."""
    if isinstance(x, type) and x.__module__ == "builtins":
        return x.__qualname__
    module, name = getattr(x, "__module__", None), getattr(x, "__qualname__", None)
    found = sys.modules.get(module) if isinstance(module, str) else None
    for part in name.split(".") if isinstance(name, str) else ():
        found = getattr(found, part, None)
    # What a decorator has made of a function counts as the function. Equinox's own keep what they
    # wrap beside code of Equinox, which is the same for all.
    inner = inspect.unwrap(x) if callable(x) else x
    origin = getattr(inner, "__globals__", {}).get("__name__", "")
    if origin.partition(".")[0] == "equinox":
        return f"{origin}:{inner.__code__.co_firstlineno}:{name}"
    same = found is x or (callable(x) and inner is inspect.unwrap(found))
    if not same or module.partition(".")[0] not in _TRUSTED:
        raise NoFingerprint(f"{x!r} is nothing that a known package has under a name")
    return f"{module}:{name}"


def _device(device: Any) -> tuple[int, int, str]:
    return device.id, device.process_index, device.device_kind


def _surroundings() -> tuple[Any, ...]:
    """Settings that may change while a process runs, and what cannot."""
    settings = tuple(repr(getattr(jax.config, name)) for name in _SETTINGS)
    return settings, repr(jax.config.jax_default_device), _fixed()


@cache
def _fixed() -> tuple[Any, ...]:
    """Versions, our own source, the devices and the processor that machine code is made for."""
    versions = tuple((name, _version(name)) for name in _PACKAGES)
    devices = jax.default_backend(), jax.process_count(), *map(_device, jax.devices())
    flags = os.environ.get("XLA_FLAGS", ""), platform.python_version(), platform.machine()
    return versions, source(), devices, flags, _processor()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


@cache
def source() -> str:
    """A digest of our own source."""
    content = hashlib.sha256()
    for package in _OURS:
        spec = util.find_spec(package)
        for folder in spec.submodule_search_locations if spec else ():
            for path in sorted(Path(folder).rglob("*.py")):
                content.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return content.hexdigest()


def _processor() -> str:
    """Model and instruction set, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))})
    )


def callable_name(function: Callable[..., Any]) -> str:
    """A readable name for the file of a program."""
    if isinstance(function, partial):
        return callable_name(function.func)
    return getattr(function, "__name__", type(function).__name__).strip("_<>")
