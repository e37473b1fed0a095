"""Coulomb and exchange matrices in density fitting, with the auxiliary index shared by devices.

Each device makes, keeps and contracts (ab|P) of its own P. So nothing of that size is ever whole
anywhere, J and K are sums over P, and a matrix (nao nao) is all that devices exchange in a cycle;
shared by pairs ab, they would have to exchange (ia|P) of the orbitals for every K. The metric
mixes the P of a pair: for that the integrals change hands twice at each geometry, some pairs at a
time, and come back (all-to-all). (P|Q) is small: it is made in parts, which every device adds up
and factorizes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from qchem.compilation import platform, standing
from qchem.devices import ALONE, MOLECULE, Share, spread
from qchem.integrals.auxiliary import auxiliary_columns
from qchem.integrals.fitting import fitting_2c, fitting_3c, fitting_integrals
from qchem.integrals.moments import packed_density, unpack
from qchem.integrals.pairs import Distribution, npair
from qchem.integrals.shared import Auxiliary, own_lists, to_device_order
from qchem.jk import AbstractJK, over_ranges, packed_index
from qchem.metric import columns_of, lower_factor, separated

_WIDENED_BYTES = 1 << 24  # of shorter numbers that are made long at once
_UNPACKED_BYTES = {"cpu": 1 << 21}  # of integrals unpacked at once: on a CPU what its caches hold
LEAST_COLUMNS = 8  # auxiliary functions unpacked at once: a line of the cache has as many
_ROW_BLOCKS = 4  # of an exchange matrix
_LEAST_ROWS = 48  # of each, as products of few rows are slow
_SHORT_SUM = 32  # auxiliary functions whose float32 contributions are added up in float32


class Fit(NamedTuple):
    """B of an interaction, and L of its metric, which derivatives need."""

    columns: Float[Array, "npair own"]
    lower: Float[Array, "naux naux"]


PLACES = Fit(P(None, MOLECULE), P())  # of devices that share it


class DensityFittedJK(AbstractJK):
    """Products of AOs expanded in an auxiliary basis, in the Coulomb metric (RI-J and RI-K).

    (ab|cd) is replaced by sum_P B_ab,P B_cd,P with B = (ab|P) L^-T and L L^T = (P|Q): Dunlap,
    Connolly & Sabin, J. Chem. Phys. 71, 3396 (1979); Weigend, PCCP 4, 4285 (2002).
    """

    fitted: Float[Array, "npair naux"]
    mesh: Mesh | None = eqx.field(static=True, default=None)
    lower: Float[Array, "naux naux"] | None = None

    @classmethod
    def build(
        cls, pairs: tuple[Distribution, ...], aux: Auxiliary, nao: int, naux: int
    ) -> DensityFittedJK:
        """Fits the AO pairs."""
        return cls.build_separated(pairs, aux, nao, naux, 0.0)[0]

    @classmethod
    def build_separated(
        cls,
        pairs: tuple[Distribution, ...],
        aux: Auxiliary,
        nao: int,
        naux: int,
        omega: float,
        *,
        mesh: Mesh | None = None,
        reverse: bool = False,
        dtype: DTypeLike | None = None,
        keep: bool = False,
    ) -> tuple[DensityFittedJK, ...]:
        """The builder for 1/r and, if omega is not 0, one for the attenuated interaction.

        Args:
            mesh: Devices that share the auxiliary functions.
            reverse: To be differentiated in reverse mode alone, at less cost.
            dtype: That B is stored and multiplied in; the fit has that of the integrals.
            keep: L too.
        """
        share = Share.of(mesh)

        def build(pairs, aux):
            own = own_lists(aux, share)
            integrals = partial(fitting_arrays, nao, naux, share=share, reverse=reverse)
            ranges = separated(*over_ranges(integrals, omega, pairs, aux, own), omega)
            return tuple(fit_of(*both, share, dtype) for both in ranges)

        places = (PLACES,) * (2 if omega else 1)
        parts = spread(build, mesh, P(), places)(pairs, aux)
        return tuple(cls(fit.columns, mesh, fit.lower if keep else None) for fit in parts)

    @property
    def fit(self) -> Fit | None:
        """B and L, if L has been kept."""
        return None if self.lower is None else Fit(self.fitted, self.lower)

    def coulomb(self, dm: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
        return self._total(_coulomb, dm)

    def exchange(self, factor: Float[Array, "nspin nao nocc"]) -> Float[Array, "nspin nao nao"]:
        return self._total(_exchange, factor)

    def _total(self, matrix, x):
        total = lambda fitted, x: Share.of(self.mesh).total(matrix(fitted, x))  # noqa: E731
        return spread(total, self.mesh, (P(None, MOLECULE), P()), P())(self.fitted, x)


def _coulomb(fitted, dm):
    nao, density = dm.shape[0], packed_density(dm)

    def part(start, size):
        columns = jax.lax.dynamic_slice_in_dim(fitted, start, size, 1).astype(dm.dtype)
        charge = jnp.dot(density, columns, precision="highest")
        return jnp.dot(columns, charge, precision="highest")

    naux = fitted.shape[1]
    if fitted.dtype == dm.dtype:
        return unpack(part(0, naux), nao)
    # Reading B takes the time, not multiplying: the product has the longer dtype, as the
    # Coulomb energy is large.
    size = max(1, min(naux, _WIDENED_BYTES // (dm.dtype.itemsize * density.size)))
    starts = jnp.arange(0, naux - naux % size, size, dtype=jnp.int32)
    rest = part(naux - naux % size, naux % size)
    total, _ = jax.lax.scan(lambda total, n: (total + part(n, size), None), rest, starts)
    return unpack(total, nao)


def _exchange(fitted, factor):
    """Rows of K in blocks, each as far as the diagonal of its last row: the rest is symmetric."""
    nspin, nao, _ = factor.shape
    short = factor.astype(fitted.dtype)
    size = -(-nao // max(1, min(_ROW_BLOCKS, nao // _LEAST_ROWS)))
    rows = [(start, min(start + size, nao)) for start in range(0, nao, size)]

    def add(blocks, _, columns):
        half = jnp.einsum("bap,sbi->siap", columns, short, precision="highest")

        def more(block, start, end):
            both = half[:, :, start:end], half[:, :, :end]
            part = jnp.einsum("siap,sicp->sac", *both, precision="highest")
            return block + part.astype(block.dtype)

        return [more(block, *ends) for block, ends in zip(blocks, rows, strict=True)]

    zeros = [jnp.zeros((nspin, end - start, end), factor.dtype) for start, end in rows]
    most = None if short.dtype == factor.dtype else _SHORT_SUM
    blocks = over_columns(add, zeros, fitted, nao, most=most)
    if len(blocks) == 1:
        return blocks[0]
    padded = [jnp.pad(x, ((0, 0), (0, 0), (0, nao - x.shape[2]))) for x in blocks]
    lower = jnp.tril(jnp.concatenate(padded, axis=1))
    return lower + jnp.swapaxes(jnp.tril(lower, -1), 1, 2)


def fit_of(
    three: Float[Array, "npair own"],
    two: Float[Array, "naux naux"],
    share: Share = ALONE,
    dtype: DTypeLike | None = None,
) -> Fit:
    """From (ab|P) of a device's own P and (P|Q); linearly dependent functions do no harm.

    Args:
        dtype: That B is stored and multiplied in; the fit has that of the integrals.
    """
    lower = lower_factor(two)
    columns = columns_of(share, lower, three)
    return Fit(columns.astype(three.dtype if dtype is None else dtype), lower)


def fitting_arrays(
    nao: int,
    naux: int,
    pairs: tuple[Distribution, ...],
    aux: Auxiliary,
    own: Auxiliary | None = None,
    *,
    share: Share = ALONE,
    reverse: bool = False,
) -> tuple[Float[Array, "npair own"], Float[Array, "all all"]]:
    """(ab|P) and (P|Q) without what fills up lists; else in any order, so that none is copied.

    Where devices share the auxiliary functions, (ab|P) of a device's `own` P, and (P|Q) in the
    order of the columns of all devices, with those that fill up.
    """
    own = aux if own is None else own
    if reverse:
        three, two = fitting_integrals((pairs, aux, own), npair(nao), share)
    else:
        three, two = fitting_3c(pairs, own, npair(nao)), fitting_2c(aux, share)
    if share.alone and three.shape[1] != naux:
        three = three[:, auxiliary_columns(aux, naux)]
    if not share.alone:
        return three, to_device_order(two, aux, share)
    if len(two) == naux:
        return three, two
    columns = auxiliary_columns(aux, naux)
    return three, two[columns][:, columns]


def over_columns(
    add: Callable[..., Any],
    sums: Any,
    three: Float[Array, "npair own"],
    nao: int,
    dtype: DTypeLike | None = None,
    most: int | None = None,
) -> Any:
    """Goes through (ab|P) unpacked, some P at a time.

    Args:
        add: Of the sums, the first P and (a, b, P).
        sums: What `add` changes.
        three: (ab|P), packed.
        nao: Number of AOs.
        dtype: Of what is unpacked; by default that of `three`.
        most: P at a time at most.
    """

    dtype = jnp.dtype(three.dtype if dtype is None else dtype)
    ao = jnp.arange(nao)
    index = packed_index(ao[:, None], ao[None])

    def step(sums, start, size):
        columns = jax.lax.dynamic_slice_in_dim(three, start, size, 1)
        unpacked = lambda columns: columns.astype(dtype)[index]  # noqa: E731
        # In memory before its axes become one, which would be found from it for each number anew.
        return add(sums, start, standing(unpacked, columns))

    return _over_windows(step, sums, three.shape[1], dtype.itemsize * nao * nao, most)


def filled_columns(
    make: Callable[..., Array], three: Float[Array, "npair own"], nao: int, dtype: DTypeLike
) -> Float[Array, "npair own"]:
    """Other columns in the memory of (ab|P), some P at a time as in `over_columns`.

    None of the old ones may be read: the compiler would copy all of them for each step.

    Args:
        make: Of the first P and how many, the columns (ab, P).
        three: (ab|P), packed.
        nao: Number of AOs.
        dtype: Of what is unpacked.
    """

    def step(three, start, size):
        return jax.lax.dynamic_update_slice_in_dim(three, make(start, size), start, 1)

    return _over_windows(step, three, three.shape[1], jnp.dtype(dtype).itemsize * nao * nao)


def _over_windows(step, state, naux, column_bytes, most=None):
    """`step` of the state, the first P and how many, one window of P after another."""
    size = max(1, min(naux, most or naux, max(LEAST_COLUMNS, _unpacked_bytes() // column_bytes)))
    body = jax.checkpoint(step, prevent_cse=False, static_argnums=2)
    rest = naux % size
    starts = jnp.arange(0, naux - rest, size, dtype=jnp.int32)
    state, _ = jax.lax.scan(lambda state, start: (body(state, start, size), None), state, starts)
    return body(state, naux - rest, rest) if rest else state


def _unpacked_bytes():
    return _UNPACKED_BYTES.get(platform(), 1 << 26)
