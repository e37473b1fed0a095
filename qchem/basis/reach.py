"""How far shells reach, and room for those that reach a chunk of points."""

from collections.abc import Sequence
from types import ModuleType

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from qchem.basis.layout import Basis, ShellBatch
from qchem.basis.spherical import ncomponent
from qchem.compilation import platform

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
            one more. None where nothing is left out.
    """

    radii: tuple[Float[Array, " _"], ...]
    capacities: tuple[Counts, ...] = eqx.field(static=True)

    @classmethod
    def of_basis(cls, basis: Basis, capacities: tuple[Counts, ...], dtype: DTypeLike) -> "Reach":
        """Of exponents and coefficients as they are now, traced or not; constants for derivatives.

        Elsewhere than on a CPU, where no branch is spared, nothing is left out.
        """
        if not capacities or platform() != "cpu":
            return cls((), ())
        batches = jax.lax.stop_gradient(basis.batches)
        return cls(tuple(shell_radii(batch, dtype, jnp) for batch in batches), capacities)


def plan_capacities(basis: Basis, depths: Depths) -> tuple[Counts, ...]:
    """Of a basis in the order of its `RowPlan`; host side, from elements alone."""
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(basis.batches)):
        return ()
    radii = [shell_radii(batch, np.float64, np) for batch in basis.batches]
    found: list[Counts] = []
    for margin in _MARGINS:
        counts = []
        for batch_radii, groups in zip(radii, depths, strict=True):
            ends = np.cumsum([size for size, _ in groups])[:-1]
            parts = np.split(batch_radii, ends)
            counts.append(tuple(_expected(part, margin, basis.natom) for part in parts))
        if _nao(basis, counts) <= _WORTH * basis.nao:
            found.append(tuple(counts))
    return tuple(found)


def _nao(basis: Basis, counts: Sequence[Sequence[int]]) -> int:
    pairs = zip(basis.batches, counts, strict=True)
    return sum(ncomponent(batch.l, basis.spherical) * sum(of_batch) for batch, of_batch in pairs)


def _expected(radii: np.ndarray, margin: float, natom: int) -> int:
    """How many of a cluster's shells reach points within `margin` of one place."""
    around = 4 / 3 * np.pi * (radii + margin) ** 3 * _ATOM_DENSITY
    return int(np.ceil(np.minimum(around / natom, 1).sum()))


def shell_radii(
    batch: ShellBatch, dtype: DTypeLike, xp: ModuleType = jnp
) -> Float[Array | np.ndarray, " _"]:
    """Radii beyond which sum_k |c_k| r^l (1 + 2 a_k r)² exp(-a_k r²) is negligible, bohr.

    That bounds values and two derivatives of the shell. `xp` is NumPy on the host.
    """
    a = xp.asarray(batch.exponents, dtype)[:, :, None]
    c = xp.abs(batch.coefficients(dtype, xp))[:, :, None]
    widest = xp.where(c > 0, a, xp.inf).min(axis=1)[:, None]
    r = xp.linspace(0, 12, 600, dtype=dtype)[None, None] / xp.sqrt(widest)
    bound = xp.sum(c * r**batch.l * (1 + 2 * a * r) ** 2 * xp.exp(-a * r * r), axis=1)
    beyond = bound[:, ::-1] > NEGLIGIBLE  # from outside
    first = r.shape[2] - xp.argmax(beyond, axis=1)  # one step outside of the last that counts
    first = xp.minimum(first, r.shape[2] - 1)[:, None]
    radii = xp.take_along_axis(r[:, 0], first, axis=1)[:, 0]
    return xp.where(beyond.any(axis=1), radii, -xp.inf)
