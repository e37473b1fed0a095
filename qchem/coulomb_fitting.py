"""Coulomb matrices in density fitting for functionals without exact exchange.

The density's charges q_P = sum_ab D_ab (ab|P) meet the metric, not the products of AOs: J_ab =
sum_P (ab|P) d_P with (P|Q) d = q (Dunlap, Connolly & Sabin, J. Chem. Phys. 71, 3396 (1979)). Either
(ab|P) is stored as it is, which spares fitting it, or never made: density and charges are
contracted with the Hermite Gaussians of pairs and auxiliary functions before they interact.
"""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from qchem.devices import MOLECULE, Share, spread
from qchem.fitted_jk import DensityFittedJK, fitting_arrays
from qchem.integrals.auxiliary import charges_of_density, coulomb_2c, weighted_2c
from qchem.integrals.moments import packed_density, unpack
from qchem.integrals.pairs import Distribution, npair
from qchem.integrals.potential import potential, potential_energy
from qchem.integrals.shared import filled_lists
from qchem.integrals.solid import SolidShells
from qchem.integrals.tiles import contracted, own_rows
from qchem.jk import AbstractJK
from qchem.metric import columns_of, lower_factor, solved

Lists = tuple[Distribution, ...]


class FittedCoulomb(AbstractJK):
    """Coulomb matrices alone; one exchange matrix takes the time and memory of a whole fit.

    Devices share the auxiliary functions of what is stored, or else the pairs.

    Attributes:
        lower: L of the metric L L^T, in the order of the columns.
        three: (ab|P), where it is stored.
        pairs, aux: Distributions of the AO pairs and of the auxiliary functions, where it is not.
        mesh: The devices.
    """

    lower: Float[Array, "all all"]
    three: Float[Array, "npair all"] | None
    pairs: Lists = ()
    aux: Lists = ()
    mesh: Mesh | None = eqx.field(static=True, default=None)

    @classmethod
    def build(
        cls,
        pairs: Lists,
        aux: Lists,
        nao: int,
        naux: int,
        *,
        stored_bytes: int,
        shells: tuple[SolidShells, ...] = (),
        reverse: bool = False,
        mesh: Mesh | None = None,
    ) -> FittedCoulomb:
        """
        Args:
            pairs, aux: Distributions of the AO pairs and of the auxiliary functions.
            nao, naux: Their numbers.
            stored_bytes: (ab|P) is stored if a device's part takes no more.
            shells: The auxiliary functions once more, where they are solid harmonics: faster.
            reverse: To be differentiated in reverse mode alone, at less cost; stored in any case.
            mesh: Devices that share the work.
        """
        share, itemsize = Share.of(mesh), aux[0].coefficient.dtype.itemsize
        if not reverse and itemsize * npair(nao) * -(-naux // share.count) > stored_bytes:
            return cls(lower_factor(coulomb_2c(aux)), None, pairs, aux, mesh)

        def build(*lists):
            three, two = fitting_arrays(nao, naux, *lists, share=share, reverse=reverse)
            return three, lower_factor(two)

        shells = shells or aux
        building = spread(build, mesh, (P(), P(), P(MOLECULE)), (P(None, MOLECULE), P()))
        three, lower = building(pairs, shells, filled_lists(shells, share.count))
        return cls(lower, three, mesh=mesh)

    def coulomb(self, dm: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
        share, nao, density = Share.of(self.mesh), dm.shape[0], packed_density(dm)

        def stored(lower, density, three):
            charge = share.whole(jnp.dot(density, three, precision="highest"))
            charge = share.part(_charges(lower, charge))
            return share.total(jnp.dot(three, charge, precision="highest"))

        def remade(lower, density, pairs, aux):
            pairs = own_rows(pairs, share, npair(nao))
            charge = share.total(charges_of_density(pairs, aux, density))
            charge = _charges(lower, charge)
            return share.total(potential_of_charges(pairs, aux, charge, npair(nao)))

        if self.three is not None:
            places = P(), P(), P(None, MOLECULE)
            matrix = spread(stored, self.mesh, places, P())(self.lower, density, self.three)
        else:
            lists = self.pairs, self.aux
            matrix = spread(remade, self.mesh, P(), P())(self.lower, density, *lists)
        return unpack(matrix, nao)

    def exchange(self, factor: Float[Array, "nspin nao nocc"]) -> Float[Array, "nspin nao nao"]:
        nao, share = factor.shape[1], Share.of(self.mesh)
        if self.three is None:
            sizes = nao, sum(rows.index.size for rows in self.aux), 0.0
            lists = self.pairs, self.aux
            jk = DensityFittedJK.build_separated(*lists, *sizes, mesh=self.mesh)[0]
            return jk.exchange(factor)
        places = P(None, MOLECULE)
        fit = spread(partial(columns_of, share), self.mesh, (P(), places), places)
        return DensityFittedJK(fit(self.lower, self.three), self.mesh).exchange(factor)


def _charges(lower, charge):
    """d of L L^T d = q."""
    rows = solved(lower, charge[None], transpose_a=True)
    return solved(lower, rows, transpose_a=False)[0]


def potential_of_charges(
    pairs: Lists, aux: Lists, charge: Float[Array, " ncolumn"], npair: int
) -> Float[Array, " {npair}"]:
    """sum_P (ab|P) d_P of packed pairs; for the order of P see `auxiliary_columns`; hartree."""
    return sum(potential(pairs, rows, npair) for rows in _charged(aux, charge))


def _charged(aux, charge):
    """The lists with each row's functions added up, times the charge of each."""
    ends = np.cumsum([0, *(rows.index.size for rows in aux)])
    lists = []
    for rows, start, end in zip(aux, ends, ends[1:]):
        weight = charge[start:end].reshape(rows.index.T.shape).T
        lists.append(contracted(rows, weight))
    return lists


def fitted_coulomb_energy(
    pairs: Lists, aux: Lists, dm: Float[Array, "nao nao"], mesh: Mesh | None = None
) -> Float[Array, ""]:
    """Coulomb energy ½ q (P|Q)^-1 q of a density matrix, hartree; nothing of the size of (ab|P)
    is stored.

    It is stationary in the charges d, so its derivative is that of sum_ab D_ab (ab|P) d_P - ½ d_P
    (P|Q) d_Q with d held.

    Args:
        mesh: Devices that share the pairs.
    """
    energy = partial(_coulomb_energy, Share.of(mesh))
    return spread(energy, mesh, P(), P())(pairs, aux, dm)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _coulomb_energy(share, pairs, aux, dm):
    charge = _charges_of(share, pairs, aux, dm)
    rows = solved(lower_factor(coulomb_2c(aux)), charge[None], transpose_a=True)
    return 0.5 * jnp.sum(rows**2)


def _charges_of(share, pairs, aux, dm):
    pairs = own_rows(pairs, share, npair(dm.shape[0]))
    return share.total(charges_of_density(pairs, aux, packed_density(dm)))


@_coulomb_energy.defjvp
def _coulomb_energy_jvp(share, primals, tangents):
    charge = _charges_of(share, *primals)
    charge = _charges(lower_factor(coulomb_2c(primals[1])), charge)
    metric = -0.5 * charge[:, None] * charge[None]

    def functional(pairs, aux, dm):
        pairs = own_rows(pairs, share, npair(dm.shape[0]))
        energy = sum(potential_energy(pairs, rows, dm) for rows in _charged(aux, charge))
        return share.total(energy) + weighted_2c(aux, metric)

    return jax.jvp(functional, primals, tangents)
