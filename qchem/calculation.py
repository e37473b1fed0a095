"""Energies of molecules: `energy` for one after another, `energy_fn` for many geometries of one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qchem.basis.layout import Basis
from qchem.basis.library import default_auxiliary
from qchem.errors import InputError
from qchem.grids import Grid
from qchem.molecule import Molecule
from qchem.properties import gradient, moments
from qchem.scf.converge import check_solver, converge, curvature, traced
from qchem.scf.hamiltonian import ENERGIES, Method, TwoElectron
from qchem.scf.orbitals import density_matrix
from qchem.scf.response import constant, relaxed_factor
from qchem.scf.solve import SCFResult, solve
from qchem.scf.stability import UNSTABLE
from qchem.scf.start import Guess
from qchem.xc.functional import Functional
from qchem.xc.learned import SUFFIX, AnyFunctional, load_functional

BasisLike = str | Mapping[str, str] | Basis
GridLike = int | tuple[int, int] | Grid
_EMPTY = 1e-14  # occupation


@dataclass(frozen=True)
class Stability:
    """Lowest second derivatives of the energy along rotations of the orbitals, hartree.

    Attributes:
        internal: Among orbitals of the same kind; infinite where there is nothing to rotate.
        external: For a closed shell, where the two spins may rotate apart; else None.
        stable: Whether the solution is a minimum among orbitals of the same kind.
    """

    internal: float
    external: float | None
    stable: bool


class Result:
    """A finished calculation, in hartree and bohr.

    Attributes:
        molecule: That was calculated.
        energy: Total energy.
        energies: Its parts: nuclear, one_electron, coulomb, exchange, xc.
        converged, cycles, residual: Of the SCF; the residual is max|FDS - SDF|.
        dipole: e bohr, about the origin of the coordinates.
        homo, lumo: Orbital energies; one per spin if unrestricted; None where there is no orbital.
        s2: Expectation value of S².
        free_energy: `energy` less kT times the electrons' entropy, where the occupation is smeared.
        stages: What was done to converge: methods in turn, their cycles, and where they ended.
        nao, nelectron: Numbers of basis functions and electrons.
        mo_coeff, mo_energy, mo_occ, dm: With the spin axis leading.
        settings, timings: What was calculated and how long it took, s.
    """

    def __init__(
        self,
        molecule: Molecule,
        method: Method,
        scf: SCFResult,
        energies: Mapping[str, Array],
        settings: dict[str, Any],
        timings: dict[str, float],
    ):
        self.molecule, self._method, self.scf = molecule, method, scf
        self.stages: list[dict[str, Any]] = settings.get("stages", [])
        self.free_energy = float(scf.energy - settings.get("smearing", 0.0) * scf.entropy)
        self.energy = float(scf.energy)
        self.energies = {name: float(energies[name]) for name in ENERGIES}
        self.converged = bool(scf.converged)
        self.cycles, self.residual = int(scf.cycles), float(scf.residual)
        self.mo_coeff, self.mo_energy = np.asarray(scf.mo_coeff), np.asarray(scf.mo_energy)
        self.mo_occ, self.dm = np.asarray(scf.mo_occ), np.asarray(scf.dm)
        self.nao, self.nelectron = method.basis.nao, molecule.nelectron
        self.settings, self.timings = settings, timings
        frontier = [_frontier(e, n) for e, n in zip(self.mo_energy, self.mo_occ, strict=True)]
        homo, lumo = (list(values) for values in zip(*frontier, strict=True))
        self.homo, self.lumo = (homo, lumo) if len(homo) == 2 else (homo[0], lumo[0])
        positions = jnp.asarray(molecule.positions)
        dipole, s2 = _moments(method, positions, scf.factor)
        self.dipole, self.s2 = np.asarray(dipole), float(s2)

    def forces(self) -> Float[np.ndarray, "natom 3"]:
        """-dE/dR of the computed energy, basis and grid response included, hartree/bohr.

        With smearing, of `free_energy`.

        Raises:
            ConvergenceError: The SCF has not converged: its energy is not stationary.
        """
        self.scf.require_converged()
        start = perf_counter()
        positions = jnp.asarray(self.molecule.positions)
        orbitals = self.scf.factor, None
        if self.settings.get("smearing"):
            # Canonical order matters to orthonormalization; what is all but empty is left out.
            filled = self.scf.mo_occ > _EMPTY
            orbitals = jnp.where(filled[:, None, :], self.scf.mo_coeff, 0), self.scf.mo_occ
        forces = -np.asarray(_gradient(self._method, positions, *orbitals))
        self.timings["forces"] = perf_counter() - start
        return forces

    def stability(self) -> Stability:
        """Whether the solution is a minimum, by the lowest eigenvalues of the orbital Hessian.

        What an instability leads to: `energy(..., follow_instability=True)`, with
        `unrestricted=True` for an external one.

        Raises:
            ConvergenceError: The SCF has not converged.
            InputError: The occupation is fractional.
        """
        self.scf.require_converged()
        if self.settings.get("smearing"):
            raise InputError("stability is that of whole occupation: leave smearing out.")
        positions = jnp.asarray(self.molecule.positions)
        hamiltonian, _ = _hamiltonian(self._method, positions)
        nocc = tuple(int(round(n.sum() * len(self.mo_occ) / 2)) for n in self.mo_occ)
        internal = float(curvature(hamiltonian, self.scf, nocc).eigenvalue)
        external = None
        if len(nocc) == 1:
            external = float(curvature(hamiltonian, self.scf, nocc, True).eigenvalue)
        return Stability(internal, external, internal >= UNSTABLE)

    def require_converged(self) -> Result:
        """This result, or `ConvergenceError`."""
        self.scf.require_converged()
        return self


def _frontier(mo_energy, mo_occ):
    occupied, exists = mo_occ > 0, np.isfinite(mo_energy)
    below, above = mo_energy[occupied], mo_energy[~occupied & exists]
    return float(below.max()) if below.size else None, float(above.min()) if above.size else None


def energy(
    molecule: Molecule,
    basis: BasisLike = "def2-svp",
    xc: str | AnyFunctional = "b3lyp",
    *,
    two_electron: TwoElectron = "exact",
    aux: BasisLike | None = None,
    grid: GridLike = 3,
    cartesian: bool = False,
    unrestricted: bool = False,
    guess: str | Result = "sap",
    solver: str = "auto",
    follow_instability: bool = False,
    field: Sequence[float] | Float[Array | np.ndarray, " 3"] | None = None,
    **scf_options: Any,
) -> Result:
    """Converged energy of one molecule; forces follow from the result.

    The dtype of the molecule's positions is the precision of the calculation; float64 needs
    `jax.config.update("jax_enable_x64", True)` in the program.

    Args:
        molecule: A closed shell if its multiplicity is 1, else unrestricted.
        basis: Name of a set, one per element symbol, or a `Basis`.
        xc: Functional by name, "hf" for Hartree-Fock, the path of a learned one (.eqx), or a
            `Functional` or `LearnedFunctional`.
        two_electron: Exact integrals, or density fitting ("df").
        aux: Auxiliary set of density fitting; by default the one that suits `basis`.
        grid: Level 0 to 9, numbers of (radial, angular) points, or a `Grid`.
        cartesian: Cartesian instead of spherical functions.
        unrestricted: Different orbitals for alpha and beta electrons even at multiplicity 1.
        guess: Atomic potentials ("sap") or densities ("sad") side by side, bare nuclei ("core"),
            or another result for the same atoms, at any geometry and in any basis.
        solver: "diis"; "second-order", Newton's method within a trust region; or "auto", the first
            and, where it stalls, the second.
        follow_instability: Go on downhill where the solution is a saddle point of the energy.
        field: A uniform electric field, hartree/(e bohr).
        **scf_options: Of `qchem.scf.solve`, `max_cycles`, `level_shift`, `damping` or `smearing`
            for example; `tolerance` is its `residual_tolerance`.

    Returns:
        The result, converged or not: see `Result.converged`.

    Raises:
        InputError: Anything unknown or impossible in the input.
    """
    start = perf_counter()
    _check_precision(molecule.positions)
    method, settings = _method(molecule.numbers, basis, xc, two_electron, aux, grid, cartesian)
    method = _in_field(method, field)
    nocc = _occupied(molecule, unrestricted)
    options = resolved_options(scf_options)
    check_solver(solver, options)
    first = _guess(guess, method)
    positions = jnp.asarray(molecule.positions)
    timings = {"plan": perf_counter() - start}
    start = perf_counter()
    hamiltonian, screened = jax.block_until_ready(_hamiltonian(method, positions))
    timings["integrals"] = perf_counter() - start
    start = perf_counter()
    scf, energies, stages = converge(
        hamiltonian, screened, first, nocc, options, solver, follow_instability
    )
    timings["scf"] = perf_counter() - start
    settings |= {
        "charge": molecule.charge,
        "multiplicity": molecule.multiplicity,
        "unrestricted": len(nocc) == 2,
        "guess": first.name,
        "solver": solver,
        "follow_instability": follow_instability,
        "stages": stages,
        **options,
    }
    return Result(molecule, method, scf, energies, settings, timings)


class Relaxed(eqx.Module):
    """A converged state that can be differentiated once; see `EnergyFunction.relaxed`.

    Attributes:
        energy: Total, hartree.
        dm: Density matrix of each spin.
        dipole: e bohr, about the origin of the coordinates.
        converged: Where not, derivatives are not a number.
    """

    energy: Float[Array, ""]
    dm: Float[Array, "nspin nao nao"]
    dipole: Float[Array, " 3"]
    converged: Bool[Array, ""]


class EnergyFunction(eqx.Module):
    """Converged energy as a pure function of positions; made by `energy_fn`.

    Under `vmap`, `chunk` geometries are held at once (on a CPU one). The gradient is that of the
    converged energy; second derivatives would need the response of the orbitals and are refused.
    """

    method: Method
    nocc: tuple[int, ...] = eqx.field(static=True)
    guess: Guess
    solver: str = eqx.field(static=True)
    chunk: int = eqx.field(static=True)
    options: tuple[tuple[str, Any], ...] = eqx.field(static=True)

    # jax.jit wants to hash what it compiles; the arrays inside cannot be hashed.
    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __call__(self, positions: Float[Array | np.ndarray, "natom 3"]) -> Float[Array, ""]:
        """Total energy, hartree; not a number where the SCF does not converge."""
        natom = len(self.method.numbers)
        if np.shape(positions) != (natom, 3):
            raise InputError(
                f"positions have shape {np.shape(positions)}, {natom} atoms need ({natom}, 3); "
                "use jax.vmap for several geometries."
            )
        _check_precision(positions)
        one = jax.custom_jvp(self._mapped(with_gradient=False))
        both = jax.custom_jvp(self._mapped(with_gradient=True))

        @one.defjvp
        def first(primals, tangents):
            value, slope = both(*primals)
            return value, jnp.vdot(slope, tangents[0])

        @both.defjvp
        def second(primals, tangents):
            raise NotImplementedError(
                "second derivatives of converged energies need the response of the orbitals, "
                "which is not supported; difference the gradient instead."
            )

        return one(jnp.asarray(positions))

    def solve(self, positions: Float[Array | np.ndarray, "natom 3"]) -> SCFResult:
        """Converged orbitals and all that belongs to them; constants for differentiation."""
        return _solve(constant(self), jax.lax.stop_gradient(jnp.asarray(positions)))

    def relaxed(self, positions: Float[Array | np.ndarray, "natom 3"]) -> Relaxed:
        """The converged state, with its first derivatives in everything.

        In forward and reverse mode, with respect to positions and to the arrays of this function:
        exponents and contraction coefficients in `method.basis`, `method.charges`, `method.field`,
        what `method.functional` has learned. See `qchem.scf.response`; the integrals are held in
        memory.
        """
        positions = jnp.asarray(positions)
        scf = self.solve(positions)
        hamiltonian, _ = self.method.hamiltonian(positions)
        factor = relaxed_factor(hamiltonian, scf, self.nocc)
        dipole, _ = moments(self.method, positions, factor)
        return Relaxed(
            energy=hamiltonian.energy(factor),
            dm=density_matrix(factor),
            dipole=dipole,
            converged=scf.converged,
        )

    def _mapped(self, *, with_gradient: bool):
        """Energy, or energy and gradient; `vmap` goes through the batch `chunk` at a time."""

        @jax.custom_batching.custom_vmap
        def mapped(positions):
            return _evaluate(self, positions, with_gradient)

        @mapped.def_vmap
        def rule(axis_size, in_batched, positions):
            values = _evaluate(self, positions, with_gradient)
            return values, jax.tree.map(lambda _: True, values)

        return mapped


@eqx.filter_jit
def _evaluate(function, positions, with_gradient):
    """Energy, or energy and gradient, of one geometry or of a batch; compiled once for each."""

    def one(positions):
        scf = function.solve(positions)
        energy = jnp.where(scf.converged, scf.energy, jnp.nan)
        if with_gradient:
            return energy, gradient(function.method, positions, scf.factor)
        return energy

    if positions.ndim == 2:
        return one(positions)
    # On a CPU the threads work on one geometry; and XLA's batched LAPACK calls, two at a time,
    # wait for each other for ever where there are as few threads (jaxlib 0.10).
    together = 0 if jax.default_backend() == "cpu" else min(function.chunk, positions.shape[0])
    return jax.lax.map(one, positions, batch_size=together or None)


def energy_fn(
    numbers: Sequence[int],
    basis: BasisLike = "def2-svp",
    xc: str | AnyFunctional = "b3lyp",
    *,
    charge: int = 0,
    multiplicity: int = 1,
    two_electron: TwoElectron = "exact",
    aux: BasisLike | None = None,
    grid: GridLike = 3,
    cartesian: bool = False,
    unrestricted: bool = False,
    guess: str | Result = "sap",
    solver: str = "diis",
    field: Sequence[float] | Float[Array | np.ndarray, " 3"] | None = None,
    chunk: int = 1,
    **scf_options: Any,
) -> EnergyFunction:
    """Converged energy of one molecule family as a pure function of positions.

    The function works under `jit`, `grad`, `jvp` and `vmap`; nothing in it depends on a geometry,
    so that one compiled program serves all of them.

    Args:
        numbers: Atomic numbers.
        charge, multiplicity: As in `Molecule`.
        solver: With "auto" second-order cycles are compiled too, for where DIIS stalls.
        chunk: Geometries held at once under `vmap`; the memory grows with it. On a CPU they follow
            one another.
        basis, xc, two_electron, aux, grid, cartesian, unrestricted, guess, field, **scf_options:
            As in `energy`.
    """
    apart = np.arange(len(numbers))[:, None] * np.array([[10.0, 0.0, 0.0]])
    molecule = Molecule.from_arrays(
        numbers, apart, unit="bohr", charge=charge, multiplicity=multiplicity
    )
    if chunk < 1:
        raise InputError(f"chunk = {chunk} geometries; it must be 1 or more.")
    method, _ = _method(molecule.numbers, basis, xc, two_electron, aux, grid, cartesian)
    method = _in_field(method, field)
    options = resolved_options(scf_options)
    check_solver(solver, options)
    if options.get("smearing"):
        raise InputError("energy_fn has no smearing; qchem.energy has.")
    nocc, first = _occupied(molecule, unrestricted), _guess(guess, method)
    return EnergyFunction(method, nocc, first, solver, chunk, tuple(options.items()))


def _guess(guess: str | Result, method: Method) -> Guess:
    if isinstance(guess, str):
        return Guess.from_name(guess, method.numbers, method.basis)
    if not isinstance(guess, Result):
        raise InputError(
            f"guess = {guess!r}; 'sap', 'sad', 'core' or the result of another calculation will do."
        )
    old = guess._method
    if old.numbers != method.numbers:
        raise InputError(
            f"the guess is a result for the atoms {old.numbers}, not for {method.numbers}; "
            "the same atoms in the same order are needed."
        )
    positions = guess.molecule.positions
    return Guess.from_orbitals(guess.scf.factor, old.basis, method.basis, positions)


def _occupied(molecule: Molecule, unrestricted: bool) -> tuple[int, ...]:
    if molecule.multiplicity == 1 and not unrestricted:
        return (molecule.nalpha,)
    return molecule.nalpha, molecule.nbeta


def resolved_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options of `qchem.scf.solve` under its own names.

    Raises:
        InputError: A name that it does not know.
    """
    known = set(inspect.signature(solve).parameters) - {"hamiltonian", "nocc", "guess_fock"}
    renamed = {"residual_tolerance" if k == "tolerance" else k: v for k, v in options.items()}
    unknown = sorted(set(renamed) - known)
    if unknown:
        raise InputError(
            f"unknown option {', '.join(unknown)}; SCF options are tolerance, "
            f"{', '.join(sorted(known))}."
        )
    return renamed


def _check_precision(positions) -> None:
    dtype = np.result_type(positions)
    if dtype == np.float64 and not jax.config.jax_enable_x64:
        raise InputError(
            "positions are float64 but JAX is in 32-bit mode: call "
            'jax.config.update("jax_enable_x64", True) at the start of the program, or give '
            "float32 positions for a calculation in single precision."
        )
    if not np.issubdtype(dtype, np.floating):
        raise InputError(f"positions have dtype {dtype}; they must be float64 or float32.")


def _method(numbers, basis, xc, two_electron, aux, grid, cartesian):
    if two_electron not in ("exact", "df"):
        raise InputError(f"two_electron = {two_electron!r}; 'exact' and 'df' are available.")
    if two_electron == "exact" and aux is not None:
        raise InputError(f"auxiliary basis {aux!r} is for density fitting: two_electron='df'.")
    if two_electron == "df" and aux is None:
        if not isinstance(basis, str):
            raise InputError("density fitting of a basis without a name needs aux=.")
        aux = default_auxiliary(basis)
    if isinstance(xc, str) and xc.endswith(SUFFIX):
        xc = load_functional(xc)
    names = (numbers, _frozen(basis), xc, _frozen(aux), _frozen(grid), cartesian)
    try:
        hash(names)
    except TypeError:
        method = _build.__wrapped__(*names)
    else:
        method = _build(*names)
    settings = {
        "basis": method.basis.name,
        "xc": method.functional.name,
        "two_electron": two_electron,
        "aux": method.aux.name if method.aux is not None else None,
        "grid": grid if isinstance(grid, int | tuple) else "given",
        "cartesian": not method.basis.spherical,
    }
    return method, settings


def _in_field(method: Method, field) -> Method:
    if field is None:
        return method
    field = np.asarray(field) if isinstance(field, Sequence) else field
    if field.shape != (3,):
        raise InputError(f"a field has three components; {field.shape} is the shape of this one.")
    return eqx.tree_at(lambda m: m.field, method, field, is_leaf=lambda x: x is None)


def _frozen(value):
    return tuple(sorted(value.items())) if isinstance(value, Mapping) else value


@lru_cache(maxsize=32)
def _build(numbers, basis, xc, aux, grid, cartesian) -> Method:
    """Everything that does not depend on positions, kept for the next geometry."""
    functional = Functional.from_name(xc) if isinstance(xc, str) else xc
    orbital = _basis(numbers, basis, not cartesian, auxiliary=False)
    auxiliary = None if aux is None else _basis(numbers, aux, orbital.spherical, auxiliary=True)
    if functional.ingredients == "none":
        points = None
    elif isinstance(grid, Grid):
        points = grid
    elif isinstance(grid, tuple):
        points = Grid.from_numbers(numbers, sizes=grid)
    else:
        points = Grid.from_numbers(numbers, grid)
    return Method.build(numbers, orbital, functional, aux=auxiliary, grid=points)


def _basis(numbers, basis, spherical, auxiliary):
    if isinstance(basis, Basis):
        if basis.natom != len(numbers):
            raise InputError(f"the basis is for {basis.natom} atoms, not for {len(numbers)}.")
        return basis
    name = dict(basis) if isinstance(basis, tuple) else basis
    return Basis.from_name(numbers, name, spherical=spherical, auxiliary=auxiliary)


@eqx.filter_jit
def _hamiltonian(method, positions):
    return method.hamiltonian(positions)


@eqx.filter_jit
def _solve(function, positions):
    hamiltonian, screened = function.method.hamiltonian(positions)
    options = dict(function.options)
    return traced(hamiltonian, screened, function.guess, function.nocc, options, function.solver)


@eqx.filter_jit
def _gradient(method, positions, orbitals, occupation):
    return gradient(method, positions, orbitals, occupation)


@eqx.filter_jit
def _moments(method, positions, factor):
    return moments(method, positions, factor)
