"""Density fitting with the auxiliary index shared by devices.

Each device makes, keeps and contracts (ab|P) of its own P. So nothing of that size is ever whole
anywhere, J and K are sums over P, and a matrix (nao nao) is all that devices exchange in a cycle;
shared by pairs ab, they would have to exchange (ia|P) of the orbitals for every K. The metric
mixes the P of a pair: for that the integrals change hands twice at each geometry, some pairs at a
time, and come back (all-to-all). (P|Q) and its factor are small, and made by every device.
"""

from __future__ import annotations

import equinox as eqx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from qchem.devices import MOLECULE, Share, spread
from qchem.integrals.pairs import Distribution
from qchem.integrals.shared import filled_lists
from qchem.jk import AbstractJK, DensityFittedJK, ExchangeWeights, fitted_energy


class SharedFittedJK(AbstractJK):
    """`DensityFittedJK` with the columns of `fitted` on several devices."""

    parts: DensityFittedJK
    mesh: Mesh = eqx.field(static=True)

    @classmethod
    def build_separated(
        cls,
        pairs: tuple[Distribution, ...],
        aux: tuple[Distribution, ...],
        nao: int,
        naux: int,
        omega: float,
        mesh: Mesh,
        dtype: DTypeLike | None = None,
    ) -> tuple[SharedFittedJK, ...]:
        """As `DensityFittedJK.build_separated`, by the devices of a mesh."""

        def build(pairs, aux, own):
            how = {"own": own, "share": Share.of(mesh), "dtype": dtype}
            return DensityFittedJK.build_separated(pairs, aux, nao, naux, omega, **how)

        building = spread(build, mesh, (P(), P(), P(MOLECULE)), P(None, MOLECULE))
        parts = building(pairs, aux, filled_lists(aux, mesh.size))
        return tuple(cls(part, mesh) for part in parts)

    def coulomb(self, dm: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
        return self._total(lambda jk, dm: jk.coulomb(dm), dm)

    def exchange(self, factor: Float[Array, "nspin nao nocc"]) -> Float[Array, "nspin nao nao"]:
        return self._total(lambda jk, factor: jk.exchange(factor), factor)

    def _total(self, matrix, x):
        total = lambda jk, x: Share.of(self.mesh).total(matrix(jk, x))  # noqa: E731
        return spread(total, self.mesh, (P(None, MOLECULE), P()), P())(self.parts, x)


def shared_fitted_energy(
    pairs: tuple[Distribution, ...],
    aux: tuple[Distribution, ...],
    factor: Float[Array, "nspin nao nocc"],
    naux: int,
    coulomb: float,
    exchange: float | ExchangeWeights,
    mesh: Mesh,
    dtype: DTypeLike | None = None,
) -> Float[Array, ""]:
    """`fitted_energy` by the devices of a mesh; so are its derivatives."""

    def energy(pairs, aux, own, factor):
        share = Share.of(mesh)
        return fitted_energy(pairs, aux, factor, naux, coulomb, exchange, own, share, dtype)

    spreading = spread(energy, mesh, (P(), P(), P(MOLECULE), P()), P())
    return spreading(pairs, aux, filled_lists(aux, mesh.size), factor)
