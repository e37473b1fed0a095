"""Overlap, kinetic energy, multipoles and the potential of point charges."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qchem.basis.layout import Basis
from qchem.basis.spherical import angular_matrix, cartesian_powers
from qchem.integrals.coulomb import hermite_powers
from qchem.integrals.hermite import hermite_coefficients
from qchem.integrals.pairs import Distribution, PairRows, npair, primitive_pairs


def unpack(packed: Float[Array, "*batch npair"], nao: int) -> Float[Array, "*batch nao nao"]:
    """Symmetric matrices from their packed lower triangles."""
    i, j = np.indices((nao, nao))
    high, low = np.maximum(i, j), np.minimum(i, j)
    return packed[..., high * (high + 1) // 2 + low]


def packed_moment(
    pairs: tuple[Distribution, ...], npair: int, powers: tuple[int, int, int], origin
) -> Float[Array, "npair"]:
    """Integrals of x^i y^j z^k over the AO pairs, about `origin`, at most second degree.

    A Hermite Gaussian is a derivative of a unit charge with respect to its centre, so its moment
    is that derivative of the unit charge's moment: 1, X, X^2 + 1/2p for powers 0, 1, 2.
    """
    total = jnp.zeros(npair, pairs[0].coefficient.dtype)
    for rows in pairs:
        moment = None
        for axis, power in enumerate(powers):
            x = rows.center[..., axis] - origin[axis]
            one, zero = jnp.ones_like(x), jnp.zeros_like(x)
            derivatives = {
                0: [one],
                1: [x, one],
                2: [x * x + 0.5 * rows.width, 2.0 * x, 2.0 * one],
            }[power]
            derivatives += [zero] * (rows.order + 1 - len(derivatives))
            t = hermite_powers(rows.order)[:, axis]
            factor = jnp.stack(derivatives)[t]
            moment = factor if moment is None else moment * factor
        values = jnp.einsum("rfkh,hrk->rf", rows.coefficient, moment, precision="highest")
        total = total.at[jnp.asarray(rows.index).ravel()].add(values.ravel(), mode="drop")
    return total


def packed_kinetic(
    basis: Basis, rows: tuple[PairRows, ...], positions: Float[Array, "natom 3"]
) -> Float[Array, "npair"]:
    """-1/2 <a|nabla^2|b> of the AO pairs, hartree.

    By (9.3.36) of Helgaker, Jørgensen & Olsen (2000): on each axis
    -2 b^2 S_{i,j+2} + b (2j + 1) S_ij - j (j - 1)/2 S_{i,j-2}.
    """
    dtype = positions.dtype
    total = jnp.zeros(npair(basis.nao), dtype)
    for of_class in rows:
        values = _kinetic_class(basis, of_class, positions)
        total = total.at[of_class.index.ravel()].add(values.ravel(), mode="drop")
    return total


def _kinetic_class(basis, rows, positions):
    la, lb = rows.la, rows.lb
    a, b, ra, rb, charge = primitive_pairs(basis, rows, positions)
    separation = jnp.broadcast_to((ra - rb).T[:, :, None], (3, *a.shape))
    e = hermite_coefficients(la, lb + 2, a, b, separation)
    overlap, kinetic = [], []
    for i in range(la + 1):
        for j in range(lb + 1):
            s = e[i, j][0]
            t = (2 * j + 1) * b[None] * s - 2.0 * (b * b)[None] * e[i, j + 2][0]
            if j > 1:
                t = t - 0.5 * j * (j - 1) * e[i, j - 2][0]
            overlap.append(s)
            kinetic.append(t)
    s, t = jnp.stack(overlap), jnp.stack(kinetic)  # ((i, j) flattened, 3, nrow, nprim)
    i, j = cartesian_powers(la), cartesian_powers(lb)
    index = i[:, None, :] * (lb + 1) + j[None, :, :]
    x, y, z = ((s[index[:, :, axis], axis], t[index[:, :, axis], axis]) for axis in range(3))
    value = x[1] * y[0] * z[0] + x[0] * y[1] * z[0] + x[0] * y[0] * z[1]
    value = jnp.sum(value * charge[None, None], axis=-1)
    angular_a = jnp.asarray(angular_matrix(la, basis.spherical), a.dtype)
    angular_b = jnp.asarray(angular_matrix(lb, basis.spherical), a.dtype)
    value = jnp.einsum("ax,xyr,by->rab", angular_a, value, angular_b, precision="highest")
    return value.reshape(value.shape[0], -1)
