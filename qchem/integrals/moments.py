"""Moments of charge distributions: overlap, dipole, second moments."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qchem.integrals.coulomb import hermite_powers
from qchem.integrals.pairs import Distribution


def unpack(packed: Float[Array, "*batch npair"], nao: int) -> Float[Array, "*batch nao nao"]:
    """Symmetric matrices from their packed lower triangles."""
    i, j = np.indices((nao, nao))
    high, low = np.maximum(i, j), np.minimum(i, j)
    return packed[..., high * (high + 1) // 2 + low]


def packed_moment(
    pairs: tuple[Distribution, ...], npair: int, powers: tuple[int, int, int], origin
) -> Float[Array, " npair"]:
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


def packed_dipole(pairs: tuple[Distribution, ...], npair: int) -> Float[Array, "3 npair"]:
    """Integrals of x, y and z over the AO pairs, bohr."""
    origin = jnp.zeros(3, pairs[0].coefficient.dtype)
    powers = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    return jnp.stack([packed_moment(pairs, npair, power, origin) for power in powers])


def packed_density(dm: Float[Array, "nao nao"]) -> Float[Array, " npair"]:
    """Sum of D_ab and D_ba for each pair a > b, D_aa for a = b."""
    i, j = np.tril_indices(dm.shape[-1])
    return dm[i, j] * jnp.asarray(np.where(i == j, 1.0, 2.0), dm.dtype)
