"""Products of Gaussians as sums of Hermite Gaussians."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from qchem.integrals.coulomb import hermite_powers


def hermite_coefficients(
    la: int,
    lb: int,
    a: Float[Array, "*batch"],
    b: Float[Array, "*batch"],
    separation: Float[Array, " 3 *batch"],
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


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def axis_table(
    la: int,
    lb: int,
    a: Float[Array, " npair"],
    b: Float[Array, " npair"],
    separation: Float[Array, "3 npair"],
) -> Float[Array, "_ 3 npair"]:
    """E_t^{ij} and one-dimensional kinetic energies of every primitive pair.

    By (9.3.36) of Helgaker, Jørgensen & Olsen (2000) the latter are
    -2 b^2 S_{i,j+2} + b (2j + 1) S_ij - j (j - 1)/2 S_{i,j-2}, with S_ij = E_0^{ij}.

    Returns:
        Rows (i, j, t) for t = 0 ... la + lb, with one more for the kinetic energy: see `_row`.
    """
    return _axis_table(la, lb, a, b, separation)


def _axis_table(la, lb, a, b, separation):
    e = hermite_coefficients(la, lb + 2, a, b, separation)
    rows = []
    for i in range(la + 1):
        for j in range(lb + 1):
            kinetic = ((2 * j + 1) * b)[None] * e[i, j][0] - (2 * b * b)[None] * e[i, j + 2][0]
            if j > 1:
                kinetic = kinetic - (0.5 * j * (j - 1)) * e[i, j - 2][0]
            missing = jnp.zeros((la + lb - i - j, *separation.shape), a.dtype)
            rows += [e[i, j], missing, kinetic[None]]
    return jnp.concatenate(rows)


def _axis_table_jvp(la, lb, primals, tangents):
    """An axis depends on its own component of the separation alone, so one slope serves all three,
    and reverse mode runs no recurrence backwards."""
    moving = [not isinstance(t, SymbolicZero) for t in tangents]
    if moving != [False, False, True]:
        tangents = (
            t if known else jnp.zeros_like(x)
            for x, t, known in zip(primals, tangents, moving, strict=True)
        )
        return jax.jvp(partial(_axis_table, la, lb), primals, tuple(tangents))
    a, b, separation = primals
    one = (jnp.ones_like(separation),)
    table, slope = jax.jvp(partial(_axis_table, la, lb, a, b), (separation,), one)
    # Spread by a matrix product, so that reverse mode adds up rows by one.
    ones = jnp.ones((len(slope), 1), slope.dtype)
    spread = jnp.dot(ones, tangents[2].reshape(1, -1), precision="highest")
    return table, slope * spread.reshape(slope.shape)


axis_table.defjvp(_axis_table_jvp, symbolic_zeros=True)


def axis_table_rows(la: int, lb: int) -> int:
    """Number of rows of `axis_table`."""
    return (la + 1) * (lb + 1) * (la + lb + 2)


def _row(i, j, t, table_rows, lb):
    """Row of the table; t = -1 is the kinetic energy."""
    la = _highest_power(table_rows, lb)
    depth = la + lb + 2
    return (i * (lb + 1) + j) * depth + t % depth


def _highest_power(table_rows, lb):
    """l_a of a table."""
    return next(la for la in range(64) if axis_table_rows(la, lb) == table_rows)


def product_expansion(
    powers_a: np.ndarray,
    powers_b: np.ndarray,
    order: int,
    lowest: int,
    table: Float[Array, "_ 3 npair"],
    lb: int,
    kinetic: bool = False,
) -> Float[Array, "ncart_a ncart_b nhermite npair"]:
    """E^{ab}_{tuv}, the product of the three axes' coefficients for every pair of monomials.

    Args:
        powers_a, powers_b: Of the monomials.
        order, lowest: Of the Hermite functions; zero beyond the degree of the pair.
        table, lb: `axis_table` and the highest power on the second center it was made for.
        kinetic: Whether -1/2 <a|nabla^2|b>, without the charge factor, follows as one more.
    """
    t = hermite_powers(order, lowest)
    deepest = _highest_power(table.shape[0], lb) + lb
    inside = np.minimum(t, deepest)
    if kinetic:  # overlap and kinetic energy of each axis
        inside = np.concatenate([inside, np.zeros((1, 3), int), np.full((1, 3), -1)])
    i, j = powers_a[:, None, None], powers_b[None, :, None]
    rows = _row(i, j, inside[None, None], table.shape[0], lb)
    x, y, z = _rows_of_axes(table, rows)
    product = (x * y * z)[:, :, : len(t)]
    if order > deepest:
        exists = (t <= deepest).all(1).astype(float)[None, None, :, None]
        product = product * jnp.asarray(exists, product.dtype)
    if not kinetic:
        return product
    energy = 0.0
    for axis in range(3):
        terms = [f[:, :, -1 if n == axis else -2] for n, f in enumerate((x, y, z))]
        energy = energy + terms[0] * terms[1] * terms[2]
    return jnp.concatenate([product, energy[:, :, None]], axis=2)


def _rows_of_axes(table, index):
    """table[index[..., axis], axis] of each axis, as matrix products, so that no derivative adds up
    rows one by one."""
    used, which = np.unique(index, return_inverse=True)
    which = which.reshape(-1, 3).T
    rows, axes, npair = table.shape
    one = jnp.asarray(np.eye(rows)[used], table.dtype)
    found = jnp.dot(one, table.reshape(rows, -1), precision="highest").reshape(-1, axes, npair)
    chosen = [jnp.asarray(np.eye(used.size)[k], table.dtype) for k in which]
    found = [jnp.dot(one, found[:, n], precision="highest") for n, one in enumerate(chosen)]
    return [x.reshape(*index.shape[:-1], npair) for x in found]
