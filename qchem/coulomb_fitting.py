"""Coulomb matrices in density fitting for functionals without exact exchange.

The density's charges q_P = sum_ab D_ab (ab|P) meet the metric, not the products of AOs: J_ab =
sum_P (ab|P) d_P with (P|Q) d = q (Dunlap, Connolly & Sabin, J. Chem. Phys. 71, 3396 (1979)). Either
(ab|P) is stored as it is, which spares fitting it, or never made: density and charges are
contracted with the Hermite Gaussians of pairs and auxiliary functions before they interact.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qchem.integrals.moments import unpack
from qchem.integrals.pairs import Distribution, npair
from qchem.integrals.solid import SolidShells
from qchem.integrals.two_electron import (
    charges_of_density,
    contracted,
    coulomb_2c,
    coulomb_3c,
    packed_density,
    potential,
    potential_energy,
    weighted_2c,
)
from qchem.jk import AbstractJK, DensityFittedJK, fitting_arrays, lower_factor, solved

Lists = tuple[Distribution, ...]


class FittedCoulomb(AbstractJK):
    """Coulomb matrices alone; one exchange matrix takes the time and memory of a whole fit.

    Attributes:
        pairs, aux: Distributions of the AO pairs and of the auxiliary functions.
        lower: L of the metric L L^T, in the order of the columns.
        three: (ab|P), where it is stored.
    """

    pairs: Lists
    aux: Lists
    lower: Float[Array, "naux naux"]
    three: Float[Array, "npair naux"] | None

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
    ) -> FittedCoulomb:
        """
        Args:
            pairs, aux: Distributions of the AO pairs and of the auxiliary functions.
            nao, naux: Their numbers.
            stored_bytes: (ab|P) is stored if it takes no more.
            shells: The auxiliary functions once more, where they are solid harmonics: faster.
            reverse: To be differentiated in reverse mode alone, at less cost; stored in any case.
        """
        itemsize = aux[0].coefficient.dtype.itemsize
        if reverse or itemsize * npair(nao) * naux <= stored_bytes:
            three, two = fitting_arrays(nao, naux, pairs, shells or aux, reverse=reverse)
            return cls(pairs, aux, lower_factor(two), three)
        return cls(pairs, aux, lower_factor(coulomb_2c(aux)), None)

    def coulomb(self, dm: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
        nao = dm.shape[0]
        if self.three is None:
            charge = self._solved(charges_of_density(self.pairs, self.aux, packed_density(dm)))
            return unpack(potential_of_charges(self.pairs, self.aux, charge, npair(nao)), nao)
        charge = self._solved(jnp.dot(packed_density(dm), self.three, precision="highest"))
        return unpack(jnp.dot(self.three, charge, precision="highest"), nao)

    def exchange(self, factor: Float[Array, "nspin nao nocc"]) -> Float[Array, "nspin nao nao"]:
        three = self.three
        if three is None:
            three = coulomb_3c(self.pairs, self.aux, npair(factor.shape[1]))
        two = jnp.dot(self.lower, self.lower.T, precision="highest")
        return DensityFittedJK.fit(three, two).exchange(factor)

    def _solved(self, charge):
        return _charges(self.lower, charge)


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


@jax.custom_jvp
def fitted_coulomb_energy(
    pairs: Lists, aux: Lists, dm: Float[Array, "nao nao"]
) -> Float[Array, ""]:
    """Coulomb energy ½ q (P|Q)^-1 q of a density matrix, hartree; nothing of the size of (ab|P)
    is stored.

    It is stationary in the charges d, so its derivative is that of sum_ab D_ab (ab|P) d_P - ½ d_P
    (P|Q) d_Q with d held.
    """
    charge = charges_of_density(pairs, aux, packed_density(dm))
    rows = solved(lower_factor(coulomb_2c(aux)), charge[None], transpose_a=True)
    return 0.5 * jnp.sum(rows**2)


@fitted_coulomb_energy.defjvp
def _fitted_coulomb_energy_jvp(primals, tangents):
    pairs, aux, dm = primals
    charge = charges_of_density(pairs, aux, packed_density(dm))
    charge = _charges(lower_factor(coulomb_2c(aux)), charge)
    metric = -0.5 * charge[:, None] * charge[None]

    def functional(pairs, aux, dm):
        energy = sum(potential_energy(pairs, rows, dm) for rows in _charged(aux, charge))
        return energy + weighted_2c(aux, metric)

    return jax.jvp(functional, primals, tangents)
