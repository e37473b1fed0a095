"""Work over many geometries: one after another, in chunks, or spread over a mesh of devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from qchem import InputError, map_geometries, sum_geometries


class Workers(eqx.Module):
    """How functions of one geometry are applied to many.

    With a mesh each device, of this or another process, takes an equal part; results are
    replicated, so that every process holds all of them. See `qchem.map_geometries`.

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
        return cls(Mesh(np.asarray(devices), ("geometry",)), chunk)

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
        rows = map_geometries(f, shared, *batched, mesh=self.mesh, chunk=self.chunk)
        return self.replicated(rows)

    def total(self, f: Callable[..., PyTree], shared: PyTree, *batched: PyTree) -> PyTree:
        """Sum of f(shared, *x) over the rows of `batched`, keeping only the running sum."""
        return self.replicated(sum_geometries(f, shared, *batched, mesh=self.mesh))

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
