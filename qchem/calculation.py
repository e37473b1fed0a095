"""Energies of molecules: `energy` for one after another, `energy_fn` for many geometries of one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from numbers import Integral, Real
from time import perf_counter
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from qchem.basis.layout import Basis
from qchem.basis.library import check_auxiliary, default_auxiliary
from qchem.compilation import unchanging
from qchem.devices import GEOMETRY, MOLECULE, mesh_for
from qchem.energy_function import EnergyFunction, check_precision
from qchem.errors import InputError
from qchem.grids import Grid
from qchem.memory import check_memory
from qchem.molecule import Molecule
from qchem.padding import Padded
from qchem.precision import MIXED_TOLERANCES, Precision, check_mode
from qchem.result import Result
from qchem.scf.converge import check_solver, converge, expect
from qchem.scf.hamiltonian import Method, TwoElectron
from qchem.scf.orbitals import check_occupation
from qchem.scf.solve import solve
from qchem.scf.start import Guess
from qchem.xc.functional import Functional
from qchem.xc.learned import SUFFIX, AnyFunctional, LearnedFunctional, load_functional

BasisLike = str | Mapping[str, str] | Basis
GridLike = int | tuple[int, int] | Grid
_WHOLE = {"max_cycles", "diis_size", "patience", "stall"}  # options that are whole numbers


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
    forces: bool = False,
    mesh: Mesh | None = None,
    precision: Precision = "double",
    **scf_options: Any,
) -> Result:
    """Converged energy of one molecule; forces follow from the result.

    The dtype of the molecule's positions is the precision of the calculation; float64 needs
    `jax.config.update("jax_enable_x64", True)` in the program.

    Args:
        molecule: A closed shell if its multiplicity is 1, else unrestricted.
        basis: Name of a set, one per element symbol, or a `Basis`.
        xc: Functional by name, "hf" for Hartree-Fock, with "-d3bj" or "-d4" at the end for a
            dispersion correction; the path of a learned one (.eqx); or a `Functional` or
            `LearnedFunctional`.
        two_electron: Exact integrals, or density fitting ("df").
        aux: Auxiliary set of density fitting; by default the one that suits `basis`.
        grid: Level 0 to 9, numbers of (radial, angular) points, or a `Grid`.
        cartesian: Cartesian instead of spherical functions.
        unrestricted: Different orbitals for alpha and beta electrons even at multiplicity 1.
        guess: Atomic potentials ("sap") or densities ("sad") side by side, bare nuclei ("core"),
            or another result for the same atoms, at any geometry and in any basis of like
            functions, spherical or Cartesian.
        solver: "diis"; "second-order", Newton's method within a trust region; or "auto", the first
            and, where it stalls, the second.
        follow_instability: Go on downhill where the solution is a saddle point of the energy.
        field: A uniform electric field, hartree/(e bohr).
        forces: The result will be asked for forces: where the memory would not hold their part of
            the calculation, that is said at the start; their program is made meanwhile; and small
            three-index integrals are kept for them.
        mesh: Devices that share integrals and grid, by one axis called "molecule": see
            `qchem.use_cores`.
        precision: "mixed" has float32 where most of the time goes, for devices that are slow in
            float64: energies within 1e-5 hartree, see docs/precision.md.
        **scf_options: Of `qchem.scf.solve`, `max_cycles`, `level_shift`, `damping` or `smearing`
            for example; `tolerance` is its `residual_tolerance`.

    Returns:
        The result, converged or not: see `Result.converged`.

    Raises:
        InputError: Anything unknown or impossible in the input.
        NotEnoughMemoryError: More memory is needed than there is, by an estimate.
    """
    start = perf_counter()
    check_precision(molecule.positions)
    check_mode(precision, molecule.positions.dtype)
    check_flag("forces", forces)
    check_flag("follow_instability", follow_instability)
    names = molecule, basis, xc, two_electron, aux, grid, cartesian
    padded = padded_method(*names, precision)
    if mesh_for(mesh, GEOMETRY):
        raise InputError(
            f"a mesh with the axis {GEOMETRY!r} shares the geometries of a batch: "
            f"see qchem.energy_fn. One molecule is shared along an axis {MOLECULE!r}."
        )
    method = _in_field(padded.alone, field).on(mesh)
    padded = replace(padded, alone=method, method=_in_field(padded.method, field).on(mesh))
    nocc = nocc_of(molecule, unrestricted)
    check_occupation(nocc, method.basis.nao)
    check_memory(method, nocc, forces=forces, itemsize=molecule.positions.dtype.itemsize)
    options = resolved_options(scf_options, precision)
    check_solver(solver, options)
    first = _guess(guess, method)
    if forces and not options.get("smearing"):
        padded.expect_gradient(molecule.positions, nocc)
    how = padded.guess(first), padded.occupied(nocc), options, solver
    timings = {"plan": perf_counter() - start}
    start = perf_counter()
    operators = padded.hamiltonian(
        molecule.positions, lambda hamiltonian, screened: expect(hamiltonian, screened, *how)
    )
    hamiltonian, screened = jax.block_until_ready(operators)
    timings["integrals"] = perf_counter() - start
    start = perf_counter()
    scf, energies, stages = converge(hamiltonian, screened, *how, follow_instability)
    timings["scf"] = perf_counter() - start
    settings = {
        "basis": method.basis.name,
        "xc": method.functional.name,
        "two_electron": two_electron,
        "aux": method.aux.name if method.aux is not None else None,
        "grid": "given" if isinstance(grid, Grid) else grid,
        "cartesian": not method.basis.spherical,
        "charge": molecule.charge,
        "multiplicity": molecule.multiplicity,
        "unrestricted": len(nocc) == 2,
        "guess": first.name,
        "solver": solver,
        "follow_instability": follow_instability,
        "field": None if field is None else np.asarray(field, dtype=float).tolist(),
        "precision": precision,
        "stages": stages,
        **options,
    }
    scf = padded.cut(scf, nocc)
    fitted = padded.method.known_fitted(hamiltonian) if forces else None
    return Result(molecule, padded, hamiltonian, scf, energies, settings, timings, fitted)


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
    precision: Precision = "double",
    chunk: int = 1,
    mesh: Mesh | None = None,
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
        mesh: Devices that share the geometries of a batch, by an axis called "geometry", or
            integrals and grid of each, by an axis called "molecule".
        basis, xc, two_electron, aux, grid, cartesian, unrestricted, guess, field, precision,
            **scf_options: As in `energy`.
    """
    apart = np.arange(len(numbers))[:, None] * np.array([[10.0, 0.0, 0.0]])
    molecule = Molecule.from_arrays(
        numbers, apart, unit="bohr", charge=charge, multiplicity=multiplicity
    )
    if chunk < 1:
        raise InputError(f"chunk = {chunk} geometries; it must be 1 or more.")
    check_mode(precision)
    names = _names(molecule, basis, xc, two_electron, aux, grid, cartesian, precision)
    method = _in_field(_cached(_build, names), field).on(mesh)
    options = resolved_options(scf_options, precision)
    check_solver(solver, options)
    if options.get("smearing"):
        raise InputError("energy_fn has no smearing; qchem.energy has.")
    nocc, first = nocc_of(molecule, unrestricted), _guess(guess, method)
    return EnergyFunction(
        method, nocc, first, solver, chunk, tuple(options.items()), mesh_for(mesh, GEOMETRY)
    )


def _guess(guess: str | Result, method: Method) -> Guess:
    if isinstance(guess, str):
        return Guess.from_name(guess, method.numbers, method.basis)
    if not isinstance(guess, Result):
        raise InputError(
            f"guess = {guess!r}; 'sap', 'sad', 'core' or the result of another calculation will do."
        )
    old = guess.method
    if old.numbers != method.numbers:
        raise InputError(
            f"the guess is a result for the atoms {old.numbers}, not for {method.numbers}; "
            "the same atoms in the same order are needed."
        )
    positions = guess.molecule.positions
    return Guess.from_orbitals(guess.scf.factor, old.basis, method.basis, positions)


def nocc_of(molecule: Molecule, unrestricted: bool) -> tuple[int, ...]:
    """Number of occupied orbitals in each spin channel."""
    check_flag("unrestricted", unrestricted)
    if molecule.multiplicity == 1 and not unrestricted:
        return (molecule.nalpha,)
    return molecule.nalpha, molecule.nbeta


def resolved_options(options: dict[str, Any], precision: Precision = "double") -> dict[str, Any]:
    """Options of `qchem.scf.solve` under its own names, with thresholds that the mode reaches.

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
    if {"tolerance", "residual_tolerance"} <= options.keys():
        raise InputError("tolerance and residual_tolerance are two names of one option.")
    for name in sorted(_WHOLE & renamed.keys()):
        given = renamed[name]
        if not (is_whole(given) or (name == "stall" and given is None)):
            raise InputError(f"{name} = {given!r}; a whole number is needed.")
    smearing = renamed.get("smearing", 0.0)
    if not isinstance(smearing, Real) or not 0 <= smearing < math.inf:
        raise InputError(f"smearing = {smearing!r} hartree; a finite number, 0 or more, is needed.")
    return (MIXED_TOLERANCES if precision == "mixed" else {}) | renamed


def padded_method(
    molecule: Molecule,
    basis: BasisLike,
    xc: str | AnyFunctional,
    two_electron: TwoElectron,
    aux: BasisLike | None,
    grid: GridLike,
    cartesian: bool,
    precision: Precision = "double",
) -> Padded:
    """What defines a calculation, at the size of its bucket; see `energy`."""
    names = _names(molecule, basis, xc, two_electron, aux, grid, cartesian, precision)
    return _cached(_padded, names)


def _names(molecule, basis, xc, two_electron, aux, grid, cartesian, precision="double"):
    """What `_build` and `_padded` are called with."""
    if two_electron not in ("exact", "df"):
        raise InputError(f"two_electron = {two_electron!r}; 'exact' and 'df' are available.")
    if two_electron == "exact" and aux is not None:
        raise InputError(f"auxiliary basis {aux!r} is for density fitting: two_electron='df'.")
    for what, given in (("basis", basis), ("aux", aux)):
        by_element = isinstance(given, Mapping) and all(
            isinstance(x, str) for x in (*given, *given.values())
        )
        left_out = what == "aux" and given is None
        if not (isinstance(given, str | Basis) or by_element or left_out):
            raise InputError(
                f"{what} = {given!r}; a name, one for each element symbol, or a Basis will do."
            )
    check_flag("cartesian", cartesian)
    if not isinstance(xc, str | Functional | LearnedFunctional):
        raise InputError(f"xc = {xc!r}; a name, such as 'b3lyp', or a functional will do.")
    sizes = isinstance(grid, tuple) and len(grid) == 2 and all(map(is_whole, grid))
    if is_whole(grid):
        grid = int(grid)
    elif not (isinstance(grid, Grid) or sizes):
        raise InputError(
            f"grid = {grid!r}; a level from 0 to 9, numbers of (radial, angular) points such as "
            "(75, 302), or a Grid will do."
        )
    if two_electron == "df" and aux is None:
        if isinstance(basis, Basis):
            raise InputError("density fitting of a basis without a name needs aux=.")
        aux = default_auxiliary(basis, molecule.numbers)
    for name in aux.values() if isinstance(aux, Mapping) else (aux,):
        if isinstance(name, str):
            check_auxiliary(name)
    if isinstance(xc, str):
        xc = load_functional(xc) if xc.endswith(SUFFIX) else Functional.from_name(xc)
    charge = molecule.charge if xc.dispersion else 0  # else plans are those of any ion
    names = molecule.numbers, _frozen(basis), xc, _frozen(aux), _frozen(grid), cartesian, charge
    return *names, precision


def check_flag(name: str, value: object) -> None:
    """Refuse anything but True and False: "no" would be true."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} = {value!r}; True or False is needed.")


def is_whole(value: object) -> bool:
    """Whether it is a whole number of any kind."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _cached(build, names):
    """The same object for the same names; those that hold arrays have no hash."""
    try:
        hash(names)
    except TypeError:
        return build.__wrapped__(*names)
    return build(*names)


def _in_field(method: Method, field) -> Method:
    if field is None:
        return method
    if not isinstance(field, jax.Array):  # which may be traced
        field = np.asarray(field)
        real = np.issubdtype(field.dtype, np.integer) or np.issubdtype(field.dtype, np.floating)
        if not (real and np.isfinite(field).all()):
            raise InputError(f"field = {field.tolist()}; three finite numbers are needed.")
        field = field.astype(float)
    if field.shape != (3,):
        raise InputError(f"a field has three components; this one has shape {field.shape}.")
    return eqx.tree_at(lambda m: m.field, method, field, is_leaf=lambda x: x is None)


def _frozen(value):
    return tuple(sorted(value.items())) if isinstance(value, Mapping) else value


def _thawed(value):
    return dict(value) if isinstance(value, tuple) else value


@lru_cache(maxsize=32)
def _build(numbers, basis, functional, aux, grid, cartesian, charge, precision) -> Method:
    """Everything that does not depend on positions, kept for the next geometry."""
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
    settings = {"aux": auxiliary, "grid": points, "charge": charge, "precision": precision}
    return Method.build(numbers, orbital, functional, **settings)


@lru_cache(maxsize=32)
def _padded(*names) -> Padded:
    """The same, filled up; molecules whose shells or points have no name are as they are."""
    _, basis, _, aux, grid, *_ = names
    method = _cached(_build, names)
    if any(isinstance(given, Basis | Grid) for given in (basis, aux, grid)):
        padded = Padded.unchanged(method)
    else:
        padded = Padded.build(method, _thawed(basis), _thawed(aux), grid)
    return replace(padded, method=unchanging(padded.method))


def _basis(numbers, basis, spherical, auxiliary):
    if isinstance(basis, Basis):
        if basis.natom != len(numbers):
            raise InputError(f"the basis is for {basis.natom} atoms, not for {len(numbers)}.")
        return basis
    return Basis.from_name(numbers, _thawed(basis), spherical=spherical, auxiliary=auxiliary)
