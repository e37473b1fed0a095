"""Devices that share work: geometries of a batch, or integrals and grid of one molecule.

The axis of a `jax.sharding.Mesh` says which: "geometry" or "molecule". Devices may belong to
several processes.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PyTree

from qchem.compilation import SPLITTING, map_together
from qchem.derivatives import jvp_of_moving
from qchem.errors import InputError

GEOMETRY, MOLECULE = "geometry", "molecule"
_KEPT_BYTES = 1 << 29  # of freed memory; single blocks of half of that are given back
_PACKED = 1 << 15  # elements of arrays that devices add up together
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_WHOLE_LOOPS = f"--xla_disable_hlo_passes={SPLITTING}"


def mesh_for(mesh: Mesh | None, axis: str) -> Mesh | None:
    """The mesh if it is for this axis.

    Raises:
        InputError: A mesh with other axes than one of the two.
    """
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise InputError(f"mesh = {mesh!r} is no jax.sharding.Mesh; qchem.use_cores() makes one.")
    if mesh.axis_names not in ((GEOMETRY,), (MOLECULE,)):
        raise InputError(
            f"a mesh with the axes {mesh.axis_names}; one axis is needed, {GEOMETRY!r} (of a batch)"
            f" or {MOLECULE!r} (integrals and grid of each), as in "
            f"jax.make_mesh(({mesh.size},), ({GEOMETRY!r},))."
        )
    own = mesh.local_devices
    several_cores = len(own) > 1 and own[0].platform == "cpu"
    if several_cores and SPLITTING not in os.environ.get("XLA_FLAGS", ""):
        warnings.warn(
            "several devices of a CPU can make programs of your own, those of jax.jit, give wrong "
            "numbers (jaxlib 0.10): call qchem.use_cores() before JAX computes anything, or start "
            f"Python with XLA_FLAGS={_WHOLE_LOOPS}.",
            stacklevel=3,
        )
    # Without the axis types of the caller's mesh: what is shared here is said where it is shared.
    return Mesh(mesh.devices, mesh.axis_names) if mesh.axis_names == (axis,) else None


def use_cores(count: int | None = None) -> Mesh | None:
    """A mesh that shares one molecule by the cores of this machine, each made a device.

    One geometry keeps few cores busy otherwise: XLA runs a loop on one of them. To be called before
    JAX computes anything; later, what devices there are is what there is. The process also keeps
    memory that it has freed, up to half a gigabyte, where no MALLOC_..._ in the environment says
    otherwise: a program called over and over, as in a training, would spend part of its time on
    getting the same memory from the system again.

    Args:
        count: By default all cores that this process may use.

    Returns:
        The mesh; None where there is one device, or on an accelerator.

    Raises:
        InputError: A count below 1.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = (allowed or 1) if count is None else count
    if count < 1:
        raise InputError(f"{count} cores; 1 or more are needed.")
    _keep_freed_memory()
    with suppress(RuntimeError):  # JAX is at work already, and its number of devices fixed
        for number in (count + 1, count):  # it minds only what is a change
            jax.config.update("jax_num_cpu_devices", number)
        # For programs that are not made by `qchem.program`, which has this option.
        if SPLITTING not in (flags := os.environ.get("XLA_FLAGS", "")):
            os.environ["XLA_FLAGS"] = f"{flags} {_WHOLE_LOOPS}".strip()
    devices = jax.local_devices()[:count]
    if devices[0].platform != "cpu" or len(devices) == 1:
        return None
    return Mesh(np.array(devices), (MOLECULE,))


def _keep_freed_memory():
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    with suppress(OSError, AttributeError):  # another C library than GNU's
        options = ctypes.CDLL(None).mallopt
        options(_M_MMAP_THRESHOLD, _KEPT_BYTES // 2)
        options(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def check_placement(x: Array | Any) -> None:
    """Refuse arrays whose type says where they lie: no part of a calculation keeps such types."""
    if AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types:
        raise InputError(
            f"positions lie on a mesh whose axes {jax.typeof(x).sharding.mesh.axis_names} are of "
            "the type Explicit; make it with axis_types=(jax.sharding.AxisType.Auto,), or leave "
            "the positions where they are."
        )


def spread(f: Callable[..., PyTree], mesh: Mesh | None, in_specs: Any, out_specs: Any) -> Callable:
    """`jax.shard_map` of functions whose arguments hold more than arrays of JAX; f without a mesh.

    The rest each device has, as it is.
    """
    if mesh is None:
        return f
    shard = partial(jax.shard_map, mesh=mesh, check_vma=False)

    def call(*args):
        arrays, rest = eqx.partition(args, eqx.is_array)
        own = lambda *arrays: f(*eqx.combine(arrays, rest))  # noqa: E731
        plain = shard(own, in_specs=in_specs, out_specs=out_specs)
        if mesh.axis_names != (MOLECULE,):
            return plain(*arrays)
        shared = jax.custom_jvp(plain)

        def rule(primals, tangents):
            pack, unpack, specs = _packing(in_specs, primals, tangents)
            both = lambda primals, packed: jvp_of_moving(own, primals, unpack(packed))  # noqa: E731
            places = {"in_specs": (in_specs, specs), "out_specs": (out_specs, out_specs)}
            return shard(both, **places)(primals, pack(tangents))

        shared.defjvp(rule, symbolic_zeros=True)
        return shared(*arrays)

    return call


def _packing(in_specs, primals, tangents):
    """Packs tangents of small arrays that all devices have: in reverse mode these meet for each
    array on its own, which on a CPU takes as long however small it is.

    Returns:
        What packs tangents, the reverse, and where the packed ones lie.
    """
    dots, tree = jax.tree.flatten(tangents)
    places = jax.tree.leaves(jax.tree.broadcast(in_specs, primals))
    groups: dict[Any, list[int]] = {}
    for n, (dot, place) in enumerate(zip(dots, places, strict=True)):
        if not isinstance(dot, SymbolicZero):
            together = place == P() and dot.size <= _PACKED
            groups.setdefault(dot.dtype if together else n, []).append(n)

    def pack(tangents):
        dots = jax.tree.leaves(tangents)
        chosen = [[dots[n] for n in group] for group in groups.values()]
        return [
            x[0] if len(x) == 1 else jnp.concatenate([dot.ravel() for dot in x]) for x in chosen
        ]

    def unpack(packed):
        new = list(dots)
        for group, x in zip(groups.values(), packed, strict=True):
            if len(group) == 1:
                new[group[0]] = x
                continue
            parts = jax.lax.split(x, [dots[n].size for n in group])
            for n, part in zip(group, parts, strict=True):
                new[n] = part.reshape(dots[n].shape)
        return jax.tree.unflatten(tree, new)

    return pack, unpack, [places[group[0]] for group in groups.values()]


@dataclass(frozen=True)
class Share:
    """A device's part of an index, for functions that `spread` runs; without an axis all of it.

    Attributes:
        axis: Of the mesh.
        count: Its number of devices.
    """

    axis: str | None = None
    count: int = 1

    @classmethod
    def of(cls, mesh: Mesh | None) -> Share:
        """Of a mesh with one axis, or of none."""
        return cls() if mesh is None else cls(mesh.axis_names[0], mesh.size)

    @property
    def alone(self) -> bool:
        """There is nobody to share with."""
        return self.axis is None

    def index(self) -> Int[Array, ""]:
        """Which of the devices this is."""
        return jax.lax.axis_index(self.axis)

    def one_of(self, x: Array, axis: int = 0) -> Array:
        """A device's own along an axis of as many as there are devices."""
        # Not `x[..., index]`, which in reverse mode is a scatter: on a CPU that takes far longer.
        return jax.lax.dynamic_index_in_dim(x, self.index(), axis, keepdims=False)

    def dealt(self, *lists: Int[np.ndarray, " n"]) -> tuple[Int[Array | np.ndarray, " own"], ...]:
        """A device's elements, dealt out in turn; -1 where there are not enough."""
        if self.axis is None:
            return lists
        missing = -len(lists[0]) % self.count
        filled = [np.pad(x, (0, missing), constant_values=-1) for x in lists]
        return tuple(self.one_of(jnp.asarray(x.reshape(-1, self.count)), 1) for x in filled)

    def collected(self, own: Float[Array, "own ..."], n: int) -> Float[Array, "{n} ..."]:
        """What all devices have made of n elements that were `dealt` out."""
        if self.axis is None:
            return own
        every = jax.lax.all_gather(own, self.axis, axis=1)
        return every.reshape(-1, *own.shape[1:])[:n]

    def total(self, x: PyTree) -> PyTree:
        """Sum over the devices."""
        return x if self.axis is None else jax.lax.psum(x, self.axis)

    def whole(self, own: Float[Array, "own ..."]) -> Float[Array, "all ..."]:
        """The parts of all devices, one after another."""
        return own if self.axis is None else jax.lax.all_gather(own, self.axis, tiled=True)

    def part(self, whole: Float[Array, " all"]) -> Float[Array, " own"]:
        """The reverse of `whole`."""
        if self.axis is None:
            return whole
        size = whole.size // self.count
        return jax.lax.dynamic_slice(whole, (self.index() * size,), (size,))

    def total_part(self, x: Float[Array, " all"]) -> Float[Array, " own"]:
        """A device's part of the sum over the devices."""
        return x if self.axis is None else jax.lax.psum_scatter(x, self.axis, tiled=True)

    def to_rows(self, columns: Float[Array, "nrow own"]) -> Float[Array, "some all"]:
        """All columns of some rows, the last devices' filled up with zeros, for own columns."""
        if self.axis is None:
            return columns
        own = columns.shape[1]
        columns = jnp.pad(columns, ((0, -len(columns) % self.count), (0, 0)))
        parts = self._exchanged(columns).reshape(self.count, -1, own)
        return jnp.swapaxes(parts, 0, 1).reshape(-1, self.count * own)

    def to_columns(self, rows: Float[Array, "some all"], nrow: int) -> Float[Array, "{nrow} own"]:
        """The reverse of `to_rows`."""
        if self.axis is None:
            return rows
        own = rows.shape[1] // self.count
        parts = jnp.swapaxes(rows.reshape(-1, self.count, own), 0, 1)
        return self._exchanged(parts).reshape(-1, own)[:nrow]

    def _exchanged(self, x):
        """The n-th part along the leading axis goes to the n-th device."""
        # In one dimension: of others XLA may give the parts different layouts, which it then
        # refuses (jaxlib 0.10, CPU).
        return jax.lax.all_to_all(x.ravel(), self.axis, 0, 0, tiled=True)


ALONE = Share()


def map_geometries(
    f: Callable[..., PyTree],
    shared: PyTree,
    *batched: PyTree,
    mesh: Mesh | None = None,
    chunk: int = 1,
) -> PyTree:
    """f(shared, *x) for every row x of `batched`, stacked; to be called under `jit`.

    On a CPU the geometries of a device follow one another: see `map_together`.

    Args:
        f: Of one geometry, a pure function.
        shared: What all geometries have in common, a `Method` or an `EnergyFunction` for example;
            each device has it whole.
        batched: Arrays with the geometries along the leading axis.
        mesh: Devices that take equal parts of the batch, along an axis called "geometry". What is
            missing to equal parts is filled up with the last geometry.
        chunk: Geometries held at once by a device that is not a CPU.
    """

    def local(shared, batched):
        return map_together(lambda x: f(shared, *x), batched, chunk)

    mesh = mesh_for(mesh, GEOMETRY)
    if mesh is None:
        return local(shared, batched)
    batched = jax.tree.map(jnp.asarray, batched)
    jax.tree.map(check_placement, batched)
    missing = -_count(batched) % mesh.size
    count = _count(batched)
    filled = batched
    if missing:
        more = lambda x: jnp.concatenate([x, jnp.repeat(x[-1:], missing, axis=0)])  # noqa: E731
        filled = jax.tree.map(more, batched)
    result = spread(local, mesh, (P(), P(GEOMETRY)), P(GEOMETRY))(shared, filled)
    return jax.tree.map(lambda x: x[:count], result) if missing else result


def sum_geometries(
    f: Callable[..., PyTree], shared: PyTree, *batched: PyTree, mesh: Mesh | None = None
) -> PyTree:
    """Sum of f(shared, *x) over the rows of `batched`, keeping only the running sum.

    Args:
        f, shared, batched: As in `map_geometries`.
        mesh: Likewise; the number of geometries must divide by that of its devices.
    """

    def local(shared, batched):
        first = jax.tree.map(lambda x: x[0], batched)
        shapes = jax.eval_shape(lambda x: f(shared, *x), first)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def add(total, x):
            return jax.tree.map(jnp.add, total, f(shared, *x)), None

        return jax.lax.scan(add, zero, batched)[0]

    mesh = mesh_for(mesh, GEOMETRY)
    if mesh is None:
        return local(shared, batched)
    total = lambda *args: jax.lax.psum(local(*args), GEOMETRY)  # noqa: E731
    return spread(total, mesh, (P(), P(GEOMETRY)), P())(shared, batched)


def _count(batched):
    return jax.tree.leaves(batched)[0].shape[0]
