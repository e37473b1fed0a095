"""First Fock matrices by name, or from the orbitals of another calculation."""

from __future__ import annotations

from typing import Literal, get_args

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qchem.basis.layout import Basis, ShellBatch
from qchem.errors import InputError
from qchem.integrals.moments import packed_moment, unpack
from qchem.integrals.pairs import npair, pair_distributions, plan_pairs
from qchem.scf.guess import atomic_densities
from qchem.scf.hamiltonian import Hamiltonian
from qchem.scf.orbitals import OVERLAP_THRESHOLD, reorthonormalize

GuessName = Literal["sap", "sad", "core"]
_EMPTY = 1e-10  # occupation of a natural orbital of the guess that is left out


class Guess(eqx.Module):
    """Where the SCF starts.

    `factor` holds orbitals times the roots of their occupation, in AOs that move with the atoms;
    None for guesses that need no density. `whole` orbitals are made orthonormal at each geometry.
    """

    name: str = eqx.field(static=True)
    whole: bool = eqx.field(static=True)
    factor: Float[Array | np.ndarray, "nspin nao norbital"] | None = None

    @classmethod
    def from_name(cls, name: str, numbers: tuple[int, ...], basis: Basis) -> Guess:
        """Superposition of atomic potentials ("sap") or densities ("sad"), or bare nuclei ("core").

        Raises:
            InputError: Another name.
        """
        if name not in get_args(GuessName):
            raise InputError(
                f"guess = {name!r}; {', '.join(map(repr, get_args(GuessName)))} or the result of "
                "another calculation will do."
            )
        if name != "sad":
            return cls(name, False)
        occupation, vectors = np.linalg.eigh(atomic_densities(numbers, basis))
        used = occupation > _EMPTY
        factor = vectors[:, used] * np.sqrt(occupation[used])
        return cls(name, False, factor[None])

    @classmethod
    def from_orbitals(
        cls,
        factor: Float[Array | np.ndarray, "nspin nao norbital"],
        old: Basis,
        new: Basis,
        positions: Float[Array | np.ndarray, "natom 3"],
    ) -> Guess:
        """Occupied orbitals of another calculation on the same atoms.

        Those of another basis are projected: C = S^-1 S' C', with S' the overlap of the new AOs
        with the old ones, at the geometry of that calculation.

        Args:
            factor: Occupied orbitals times the roots of their occupation.
            old, new: The basis that they are in, and that of the calculation to come.
            positions: Of the atoms in that calculation, bohr.
        """
        if not eqx.tree_equal(old, new):
            overlap, cross = overlaps(new, old, jnp.asarray(positions))
            values, vectors = np.linalg.eigh(np.asarray(overlap))
            kept = values > OVERLAP_THRESHOLD
            inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
            factor = inverse @ np.asarray(cross) @ np.asarray(factor)
        norms = np.linalg.norm(np.asarray(factor), axis=1)
        whole = bool(np.all((norms == 0) | (norms > 1e-3)))
        return cls("result", whole, factor)

    def fock(
        self,
        hamiltonian: Hamiltonian,
        screened: Float[Array, "nao nao"],
        nspin: int,
    ) -> Float[Array, "nspin nao nao"]:
        """The first Fock matrix of each spin channel, hartree.

        Args:
            hamiltonian: At the geometry of the calculation.
            screened: The Fock matrix of superposed atomic potentials.
            nspin: Number of spin channels.
        """
        if self.factor is None:
            matrix = hamiltonian.hcore if self.name == "core" else screened
            return jnp.broadcast_to(matrix[None], (nspin, *matrix.shape))
        factor = jnp.asarray(self.factor, screened.dtype)
        if self.whole:
            factor = reorthonormalize(factor, hamiltonian.overlap, 2 / factor.shape[0])
        if factor.shape[0] > nspin:
            factor = jnp.concatenate(list(factor), axis=1)[None]
        elif factor.shape[0] < nspin:
            factor = jnp.concatenate([factor, factor]) / 2**0.5
        return hamiltonian.energy_and_fock(factor)[1]


def overlaps(
    first: Basis, second: Basis, positions: Float[Array, "natom 3"]
) -> tuple[Float[Array, "nao nao"], Float[Array, "nao nother"]]:
    """Overlap matrix of a basis, and that with another basis on the same atoms.

    Raises:
        InputError: One is Cartesian and the other spherical, or the atoms are not the same.
    """
    if first.spherical != second.spherical:
        raise InputError(
            "orbitals in Cartesian functions cannot be projected on spherical ones, nor the other "
            "way round; use the same kind of functions in both calculations."
        )
    if first.natom != second.natom:
        raise InputError(f"a basis on {second.natom} atoms does not fit {first.natom} atoms.")
    both = _side_by_side(first, second)
    matrix = _overlap(both, plan_pairs(both), positions)
    return matrix[: first.nao, : first.nao], matrix[: first.nao, first.nao :]


@eqx.filter_jit
def _overlap(basis, rows, positions):
    pairs = pair_distributions(basis, rows, positions)
    origin = jnp.zeros(3, positions.dtype)
    return unpack(packed_moment(pairs, npair(basis.nao), (0, 0, 0), origin), basis.nao)


def _side_by_side(first: Basis, second: Basis) -> Basis:
    """All functions of both, those of the second after those of the first."""
    batches = []
    for l in sorted({batch.l for batch in (*first.batches, *second.batches)}):
        parts = [
            (batch, shift)
            for basis, shift in ((first, 0), (second, first.nao))
            for batch in basis.batches
            if batch.l == l
        ]
        nprim = max(np.shape(batch.exponents)[1] for batch, _ in parts)

        def padded(x, fill, nprim=nprim):
            x = np.asarray(x)
            return np.pad(x, ((0, 0), (0, nprim - x.shape[1])), constant_values=fill)

        batches.append(
            ShellBatch(
                l,
                np.concatenate([padded(batch.exponents, 1.0) for batch, _ in parts]),
                np.concatenate([padded(batch.contraction, 0.0) for batch, _ in parts]),
                np.concatenate([np.asarray(batch.atom) for batch, _ in parts]),
                np.concatenate([np.asarray(batch.ao) + shift for batch, shift in parts]),
            )
        )
    nao = first.nao + second.nao
    return Basis(tuple(batches), first.natom, nao, first.spherical, "two sets")
