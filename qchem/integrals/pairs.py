"""Charge distributions: products of two shells, auxiliary shells, and point charges.

All of them are sums of unit-charge Hermite Gaussians, so one kernel serves every Coulomb integral.
Which rows exist is planned once per basis with NumPy; their values are traced functions of
positions, exponents and coefficients.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qchem.basis.layout import Basis
from qchem.basis.spherical import angular_matrix, cartesian_powers, ncomponent
from qchem.integrals.coulomb import hermite_powers, nhermite
from qchem.integrals.hermite import hermite_coefficients, product_expansion

_NPRIM = {0: 4, 1: 3, 2: 3}  # primitive pairs per row by order, else 1: little padding, few rows
_PAIR_BLOCK = 1 << 22  # elements of an expansion held at once


class Distribution(eqx.Module):
    """Rows of charge distributions, each a contraction over unit Hermite Gaussians.

    A row is a shell pair (or a part of its primitives), an auxiliary shell, or a set of charges.
    rho_f(r) = sum_k sum_t coefficient[f, k, t] (d/dP_k)^t (p_k/pi)^(3/2) exp(-p_k |r - P_k|^2).

    Attributes:
        order: Highest degree of t; `lowest` the lowest one present.
        width: 1/p of each primitive, bohr²; 0 is a point charge.
        center: P, bohr.
        coefficient: Charge times bohr^(degree).
        index: What each function adds to (an AO pair or an auxiliary function); the number of
            targets where it adds to nothing.
    """

    order: int = eqx.field(static=True)
    lowest: int = eqx.field(static=True)
    width: Float[Array, "nrow nprim"]
    center: Float[Array, "nrow nprim 3"]
    coefficient: Float[Array, "nrow nfunction nprim nhermite"]
    index: Int[Array | np.ndarray, "nrow nfunction"]


class PairRows(eqx.Module):
    """Which primitives of which shells make the rows of one class (l_a >= l_b).

    Attributes:
        la, lb: The class.
        shell: Rows of the two shell batches.
        primitive: Columns of the two shell batches.
        used: False for padding.
        index: Packed AO pair, i >= j at i (i + 1) / 2 + j; npair where nothing is to be added.
        ao: First AO of the two shells.
    """

    la: int = eqx.field(static=True)
    lb: int = eqx.field(static=True)
    shell: Int[Array | np.ndarray, "2 nrow"]
    primitive: Int[Array | np.ndarray, "2 nrow nprim"]
    used: Bool[Array | np.ndarray, "nrow nprim"]
    index: Int[Array | np.ndarray, "nrow nfunction"]


def plan_pairs(basis: Basis, keep=None) -> tuple[PairRows, ...]:
    """All pairs of shells of a basis, by class; host side, once per basis.

    Args:
        basis: The basis.
        keep: Optionally `keep(la, lb, shell_a, shell_b) -> bool array`, False to drop a pair.
    """
    rows = []
    for na, a in enumerate(basis.batches):
        for nb, b in enumerate(basis.batches[: na + 1]):
            first, second = _shell_pairs(a.atom.size, b.atom.size, na == nb)
            if keep is not None:
                chosen = keep(a.l, b.l, first, second)
                first, second = first[chosen], second[chosen]
            if first.size:
                rows.append(_rows_of_class(basis, a, b, first, second))
    return tuple(rows)


def _shell_pairs(na, nb, same):
    if same:
        return np.tril_indices(na)
    return tuple(x.ravel() for x in np.indices((na, nb)))


def _rows_of_class(basis, a, b, first, second):
    width = _NPRIM.get(a.l + b.l, 1)
    depth_a = np.count_nonzero(a.contraction, axis=1)
    depth_b = np.count_nonzero(b.contraction, axis=1)
    depth = depth_a[first] * depth_b[second]
    parts = -(-depth // width)
    pair = np.repeat(np.arange(first.size), parts)
    part = np.arange(pair.size) - np.repeat(np.cumsum(parts) - parts, parts)
    k = part[:, None] * width + np.arange(width)[None, :]
    used = k < depth[pair][:, None]
    k = np.where(used, k, 0)
    per_b = depth_b[second[pair]][:, None]
    primitive = np.stack([k // per_b, k % per_b]).astype(np.int32)
    shell = np.stack([first[pair], second[pair]]).astype(np.int32)
    index = _pair_index(basis, a, b, first, second)[pair]
    return PairRows(a.l, b.l, shell, primitive, used, index)


def _pair_index(basis, a, b, first, second):
    """Packed AO pair of every function of every shell pair; each unordered pair once."""
    na, nb = ncomponent(a.l, basis.spherical), ncomponent(b.l, basis.spherical)
    i = a.ao[first][:, None, None] + np.arange(na)[None, :, None]
    j = b.ao[second][:, None, None] + np.arange(nb)[None, None, :]
    i, j = np.broadcast_arrays(i.astype(np.int64), j.astype(np.int64))
    high, low = np.maximum(i, j), np.minimum(i, j)
    index = high * (high + 1) // 2 + low
    diagonal = (a.ao[first] == b.ao[second])[:, None, None]
    index = np.where(diagonal & (j > i), npair(basis.nao), index)
    return index.reshape(first.size, na * nb).astype(np.int32)


def npair(nao: int) -> int:
    """Number of AO pairs i >= j."""
    return nao * (nao + 1) // 2


def pair_distributions(
    basis: Basis, rows: tuple[PairRows, ...], positions: Float[Array, "natom 3"]
) -> tuple[Distribution, ...]:
    """Products of AOs as charge distributions, all classes of one l_a + l_b in one list."""
    parts: dict[int, list[Distribution]] = {}
    for of_class in rows:
        order = of_class.la + of_class.lb
        parts.setdefault(order, []).append(_pair_class(basis, of_class, positions))
    return tuple(_merge(parts[order], npair(basis.nao)) for order in sorted(parts))


def primitive_pairs(basis: Basis, rows: PairRows, positions: Float[Array, "natom 3"]):
    """Exponents a and b, centres A and B, and the charge factor of every primitive pair.

    The charge factor holds contraction, normalization and the Gaussian product prefactor
    exp(-ab/p AB^2) (pi/p)^(3/2), (9.2.12)-(9.2.15) of Helgaker, Jørgensen & Olsen (2000).
    """
    dtype = positions.dtype
    exponents, factors, centers = [], [], []
    for side, l in enumerate((rows.la, rows.lb)):
        batch = next(batch for batch in basis.batches if batch.l == l)
        shell, primitive = rows.shell[side][:, None], rows.primitive[side]
        exponents.append(jnp.asarray(batch.exponents, dtype)[shell, primitive])
        factors.append(batch.coefficients(dtype)[shell, primitive])
        centers.append(positions[jnp.asarray(batch.atom)[rows.shell[side]]])
    (a, b), (ra, rb) = exponents, centers
    p = a + b
    distance2 = jnp.sum((ra - rb) ** 2, axis=1)[:, None]
    charge = factors[0] * factors[1] * jnp.exp(-a * b / p * distance2) * (np.pi / p) ** 1.5
    return a, b, ra, rb, jnp.where(rows.used, charge, 0.0)


def _pair_class(basis, rows, positions):
    """E^{ab}_{tuv} with contraction, normalization and angular parts, (9.5.1) and (9.9.33)."""
    a, b, ra, rb, charge = primitive_pairs(basis, rows, positions)
    separation = jnp.broadcast_to((ra - rb)[:, None, :], (*a.shape, 3))
    weight = (a / (a + b))[:, :, None]
    center = ra[:, None, :] * weight + rb[:, None, :] * (1.0 - weight)
    coefficient = _expand(rows.la, rows.lb, basis.spherical, a, b, separation, charge)
    return Distribution(rows.la + rows.lb, 0, 1.0 / (a + b), center, coefficient, rows.index)


def _expand(la, lb, spherical, a, b, separation, charge, lowest=0):
    """Hermite coefficients (nrow, nfunction, nprim, nhermite) of spherical or Cartesian pairs."""
    order = la + lb
    angular_a = jnp.asarray(angular_matrix(la, spherical), a.dtype)
    angular_b = jnp.asarray(angular_matrix(lb, spherical), a.dtype)

    def expand(block):
        a, b, separation, charge = block
        e = hermite_coefficients(la, lb, a, b, separation.T)
        full = product_expansion(cartesian_powers(la), cartesian_powers(lb), order, lowest, e)
        full = full * charge[None, None, None]
        full = jnp.einsum("ax,xyhr->ayhr", angular_a, full, precision="highest")
        full = jnp.einsum("by,ayhr->rabh", angular_b, full, precision="highest")
        return full.reshape(a.shape[0], -1, full.shape[-1])

    nrow, nprim = a.shape
    flat = (a.ravel(), b.ravel(), separation.reshape(-1, 3), charge.ravel())
    ncart = angular_a.shape[1] * angular_b.shape[1]
    block = max(1, _PAIR_BLOCK // (ncart * nhermite(order, lowest)))
    if nrow * nprim <= block:
        coefficient = expand(flat)
    else:
        padding = -(nrow * nprim) % block
        blocks = jax.tree.map(
            lambda x: _pad_rows(x, padding).reshape(-1, block, *x.shape[1:]), flat
        )
        coefficient = jax.lax.map(jax.checkpoint(expand), blocks)
        coefficient = coefficient.reshape(-1, *coefficient.shape[2:])[: nrow * nprim]
    nfunction, nherm = coefficient.shape[1:]
    return jnp.swapaxes(coefficient.reshape(nrow, nprim, nfunction, nherm), 1, 2)


def _pad_rows(x, padding):
    """Repeats the last row, a valid one, `padding` times."""
    return jnp.concatenate([x, jnp.broadcast_to(x[-1:], (padding, *x.shape[1:]))])


def _merge(parts, ntarget):
    """Distributions of one order as one list, functions padded with zeros."""
    if len(parts) == 1:
        return parts[0]
    nfunction = max(part.index.shape[1] for part in parts)
    nprim = max(part.width.shape[1] for part in parts)
    assert all(part.width.shape[1] == nprim for part in parts)
    coefficients, indices = [], []
    for part in parts:
        missing = nfunction - part.index.shape[1]
        coefficients.append(jnp.pad(part.coefficient, ((0, 0), (0, missing), (0, 0), (0, 0))))
        indices.append(jnp.pad(part.index, ((0, 0), (0, missing)), constant_values=ntarget))
    return Distribution(
        parts[0].order,
        parts[0].lowest,
        jnp.concatenate([part.width for part in parts]),
        jnp.concatenate([part.center for part in parts]),
        jnp.concatenate(coefficients),
        jnp.concatenate(indices),
    )


def auxiliary_distributions(
    aux: Basis, positions: Float[Array, "natom 3"]
) -> tuple[Distribution, ...]:
    """The shells of an auxiliary basis as charge distributions, one list per l.

    A shell is its product with a constant: an s function of exponent 0. A solid harmonic times
    a Gaussian is a pure derivative of degree l, so spherical shells need the top degree alone.
    """
    lists = []
    for batch in aux.batches:
        a = jnp.asarray(batch.exponents, positions.dtype)
        factor = batch.coefficients(positions.dtype) * np.sqrt(4 * np.pi)
        charge = factor * (np.pi / a) ** 1.5
        separation = jnp.zeros((*a.shape, 3), a.dtype)
        lowest = batch.l if aux.spherical else 0
        coefficient = _expand(
            batch.l, 0, aux.spherical, a, jnp.zeros_like(a), separation, charge, lowest
        )
        center = positions[jnp.asarray(batch.atom)][:, None, :]
        center = jnp.broadcast_to(center, (*a.shape, 3))
        ncomp = ncomponent(batch.l, aux.spherical)
        index = batch.ao[:, None] + np.arange(ncomp, dtype=np.int32)[None]
        lists.append(Distribution(batch.l, lowest, 1.0 / a, center, coefficient, index))
    return tuple(lists)


def charge_distribution(
    charges: Float[Array, "ncharge nprim"],
    widths: Float[Array, "ncharge nprim"],
    positions: Float[Array, "ncharge 3"],
) -> Distribution:
    """Spherical charges as one list: points where the width 1/p is 0, Gaussians elsewhere."""
    center = jnp.broadcast_to(positions[:, None, :], (*charges.shape, 3))
    index = np.zeros((charges.shape[0], 1), np.int32)
    return Distribution(0, 0, widths, center, charges[:, None, :, None], index)


def hermite_sign(order: int, lowest: int) -> np.ndarray:
    """(-1)^(t+u+v): a derivative on the second charge is minus one on the separation."""
    return (-1.0) ** hermite_powers(order, lowest).sum(1)
