"""Basis: shells in batches of one angular momentum, AO order, normalization."""

from collections.abc import Mapping, Sequence
from math import gamma
from os import PathLike
from types import ModuleType

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from qchem.basis.library import Shell, read_shells, shells_from_name
from qchem.basis.spherical import ncomponent


class ShellBatch(eqx.Module):
    """All shells of one angular momentum.

    Attributes:
        l: Angular momentum.
        exponents: Of the primitives, bohr⁻²; 1.0 where `contraction` is padding.
        contraction: Published coefficients, of normalized primitives; 0.0 is padding.
        atom: The atom that carries each shell.
        ao: Index of each shell's first AO; its other components follow.
    """

    l: int = eqx.field(static=True)
    exponents: Float[Array | np.ndarray, "nshell nprim"]
    contraction: Float[Array | np.ndarray, "nshell nprim"]
    atom: Int[Array | np.ndarray, " nshell"]
    ao: Int[Array | np.ndarray, " nshell"]

    def coefficients(
        self, dtype: DTypeLike, xp: ModuleType = jnp
    ) -> Float[Array | np.ndarray, "nshell nprim"]:
        """Factors of r^l exp(-a r²) that make ∫ (r^l R)² r² dr = 1 for primitives and contraction.

        The published coefficients refer to normalized primitives; their sum is normalized again,
        as PySCF does, whatever norm was published. The overlap of two normalized primitives is
        (2 √(ab) / (a + b))^(l + 3/2).

        Args:
            dtype: Of the result.
            xp: NumPy on the host, where JAX would compile each step.
        """
        a = xp.asarray(self.exponents, dtype)
        c = xp.asarray(self.contraction, dtype)
        power = self.l + 1.5
        overlap = (2 * xp.sqrt(a[:, :, None] * a[:, None, :])) / (a[:, :, None] + a[:, None, :])
        how = {"precision": "highest"} if xp is jnp else {}
        norm2 = xp.einsum("np,npq,nq->n", c, overlap**power, c, **how)
        norm2 = xp.where(norm2 > 0, norm2, 1)  # a shell of padding alone stays zero
        primitive = xp.sqrt(2 * (2 * a) ** power / gamma(power))
        return c * primitive / xp.sqrt(norm2)[:, None]


class Basis(eqx.Module):
    """The AOs of a set of atoms: elements, shells and order, but no coordinates.

    AO order and phases are PySCF's: atom by atom, within an atom by l, within an l as the set
    lists the shells; p as x, y, z; higher shells as m = -l..l (spherical) or
    xx, xy, xz, yy, yz, zz, ... (Cartesian).

    Attributes:
        batches: One per angular momentum present, ascending.
        natom, nao: Numbers of atoms and of AOs.
        spherical: 2l + 1 functions per shell, else (l + 1)(l + 2)/2.
        name: Of the set, for reports.
    """

    batches: tuple[ShellBatch, ...]
    natom: int = eqx.field(static=True)
    nao: int = eqx.field(static=True)
    spherical: bool = eqx.field(static=True)
    name: str = eqx.field(static=True)

    @classmethod
    def from_name(
        cls,
        numbers: Sequence[int],
        name: str | Mapping[str, str],
        *,
        spherical: bool = True,
        auxiliary: bool = False,
    ) -> "Basis":
        """The set called `name` in the Basis Set Exchange.

        Args:
            numbers: Atomic numbers, in the order of the molecule.
            name: Of a set, upper or lower case, with or without hyphens; or one per element symbol.
            spherical: Real solid harmonics, or Cartesian functions.
            auxiliary: A fitting set: shells up to l = 6, else up to l = 4.

        Raises:
            BasisNotFoundError: Unknown name, or an element that the set does not have.
            BasisError: An effective core potential, or an angular momentum too high.
        """
        shells = shells_from_name(name, numbers, auxiliary)
        label = name if isinstance(name, str) else ", ".join(f"{k}: {v}" for k, v in name.items())
        return cls.from_shells([shells[z] for z in numbers], spherical=spherical, name=label)

    @classmethod
    def from_file(
        cls,
        path: str | PathLike[str],
        numbers: Sequence[int],
        *,
        spherical: bool = True,
        auxiliary: bool = False,
        file_format: str | None = None,
    ) -> "Basis":
        """A set read from a file in any format that basis-set-exchange reads.

        Args:
            path: The file.
            numbers: Atomic numbers, in the order of the molecule.
            spherical, auxiliary: As in `from_name`.
            file_format: basis-set-exchange's name of the format; by default found out.

        Raises:
            BasisNotFoundError: An element that the file does not have.
            BasisError: A file that cannot be read, an effective core potential, or an angular
                momentum too high.
        """
        shells = read_shells(path, numbers, auxiliary, file_format)
        return cls.from_shells([shells[z] for z in numbers], spherical=spherical, name=str(path))

    @classmethod
    def from_shells(
        cls, shells: Sequence[Sequence[Shell]], *, spherical: bool = True, name: str = "shells"
    ) -> "Basis":
        """A basis of explicit shells.

        Args:
            shells: Of each atom, as `qchem.basis.library.Shell`: l, exponents, coefficients.
            spherical: Real solid harmonics, or Cartesian functions.
            name: For reports.
        """
        by_l: dict[int, list[tuple[Shell, int, int]]] = {}
        nao = 0
        for atom, of_atom in enumerate(shells):
            for shell in sorted(of_atom, key=lambda shell: shell.l):
                by_l.setdefault(shell.l, []).append((shell, atom, nao))
                nao += ncomponent(shell.l, spherical)
        batches = tuple(_batch(l, by_l[l]) for l in sorted(by_l))
        return cls(batches, len(shells), nao, spherical, name)


def _batch(l: int, placed: list[tuple[Shell, int, int]]) -> ShellBatch:
    nprim = max(len(shell.exponents) for shell, _, _ in placed)
    exponents = np.ones((len(placed), nprim))
    contraction = np.zeros((len(placed), nprim))
    for row, (shell, _, _) in enumerate(placed):
        order = np.argsort(shell.exponents)[::-1]
        exponents[row, : len(order)] = np.asarray(shell.exponents)[order]
        contraction[row, : len(order)] = np.asarray(shell.coefficients)[order]
    atom, ao = np.array([place for _, *place in placed], dtype=np.int32).T
    return ShellBatch(l, exponents, contraction, atom.copy(), ao.copy())


def primitive_depth(contraction: Float[Array | np.ndarray, "nshell nprim"]) -> np.ndarray:
    """Number of primitives of each shell but for padding at the end; all where it is traced."""
    nshell, nprim = contraction.shape
    if isinstance(contraction, jax.core.Tracer):
        return np.full(nshell, nprim)
    return nprim - np.argmax(np.asarray(contraction)[:, ::-1] != 0, axis=1)
