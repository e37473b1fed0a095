"""From a guess to a solution: what is tried in turn, and a record of it."""

from __future__ import annotations

import inspect
import math
from numbers import Real
from typing import Any, Literal, get_args

import jax
import numpy as np
from jaxtyping import Array, Float

from qchem.compilation import program
from qchem.errors import InputError
from qchem.scf.hamiltonian import Hamiltonian
from qchem.scf.orbitals import Nocc, counts
from qchem.scf.second_order import second_order
from qchem.scf.solve import SCFResult, check_damping, resolved_tolerance, solve
from qchem.scf.stability import UNSTABLE, Curvature, displaced, lowest_curvature
from qchem.scf.start import Guess

Solver = Literal["auto", "diis", "second-order"]
STALL = 15  # cycles without progress after which DIIS gives way to second order
MAX_CYCLES = 100
_FOLLOWED = 5  # instabilities at most, one after another
_NUMBERS = ("energy_tolerance", "residual_tolerance", "damping", "level_shift")
_SHARED = ("max_cycles", "energy_tolerance", "residual_tolerance")


def check_solver(solver: str, options: dict[str, Any]) -> None:
    """Refuse an unknown solver, thresholds that are none, second order with smearing."""
    if solver not in get_args(Solver):
        raise InputError(
            f"solver = {solver!r}; {', '.join(map(repr, get_args(Solver)))} are available."
        )
    if solver == "second-order" and options.get("smearing"):
        raise InputError("smearing needs solver='diis': second order wants whole occupation.")
    given = {name: options[name] for name in _NUMBERS if options.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise InputError(f"{name} = {value!r}; a finite number, 0 or more, is needed.")
    check_damping(given.get("damping", 0.0))


def traced(
    hamiltonian: Hamiltonian,
    screened: Float[Array, "nao nao"],
    guess: Guess,
    nocc: Nocc,
    options: dict[str, Any],
    solver: str,
) -> SCFResult:
    """All in one program: DIIS, and second-order cycles where they are needed.

    Args:
        hamiltonian: Energy and Fock matrix.
        screened: Fock matrix of superposed atomic potentials.
        guess: Where to start.
        nocc: Number of occupied orbitals in each spin channel.
        options: Of `solve`.
        solver: "diis" alone compiles fastest.
    """
    fock = guess.fock(hamiltonian, screened, len(nocc))
    scf = solve(hamiltonian, nocc, fock, **_first(options, solver))
    if solver == "diis" or options.get("smearing"):
        return scf
    return second_order(hamiltonian, scf, nocc, **_shared(options))


def converge(
    hamiltonian: Hamiltonian,
    screened: Float[Array, "nao nao"],
    guess: Guess,
    nocc: Nocc,
    options: dict[str, Any],
    solver: str,
    follow_instability: bool,
) -> tuple[SCFResult, dict[str, Array], list[dict[str, Any]]]:
    """The same, one program after the other, each compiled when it is first needed.

    Args:
        hamiltonian, screened, guess, nocc, options, solver: As for `traced`.
        follow_instability: Go on downhill from a saddle point.

    Returns:
        The state, the parts of its energy, and what was done: for each stage its method, numbers
        of Fock matrices and Hessian-vector products, and where it ended.
    """
    fixed, numbers = _split(_first(options, solver), solve, screened.dtype)
    scf, energies = _diis(hamiltonian, screened, guess, nocc, fixed, numbers)
    stages = [_stage("diis", scf)]
    shared = _shared(options)
    enough = np.isfinite(np.asarray(scf.mo_energy)[0]).sum() >= np.max(counts(nocc))
    possible = enough and not options.get("smearing")

    def newton(scf):
        fixed, numbers = _split(shared, second_order, screened.dtype)
        after, energies = _second_order(hamiltonian, scf, nocc, fixed, numbers)
        stages.append(_stage("second-order", after, scf))
        return after, energies

    if solver != "diis" and possible and _unfinished(scf, shared["max_cycles"]):
        scf, energies = newton(scf)
    for _ in range(_FOLLOWED if follow_instability and possible and scf.converged else 0):
        found = curvature(hamiltonian, scf, nocc)
        stages.append(
            {
                "method": "stability",
                "products": int(found.products),
                "eigenvalue": float(found.eigenvalue),
            }
        )
        if not found.eigenvalue < UNSTABLE:
            break
        scf, energies = newton(_displaced(hamiltonian, scf, nocc, found.direction))
        if not scf.converged:
            break
    return scf, energies, stages


def expect(
    hamiltonian: Hamiltonian,
    screened: jax.ShapeDtypeStruct,
    guess: Guess,
    nocc: Nocc,
    options: dict[str, Any],
    solver: str,
) -> None:
    """Have the first program of `converge` made meanwhile; all but arrays is as it will be."""
    fixed, numbers = _split(_first(options, solver), solve, screened.dtype)
    _diis.ahead(hamiltonian, screened, guess, nocc, fixed, numbers)


def _unfinished(scf, max_cycles):
    return not scf.converged and scf.cycles < max_cycles and np.isfinite(scf.residual)


def _first(options, solver):
    """Options of DIIS: it gives up when it stalls, where something follows."""
    if solver == "second-order":
        return options | {"max_cycles": 1}
    return {"stall": STALL} | options if solver == "auto" else options


def _shared(options):
    defaults = {"max_cycles": MAX_CYCLES}
    return defaults | {name: options[name] for name in _SHARED if name in options}


def _split(options, function, dtype):
    """What a program is made for, and numbers that it is given: other ones compile nothing."""
    defaults = inspect.signature(function).parameters
    known = [name for name in _NUMBERS if name in defaults]
    numbers = {name: defaults[name].default for name in known}
    numbers |= {name: options[name] for name in known if options.get(name) is not None}
    numbers["residual_tolerance"] = resolved_tolerance(numbers["residual_tolerance"], dtype)
    fixed = {name: value for name, value in options.items() if name not in numbers}
    return fixed, {name: np.asarray(value, dtype) for name, value in numbers.items()}


def _stage(method: str, scf: SCFResult, before: SCFResult | None = None) -> dict[str, Any]:
    done = {"method": method, "cycles": int(scf.cycles)}
    if before is not None:
        done["cycles"] -= int(before.cycles)
        done["products"] = int(scf.products) - int(before.products)
    residual = float(scf.residual)
    return done | {
        "energy": float(scf.energy),
        "residual": residual,
        "converged": bool(scf.converged),
    }


@program
def _diis(hamiltonian, screened, guess, nocc, fixed, numbers):
    fock = guess.fock(hamiltonian, screened, len(nocc))
    scf = solve(hamiltonian, nocc, fock, **fixed, **numbers)
    return scf, hamiltonian.energies(scf.factor)


@program
def _second_order(hamiltonian, scf, nocc, fixed, numbers):
    scf = second_order(hamiltonian, scf, nocc, **fixed, **numbers)
    return scf, hamiltonian.energies(scf.factor)


@program
def _displaced(hamiltonian, scf, nocc, direction):
    return displaced(hamiltonian, scf, nocc, direction)


@program
def curvature(
    hamiltonian: Hamiltonian, scf: SCFResult, nocc: Nocc, unrestricted: bool = False
) -> Curvature:
    """`lowest_curvature`, compiled."""
    return lowest_curvature(hamiltonian, scf, nocc, unrestricted=unrestricted)
