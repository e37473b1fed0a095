"""(ab|P) with auxiliary shells of solid harmonics: matrix products with constant matrices.

A solid harmonic times a Gaussian is the same combination of derivatives for every shell of an l, so
that (ab|P) = sum_p E_ab[p] sum_h M[p, g, h] R_h with constant M and the R of all primitives summed
over the contraction of P beforehand. `coulomb_3c` is the same for any auxiliary functions, and what
derivatives come from.
"""

from __future__ import annotations

from functools import lru_cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qchem.basis.layout import Basis
from qchem.basis.spherical import angular_matrix
from qchem.integrals.coulomb import hermite_coulomb, nhermite, sum_index
from qchem.integrals.pairs import Distribution, primitive_depth
from qchem.integrals.two_electron import auxiliary_columns, blocks_of, coulomb_3c, tile_bytes


class SolidRows(eqx.Module):
    """Which primitives make the auxiliary shells of one l.

    Shells of one primitive come first, then those of several, `depth` each: first the first
    primitives of all of these, then the second ones.

    Attributes:
        l: Angular momentum.
        depth: Primitives of each of the latter.
        shell: Row of the shell batch for each primitive; `primitive` is the column.
        used: False for what fills up the depth.
        order: Row of the shell batch for each shell.
    """

    l: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    shell: Int[Array | np.ndarray, " nprim"]
    primitive: Int[Array | np.ndarray, " nprim"]
    used: Bool[Array | np.ndarray, " nprim"]
    order: Int[Array | np.ndarray, " nshell"]


class SolidShells(eqx.Module):
    """Auxiliary shells of one l.

    Attributes:
        l, depth: As in `SolidRows`.
        width: 1/p of each primitive, bohr².
        center: Bohr.
        charge: What multiplies the derivatives of the unit-charge Gaussian.
        index: The functions of each shell.
    """

    l: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    width: Float[Array, " nprim"]
    center: Float[Array, "nprim 3"]
    charge: Float[Array, " nprim"]
    index: Int[Array | np.ndarray, "nshell ncomponent"]


def plan_solid(aux: Basis) -> tuple[SolidRows, ...]:
    """The shells of each l; host side, once per basis. None of Cartesian functions."""
    plans = []
    for batch in aux.batches if aux.spherical else ():
        depths = primitive_depth(batch.contraction)
        single, several = np.flatnonzero(depths == 1), np.flatnonzero(depths != 1)
        depth = int(depths.max())
        shell = np.concatenate([single, np.tile(several, depth)])
        column = np.repeat(np.arange(depth), several.size)
        primitive = np.concatenate([np.zeros(single.size, int), column])
        used = primitive < depths[shell]
        primitive = np.where(used, primitive, 0)
        order = np.concatenate([single, several])
        shell, primitive, order = (x.astype(np.int32) for x in (shell, primitive, order))
        plans.append(SolidRows(batch.l, depth, shell, primitive, used, order))
    return tuple(plans)


def solid_shells(
    aux: Basis, plan: tuple[SolidRows, ...], positions: Float[Array, "natom 3"]
) -> tuple[SolidShells, ...]:
    """The auxiliary shells where the atoms are."""
    lists = []
    for rows, batch in zip(plan, aux.batches, strict=True):
        at = rows.shell, rows.primitive
        a = jnp.asarray(batch.exponents, positions.dtype)[at]
        charge = batch.coefficients(positions.dtype)[at] * (np.pi / a) ** 1.5 / (2 * a) ** rows.l
        center = positions[jnp.asarray(batch.atom)[rows.shell]]
        first = jnp.asarray(batch.ao)[rows.order][:, None]
        index = first + np.arange(2 * rows.l + 1, dtype=np.int32)[None]
        charge = jnp.where(rows.used, charge, 0)
        lists.append(SolidShells(rows.l, rows.depth, 1 / a, center, charge, index))
    return tuple(lists)


def solid_functions(shells: tuple[SolidShells, ...]) -> Int[Array, " naux"]:
    """The auxiliary function of each column of `solid_3c`."""
    return jnp.concatenate([jnp.asarray(rows.index).T.ravel() for rows in shells])


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def solid_3c(
    npair: int,
    pairs: tuple[Distribution, ...],
    aux: tuple[Distribution, ...],
    shells: tuple[SolidShells, ...],
) -> Float[Array, "npair naux"]:
    """(ab|P) for packed pairs, hartree; for P see `solid_functions`.

    Args:
        npair: Number of packed pairs.
        pairs, aux: Lists of the AO pairs and of the auxiliary functions.
        shells: The latter once more, which the values come from.
    """
    naux = sum(rows.index.size for rows in shells)
    total = jnp.zeros((npair, naux), shells[0].charge.dtype)
    end = 0
    for ket in shells:
        start, end = end, end + ket.index.size
        for bra in pairs:
            blocks = blocks_of(bra, _rows_together(bra, ket), npair)

            def add(total, block, ket=ket, start=start, end=end):
                values = _values(block, ket).reshape(-1, end - start)
                place = total.at[block.index.ravel(), start:end]
                return place.add(values, mode="drop"), None

            total = jax.lax.scan(add, total, blocks)[0]
    return total


@solid_3c.defjvp
def _solid_3c_jvp(npair, primals, tangents):
    pairs, aux, shells = primals
    columns = auxiliary_columns(aux, sum(rows.index.size for rows in shells))
    columns = columns[solid_functions(shells)]

    def general(pairs, aux):
        return coulomb_3c(pairs, aux, npair)[:, columns]

    return jax.jvp(general, (pairs, aux), tangents[:2])


def _rows_together(bra, ket):
    """Rows of pairs whose R and whose combinations of R stay within the bytes of a tile."""
    nshell, ncomponent = ket.index.shape
    of_primitive = ket.width.size * nhermite(bra.order + ket.l)
    of_shell = nshell * ncomponent * nhermite(bra.order)
    per_row = bra.width.shape[1] * (of_primitive + of_shell)
    # A quarter: the levels of the recursion, and what the matrix product reads, stand beside them.
    return max(1, min(bra.width.shape[0], tile_bytes() // 4 // (8 * per_row)))


def _values(bra, ket):
    """(f|g) of a block of pairs: (row, f, g, shell)."""
    (nrow, nprim), (nshell, ncomponent) = bra.width.shape, ket.index.shape
    alpha = 1 / (bra.width.reshape(-1, 1) + ket.width[None])
    separation = bra.center.reshape(-1, 3).T[:, :, None] - ket.center.T[:, None, :]
    r = hermite_coulomb(bra.order + ket.l, alpha, separation) * ket.charge[None, None]
    single = nshell if ket.depth == 1 else nshell - (ket.width.size - nshell) // (ket.depth - 1)
    if single < nshell:
        several = r[:, :, single:].reshape(*r.shape[:2], ket.depth, -1)
        r = jnp.concatenate([r[:, :, :single], jnp.sum(several, axis=2)], axis=2)
    matrix = jnp.asarray(_combinations(bra.order, ket.l), r.dtype)
    combined = jnp.dot(matrix, r.reshape(r.shape[0], -1), precision="highest")
    combined = combined.reshape(-1, ncomponent, nrow, nprim, nshell)
    return jnp.einsum("rfkp,pgrks->rfgs", bra.coefficient, combined, precision="highest")


@lru_cache(maxsize=64)
def _combinations(order: int, l: int) -> Float[np.ndarray, "rows nhermite"]:
    """M[p, g, h]: (-1)^l times the solid harmonics, summed over q with p + q = h."""
    place = sum_index(order, l, 0, l)
    harmonics = (-1.0) ** l * angular_matrix(l, True)
    matrix = np.zeros((len(place), len(harmonics), nhermite(order + l)))
    for p, row in enumerate(place):
        np.add.at(matrix[p].T, row, harmonics.T)
    return matrix.reshape(-1, matrix.shape[2])
