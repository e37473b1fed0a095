"""(ab|P) and (P|Q) of density fitting, by the way that suits the auxiliary functions.

Lists of solid harmonics (`SolidShells`) have formulas of their own; the general kernel serves any
other (`Distribution`). Columns are in the order of `solid_functions` or `auxiliary_columns`.
"""

from __future__ import annotations

import equinox as eqx
import jax
from jaxtyping import Array, Float

from qchem.integrals import solid, two_electron
from qchem.integrals.pairs import Distribution
from qchem.integrals.solid import SolidShells

Pairs = tuple[Distribution, ...]
Auxiliary = tuple[SolidShells, ...] | tuple[Distribution, ...]


def _are_solid(aux):
    return isinstance(aux[0], SolidShells)


def fitting_3c(pairs: Pairs, aux: Auxiliary, npair: int) -> Float[Array, "npair ncolumn"]:
    """(ab|P) for packed pairs, hartree."""
    make = solid.solid_3c if _are_solid(aux) else two_electron.coulomb_3c
    return make(pairs, aux, npair)


def fitting_2c(aux: Auxiliary) -> Float[Array, "ncolumn ncolumn"]:
    """(P|Q), hartree."""
    return solid.solid_2c(aux) if _are_solid(aux) else two_electron.coulomb_2c(aux)


def weighted_fitting(
    pairs: Pairs,
    aux: Auxiliary,
    three: Float[Array, "npair ncolumn"],
    two: Float[Array, "ncolumn ncolumn"],
) -> Float[Array, ""]:
    """Sum of weights times (ab|P), and of symmetric weights times (P|Q)."""
    if _are_solid(aux):
        return solid.weighted_solid_3c(pairs, aux, three) + solid.weighted_solid_2c(aux, two)
    return two_electron.weighted_3c(pairs, aux, three) + two_electron.weighted_2c(aux, two)


@eqx.filter_custom_vjp
def fitting_integrals(
    lists: tuple[Pairs, Auxiliary], npair: int
) -> tuple[Float[Array, "npair ncolumn"], Float[Array, "ncolumn ncolumn"]]:
    """(ab|P) and (P|Q), for reverse mode alone.

    What multiplies their derivatives is known there, so none of these is ever made.

    Args:
        lists: Those of the AO pairs and of the auxiliary functions.
    """
    return fitting_3c(*lists, npair), fitting_2c(lists[1])


@fitting_integrals.def_fwd
def _fitting_integrals_fwd(perturbed, lists, npair):
    return fitting_integrals(lists, npair), None


@fitting_integrals.def_bwd
def _fitting_integrals_bwd(residuals, weights, perturbed, lists, npair):
    moving, fixed = eqx.partition(lists, perturbed)
    three, two = weights

    def change(moving):
        pairs, aux = eqx.combine(moving, fixed)
        return weighted_fitting(pairs, aux, three, 0.5 * (two + two.T))

    return jax.grad(change)(moving)
