"""How far shells reach, and room for those that reach a chunk of points."""

from collections.abc import Sequence

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from qchem.basis.layout import Basis, ShellBatch, primitive_depth
from qchem.basis.spherical import ncomponent

Depths = tuple[tuple[tuple[int, int], ...], ...]  # (nshell, nprim) ... of each batch
Counts = tuple[tuple[int, ...], ...]  # of shells, of each group of one depth, of each batch

NEGLIGIBLE = 1e-10  # value of an AO, bohr^(-3/2), and of its first two derivatives
_MARGINS = (2.0, 4.0)  # bohr, about the radius of compact chunks and of most others
_ATOM_DENSITY = 0.01  # bohr⁻³, in a cluster of molecules with what it has of a surface
_WORTH = 0.7  # part of the AOs: with more of them, leaving the others out gains nothing


class Reach(eqx.Module):
    """What is needed to leave out shells.

    Attributes:
        radii: Of the shells of each batch, bohr; beyond, nothing counts.
        capacities: Numbers of shells that programs are made for, from few to many; all of them are
            one more. None where a molecule is too small to gain.
    """

    radii: tuple[Float[Array | np.ndarray, "_"], ...]
    capacities: tuple[Counts, ...] = eqx.field(static=True)

    @classmethod
    def of_basis(cls, basis: Basis, depths: Depths) -> "Reach":
        """Of a basis in the order of its `RowPlan`; host side, from elements alone."""
        radii = tuple(_radii(batch) for batch in basis.batches)
        found: list[Counts] = []
        for margin in _MARGINS:
            counts = []
            for batch_radii, groups in zip(radii, depths, strict=True):
                ends = np.cumsum([size for size, _ in groups])[:-1]
                parts = np.split(batch_radii, ends)
                counts.append(tuple(_expected(part, margin, basis.natom) for part in parts))
            if _nao(basis, counts) <= _WORTH * basis.nao:
                found.append(tuple(counts))
        return cls(radii, tuple(found))


def _nao(basis: Basis, counts: Sequence[Sequence[int]]) -> int:
    pairs = zip(basis.batches, counts, strict=True)
    return sum(ncomponent(batch.l, basis.spherical) * sum(of_batch) for batch, of_batch in pairs)


def _expected(radii: np.ndarray, margin: float, natom: int) -> int:
    """How many of a cluster's shells reach points within `margin` of one place."""
    around = 4 / 3 * np.pi * (radii + margin) ** 3 * _ATOM_DENSITY
    return int(np.ceil(np.minimum(around / natom, 1).sum()))


def _radii(batch: ShellBatch) -> Float[np.ndarray, "_"]:
    """Radii beyond which sum_k |c_k| r^l (1 + 2 a_k r)² exp(-a_k r²) is negligible.

    That bounds values and two derivatives of the shell; infinite where exponents are traced.
    """
    if isinstance(batch.exponents, jax.core.Tracer) or isinstance(
        batch.contraction, jax.core.Tracer
    ):
        return np.full(len(batch.atom), np.inf)
    a = np.asarray(batch.exponents, float)[:, :, None]
    c = np.abs(batch.coefficients(np.float64, np))[:, :, None]
    depth = primitive_depth(batch.contraction)[:, None]
    widest = np.where(np.arange(a.shape[1])[None] < depth, a[:, :, 0], np.inf).min(axis=1)
    r = np.linspace(0, 12, 600)[None, None] / np.sqrt(widest)[:, None, None]
    bound = np.sum(c * r**batch.l * (1 + 2 * a * r) ** 2 * np.exp(-a * r * r), axis=1)
    beyond = bound[:, ::-1] > NEGLIGIBLE  # from outside
    first = r.shape[2] - np.argmax(beyond, axis=1)  # one step outside of the last that counts
    radii = r[np.arange(len(r)), 0, np.minimum(first, r.shape[2] - 1)]
    return np.where(beyond.any(axis=1), radii, -np.inf)
