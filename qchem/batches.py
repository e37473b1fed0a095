"""Converged energies of many molecules: those of one bucket share a program and a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from qchem.calculation import (
    BasisLike,
    GridLike,
    check_flag,
    is_whole,
    nocc_of,
    padded_method,
    resolved_options,
)
from qchem.compilation import held_together, map_together, program
from qchem.dispersion import Dispersion
from qchem.energy_function import check_precision
from qchem.errors import InputError
from qchem.memory import check_memory
from qchem.molecule import Molecule
from qchem.padding import Padded, parted
from qchem.precision import in_dtype
from qchem.properties import gradient, known_after
from qchem.scf.converge import check_solver, traced
from qchem.scf.hamiltonian import Method, TwoElectron
from qchem.scf.orbitals import Occupied, check_occupation
from qchem.scf.start import Guess
from qchem.xc.learned import AnyFunctional


@dataclass(frozen=True)
class Energies:
    """Of several molecules, in the order in which they were given; hartree and bohr.

    Attributes:
        energy: Total; not a number where the SCF has not converged.
        forces: -dE/dR of each molecule, not a number where the SCF has not converged; None if they
            were not asked for.
        converged, residual, cycles: Of each SCF; the residual is max|FDS - SDF|.
        nbucket: Programs that were run.
        padding: Share of all basis functions in the batches that belongs to no molecule, those
            that fill up the last batch of a bucket included.
    """

    energy: Float[np.ndarray, " nmolecule"]
    forces: tuple[Float[np.ndarray, "_ 3"], ...] | None
    converged: Bool[np.ndarray, " nmolecule"]
    residual: Float[np.ndarray, " nmolecule"]
    cycles: Int[np.ndarray, " nmolecule"]
    nbucket: int
    padding: float


def energies(
    molecules: Sequence[Molecule],
    basis: BasisLike = "def2-svp",
    xc: str | AnyFunctional = "b3lyp",
    *,
    two_electron: TwoElectron = "exact",
    aux: BasisLike | None = None,
    grid: GridLike = 3,
    cartesian: bool = False,
    unrestricted: bool = False,
    solver: str = "diis",
    forces: bool = True,
    chunk: int = 8,
    **scf_options: Any,
) -> Energies:
    """Converged energies of different molecules, with forces.

    Molecules are filled up to common sizes (`qchem.padding`), and `chunk` of one size at a time go
    through one compiled program: side by side on an accelerator, one after another on a CPU.

    Args:
        molecules: Of any composition, charge and multiplicity.
        solver: "diis", or "auto", with second-order cycles compiled into each program.
        forces: With their forces.
        chunk: Molecules in a batch; the memory grows with it.
        basis, xc, two_electron, aux, grid, cartesian, unrestricted, **scf_options: As in
            `qchem.energy`. All start from superposed atomic potentials.

    Raises:
        InputError: As from `qchem.energy`, naming the molecule.
        NotEnoughMemoryError: More memory is needed than there is, by an estimate.
    """
    if not molecules:
        raise InputError("no molecules were given; at least one is needed.")
    if not is_whole(chunk) or chunk < 1:
        raise InputError(f"chunk = {chunk!r} molecules; it must be a whole number, 1 or more.")
    check_flag("forces", forces)
    options = resolved_options(scf_options)
    check_solver(solver, options)
    if options.get("smearing"):
        raise InputError("batches of molecules have no smearing; qchem.energy has.")
    names = basis, xc, two_electron, aux, grid, cartesian
    buckets: dict[Any, list[_Entry]] = {}
    methods: dict[Any, Method] = {}
    for n, molecule in enumerate(molecules):
        try:
            entry = _Entry.of(molecule, padded_method(molecule, *names), unrestricted, methods)
        except InputError as error:
            raise InputError(f"molecule {n}: {error}") from error
        buckets.setdefault(entry.form, []).append(replace(entry, place=n))
    for entries in buckets.values():
        entries[0].check_memory(forces, chunk)
    results: dict[int, dict[str, Any]] = {}
    held = 0
    for entries in buckets.values():
        alike = all(entry.method is entries[0].method for entry in entries)
        for start in range(0, len(entries), chunk):
            some = entries[start : start + chunk]
            filled = some + some[-1:] * (chunk - len(some))
            method = entries[0].method if alike else _stacked([entry.method for entry in filled])
            arguments = _stacked([entry.arguments for entry in filled])
            found = jax.device_get(_batch(method, arguments, alike, options, solver, forces))
            held += chunk * some[0].padded.method.basis.nao
            for k, entry in enumerate(some):
                results[entry.place] = entry.own({name: x[k] for name, x in found.items()})
    rows = [results[n] for n in range(len(molecules))]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    gradients = columns.pop("gradient", None)
    own = sum(entry.padded.nao for entries in buckets.values() for entry in entries)
    return Energies(
        **{name: np.asarray(column) for name, column in columns.items()},
        forces=None if gradients is None else tuple(-x for x in gradients),
        nbucket=len(buckets),
        padding=1 - own / held,
    )


@dataclass(frozen=True)
class _Entry:
    """One molecule, as the program of its bucket wants it."""

    molecule: Molecule
    padded: Padded
    nocc: tuple[int, ...]
    method: Method
    arguments: tuple[Float[np.ndarray, "natom 3"], Occupied]
    form: Any
    dispersion: Dispersion | None
    place: int = 0

    @classmethod
    def of(
        cls, molecule: Molecule, padded: Padded, unrestricted: bool, methods: dict[Any, Method]
    ) -> _Entry:
        """
        Args:
            methods: Those of earlier entries, and then of this one: molecules that are alike have
                the same.

        Raises:
            InputError: A precision or a number of electrons that cannot be.
        """
        check_precision(molecule.positions)
        nocc = nocc_of(molecule, unrestricted)
        check_occupation(nocc, padded.nao)
        method, dispersion = parted(padded.method)
        dtype = molecule.positions.dtype
        kind = id(padded), dtype  # which the entry keeps
        if kind not in methods:
            methods[kind] = in_dtype(jax.tree.map(np.asarray, method), dtype)
        arguments = padded.positions(molecule.positions), padded.occupied(nocc)
        everything = methods[kind], *arguments
        shapes = tuple((x.shape, x.dtype) for x in jax.tree.leaves(everything))
        form = jax.tree.structure(everything), shapes
        return cls(molecule, padded, nocc, methods[kind], arguments, form, dispersion)

    def check_memory(self, forces: bool, chunk: int) -> None:
        """Refuse what the memory will not hold."""
        itemsize = self.molecule.positions.dtype.itemsize
        with held_together(chunk):
            check_memory(self.padded.method, self.nocc, forces=forces, itemsize=itemsize)

    def own(self, row: dict[str, Any]) -> dict[str, Any]:
        """What belongs to the molecule, the dispersion correction included."""
        slope = row.get("gradient")
        if slope is not None:
            row["gradient"] = slope = slope[: self.padded.natom]
        if self.dispersion is not None:
            positions = jnp.asarray(self.molecule.positions)
            row["energy"] = row["energy"] + np.asarray(self.dispersion.energy(positions))
            if slope is not None:
                row["gradient"] = slope + np.asarray(jax.grad(self.dispersion.energy)(positions))
        return row


def _stacked(trees):
    return jax.tree.map(lambda *x: np.stack(x), *trees)


@program
def _batch(method, arguments, alike, options, solver, forces):
    """Results of every row of the arguments; those in the batch of an accelerator side by side.

    Args:
        method: Of all molecules if they are `alike`, or else in rows.
    """
    guess = Guess("sap", False)

    def one(row):
        own, (positions, nocc) = row
        method = shared if alike else own
        hamiltonian, screened = method.hamiltonian(positions)
        scf = traced(hamiltonian, screened, guess, nocc, options, solver)
        found = {
            "energy": jnp.where(scf.converged, scf.energy, jnp.nan),
            "converged": scf.converged,
            "residual": scf.residual,
            "cycles": scf.cycles,
        }
        if forces:
            known = known_after(method, hamiltonian, scf, options)
            slope = gradient(method, positions, scf.factor, *known)
            found["gradient"] = jnp.where(scf.converged, slope, jnp.nan)
        return found

    shared, rows = (method, None) if alike else (None, method)
    return map_together(one, (rows, arguments), len(arguments[0]))
