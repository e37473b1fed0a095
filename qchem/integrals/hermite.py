"""Products of Gaussians as sums of Hermite Gaussians."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qchem.integrals.coulomb import hermite_powers


def hermite_coefficients(
    la: int,
    lb: int,
    a: Float[Array, "*batch"],
    b: Float[Array, "*batch"],
    separation: Float[Array, "3 *batch"],
) -> dict[tuple[int, int], Float[Array, "_ 3 *batch"]]:
    """Expansion coefficients E_t^{ij} of x_A^i x_B^j exp(-p x_P^2) in unit Hermite Gaussians.

    Recurrences (9.5.6)-(9.5.7) of Helgaker, Jørgensen & Olsen (2000), for all three axes at once.
    The factor exp(-ab/p AB^2), common to all, is left to the caller.

    Args:
        la, lb: Highest power on each centre; static, the loops unroll.
        a, b: Exponents, bohr⁻².
        separation: A - B, bohr; components lead.

    Returns:
        For each (i, j) the coefficients of t = 0 ... i + j, which lead the axes x, y, z.
    """
    half = (0.5 / (a + b))[None, None]
    pa = (-b / (a + b))[None, None] * separation[None]
    pb = (a / (a + b))[None, None] * separation[None]
    e = {(0, 0): jnp.ones_like(pa)}
    for i in range(la):
        e[i + 1, 0] = _raise_power(e[i, 0], pa, half)
    for i in range(la + 1):
        for j in range(lb):
            e[i, j + 1] = _raise_power(e[i, j], pb, half)
    return e


def _raise_power(e, distance, half):
    """E_t of a power one higher: E_{t-1} / 2p + distance E_t + (t + 1) E_{t+1}."""
    zero = jnp.zeros_like(e[:1])
    lowered = jnp.concatenate([zero, e * half])
    same = jnp.concatenate([e * distance, zero])
    if e.shape[0] == 1:
        return lowered + same
    t = np.arange(1, e.shape[0]).reshape(-1, *(1,) * (e.ndim - 1))
    raised = e[1:] * jnp.asarray(t, e.dtype)
    return lowered + same + jnp.concatenate([raised, zero, zero])


def product_expansion(
    powers_a: np.ndarray,
    powers_b: np.ndarray,
    order: int,
    lowest: int,
    e: dict[tuple[int, int], Float[Array, "_ 3 *batch"]],
) -> Float[Array, "ncart_a ncart_b nhermite *batch"]:
    """E^{ab}_{tuv}, the product of the three axes' coefficients for every pair of monomials."""
    la, lb = int(powers_a.max(initial=0)), int(powers_b.max(initial=0))
    batch = e[0, 0].shape[1:]
    rows = []
    for i in range(la + 1):
        for j in range(lb + 1):
            have = e[i, j][: order + 1]
            missing = jnp.zeros((order + 1 - have.shape[0], *batch), have.dtype)
            rows.append(jnp.concatenate([have, missing]))
    table = jnp.concatenate(rows)  # ((i, j, t) flattened, 3, *batch)
    t = hermite_powers(order, lowest)
    product = None
    for axis in range(3):
        pair = powers_a[:, axis][:, None] * (lb + 1) + powers_b[:, axis][None, :]
        index = pair[:, :, None] * (order + 1) + t[:, axis][None, None, :]
        factor = table[index, axis]
        product = factor if product is None else product * factor
    return product
