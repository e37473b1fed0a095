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


def _way(aux):
    return solid if _are_solid(aux) else auxiliary


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
    sum_3c = solid.weighted_solid_3c if _are_solid(aux) else auxiliary.weighted_3c
    return sum_3c(pairs, own, three) + weighted_metric(aux, two, share)


def weighted_metric(
    aux: Auxiliary, two: Float[Array, "ncolumn ncolumn"], share: Share = ALONE
) -> Float[Array, ""]:
    """Sum of symmetric weights times (P|Q); a device's part of it."""
    if _are_solid(aux):
        return solid.weighted_solid_2c(aux, two, share)
    return auxiliary.weighted_2c(aux, two) / share.count


def charges_of_density(
    pairs: Pairs, aux: Auxiliary, density: Float[Array, " npair"]
) -> Float[Array, " ncolumn"]:
    """sum_ab D_ab (ab|P) of a packed density, hartree; (ab|P) is not stored."""
    return _way(aux).charges_of_density(pairs, aux, density)


def potential_of_charges(
    pairs: Pairs, aux: Auxiliary, charge: Float[Array, " ncolumn"], npair: int
) -> Float[Array, " {npair}"]:
    """sum_P (ab|P) d_P of packed pairs, hartree; (ab|P) is not stored."""
    return _way(aux).potential_of_charges(pairs, aux, charge, npair)


def energy_of_charges(
    pairs: Pairs, aux: Auxiliary, density: Float[Array, " npair"], charge: Float[Array, " ncolumn"]
) -> Float[Array, ""]:
    """sum_ab D_ab sum_P (ab|P) d_P of a packed density, hartree; (ab|P) is not stored."""
    return _way(aux).energy_of_charges(pairs, aux, density, charge)


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
