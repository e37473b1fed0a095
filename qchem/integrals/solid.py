"""(ab|P) and (P|Q) with auxiliary shells of solid harmonics, all of them or summed with weights.

The integrals of a tile are made by `solid_kernel`.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qchem.basis.layout import Basis, primitive_depth
from qchem.basis.spherical import angular_matrix
from qchem.chunking import chunked_sum
from qchem.compilation import platform
from qchem.devices import ALONE, Share
from qchem.integrals.coulomb import nhermite
from qchem.integrals.gather import rows_at
from qchem.integrals.pairs import Distribution
from qchem.integrals.solid_density import charges_of, energy_of, potential_of
from qchem.integrals.solid_kernel import Kets, interaction, single_shells, weighted_sum
from qchem.integrals.tiles import (
    blocks_of,
    density_of,
    if_wanted,
    own_rows,
    tile_bytes,
    wanted_blocks,
)

_LEAST = 8  # rows of pairs that meet many shells: what is done once for all of them costs too
_LOW = 2  # l of auxiliary shells whose metric is made together, with the powers of the highest


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

    @property
    def nshell(self) -> int:
        """Number of shells."""
        return self.order.size

    @property
    def nprim(self) -> int:
        """Number of primitives."""
        return self.shell.size


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

    @property
    def nshell(self) -> int:
        """Number of shells."""
        return self.index.shape[0]

    @property
    def nprim(self) -> int:
        """Number of primitives."""
        return self.width.size


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
    atoms = [rows_at(jnp.asarray(b.atom), rows.shell) for rows, b in zip(plan, aux.batches)]
    # Of all lists at once, as their derivative is a loop.
    centers = jax.lax.split(rows_at(positions, jnp.concatenate(atoms)), [x.size for x in atoms])
    for rows, batch, center in zip(plan, aux.batches, centers):
        at = rows.shell, rows.primitive
        a = jnp.asarray(batch.exponents, positions.dtype)[at]
        charge = batch.coefficients(positions.dtype)[at] * (np.pi / a) ** 1.5 / (2 * a) ** rows.l
        first = jnp.asarray(batch.ao)[rows.order][:, None]
        index = first + np.arange(2 * rows.l + 1, dtype=np.int32)[None]
        charge = jnp.where(rows.used, charge, 0)
        lists.append(SolidShells(rows.l, rows.depth, 1 / a, center, charge, index))
    return tuple(lists)


def _kets(shells):
    kinds = tuple((rows.l, *_kind(rows)) for rows in shells)
    arrays = [[getattr(rows, x) for rows in shells] for x in ("width", "center", "charge")]
    return Kets(kinds, *map(jnp.concatenate, arrays))


def solid_functions(shells: tuple[SolidShells, ...]) -> Int[Array, " naux"]:
    """The auxiliary function of each column of `solid_3c`."""
    return jnp.concatenate([jnp.asarray(rows.index).T.ravel() for rows in shells])


def solid_3c(
    pairs: tuple[Distribution, ...], shells: tuple[SolidShells, ...], npair: int
) -> Float[Array, "npair naux"]:
    """(ab|P) for packed pairs, hartree; for P see `solid_functions`."""
    ket, width = _kets(shells), _width(shells)
    total = jnp.zeros((npair, width), ket.charge.dtype)
    for bra in pairs:

        @jax.checkpoint
        def of_block(ket, block):
            return interaction(block, ket).reshape(-1, width)

        made = if_wanted(lambda block, f=of_block: f(ket, block))

        def add(total, block, made=made):
            return _with_rows(total, block[0].index.ravel(), made(block)), None

        size = _rows_together(bra, shells)
        blocks = blocks_of(bra, size, npair), wanted_blocks(bra, size)
        total = jax.lax.scan(add, total, blocks)[0]
    return total


def solid_2c(shells: tuple[SolidShells, ...], share: Share = ALONE) -> Float[Array, "naux naux"]:
    """(P|Q), hartree; for the order see `solid_functions`. Devices that share it all have it."""
    metric, start = [], 0
    for group, kets in _groups(shells):
        size = _width(group)
        values = solid_3c(own_rows((_as_pairs(group),), share, size), kets, size)
        rows = jnp.concatenate([0.5 * values[:, :size], values[:, size:]], axis=1)
        metric.append(jnp.pad(rows, ((0, 0), (start, 0))))
        start += size
    metric = share.total(jnp.concatenate(metric))
    return metric + metric.T


def weighted_solid_3c(
    pairs: tuple[Distribution, ...],
    shells: tuple[SolidShells, ...],
    weight: Float[Array, "npair naux"],
) -> Float[Array, ""]:
    """Sum of weight times `solid_3c`."""
    total = jnp.zeros((), weight.dtype)

    def of_block(shared, block):
        weight, ket = shared
        chosen = weight.at[block.index].get(mode="fill", fill_value=0.0)
        return weighted_sum(block, ket, chosen)

    shared = weight, _kets(shells)
    for bra in pairs:
        size = _rows_together(bra, shells)
        blocks = blocks_of(bra, size, weight.shape[0])
        total = total + chunked_sum(of_block, shared, blocks, wanted_blocks(bra, size))
    return total


def weighted_solid_2c(
    shells: tuple[SolidShells, ...], weight: Float[Array, "naux naux"], share: Share = ALONE
) -> Float[Array, ""]:
    """Sum of a symmetric weight times `solid_2c`, or a device's part of it."""
    total, end = jnp.zeros((), weight.dtype), 0
    for group, kets in _groups(shells):
        start, end = end, end + _width(group)
        own, rest = weight[start:end, start:end], weight[start:end, end:]
        rows = jnp.concatenate([own, 2.0 * rest], axis=1)
        bras = own_rows((_as_pairs(group),), share, end - start)
        total = total + weighted_solid_3c(bras, kets, rows)
    return total


def charges_of_density(
    pairs: tuple[Distribution, ...],
    shells: tuple[SolidShells, ...],
    density: Float[Array, " npair"],
) -> Float[Array, " naux"]:
    """sum_ab D_ab (ab|P) of a packed density; for P see `solid_functions`; hartree."""
    ket = _kets(shells)
    total = jnp.zeros(_width(shells), density.dtype)
    for rows in pairs:
        bra = density_of(rows, density)

        @jax.checkpoint
        def of_block(ket, block):
            return charges_of(block, ket)

        made = if_wanted(lambda block, f=of_block: f(ket, block))
        size = _rows_together(rows, shells, summed=True)
        blocks = blocks_of(bra, size, 0), wanted_blocks(rows, size)
        total = jax.lax.scan(lambda sums, x, f=made: (sums + f(x), None), total, blocks)[0]
    return total


def potential_of_charges(
    pairs: tuple[Distribution, ...],
    shells: tuple[SolidShells, ...],
    charge: Float[Array, " naux"],
    npair: int,
) -> Float[Array, " {npair}"]:
    """sum_P (ab|P) d_P of packed pairs; hartree."""
    ket = _kets(shells)
    total = jnp.zeros(npair, charge.dtype)
    for bra in pairs:
        size = _rows_together(bra, shells, summed=True)
        blocks = blocks_of(bra, size, npair)
        of_block = jax.checkpoint(lambda ket, charge, block: potential_of(block, ket, charge))

        values_of = if_wanted(lambda block, f=of_block: f(ket, charge, block))
        values = jax.lax.map(values_of, (blocks, wanted_blocks(bra, size)))
        total = total.at[blocks.index.ravel()].add(values.ravel(), mode="drop")
    return total


def energy_of_charges(
    pairs: tuple[Distribution, ...],
    shells: tuple[SolidShells, ...],
    density: Float[Array, " npair"],
    charge: Float[Array, " naux"],
) -> Float[Array, ""]:
    """sum_ab D_ab sum_P (ab|P) d_P of a packed density; hartree."""
    total = jnp.zeros((), density.dtype)

    def of_block(shared, block):
        charge, ket = shared
        return energy_of(block, ket, charge)

    shared = charge, _kets(shells)
    for rows in pairs:
        size = _rows_together(rows, shells, summed=True)
        blocks = blocks_of(density_of(rows, density), size, 0)
        total = total + chunked_sum(of_block, shared, blocks, wanted_blocks(rows, size))
    return total


def _with_rows(total, index, rows):
    """Adds rows to those of the total that have these indices, if there are any."""
    if platform() != "cpu":
        return total.at[index].add(rows, mode="drop")
    last = total.shape[0] - 1
    rows = jnp.where((index <= last)[:, None], rows, 0.0)

    def add(total, row):  # XLA's own loop takes several times as long
        place, row = row
        row = row + jax.lax.dynamic_index_in_dim(total, place, 0, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(total, row, place, 0), None

    return jax.lax.scan(add, total, (jnp.minimum(index, last), rows))[0]


def shell_counts(rows: SolidRows | SolidShells) -> tuple[int, int]:
    """Numbers of shells of one primitive, and of several."""
    single = single_shells(rows.depth, rows.nshell, rows.nprim)
    return single, rows.nshell - single


def _width(shells):
    return sum(rows.index.size for rows in shells)


def _kind(shell):
    return shell.depth, shell.nshell, shell.nprim


def _groups(shells):
    """Lists of low l to meet all, and those of high l to meet these alone."""
    low = tuple(rows for rows in shells if rows.l <= _LOW)
    high = shells[len(low) :]
    return [(group, kets) for group, kets in ((low, shells), (high, high)) if group]


def _as_pairs(shells):
    """The shells in one list of rows, one for each primitive: few programs to compile."""
    order, width = max(rows.l for rows in shells), _width(shells)
    parts, end = [], 0
    for rows in shells:
        start, end = end, end + rows.index.size
        matrix = np.zeros((2 * order + 1, nhermite(order)))
        harmonics = angular_matrix(rows.l, True)
        below = nhermite(rows.l) - harmonics.shape[1]
        matrix[: len(harmonics), below : nhermite(rows.l)] = harmonics
        matrix = jnp.asarray(matrix, rows.charge.dtype)
        place = np.full((rows.index.shape[0], len(matrix)), width, np.int32)
        place[:, : len(harmonics)] = np.arange(start, end).reshape(len(harmonics), -1).T
        coefficient = rows.charge[:, None, None, None] * matrix[None, :, None]
        index = jnp.asarray(place[_shell_of(*_kind(rows))])
        parts.append((rows.width[:, None], rows.center[:, None], coefficient, index))
    return Distribution(order, 0, *map(jnp.concatenate, zip(*parts)))


def _shell_of(depth, nshell, nprim):
    """The shell of each primitive."""
    single = single_shells(depth, nshell, nprim)
    several = np.tile(np.arange(single, nshell), depth if single < nshell else 0)
    return np.concatenate([np.arange(single), several])


def _rows_together(bra, shells, summed=False):
    """Rows of pairs whose integrands stay within the bytes of a tile.

    Args:
        summed: Those of `solid_density`.
    """
    nprim = sum(rows.width.size for rows in shells)
    each = 3 * sum(rows.nshell for rows in shells) if summed else 2 * _width(shells)
    of_row = 4 * nprim + each * nhermite(bra.order + 1, bra.lowest)
    least = _LEAST if summed else 1
    size = max(least, tile_bytes() // (8 * of_row * bra.width.shape[1]))
    return max(1, min(bra.width.shape[0], size))
