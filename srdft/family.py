"""Molecule families: what is fixed while geometries and models change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import qchem
from qchem import Basis, Grid, Hamiltonian, InputError, Method, SCFResult
from srdft.orbitals import error_estimate, largest_residual, semicanonical


class Shell(NamedTuple):
    """A shell of the basis: on which atom, the how manyth of that element, l, its AOs."""

    atom: int
    index: int
    l: int
    first_ao: int
    size: int


class Orbitals(eqx.Module):
    """Orthonormal orbitals that a model predicts.

    Attributes:
        factor: Occupied orbitals times the root of their occupation; the part with derivatives,
            right up to rotations among the occupied orbitals.
        mo_coeff: All orbitals, occupied ones first; constants for differentiation.
    """

    factor: Float[Array, "nspin nao nocc"]
    mo_coeff: Float[Array, "nspin nao nmo"]


class Prediction(eqx.Module):
    """What predicted orbitals mean; hartree.

    Every field belongs to the density matrix of the predicted orbitals: `fock` is dE/d(dm) there,
    and `mo_coeff` and `mo_energy` diagonalize it within the occupied and within the virtual
    orbitals. `residual` is the largest element of the occupied-virtual block, which is zero at the
    minimum, and `error_estimate` what a second-order step would gain: an estimate, without labels,
    of how far the energy is above the minimum.
    """

    energy: Float[Array, ""]
    energies: dict[str, Float[Array, ""]]
    factor: Float[Array, "nspin nao nocc"]
    mo_coeff: Float[Array, "nspin nao nmo"]
    mo_energy: Float[Array, "nspin nmo"]
    dm: Float[Array, "nspin nao nao"]
    fock: Float[Array, "nspin nao nao"]
    residual: Float[Array, ""]
    error_estimate: Float[Array, ""]


@runtime_checkable
class PredictsOrbitals(Protocol):
    """What a family needs to know of a model."""

    def orbitals(self, molecule: PlacedMolecule) -> Orbitals:
        """Orthonormal orbitals of a family's molecule at one geometry."""


class MoleculeFamily(eqx.Module):
    """One molecule in all its conformations: atoms, charge, spin, basis, functional, integrals.

    Everything is a pure function of positions and of a model, compiled once for all geometries.

    Attributes:
        name: For reports and files.
        numbers, charge, multiplicity: The molecule.
        nocc: Occupied orbitals: one number for a closed shell, else those of alpha and beta.
        method: Basis, functional, grid, integrals.
        shells: Of the basis, in the order of the AOs.
        guess_factor: Occupied natural orbitals of superposed spherical atoms, times the root of
            their occupation, all spins alike. The AOs move with the atoms, so it is a constant.
    """

    name: str = eqx.field(static=True)
    numbers: tuple[int, ...] = eqx.field(static=True)
    charge: int = eqx.field(static=True)
    multiplicity: int = eqx.field(static=True)
    nocc: tuple[int, ...] = eqx.field(static=True)
    shells: tuple[Shell, ...] = eqx.field(static=True)
    method: Method
    guess_factor: Float[Array | np.ndarray, "nspin nao nguess"]

    @classmethod
    def build(
        cls,
        numbers: Sequence[int],
        basis: str | Mapping[str, str] | Basis = "def2-svp",
        xc: str | qchem.Functional = "b3lyp",
        *,
        charge: int = 0,
        multiplicity: int = 1,
        two_electron: str = "df",
        aux: str | Mapping[str, str] | Basis | None = None,
        grid: int | tuple[int, int] | Grid = 3,
        cartesian: bool = False,
        name: str | None = None,
    ) -> MoleculeFamily:
        """Plans integrals and grid, as `qchem.energy_fn` does.

        Args:
            numbers: Atomic numbers; their order is the order of the rows of positions.
            name: By default the sum formula in the order of the atoms.
            basis, xc, charge, multiplicity, two_electron, aux, grid, cartesian: As in
                `qchem.energy`, but with density fitting by default.

        Raises:
            InputError: Anything unknown or impossible in the input.
        """
        function = qchem.energy_fn(
            numbers,
            basis,
            xc,
            charge=charge,
            multiplicity=multiplicity,
            two_electron=two_electron,
            aux=aux,
            grid=grid,
            cartesian=cartesian,
        )
        numbers = function.method.numbers
        nspin = len(function.nocc)
        return cls(
            name=name or _formula(numbers),
            numbers=numbers,
            charge=charge,
            multiplicity=multiplicity,
            nocc=function.nocc,
            shells=_shells(function.method.basis),
            method=function.method,
            guess_factor=_guess_factor(numbers, function.method.basis, nspin),
        )

    @property
    def guess_dm(self) -> Float[Array | np.ndarray, "nspin nao nao"]:
        """Density matrix of superposed spherical atoms, all spins alike."""
        return self.guess_factor @ self.guess_factor.swapaxes(1, 2)

    def place(self, positions: Float[Array, "natom 3"]) -> PlacedMolecule:
        """The molecule at one geometry, with its integrals; what models work on."""
        hamiltonian, _ = self.method.hamiltonian(positions, reverse=True)
        return PlacedMolecule(self, positions, hamiltonian)

    @eqx.filter_jit
    def energy_fn(
        self, model: PredictsOrbitals, positions: Float[Array, "natom 3"]
    ) -> Float[Array, ""]:
        """Energy of the predicted orbitals, hartree: never below the converged energy.

        Its derivatives are total: with respect to positions through integrals, grid, overlap and
        whatever the model makes of them; with respect to the model's parameters. In reverse mode.
        """
        molecule = self.place(positions)
        return molecule.hamiltonian.energy(model.orbitals(molecule).factor)

    @eqx.filter_jit
    def predict(self, model: PredictsOrbitals, positions: Float[Array, "natom 3"]) -> Prediction:
        """Predicted orbitals with their energy, Fock matrix and error estimate."""
        molecule = self.place(positions)
        return molecule.judge(model.orbitals(molecule))

    @eqx.filter_jit
    def held(
        self, factor: Float[Array, "nspin nao nocc"], positions: Float[Array, "natom 3"]
    ) -> tuple[Float[Array, ""], Float[Array, "natom 3"]]:
        """E and dE/dR of given orbitals, held but for what keeps them orthonormal.

        The gradient is close to the total derivative where the orbitals are close to the converged
        ones, and cheaper.

        Args:
            factor: Occupied orbitals at these positions, as `Prediction` has them.

        Returns:
            Hartree, and hartree/bohr.
        """
        factor = jax.lax.stop_gradient(factor)
        return jax.value_and_grad(self.method.energy)(positions, factor)

    @eqx.filter_jit
    def solve(
        self,
        positions: Float[Array, "natom 3"],
        guess_fock: Float[Array, "nspin nao nao"] | None = None,
        **options: Any,
    ) -> SCFResult:
        """The converged reference.

        Args:
            guess_fock: Where to start: `Prediction.fock`, or by default atomic potentials.
            options: Of `qchem.solve`.
        """
        hamiltonian, guess = self.method.hamiltonian(positions)
        if guess_fock is None:
            guess_fock = jnp.broadcast_to(guess, (len(self.nocc), *guess.shape))
        return qchem.solve(hamiltonian, self.nocc, guess_fock, **options)


class PlacedMolecule(eqx.Module):
    """A family's molecule at one geometry."""

    family: MoleculeFamily
    positions: Float[Array, "natom 3"]
    hamiltonian: Hamiltonian

    def judge(self, orbitals: Orbitals) -> Prediction:
        """Energy, Fock matrix and error estimate of orthonormal orbitals."""
        hamiltonian, nocc = self.hamiltonian, self.family.nocc
        energies, fock = hamiltonian.energies_and_fock(orbitals.factor)
        mo_coeff, mo_energy = semicanonical(fock, orbitals.mo_coeff, nocc)
        return Prediction(
            energy=sum(energies.values()),
            energies=energies,
            factor=orbitals.factor,
            mo_coeff=mo_coeff,
            mo_energy=mo_energy,
            dm=qchem.density_matrix(orbitals.factor),
            fock=fock,
            residual=largest_residual(fock, mo_coeff, nocc),
            error_estimate=error_estimate(fock, mo_coeff, mo_energy, nocc),
        )


def map_geometries(
    function: Callable[[Float[Array, "natom 3"]], Any],
    positions: Float[Array, "n natom 3"],
    chunk: int = 1,
) -> Any:
    """The function's values at each geometry, stacked.

    Args:
        function: Of one geometry, traceable.
        positions: The geometries.
        chunk: How many are held at once on an accelerator; on a CPU they follow one another.
    """
    return qchem.map_geometries(lambda _, r: function(r), (), positions, chunk=chunk)


def _formula(numbers: tuple[int, ...]) -> str:
    counts: dict[str, int] = {}
    for number in numbers:
        symbol = qchem.SYMBOLS[number]
        counts[symbol] = counts.get(symbol, 0) + 1
    return "".join(f"{symbol}{n if n > 1 else ''}" for symbol, n in counts.items())


def _shells(basis: Basis) -> tuple[Shell, ...]:
    placed = sorted(
        (int(ao), int(atom), batch.l)
        for batch in basis.batches
        for ao, atom in zip(batch.ao, batch.atom)
    )
    ends = [ao for ao, _, _ in placed[1:]] + [basis.nao]
    found: list[Shell] = []
    for (ao, atom, l), end in zip(placed, ends):
        index = sum(shell.atom == atom for shell in found)
        found.append(Shell(atom, index, l, ao, end - ao))
    return tuple(found)


def _guess_factor(numbers, basis, nspin):
    occupation, orbitals = np.linalg.eigh(qchem.atomic_densities(numbers, basis))
    occupied = occupation > 1e-12 * occupation[-1]
    if not occupied.any():
        raise InputError("the superposed atoms have no electrons.")
    factor = orbitals[:, occupied] * np.sqrt(occupation[occupied] / nspin)
    return np.broadcast_to(factor, (nspin, *factor.shape)).copy()
