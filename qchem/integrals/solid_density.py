"""Densities against auxiliary shells of solid harmonics: sums over functions before integrals.

By the product rule of `solid_kernel`, a row of Hermite Gaussians H_p interacts with the functions
of a shell as sum_i d_i Y_lm(r) B_i, with B_i = sum_p binomial(p, i) H_p d_(p-i) f_l. The charges
q_m of a shell have the potential V_p = sum_i binomial(p, i) A_i d_(p-i) f_l at a primitive, with
A_i = sum_m q_m d_i Y_lm(r). Neither B nor A is larger for higher l, as the integrals are.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial, reduce
from math import comb, prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qchem.compilation import standing
from qchem.derivatives import jvp_of_moving
from qchem.integrals.coulomb import hermite_powers
from qchem.integrals.pairs import Distribution
from qchem.integrals.solid_kernel import (
    Kets,
    harmonic_slopes,
    monomials_of,
    moves,
    operands,
    product_rule,
    radial_functions,
    raised_index,
)


def charges_of(bra: Distribution, ket: Kets) -> Float[Array, " naux"]:
    """Sum over all rows, of one function each, of their integrals with each function of the ket;
    hartree."""
    return _charges(*operands(bra, ket))


def potential_of(
    bra: Distribution, ket: Kets, charge: Float[Array, " naux"]
) -> Float[Array, "nbra nfunction"]:
    """sum_P (f|P) charge_P, hartree."""
    sides, width, center, coefficient, *of_ket = operands(bra, ket)
    values = 0.0
    for part in _parts(sides, sides[0], width, center, *of_ket):
        blocks = _potentials(sides[1], sides[0], part, charge)
        values = values + _total(blocks)
    values = values.reshape(-1, *width.shape)
    return jnp.einsum("rfkp,prk->rf", coefficient, values, precision="highest")


def energy_of(bra: Distribution, ket: Kets, charge: Float[Array, " naux"]) -> Float[Array, ""]:
    """Sum over all rows, of one function each, of `potential_of`; its derivative needs no
    derivatives of integrals. Hartree."""
    return _energy(*operands(bra, ket), charge)


class _Part(NamedTuple):
    """Shells of one l, and the primitives of rows that they meet."""

    l: int
    functions: slice  # of the ket
    radial: Float[Array, "nhermite nprim nshell"]  # derivatives of f_l
    separation: Float[Array, "3 nprim nshell"]


def _parts(sides, order, width, center, ket_width, ket_center, charge) -> Iterator[_Part]:
    separation = center.reshape(-1, 3).T[:, :, None] - ket_center.T[:, None, :]
    alpha = 1.0 / (width.reshape(-1, 1) + ket_width[None])
    radial, separations = radial_functions(sides[2], order, alpha, separation, charge)
    start = shell = 0
    for (l, _, nshell, _), apart in zip(sides[2], separations, strict=True):
        functions = slice(start, start + (2 * l + 1) * nshell)
        yield _Part(l, functions, radial[:, :, shell : shell + nshell], apart)
        start, shell = functions.stop, shell + nshell


def _charges(sides, width, center, coefficient, *of_ket):
    order, lowest, _ = sides
    hermite, found = _in_rows(coefficient), []
    for part in _parts(sides, order, width, center, *of_ket):
        l, radial = part.l, part.radial
        of_radial = partial(_hermite_sums, order, lowest, l)
        sums = standing(of_radial, radial, hermite)
        total = 0.0
        for j, (of_j, monomials) in enumerate(zip(sums, monomials_of(part.separation, l)[::-1])):
            both = of_j[:, None] * monomials[None] if j < l else of_j[:, None]
            both = jnp.sum(both, axis=2)
            matrix = harmonic_slopes(l, j).reshape(len(of_j), 2 * l + 1, -1)
            matrix = jnp.asarray(matrix, both.dtype)
            total = total + jnp.einsum("ims,ikm->ks", both, matrix, precision="highest")
        found.append(total.ravel())
    return jnp.concatenate(found)


def _hermite_sums(order, lowest, l, radial, hermite):
    """B_i, by the degree of i."""
    sums = []
    for j in range(min(order, l) + 1):
        total = 0.0
        for q, (of_p, times) in enumerate(zip(*_sums_of_powers(order, lowest, j), strict=True)):
            if times.any():
                weight = jnp.asarray(times, hermite.dtype)[:, None] * hermite[of_p]
                total = total + weight[:, :, None] * radial[q : q + 1]
        sums.append(total)
    return sums


def _slopes(order, l, separation, charge):
    """A_i, by the degree of i."""
    slopes = []
    for j, monomials in enumerate(monomials_of(separation, l)[::-1][: min(order, l) + 1]):
        matrix = harmonic_slopes(l, j).reshape(-1, 2 * l + 1, len(monomials))
        matrix = jnp.asarray(matrix, charge.dtype)
        weight = jnp.einsum("ikm,ks->ims", matrix, charge, precision="highest")[:, :, None]
        terms = (weight[:, m] * x[None] for m, x in enumerate(monomials))
        slopes.append(reduce(jnp.add, terms))
    return slopes


def _potentials(lowest, order, part, charge):
    """V_p of each shell, degrees lowest ... order of p in one block each."""
    charge = charge[part.functions].reshape(2 * part.l + 1, -1)
    slopes = standing(partial(_slopes, order, part.l), part.separation, charge)
    return product_rule(lowest, order, slopes, part.radial)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _energy(sides, *arrays):
    return jnp.vdot(_charges(sides, *arrays[:-1]), arrays[-1], precision="highest")


@partial(_energy.defjvp, symbolic_zeros=True)
def _energy_jvp(sides, primals, tangents):
    width, center, coefficient, *of_ket, charge = primals
    dwidth, dcenter, dcoefficient, dket_width, dket_center, dket_charge, dcharge = tangents
    if moves(dwidth, dket_width, dket_charge):
        return jvp_of_moving(partial(_energy.fun, sides), primals, tangents)
    order, lowest, kinds = sides
    hermite = _in_rows(coefficient)
    raised = [raised_index(order, lowest, axis) for axis in range(3)]
    tangent, total, first = jnp.zeros((), charge.dtype), 0.0, 0
    for part, (_, _, nshell, nprim) in zip(_parts(sides, order + 1, width, center, *of_ket), kinds):
        blocks = standing(partial(_potentials, lowest, order + 1, part), charge)
        total = total + _total(blocks)
        if moves(dket_center):
            every = [x for block in blocks for x in block]
            for axis, index in enumerate(raised):
                terms = [h[:, None] * every[n] for h, n in zip(hermite, index, strict=True)]
                pull = _over_rows(reduce(jnp.add, terms))
                step = dket_center[first : first + nshell, axis]
                tangent = tangent - jnp.vdot(pull, step, precision="highest")
        first += nprim
    here = total[: len(hermite)]
    value = jnp.vdot(hermite, here, precision="highest")
    if moves(dcoefficient):
        tangent = tangent + jnp.vdot(here, _in_rows(dcoefficient), precision="highest")
    if moves(dcenter):
        for axis, index in enumerate(raised):
            pull = jnp.sum(hermite * total[index], axis=0)
            tangent = tangent + jnp.vdot(pull, dcenter[:, :, axis].ravel(), precision="highest")
    if moves(dcharge):
        charges = _charges(sides, width, center, coefficient, *of_ket)
        tangent = tangent + jnp.vdot(charges, dcharge, precision="highest")
    return value, tangent


def _in_rows(coefficient):
    """Hermite Gaussians of rows of one function: (p, (row, k))."""
    return coefficient[:, 0].reshape(-1, coefficient.shape[3]).T


def _over_rows(x):
    """Sums over the leading axis, as a product: XLA's own sums are slower."""
    total = jnp.dot(jnp.ones_like(x, shape=len(x)), x.reshape(len(x), -1), precision="highest")
    return total.reshape(x.shape[1:])


def _total(blocks):
    """Sums over shells."""
    ones = jnp.ones_like(blocks[0][0, 0])
    return jnp.concatenate([jnp.dot(x, ones, precision="highest") for x in blocks])


@lru_cache(maxsize=64)
def _sums_of_powers(order, lowest, j):
    """For each q up to degree order - j: of which p = q + i each i of degree j is, and
    binomial(p, i); 0 where p is lower than the lowest."""
    place = {tuple(p): n for n, p in enumerate(hermite_powers(order, lowest).tolist())}
    derivatives = hermite_powers(j, j).tolist()
    found = []
    for q in hermite_powers(order - j).tolist():
        powers = [tuple(a + b for a, b in zip(q, i)) for i in derivatives]
        times = [prod(map(comb, p, i)) if p in place else 0 for p, i in zip(powers, derivatives)]
        found.append(([place.get(p, 0) for p in powers], times))
    return np.array(found, np.int32).transpose(1, 0, 2)
