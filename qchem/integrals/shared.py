"""Auxiliary functions shared by devices: who has which, and in what order.

Each device takes equal parts of every list, so that all have the same work; lists are filled up
with functions that are zero. The columns P of (ab|P) then stand device after device, in each as in
a list of its own. (Rows of AO pairs are dealt out in turn: `tiles.own_rows`.)
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qchem.devices import Share
from qchem.integrals.pairs import Distribution
from qchem.integrals.solid import SolidRows, SolidShells, shell_counts

Auxiliary = tuple[SolidShells, ...] | tuple[Distribution, ...]


def filled_lists(aux: Auxiliary, count: int) -> Auxiliary:
    """The lists of `count` devices one after another, of which these take equal parts."""
    return tuple(_filled(rows, count) for rows in aux) if count > 1 else aux


def own_lists(aux: Auxiliary, share: Share) -> Auxiliary:
    """A device's part of `filled_lists`.

    To be taken by the device itself: derivatives in all lists then meet at once.
    """
    if share.alone:
        return aux

    def own(x):
        return share.one_of(jnp.reshape(jnp.asarray(x), (share.count, -1, *x.shape[1:])))

    return jax.tree.map(own, filled_lists(aux, share.count))


def filled_width(plan: tuple[SolidRows, ...], count: int) -> int:
    """Columns of `filled_lists` of solid harmonics."""
    runs = [(2 * rows.l + 1) * -(-n // count) for rows in plan for n in shell_counts(rows)]
    return count * sum(runs)


def _filled(rows, count):
    if isinstance(rows, SolidShells):
        return _filled_shells(rows, count)

    def more(x, value=0.0):
        padding = [(0, -rows.width.shape[0] % count)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(jnp.asarray(x), padding, constant_values=value)

    arrays = more(rows.center), more(rows.coefficient), more(rows.index, 0)
    return Distribution(rows.order, rows.lowest, more(rows.width, 1.0), *arrays)


def _filled_shells(rows, count):
    """For each device shells of one primitive, and of several, as in any list of shells."""
    single, several = shell_counts(rows)
    alone = _dealt(0, single, count)
    first = _dealt(single, several, count)  # primitives of the others, one set after another
    sets = [np.where(first < 0, -1, first + n * several) for n in range(rows.depth)]
    primitive = np.concatenate([alone, *sets[: None if several else 0]], axis=1).ravel()
    shell = np.concatenate([alone, first], axis=1).ravel()
    charge = jnp.where(primitive < 0, 0.0, rows.charge[primitive])
    return replace(
        rows,
        width=rows.width[primitive],
        center=rows.center[primitive],
        charge=charge,
        index=jnp.asarray(rows.index)[shell],
    )


def _dealt(start, size, count):
    """Numbers from `start`, a run for each device, filled up with -1."""
    run = -(-size // count)
    numbers = np.full(count * run, -1)
    numbers[:size] = np.arange(start, start + size)
    return numbers.reshape(count, run)


def to_device_order(
    two: Float[Array, "ncolumn ncolumn"], aux: Auxiliary, share: Share
) -> Float[Array, "all all"]:
    """(P|Q) in the order of the columns of all devices, zero for those that fill up."""
    if share.alone:
        return two
    place, ncolumn = _places(aux, share.count)
    return jnp.zeros((ncolumn, ncolumn), two.dtype).at[place[:, None], place[None]].set(two)


def from_device_order(
    two: Float[Array, "all all"], aux: Auxiliary, share: Share
) -> Float[Array, "ncolumn ncolumn"]:
    """The reverse of `to_device_order`."""
    if share.alone:
        return two
    place = places_of_columns(aux, share)
    return two[place[:, None], place[None]]


def places_of_columns(aux: Auxiliary, share: Share) -> Int[np.ndarray, " ncolumn"]:
    """Where the columns of (P|Q) stand among those of all devices."""
    return _places(aux, share.count)[0]


def _places(aux, count):
    """Where the columns of (P|Q) stand among those of all devices; how many these are."""
    parts, start = [], 0
    for rows in aux:
        kinds = shell_counts(rows) if isinstance(rows, SolidShells) else (rows.width.shape[0],)
        runs = [-(-n // count) for n in kinds]
        each, function = sum(runs), np.arange(rows.index.shape[1])[:, None]
        device = np.concatenate([np.arange(n) // max(run, 1) for n, run in zip(kinds, runs)])
        within = [np.arange(n) % max(run, 1) for n, run in zip(kinds, runs)]
        row = np.concatenate([x + sum(runs[:k]) for k, x in enumerate(within)])
        parts.append((device, start + function * each + row[None]))
        start += function.size * each
    places = [(device[None] * start + within).ravel() for device, within in parts]
    return np.concatenate(places).astype(np.int32), count * start
