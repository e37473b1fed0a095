"""Coulomb matrices in density fitting for functionals without exact exchange.

The density's charges q_P = sum_ab D_ab (ab|P) meet the metric, not the products of AOs: J_ab =
sum_P (ab|P) d_P with (P|Q) d = q (Dunlap, Connolly & Sabin, J. Chem. Phys. 71, 3396 (1979)). Either
(ab|P) is stored as it is, which spares fitting it, or never made: the density is contracted with
the Hermite Gaussians of pairs before these interact with auxiliary functions.
"""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from qchem.derivatives import jvp_of_moving
from qchem.devices import MOLECULE, Share, spread
from qchem.fitted_jk import PLACES, DensityFittedJK, Fit, fitting_arrays
from qchem.integrals.fitting import (
    Pairs,
    charges_of_density,
    energy_of_charges,
    fitting_2c,
    potential_of_charges,
    weighted_metric,
)
from qchem.integrals.moments import packed_density, unpack
from qchem.integrals.pairs import npair
from qchem.integrals.shared import Auxiliary, own_lists, places_of_columns
from qchem.integrals.tiles import own_rows
from qchem.jk import AbstractJK
from qchem.metric import columns_of, lower_factor, solved


class FittedCoulomb(AbstractJK):
    """Coulomb matrices alone; one exchange matrix takes the time and memory of a whole fit.

    Devices share the auxiliary functions of what is stored, or else the pairs.

    Attributes:
        lower: L of the metric L L^T, in the order of the columns.
        three: (ab|P), where it is stored.
        pairs, aux: The AO pairs and the auxiliary functions, where it is not.
        mesh: The devices.
    """

    lower: Float[Array, "all all"]
    three: Float[Array, "npair all"] | None
    pairs: Pairs = ()
    aux: Auxiliary = ()
    mesh: Mesh | None = eqx.field(static=True, default=None)

    @classmethod
    def build(
        cls,
        pairs: Pairs,
        aux: Auxiliary,
        nao: int,
        naux: int,
        *,
        stored_bytes: int,
        reverse: bool = False,
        mesh: Mesh | None = None,
    ) -> FittedCoulomb:
        """
        Args:
            pairs, aux: The AO pairs and the auxiliary functions.
            nao, naux: Their numbers.
            stored_bytes: (ab|P) is stored if a device's part takes no more.
            reverse: To be differentiated in reverse mode alone, at less cost; stored in any case.
            mesh: Devices that share the work.
        """
        share, itemsize = Share.of(mesh), aux[0].width.dtype.itemsize
        if not reverse and itemsize * npair(nao) * -(-naux // share.count) > stored_bytes:
            return cls(lower_factor(fitting_2c(aux)), None, pairs, aux, mesh)

        def build(pairs, aux):
            lists = pairs, aux, own_lists(aux, share)
            three, two = fitting_arrays(nao, naux, *lists, share=share, reverse=reverse)
            return three, lower_factor(two)

        three, lower = spread(build, mesh, P(), (P(None, MOLECULE), P()))(pairs, aux)
        return cls(lower, three, mesh=mesh)

    @property
    def fit(self) -> Fit | None:
        """(ab|P) and L, if (ab|P) is stored."""
        return None if self.three is None else Fit(self.three, self.lower)

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


def fitted_coulomb_energy(
    pairs: Pairs,
    aux: Auxiliary,
    dm: Float[Array, "nao nao"],
    mesh: Mesh | None = None,
    fitted: Fit | None = None,
) -> Float[Array, ""]:
    """Coulomb energy ½ q (P|Q)^-1 q of a density matrix, hartree; nothing of the size of (ab|P)
    is stored.

    It is stationary in the charges d, so its derivative is that of sum_ab D_ab (ab|P) d_P - ½ d_P
    (P|Q) d_Q with d held.

    Args:
        mesh: Devices that share the pairs.
        fitted: (ab|P) and L of the same lists, of solid harmonics, as `FittedCoulomb` has them:
            charges need no integrals. Constant to derivatives, of which the first are right all
            the same.
    """
    energy = partial(_coulomb_energy, Share.of(mesh))
    places = P(), P(), P(), None if fitted is None else PLACES
    return spread(energy, mesh, places, P())(pairs, aux, dm, jax.lax.stop_gradient(fitted))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _coulomb_energy(share, pairs, aux, dm, fitted):
    charge, lower = _charges_and_factor(share, pairs, aux, dm, fitted)
    rows = solved(lower, charge[None], transpose_a=True)
    return 0.5 * jnp.sum(rows**2)


def _charges_and_factor(share, pairs, aux, dm, fitted):
    """q and L, in one order."""
    if fitted is not None:
        charge = jnp.dot(packed_density(dm), fitted.columns, precision="highest")
        return share.whole(charge), fitted.lower
    pairs = own_rows(pairs, share, npair(dm.shape[0]))
    charge = share.total(charges_of_density(pairs, aux, packed_density(dm)))
    return charge, lower_factor(fitting_2c(aux, share))


@partial(_coulomb_energy.defjvp, symbolic_zeros=True)
def _coulomb_energy_jvp(share, primals, tangents):
    charge, lower = _charges_and_factor(share, *primals)
    charge = _charges(lower, charge)
    *primals, fitted = primals
    *tangents, _ = tangents
    if fitted is not None and not share.alone:
        charge = charge[places_of_columns(primals[1], share)]
    metric = -0.5 * charge[:, None] * charge[None]

    def functional(pairs, aux, dm):
        pairs = own_rows(pairs, share, npair(dm.shape[0]))
        energy = energy_of_charges(pairs, aux, packed_density(dm), charge)
        return share.total(energy + weighted_metric(aux, metric, share))

    return jvp_of_moving(functional, tuple(primals), tuple(tangents))
