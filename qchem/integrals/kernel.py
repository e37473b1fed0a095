"""The one Coulomb kernel: charge distributions against charge distributions."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from qchem.compilation import standing
from qchem.integrals.coulomb import hermite_coulomb, lowered_index, nhermite, sum_index
from qchem.integrals.gather import rows_at
from qchem.integrals.pairs import Distribution, hermite_sign

_MATRICES = 9  # functions of a ket row from which on it is contracted by matrix products
_GATHER = 40  # products in a matrix multiplication that take as long as to gather one element


def interaction(
    bra: Distribution, ket: Distribution
) -> Float[Array, "nbra nfunction_bra nfunction_ket nket"]:
    """Coulomb integrals (f|g) between all rows of two lists, in one piece.

    (f|g) = sum_pq E_f[p] R_{p+q}(alpha, P - Q) E_g[q] (-1)^|q|, (9.9.33) of Helgaker, Jørgensen &
    Olsen (2000), with 1/alpha = 1/p + 1/q.

    A change of a distribution's center, width or coefficients is again a distribution of the same
    widths and centers, of higher order; so the derivative is d(f|g) = (df|g) + (f|dg), with the
    same contraction and R of a higher order.

    Args:
        bra, ket: The lists; the ket should be the one of lower order.

    Returns:
        Integrals, hartree; the ket's rows are the minor axis.
    """
    return _interaction(*_operands(bra, ket))


def weighted_sum(
    bra: Distribution,
    ket: Distribution,
    weight: Float[Array, "nbra nfunction_bra nfunction_ket nket"],
) -> Float[Array, ""]:
    """Sum of weight times `interaction`, with cheap derivatives; hartree."""
    return _weighted(*_operands(bra, ket), weight)


def _operands(bra, ket):
    sides = (bra.order, bra.lowest), (ket.order, ket.lowest)
    first = bra.width, bra.center, bra.coefficient
    return sides, *first, ket.width, ket.center, ket.coefficient


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _interaction(sides, width, center, coefficient, ket_width, ket_center, ket):
    order = sides[0][0] + sides[1][0]
    r = _separated(order, width, center, ket_width, ket_center)
    return _contract(r, *sides, coefficient, ket)


def _interaction_jvp(sides, primals, tangents):
    (width, center, bra), (ket_width, ket_center, ket) = primals[:3], primals[3:]
    dbra, bra_side = _perturbed(sides[0], bra, *tangents[:3])
    dket, ket_side = _perturbed(sides[1], ket, *tangents[3:])
    plain = sides[0][0] + sides[1][0]
    order = max(plain, bra_side[0] + sides[1][0], sides[0][0] + ket_side[0])
    r = _separated(order, width, center, ket_width, ket_center)
    value = _contract(r, *sides, bra, ket)
    tangent = jnp.zeros_like(value)
    if dbra is not None:
        tangent = tangent + _contract(r, bra_side, sides[1], dbra, ket)
    if dket is not None:
        tangent = tangent + _contract(r, sides[0], ket_side, bra, dket)
    return value, tangent


_interaction.defjvp(_interaction_jvp, symbolic_zeros=True)


def _separated(order, width, center, ket_width, ket_center):
    """R of the bra's primitives against all of the ket's: nbra, nprim, nhermite, (mprim nket)."""
    ket_width = ket_width.T
    ket_center = jnp.transpose(ket_center, (2, 1, 0))

    def one(s, p):
        return hermite_coulomb(order, 1.0 / (s + ket_width), p[:, None, None] - ket_center)

    def every():
        r = jax.vmap(jax.vmap(one))(width, center)
        return r.reshape(*shape)

    shape = *width.shape, nhermite(order), ket_width.size
    # R stands in memory. Else XLA makes it anew wherever a row of it is taken, one element after
    # another.
    return standing(every)


def _contract(r, bra_side, ket_side, bra, ket):
    """sum_pq E_f[p] R_{p+q} E_g[q] (-1)^|q|: bilinear in the coefficients.

    The bra first, as a matrix product for some Hermite functions of the ket at a time; then the
    ket, whose coefficients differ from row to row: a small matrix product for each row, or where
    functions are few element by element.
    """
    mprim, nket = ket.shape[2], ket.shape[0]
    signed = _signed(ket, ket_side)
    matrices = ket.shape[1] >= _MATRICES
    total = None
    for block in _hermite_blocks(r, bra.shape[1], bra_side, ket_side, 4 if matrices else 2):
        half = _half(r, bra, bra_side, ket_side, block, mprim)
        if matrices:
            term = jnp.einsum("ifqmj,qgmj->ifgj", half, signed[block], precision="highest")
            total = term if total is None else total + term
            continue
        for n, q in enumerate(block):
            for m in range(mprim):
                term = half[:, :, None, n, m] * signed[q, :, m][None, None]
                total = term if total is None else total + term
    return total.reshape(*bra.shape[:2], -1, nket)


def _half(r, bra, bra_side, ket_side, block, mprim):
    """sum_p E_f[p] R_{p+q} for the ket's Hermite functions q of a block: (i, f, q, m, j)."""
    if _is_spread(r, bra.shape[1], bra_side):
        bra, rows = _spread(bra, r, bra_side, ket_side, block), r.reshape(len(r), -1, r.shape[3])
    else:
        bra, rows = bra.reshape(*bra.shape[:2], -1), _rows(r, bra_side, ket_side, block)
    half = jnp.einsum("ifp,ipj->ifj", bra, rows, precision="highest")
    return half.reshape(r.shape[0], -1, len(block), mprim, r.shape[3] // mprim)


def _is_spread(r, nfunction, bra_side):
    """Whether the coefficients are put where R is, with zeros between, or R where they are."""
    return r.shape[2] * nfunction < nhermite(*bra_side) * (nfunction + _GATHER)


def _spread(bra, r, bra_side, ket_side, block):
    """E_f[p] in the place of R_{p+q}, for the ket's functions q of a block: (i, (f, q), (k, r))."""
    index = _index(bra_side, ket_side, block)
    source = np.full((len(block), r.shape[2]), len(index), np.int32)
    source[np.arange(len(block)), index] = np.arange(len(index), dtype=np.int32)[:, None]
    bra = jnp.pad(bra, ((0, 0), (0, 0), (0, 0), (0, 1)))[..., source]  # i, f, k, q, r
    return jnp.swapaxes(bra, 2, 3).reshape(len(r), -1, r.shape[1] * r.shape[2])


def _rows(r, bra_side, ket_side, block):
    """R_{p+q} for the ket's Hermite functions q of a block: (i, (k, p), (q, m, j))."""
    rows = r[:, :, _index(bra_side, ket_side, block)]
    return rows.reshape(r.shape[0], r.shape[1] * nhermite(*bra_side), -1)


def _index(bra_side, ket_side, block):
    """Position of p + q among the rows of R, for the ket's Hermite functions q of a block."""
    return sum_index(bra_side[0], ket_side[0], bra_side[1], ket_side[1])[:, block]


def _hermite_blocks(r, nfunction, bra_side, ket_side, times=2):
    """The ket's Hermite functions in blocks that need about so many times the memory of R."""
    spread = _is_spread(r, nfunction, bra_side)
    each = nfunction if spread else nhermite(*bra_side) * r.shape[1]
    total, size = nhermite(*ket_side), max(1, times * r.shape[1] * r.shape[2] // each)
    return [np.arange(start, min(start + size, total)) for start in range(0, total, size)]


def _signed(ket, ket_side):
    """Coefficients of the ket times (-1)^|q|, with its rows as the minor axis: (q, g, m, j)."""
    sign = jnp.asarray(hermite_sign(*ket_side), ket.dtype)
    return jnp.transpose(ket * sign[None, None, None, :], (3, 1, 2, 0))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _weighted(sides, width, center, bra, ket_width, ket_center, ket, weight):
    """sum of weight (f|g): what energies need. Its derivative needs no integral derivatives."""
    arrays = (width, center, bra, ket_width, ket_center, ket)
    return jnp.vdot(weight, _interaction(sides, *arrays), precision="highest")


def _weighted_jvp(sides, primals, tangents):
    width, center, bra, ket_width, ket_center, ket, weight = primals
    dbra, bra_side = _perturbed(sides[0], bra, *tangents[:3])
    dket, ket_side = _perturbed(sides[1], ket, *tangents[3:6])
    dweight = tangents[6]
    order = max(sides[0][0] + sides[1][0], bra_side[0] + sides[1][0], sides[0][0] + ket_side[0])
    r = _separated(order, width, center, ket_width, ket_center)
    value = None
    tangent = jnp.zeros((), bra.dtype)
    if not isinstance(dweight, SymbolicZero):
        integrals = _contract(r, *sides, bra, ket)
        value = jnp.vdot(weight, integrals, precision="highest")
        tangent = tangent + jnp.vdot(integrals, dweight, precision="highest")
    if dket is not None:
        slope = _ket_slope(r, sides[0], ket_side, bra, weight, ket.shape[2])
        tangent = tangent + jnp.vdot(slope, _signed(dket, ket_side), precision="highest")
    if dbra is not None or value is None:
        if value is None:  # takes the bra's own powers, also those that do not change
            bra_side = bra_side[0], sides[0][1]
        slope = _bra_slope(r, bra_side, sides[1], ket, weight)
        if dbra is not None:
            changing = slope[..., slope.shape[-1] - dbra.shape[-1] :]
            tangent = tangent + jnp.vdot(changing, dbra, precision="highest")
        if value is None:
            value = jnp.vdot(slope[..., : bra.shape[-1]], bra, precision="highest")
    return value, tangent


_weighted.defjvp(_weighted_jvp, symbolic_zeros=True)


def _bra_slope(r, bra_side, ket_side, ket, weight):
    """Derivative of the weighted sum in the bra's coefficients: sum_gq w_fg R_{p+q} E_g[q]."""
    signed = _signed(ket, ket_side)
    nbra, nfunction = weight.shape[:2]
    spread = _is_spread(r, nfunction, bra_side)
    total = None
    for block in _hermite_blocks(r, nfunction, bra_side, ket_side):
        chosen = signed[block]  # q, g, m, j
        density = None
        for g in range(chosen.shape[1]):
            term = weight[:, :, g][:, :, None, None] * chosen[:, g][None, None]
            density = term if density is None else density + term
        if spread:
            density = density.reshape(nbra, nfunction * len(block), -1)
            rows = r.reshape(nbra, -1, r.shape[3])
        else:
            density = density.reshape(nbra, nfunction, -1)
            rows = _rows(r, bra_side, ket_side, block)
        term = jnp.einsum("ifj,ipj->ifp", density, rows, precision="highest")
        if spread:
            term = _gathered(term, r, nfunction, _index(bra_side, ket_side, block))
        total = term if total is None else total + term
    return total.reshape(nbra, nfunction, r.shape[1], -1)


def _gathered(slope, r, nfunction, index):
    """Sum over q of what stands in the place of R_{p+q}; (i, (f, q), (k, r)) to (i, f, k, p)."""
    slope = slope.reshape(len(r), nfunction, index.shape[1], *r.shape[1:3])
    return sum(slope[:, :, n][..., rows] for n, rows in enumerate(index.T))


def _ket_slope(r, bra_side, ket_side, bra, weight, mprim):
    """Derivative of the weighted sum in the ket's signed coefficients: (q, g, m, j)."""
    parts = []
    for block in _hermite_blocks(r, bra.shape[1], bra_side, ket_side):
        half = _half(r, bra, bra_side, ket_side, block, mprim)
        parts.append(jnp.einsum("ifgj,ifqmj->qgmj", weight, half, precision="highest"))
    return jnp.concatenate(parts)


def _perturbed(side, coefficient, dwidth, dcenter, dcoefficient):
    """Coefficients, and (order, lowest), of the change of a distribution; None for no change.

    The derivative with respect to a center raises a Hermite index; that with respect to the
    width s = 1/p of exp(-r^2/s) is a quarter of the Laplacian (heat equation).
    """
    order, lowest = side
    changes = [t for t in (dwidth, dcenter, dcoefficient) if not isinstance(t, SymbolicZero)]
    if not changes:
        return None, side
    top = order + max(
        2 * (not isinstance(dwidth, SymbolicZero)), int(not isinstance(dcenter, SymbolicZero))
    )
    if isinstance(dcoefficient, SymbolicZero) and isinstance(dwidth, SymbolicZero):
        lowest += 1
    total = jnp.zeros((*coefficient.shape[:3], nhermite(top, lowest)), coefficient.dtype)
    if not isinstance(dcoefficient, SymbolicZero):
        missing = total.shape[3] - dcoefficient.shape[3]
        total = total + jnp.pad(dcoefficient, ((0, 0), (0, 0), (0, 0), (0, missing)))
    if not isinstance(dcenter, SymbolicZero):
        raised = _raised_coefficients(coefficient, side, (top, lowest), 1)
        total = total + jnp.sum(raised * dcenter[:, None, :, :, None], axis=3)
    if not isinstance(dwidth, SymbolicZero):
        raised = _raised_coefficients(coefficient, side, (top, lowest), 2)
        total = total + jnp.sum(raised, axis=3) * (0.25 * dwidth)[:, None, :, None]
    return total, (top, lowest)


def _raised_coefficients(coefficient, side, target, power):
    """Coefficients of the `power`-th derivatives along x, y and z, in the powers of `target`."""
    source = np.stack([lowered_index(*target, *side, axis, power) for axis in range(3)])
    zero = jnp.zeros_like(coefficient[..., :1])
    return rows_at(jnp.concatenate([coefficient, zero], axis=-1), source, axis=-1)
