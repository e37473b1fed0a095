"""(ab|P) and (P|Q) of density fitting, by the way that suits the auxiliary functions.

Lists of solid harmonics (`SolidShells`) have formulas of their own; the general kernel serves any
other (`Distribution`). Columns are in the order of `solid_functions` or `auxiliary_columns`.
"""

from __future__ import annotations

import equinox as eqx
import jax
from jaxtyping import Array, Float

from qchem.devices import ALONE, Share
from qchem.integrals import auxiliary, solid
from qchem.integrals.pairs import Distribution
from qchem.integrals.shared import Auxiliary
from qchem.integrals.solid import SolidShells

Pairs = tuple[Distribution, ...]


def _are_solid(aux):
    return isinstance(aux[0], SolidShells)


def fitting_3c(pairs: Pairs, aux: Auxiliary, npair: int) -> Float[Array, "npair ncolumn"]:
    """(ab|P) for packed pairs, hartree."""
    make = solid.solid_3c if _are_solid(aux) else auxiliary.coulomb_3c
    return make(pairs, aux, npair)


def fitting_2c(aux: Auxiliary, share: Share = ALONE) -> Float[Array, "ncolumn ncolumn"]:
    """(P|Q), hartree, made by all devices together."""
    return solid.solid_2c(aux, share) if _are_solid(aux) else auxiliary.coulomb_2c(aux)


def weighted_fitting(
    pairs: Pairs,
    aux: Auxiliary,
    own: Auxiliary,
    three: Float[Array, "npair own"],
    two: Float[Array, "ncolumn ncolumn"],
    share: Share = ALONE,
) -> Float[Array, ""]:
    """Sum of weights times (ab|P), and of symmetric weights times (P|Q); a device's part of it.

    Args:
        own: A device's part of the auxiliary functions, or all, `aux`.
    """
    if not _are_solid(aux):
        rest = auxiliary.weighted_2c(aux, two) / share.count
        return auxiliary.weighted_3c(pairs, own, three) + rest
    rest = solid.weighted_solid_2c(aux, two, share)
    return solid.weighted_solid_3c(pairs, own, three) + rest


@eqx.filter_custom_vjp
def fitting_integrals(
    lists: tuple[Pairs, Auxiliary, Auxiliary], npair: int, share: Share
) -> tuple[Float[Array, "npair own"], Float[Array, "ncolumn ncolumn"]]:
    """(ab|P) and (P|Q), for reverse mode alone.

    What multiplies their derivatives is known there, so none of these is ever made.

    Args:
        lists: Those of the AO pairs, of the auxiliary functions and of a device's own.
    """
    pairs, aux, own = lists
    return fitting_3c(pairs, own, npair), fitting_2c(aux, share)


@fitting_integrals.def_fwd
def _fitting_integrals_fwd(perturbed, lists, npair, share):
    return fitting_integrals(lists, npair, share), None


@fitting_integrals.def_bwd
def _fitting_integrals_bwd(residuals, weights, perturbed, lists, npair, share):
    moving, fixed = eqx.partition(lists, perturbed)
    three, two = weights
    two = share.total(0.5 * (two + two.T))

    def change(moving):
        return weighted_fitting(*eqx.combine(moving, fixed), three, two, share)

    return jax.grad(change)(moving)
