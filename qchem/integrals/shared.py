"""Auxiliary functions shared by devices: who has which, and in what order.

Each device takes equal parts of every list of auxiliary functions, so that all have the same work;
lists are filled up with functions that are zero. The columns P of (ab|P) then stand device after
device, in each as `auxiliary_columns` says.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qchem.devices import Share
from qchem.integrals.pairs import Distribution


def filled_lists(aux: tuple[Distribution, ...], count: int) -> tuple[Distribution, ...]:
    """The lists with rows of zeros at the end, so that `count` devices take equal parts of each."""

    def filled(rows):
        def more(x, value=0.0):
            padding = [(0, -rows.width.shape[0] % count)] + [(0, 0)] * (x.ndim - 1)
            return jnp.pad(jnp.asarray(x), padding, constant_values=value)

        arrays = more(rows.center), more(rows.coefficient), more(rows.index, 0)
        return Distribution(rows.order, rows.lowest, more(rows.width, 1.0), *arrays)

    return tuple(filled(rows) for rows in aux)


def to_device_order(
    two: Float[Array, "ncolumn ncolumn"],
    aux: tuple[Distribution, ...],
    own: tuple[Distribution, ...],
    share: Share,
) -> Float[Array, "all all"]:
    """`coulomb_2c` in the order of the columns of all devices, zero for those that fill up."""
    place, ncolumn = _places(aux, own, share.count)
    return jnp.zeros((ncolumn, ncolumn), two.dtype).at[place[:, None], place[None]].set(two)


def from_device_order(
    two: Float[Array, "all all"],
    aux: tuple[Distribution, ...],
    own: tuple[Distribution, ...],
    share: Share,
) -> Float[Array, "ncolumn ncolumn"]:
    """The reverse of `to_device_order`."""
    place, _ = _places(aux, own, share.count)
    return two[place[:, None], place[None]]


def _places(aux, own, count):
    """Where the columns of `coulomb_2c` stand among those of all devices; how many these are."""
    width, places, start = sum(rows.index.size for rows in own), [], 0
    for rows, part in zip(aux, own, strict=True):
        nrow, each = rows.width.shape[0], part.width.shape[0]
        row, function = np.arange(nrow)[None], np.arange(rows.index.shape[1])[:, None]
        places.append((row // each * width + start + function * each + row % each).ravel())
        start += part.index.size
    return np.concatenate(places).astype(np.int32), count * width
