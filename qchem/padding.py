"""Molecules filled up to common sizes, so that one compiled program serves many of them.

What a program depends on is how many shells there are of which kind. Elements with the same kinds
of shells are counted together, and each count is rounded up with atoms that have no charge, no
electrons and no functions: rows of zeros, far away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qchem.atomic_grid import elements_of, npoint_of_element, period_of
from qchem.basis.layout import Basis
from qchem.basis.library import Shell, shells_from_name
from qchem.basis.rows import plan_rows
from qchem.compilation import program
from qchem.dispersion import Dispersion
from qchem.fitted_jk import Fit
from qchem.grids import Grid, GridPoints
from qchem.integrals.pairs import plan_pairs
from qchem.integrals.solid import plan_solid
from qchem.precision import in_dtype
from qchem.properties import gradient
from qchem.scf.hamiltonian import NONLOCAL_LEVEL, Hamiltonian, Method
from qchem.scf.orbitals import Occupied
from qchem.scf.solve import SCFResult
from qchem.scf.start import Guess

LARGEST = 150  # basis functions: beyond, a run costs more than a compilation
_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_OCCUPIED = (0.5, 4.0, 8.0, 17.0)  # orbitals per atom that there is room for, by period
_COLUMNS = 6  # charges of an atom's potential in the first guess come in multiples of this
_FAR = 1e5  # bohr


@dataclass(frozen=True)
class Padded:
    """A method at the size of its bucket, and the programs that run on it.

    Attributes:
        alone: Of the molecule itself.
        method: Filled up; its `numbers` are zeros.
        room: Occupied orbitals that there is room for; more make another program.
    """

    alone: Method
    method: Method
    room: int

    @classmethod
    def unchanged(cls, method: Method) -> Padded:
        """Nothing is filled up."""
        return cls(method, method, 0)

    @classmethod
    def build(
        cls,
        method: Method,
        basis: str | Mapping[str, str],
        aux: str | Mapping[str, str] | None,
        grid: int | tuple[int, int],
    ) -> Padded:
        """A method filled up, or unchanged where the result would be larger than `LARGEST`.

        Args:
            method: Of the molecule.
            basis, aux, grid: Names and level that it was built from.
        """
        numbers = method.numbers
        shells = shells_from_name(basis, numbers)
        aux_shells = {} if aux is None else shells_from_name(aux, numbers, auxiliary=True)

        def kind(number):
            return period_of(number), _kinds(shells[number]), _kinds(aux_shells.get(number, ()))

        ghosts = _ghosts(numbers, kind)
        everything, natom = numbers + ghosts, len(numbers)
        full = _basis(everything, shells, method.basis)
        if full.nao > LARGEST:
            return cls.unchanged(method)
        charges, widths = method.screened
        full_aux = method.aux and _basis(everything, aux_shells, method.aux)
        more, columns = (0, len(ghosts)), (0, -charges.shape[1] % _COLUMNS)
        filled = replace(
            method,
            numbers=(0,) * len(everything),
            basis=_without(full, natom),
            aux=full_aux and _without(full_aux, natom),
            grid=method.grid and _filled_grid(method.grid, everything, grid),
            nonlocal_grid=method.nonlocal_grid
            and _filled_grid(method.nonlocal_grid, everything, NONLOCAL_LEVEL),
            charges=np.pad(method.charges, more),
            pairs=plan_pairs(full, fitted=full_aux is not None),
            rows=plan_rows(full),
            fitting=plan_solid(full_aux) if full_aux else (),
            screened=(
                np.pad(charges, (more, columns)),
                np.pad(widths, (more, columns), constant_values=1.0),
            ),
        )
        room = ceil(sum(_OCCUPIED[period_of(number)] for number in everything))
        return cls(method, filled, room)

    @property
    def natom(self) -> int:
        """Of the molecule."""
        return len(self.alone.numbers)

    @property
    def nao(self) -> int:
        """Of the molecule."""
        return self.alone.basis.nao

    @property
    def share(self) -> float:
        """Part of the basis functions that are padding."""
        return 1 - self.nao / self.method.basis.nao

    def occupied(self, nocc: tuple[int, ...]) -> Occupied:
        """Numbers of occupied orbitals, as the programs want them."""
        return Occupied(np.asarray(nocc, np.int32), self.columns(max(nocc)))

    def columns(self, norbital: int) -> int:
        """How many orbitals the programs hold where the molecule has `norbital`."""
        if not self.room:
            return norbital
        if norbital <= self.room:
            return self.room
        everything = self.method.basis.nao
        return everything if norbital >= self.nao else min(-(-norbital // 4) * 4, everything)

    def positions(
        self, positions: Float[Array | np.ndarray, "natom 3"]
    ) -> Float[np.ndarray, "_ 3"]:
        """With those of the atoms that fill up."""
        positions = np.asarray(positions)
        nmore = len(self.method.numbers) - self.natom
        more = np.zeros((nmore, 3), positions.dtype)
        more[:, 0] = np.abs(positions).max() + _FAR * np.arange(1, nmore + 1)
        return np.concatenate([positions, more])

    def orbitals(
        self, orbitals: Float[Array | np.ndarray, "nspin nao norbital"], ncolumn: int
    ) -> Float[np.ndarray, "nspin padded {ncolumn}"]:
        """With zeros for the functions, and up to `ncolumn` the orbitals, that there are not."""
        orbitals = np.asarray(orbitals)
        _, nao, norbital = orbitals.shape
        more = (0, self.method.basis.nao - nao), (0, ncolumn - norbital)
        return np.pad(orbitals, ((0, 0), *more))

    def guess(self, guess: Guess) -> Guess:
        """The same with orbitals of the padded size."""
        if guess.factor is None or not self.room:
            return guess
        ncolumn = self.columns(guess.factor.shape[2])
        return replace(guess, factor=self.orbitals(guess.factor, ncolumn))

    def hamiltonian(
        self,
        positions: Float[Array | np.ndarray, "natom 3"],
        listener: Callable[[Hamiltonian, Any], None] = lambda hamiltonian, screened: None,
    ) -> tuple[Hamiltonian, Float[Array, "nao nao"]]:
        """`Method.hamiltonian` of the padded method, compiled; positions are the molecule's.

        Args:
            listener: Called before the program is ready for the first time, with
                `jax.ShapeDtypeStruct` in place of the arrays of what is returned.
        """
        method, dispersion = parted(self.method)
        positions = np.asarray(positions)
        method = in_dtype(method, positions.dtype)

        def tell(types):
            hamiltonian, screened = types
            if dispersion is not None:
                where = lambda hamiltonian: hamiltonian.dispersion  # noqa: E731
                kind = hamiltonian.nuclear_repulsion
                hamiltonian = eqx.tree_at(where, hamiltonian, kind, is_leaf=lambda x: x is None)
            listener(hamiltonian, screened)

        hamiltonian, screened = _hamiltonian.announced(tell)(method, self.positions(positions))
        if dispersion is not None:
            hamiltonian = replace(hamiltonian, dispersion=dispersion.energy(jnp.asarray(positions)))
        return hamiltonian, screened

    def gradient(
        self,
        positions: Float[Array | np.ndarray, "natom 3"],
        factor: Float[Array | np.ndarray, "nspin nao nocc"],
        of_overlap: Float[np.ndarray, "nao nao"],
        fitted: tuple[Fit, ...] | None = None,
    ) -> Float[np.ndarray, "natom 3"]:
        """`qchem.gradient`, compiled; all but `fitted` is given, and returned, for the molecule."""
        arguments = self._gradient_arguments(positions, factor, of_overlap)
        slope = _gradient(*arguments, fitted)
        slope = np.asarray(slope)[: self.natom]
        if self.method.dispersion is not None:
            energy = self.method.dispersion.energy
            slope = slope + np.asarray(jax.grad(energy)(jnp.asarray(positions)))
        return slope

    def expect_gradient(
        self, positions: Float[Array | np.ndarray, "natom 3"], nocc: tuple[int, ...]
    ) -> None:
        """Have the program of `gradient` of so many whole orbitals made meanwhile."""
        dtype = np.asarray(positions).dtype
        factor = np.zeros((len(nocc), self.nao, max(nocc)), dtype)
        of_overlap = np.zeros((self.nao, self.nao), dtype)
        arguments = self._gradient_arguments(positions, factor, of_overlap)
        _gradient.ahead(*arguments, self.method.fitted_types(dtype))

    def _gradient_arguments(self, positions, factor, of_overlap):
        method, _ = parted(self.method)
        method = in_dtype(method, np.asarray(positions).dtype)
        factor = self.orbitals(factor, self.columns(factor.shape[2]))
        of_overlap = np.pad(of_overlap, (0, self.method.basis.nao - self.nao))
        return method, self.positions(positions), factor, of_overlap

    def grown(self, scf: SCFResult, nocc: tuple[int, ...]) -> SCFResult:
        """The reverse of `cut`, where no occupation is fractional."""
        nao, own = self.method.basis.nao, self.nao
        square, row = (0, nao - own), ((0, 0), (0, nao - own))
        return replace(
            scf,
            mo_coeff=self.orbitals(scf.mo_coeff, nao),
            mo_energy=np.pad(scf.mo_energy, row, constant_values=np.inf),
            mo_occ=np.pad(scf.mo_occ, row),
            dm=np.pad(scf.dm, ((0, 0), square, square)),
            fock=np.pad(scf.fock, ((0, 0), square, square)),
            factor=self.orbitals(scf.factor, self.columns(max(nocc))),
        )

    def cut(self, scf: SCFResult, nocc: tuple[int, ...]) -> SCFResult:
        """What belongs to the molecule, as NumPy arrays."""
        scf = jax.tree.map(np.asarray, scf)
        nao = self.nao
        fractional = scf.factor.shape[2] == self.method.basis.nao  # then no column is empty
        return replace(
            scf,
            mo_coeff=scf.mo_coeff[:, :nao, :nao],
            mo_energy=scf.mo_energy[:, :nao],
            mo_occ=scf.mo_occ[:, :nao],
            dm=scf.dm[:, :nao, :nao],
            fock=scf.fock[:, :nao, :nao],
            factor=scf.factor[:, :nao, : nao if fractional else max(nocc)],
        )


def _ghosts(numbers: tuple[int, ...], kind) -> tuple[int, ...]:
    """Atoms that fill up the number of each kind."""
    count = Counter(kind(number) for number in numbers)
    of_kind = {kind(number): number for number in numbers}
    ghosts: list[int] = []
    for key in sorted(count):
        size = next((size for size in _COUNTS if size >= count[key]), count[key])
        ghosts += [of_kind[key]] * (size - count[key])
    return tuple(ghosts)


def _kinds(shells: Sequence[Shell]) -> tuple[tuple[int, int], ...]:
    """Angular momentum and number of primitives of each shell."""
    return tuple(sorted((shell.l, len(shell.exponents)) for shell in shells))


def _basis(numbers, shells, like: Basis) -> Basis:
    """Of more atoms, with the shells of the same set."""
    of_atoms = [shells[number] for number in numbers]
    return Basis.from_shells(of_atoms, spherical=like.spherical, name=like.name)


def _without(basis: Basis, natom: int) -> Basis:
    """The functions on all but the first `natom` atoms are zero."""

    def emptied(batch):
        real = batch.atom < natom
        return replace(batch, contraction=np.where(real[:, None], batch.contraction, 0.0))

    return replace(basis, batches=tuple(emptied(batch) for batch in basis.batches))


def _filled_grid(grid: Grid, numbers: tuple[int, ...], level: int | tuple[int, int]) -> Grid:
    """With as many points as any elements of these periods have, the last ones of weight zero."""
    natom, npoint = len(grid.adjustment), len(grid.reference.quadrature)
    room = sum(_most_points(period_of(number), level) for number in numbers)
    more = (0, max(0, room - npoint))
    points = grid.reference
    filled = GridPoints(
        np.pad(points.atom, more, mode="edge"),
        np.pad(points.offsets, (more, (0, 0)), mode="edge"),
        np.pad(points.quadrature, more),
    )
    return Grid(filled, np.pad(grid.adjustment, (0, len(numbers) - natom)))


@cache
def _most_points(period: int, level: int | tuple[int, int]) -> int:
    return max(npoint_of_element(number, level) for number in elements_of(period))


def parted(method: Method) -> tuple[Method, Dispersion | None]:
    """The dispersion apart: programs that call the host are not kept in JAX's cache on disk."""
    return replace(method, dispersion=None), method.dispersion


@program
def _hamiltonian(method, positions):
    return method.hamiltonian(jnp.asarray(positions))


@program
def _gradient(method, positions, factor, of_overlap, fitted):
    return gradient(method, positions, factor, fitted, of_overlap)
