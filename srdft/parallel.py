"""Work over many geometries: one after another, in chunks, or spread over a mesh of devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from qchem import InputError, platform

AXIS = "geometry"


class Workers(eqx.Module):
    """How functions of one geometry are applied to many.

    On a CPU the geometries of a device follow one another: its threads work on one at a time, and
    XLA's batched LAPACK calls can wait for each other for ever where there are few threads
    (jaxlib 0.10). With a mesh each device, of this or another process, takes an equal part;
    results are replicated, so that every process holds all of them.

    Attributes:
        mesh: Devices, one axis; None is the default device alone.
        chunk: Geometries held at once by a device that is not a CPU.
    """

    mesh: Mesh | None = eqx.field(static=True, default=None)
    chunk: int = eqx.field(static=True, default=1)

    @classmethod
    def over(cls, devices: list[Any], chunk: int = 1) -> Workers:
        """The given devices; a single local one needs no mesh."""
        if len(devices) == 1 and jax.process_count() == 1:
            return cls(None, chunk)
        return cls(Mesh(np.asarray(devices), (AXIS,)), chunk)

    @property
    def count(self) -> int:
        """Number of devices; what is spread over them must divide by it."""
        return 1 if self.mesh is None else self.mesh.size

    def check(self, what: str, number: int) -> None:
        """Refuse a number of geometries that the devices cannot share equally."""
        if number % self.count:
            raise InputError(
                f"{what} = {number} cannot be shared equally by {self.count} devices; "
                f"use a multiple of {self.count}."
            )

    def map(self, f: Callable[..., PyTree], shared: PyTree, *batched: PyTree) -> PyTree:
        """f(shared, *x) for every row x of `batched`, stacked. To be called under `jit`."""

        def local(shared, batched):
            return jax.lax.map(lambda x: f(shared, *x), batched, batch_size=self._together(batched))

        return self._spread(local, shared, batched, P(AXIS))

    def total(self, f: Callable[..., PyTree], shared: PyTree, *batched: PyTree) -> PyTree:
        """Sum of f(shared, *x) over the rows of `batched`, keeping only the running sum."""

        def local(shared, batched):
            first = jax.tree.map(lambda x: x[0], batched)
            shapes = jax.eval_shape(lambda x: f(shared, *x), first)
            zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

            def add(total, x):
                return jax.tree.map(jnp.add, total, f(shared, *x)), None

            partial = jax.lax.scan(add, zero, batched)[0]
            return partial if self.mesh is None else jax.lax.psum(partial, AXIS)

        return self._spread(local, shared, batched, P())

    def replicated(self, tree: PyTree) -> PyTree:
        """The tree with all arrays whole on every device. To be called under `jit`."""
        if self.mesh is None:
            return tree
        everywhere = NamedSharding(self.mesh, P())
        arrays, rest = eqx.partition(tree, eqx.is_array)
        return eqx.combine(jax.lax.with_sharding_constraint(arrays, everywhere), rest)

    def placed(self, tree: PyTree) -> PyTree:
        """The same before a call: arrays that lie elsewhere would have the function compiled once
        more for their first place. Several processes would first compare what they have, and then
        NaN is not NaN: there the arrays stay."""
        if self.mesh is None or jax.process_count() > 1:
            return tree
        everywhere = NamedSharding(self.mesh, P())
        arrays, rest = eqx.partition(tree, eqx.is_array)
        return eqx.combine(jax.device_put(arrays, everywhere), rest)

    def _together(self, batched) -> int | None:
        if platform() == "cpu" or self.chunk == 1:
            return None
        return min(self.chunk, jax.tree.leaves(batched)[0].shape[0])

    def _spread(self, local, shared, batched, out):
        if self.mesh is None:
            return local(shared, batched)
        arrays, rest = eqx.partition(shared, eqx.is_array)
        spread = jax.shard_map(
            lambda arrays, batched: local(eqx.combine(arrays, rest), batched),
            mesh=self.mesh,
            in_specs=(P(), P(AXIS)),
            out_specs=out,
            check_vma=False,
        )
        return self.replicated(spread(arrays, batched))
