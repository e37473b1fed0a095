"""The metric of density fitting, (P|Q) = L L^T: regular, factorized, and divided out."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qchem.devices import Share

_SOLVED_BYTES = 1 << 26  # of three-index integrals that the metric meets at once
_METRIC_SHIFT = 1e-8  # bohr^5 hartree, or rounding if more: see `separated`


def separated(
    three: Float[Array, "nrange npair own"], two: Float[Array, "nrange all all"], omega: float
) -> tuple[tuple[Float[Array, "npair own"], Float[Array, "all all"]], ...]:
    """(ab|P) and (P|Q) of each interaction from those of `over_ranges`.

    Tight functions of the same moments do not differ in erf(omega r)/r: their metric is singular
    to rounding. A small multiple of the unit matrix makes it regular, smoothly in the positions;
    the exchange energy of a small molecule changes by about 1e-9 hartree, as with the directions
    of small eigenvalues cut off.
    """
    if omega < 0:
        three, two = (jnp.stack([x[0], x[0] - x[1]]) for x in (three, two))
    elif omega > 0:
        two = two.at[1].set(_shifted(two[1]))
    return tuple(zip(three, two, strict=True))


def lower_factor(two: Float[Array, "naux naux"]) -> Float[Array, "naux naux"]:
    """L of the metric L L^T, which is shifted where it is singular."""
    # Functions that are zero everywhere, of atoms that fill up, take no part.
    two = two + jnp.diag((jnp.diagonal(two) == 0).astype(two.dtype))
    # A failure is a matrix of NaN.
    failed = jnp.isnan(jnp.linalg.cholesky(jax.lax.stop_gradient(two))[-1, -1])
    return jnp.linalg.cholesky(jnp.where(failed, _shifted(two), two))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def columns_of(
    share: Share, lower: Float[Array, "all all"], three: Float[Array, "npair own"]
) -> Float[Array, "npair own"]:
    """X of X L^T = (ab|P), of a device's P; block by block in the same memory."""
    nrow, own = three.shape
    size = max(1, min(nrow, _SOLVED_BYTES // (three.dtype.itemsize * own)))

    def solve(start, size, three):
        rows = jax.lax.dynamic_slice_in_dim(three, start, size, 0)
        rows = _solved_columns(share, lower, rows)
        return jax.lax.dynamic_update_slice_in_dim(three, rows, start, 0)

    whole = nrow // size
    three = jax.lax.fori_loop(0, whole, lambda n, x: solve(n * size, size, x), three)
    return solve(whole * size, nrow % size, three) if nrow % size else three


@columns_of.defjvp
def _columns_of_jvp(share, primals, tangents):
    return jax.jvp(partial(_solved_columns, share), primals, tangents)


def _solved_columns(share, lower, columns):
    """X of X L^T = (ab|P), from a device's columns P to its columns of X."""
    rows = solved(lower, share.to_rows(columns), transpose_a=True)
    return share.to_columns(rows, len(columns))


def solved(
    lower: Float[Array, "naux naux"], rows: Float[Array, "nrow naux"], *, transpose_a: bool
) -> Float[Array, "nrow naux"]:
    """X of X L = rows, or of X L^T = rows."""
    return jax.lax.linalg.triangular_solve(
        lower, rows, left_side=False, lower=True, transpose_a=transpose_a
    )


def _shifted(two):
    """A metric made regular; see `separated`."""
    naux = two.shape[0]
    largest = jax.lax.stop_gradient(jnp.max(two))
    shift = jnp.maximum(_METRIC_SHIFT, naux * float(jnp.finfo(two.dtype).eps) * largest)
    return two + shift * jnp.eye(naux, dtype=two.dtype)
