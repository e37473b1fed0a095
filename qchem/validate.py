"""Integrals, functionals and energies against the reference values in qchem/data.

The values were made by PySCF (program and version stand in each file) with
`python -m tests.make_reference`. Two systems of explicit shells hold every class of integrals:
angular momenta s to g, fitting functions to i, contractions of 1 to 8 primitives.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from rich import box
from rich.table import Table

import qchem
from qchem import integrals
from qchem.basis.evaluate import evaluate_ao
from qchem.basis.layout import Basis
from qchem.basis.library import Shell
from qchem.basis.spherical import ncomponent
from qchem.data import project, read_json, read_npz
from qchem.errors import InputError
from qchem.xc.functional import Functional

FUNCTIONALS = ("svwn", "pbe", "blyp", "b3lyp", "b3lyp5", "pbe0")
OMEGA = 0.4  # of the attenuated operator erf(omega r)/r, bohr^-1

INTEGRAL_TOLERANCE = 1e-10  # of the largest value of the class
FUNCTIONAL_TOLERANCE = 1e-9  # relative
ENERGY_TOLERANCE = 1e-8  # hartree
FORCE_TOLERANCE = 1e-6  # hartree/bohr

# Each program of integrals runs once; without the last optimizations it compiles in half the time.
QUICK_COMPILATION = {"xla_backend_optimization_level": 0}

TWO_ELECTRON = ("eri_2c", "eri_3c", "eri")
PARTS = ("integrals", "functionals", "energies")


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        quantity: What was compared.
        cases: How many classes, functionals or molecules.
        deviation: The largest, in the unit of `tolerance`; NaN where the calculation failed.
        tolerance: What is allowed.
        unit: Of both.
        note: Why there is no deviation.
    """

    quantity: str
    cases: int
    deviation: float
    tolerance: float
    unit: str = "relative"
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.deviation <= self.tolerance  # False for NaN


def deviation_by_class(
    values: Float[Array | np.ndarray, "*axes nrow 2"], reference: np.ndarray, labels: list
) -> float:
    """Largest deviation, each class of rows relative to the largest value of that class.

    Where a class is small as a whole (high multipoles of the attenuated operator), so that
    rounding shows, it is relative to a thousandth of the largest value of all.
    """
    error, size = (
        np.max(np.abs(x), axis=(*range(x.ndim - 2), -1))
        for x in (np.asarray(values) - reference, reference)
    )
    size = np.maximum(size, 1e-3 * np.max(size))
    classes = {label: [i for i, other in enumerate(labels) if other == label] for label in labels}
    return float(np.max([np.max(error[rows]) / np.max(size[rows]) for rows in classes.values()]))


def run(parts: tuple[str, ...] = PARTS) -> Iterator[Check]:
    """All checks, in order; a check that fails to run is reported, not raised.

    Nearly all of the time is compilation, which takes one core for each program, so that two
    checks run at once.

    Args:
        parts: Of integrals, functionals and energies, those wanted.
    """
    if not jax.config.jax_enable_x64:
        raise InputError(
            "validation needs 64-bit numbers: jax.config.update('jax_enable_x64', True)"
        )
    tasks = {"integrals": _integrals, "functionals": _functionals, "energies": _energies}
    pool = ThreadPoolExecutor(max_workers=2)
    try:
        for checks in pool.map(lambda task: task(), [t for part in parts for t in tasks[part]()]):
            yield from checks
    finally:
        pool.shutdown(cancel_futures=True)


def table(checks: list[Check]) -> Table:
    """The report: a rich table with a line for each check."""
    report = Table(box=box.SIMPLE)
    report.add_column("quantity", no_wrap=True)
    for heading in ("cases", "largest deviation", "tolerance"):
        report.add_column(heading, justify="right", no_wrap=True)
    report.add_column("verdict", no_wrap=True)
    for check in checks:
        report.add_row(
            check.quantity,
            str(check.cases),
            f"{check.deviation:.1e}",
            f"{check.tolerance:.0e} {check.unit}",
            "ok" if check.passed else "MISS",
        )
    return report


def _check(
    quantity: str,
    cases: int,
    tolerance: float,
    measure: Callable[[], float],
    unit: str = "relative",
) -> Check:
    try:
        return Check(quantity, cases, float(measure()), tolerance, unit)
    except Exception as error:  # whatever it was, the other checks should run
        return Check(quantity, cases, np.nan, tolerance, unit, f"{type(error).__name__}: {error}")


Task = Callable[[], list[Check]]


def _arrays(system: dict, *keys: str) -> list[Array]:
    return [jnp.asarray(system[key], jnp.float64) for key in keys]


def _basis(shells: list[list[dict]], spherical: bool) -> Basis:
    return Basis.from_shells(
        [[Shell(**shell) for shell in of_atom] for of_atom in shells], spherical=spherical
    )


def _ao_labels(basis) -> list[int]:
    """The angular momentum of each AO."""
    labels = np.empty(basis.nao, dtype=int)
    for batch in basis.batches:
        for component in range(ncomponent(batch.l, basis.spherical)):
            labels[np.asarray(batch.ao) + component] = batch.l
    return labels.tolist()


def _square(packed: np.ndarray) -> np.ndarray:
    """The symmetric matrix whose lower triangle is given row by row."""
    n = int(np.sqrt(2 * packed.size))
    rows, columns = np.tril_indices(n)
    square = np.empty((n, n))
    square[rows, columns] = square[columns, rows] = packed
    return square


def _integrals() -> list[Task]:
    one, two = (read_json("integrals.json")[key] for key in ("one_electron", "two_electron"))
    tasks = []
    for kind in ("spherical", "cartesian"):
        tasks += [partial(_one_electron, one, kind), partial(_orbitals, one, kind)]
        tasks += [partial(_two_electron, two, kind, name) for name in TWO_ELECTRON]
    return tasks


def _omegas(kind: str) -> dict[str, float]:
    """The attenuated operator enters before the angular parts: spherical functions suffice."""
    return {"": 0.0, "_erf": OMEGA} if kind == "spherical" else {"": 0.0}


def _one_electron(system: dict, kind: str) -> list[Check]:
    """Everything in one program, which the quantities share."""
    basis = _basis(system["shells"], kind == "spherical")
    positions, charges, origin = _arrays(system, "positions", "charges", "origin")
    quantities = {
        "overlap": lambda r: integrals.overlap(basis, r),
        "kinetic": lambda r: integrals.kinetic(basis, r),
        "dipole": lambda r: integrals.dipole(basis, r, origin),
        "second_moment": lambda r: integrals.second_moment(basis, r, origin),
    } | {
        f"nuclear_attraction{suffix}": partial(_attraction, basis, charges, omega)
        for suffix, omega in _omegas(kind).items()
    }
    compute = jax.jit(
        lambda r: {name: function(r) for name, function in quantities.items()},
        compiler_options=QUICK_COMPILATION,
    )
    values = cache(lambda: compute(positions))
    labels = _ao_labels(basis)
    cases = comb(len(set(labels)) + 1, 2)
    return [_integral_check(name, kind, cases, labels, values) for name in quantities]


def _attraction(basis: Basis, charges: Array, omega: float, positions: Array) -> Array:
    return integrals.nuclear_attraction(basis, positions, charges, omega=omega)


def _orbitals(system: dict, kind: str) -> list[Check]:
    """AOs and their derivatives at points."""
    basis = _basis(system["shells"], kind == "spherical")
    positions, points = _arrays(system, "positions", "points")

    @cache
    def values():
        ao = jax.jit(lambda r: evaluate_ao(basis, r, points, derivative=2))(positions)
        ao = jnp.swapaxes(ao, 1, 2)
        return {"ao_value": ao[:1], "ao_gradient": ao[1:4], "ao_hessian": ao[4:]}

    labels = _ao_labels(basis)
    names = ("ao_value", "ao_gradient", "ao_hessian")
    return [_integral_check(name, kind, len(set(labels)), labels, values) for name in names]


def _two_electron(system: dict, kind: str, name: str) -> list[Check]:
    """(P|Q), (ab|P) or (ab|cd), with the full operator first."""
    basis, aux = (_basis(system[shells], kind == "spherical") for shells in ("shells", "aux"))
    (positions,) = _arrays(system, "positions")
    labels, aux_labels = _ao_labels(basis), _ao_labels(aux)
    rows, columns = np.tril_indices(basis.nao)
    pair_labels = [tuple(sorted((labels[i], labels[j]))) for i, j in zip(rows, columns)]
    npair, naux = len(set(pair_labels)), len(set(aux_labels))
    function, bases, row_labels, cases = {
        "eri_2c": (integrals.eri_2c, (aux,), aux_labels, comb(naux + 1, 2)),
        "eri_3c": (integrals.eri_3c, (basis, aux), pair_labels, npair * naux),
        "eri": (integrals.eri, (basis,), pair_labels, comb(npair + 1, 2)),
    }[name]

    def values(key: str, omega: float) -> dict[str, np.ndarray]:
        compute = jax.jit(
            lambda r: function(*bases, r, omega=omega), compiler_options=QUICK_COMPILATION
        )
        array = np.asarray(compute(positions))
        return {key: _square(array) if name == "eri" else array}

    return [
        _integral_check(
            name + suffix, kind, cases, row_labels, partial(values, name + suffix, omega)
        )
        for suffix, omega in _omegas(kind).items()
    ]


def _integral_check(
    name: str, kind: str, cases: int, labels: list, values: Callable[[], dict]
) -> Check:
    def measure() -> float:
        reference = read_npz("integrals.npz")[f"{name}.{kind}"]
        return deviation_by_class(project(values()[name]), reference, labels)

    return _check(f"{name}, {kind}", cases, INTEGRAL_TOLERANCE, measure)


def _functionals() -> list[Task]:
    return [partial(_functional, name) for name in FUNCTIONALS]


def _functional(name: str) -> list[Check]:
    ndensity = sum(read_npz("functionals.npz")[f"rho.{nspin}"].shape[-1] for nspin in (1, 2))
    deviation = partial(_functional_deviation, name)
    return [
        _check(
            f"functional {name}",
            ndensity,
            FUNCTIONAL_TOLERANCE,
            lambda: np.max([deviation(nspin) for nspin in (1, 2)]),
        )
    ]


def _functional_deviation(name: str, nspin: int) -> float:
    """Of the energy per volume, and of its derivatives at densities that are not fully polarized.

    A derivative is compared relative to itself or to energy/argument, whichever is larger: that of
    sigma passes through zero where exchange and correlation cancel.
    """
    functional = Functional.from_name(name)
    data = read_npz("functionals.npz")
    rho, sigma = (jnp.asarray(data[f"{key}.{nspin}"]) for key in ("rho", "sigma"))
    reference = {k: data[f"{name}.{nspin}.{k}"] for k in ("energy", "vrho", "vsigma")
                 if f"{name}.{nspin}.{k}" in data}  # fmt: skip

    def total(rho, sigma):
        density = functional.energy_density(rho, sigma if "vsigma" in reference else None)
        return jnp.sum(density), density

    gradient, energy = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(rho, sigma)
    size = np.abs(reference["energy"])
    worst = np.max(np.abs(np.asarray(energy) - reference["energy"]) / size)
    inside = np.min(data["rho.2"], axis=0) > 0
    for argument, value, key in zip((rho, sigma), gradient, ("vrho", "vsigma")):
        if key in reference:
            scale = np.maximum(np.abs(reference[key]), size / np.abs(argument).clip(1e-300))
            error = np.abs(np.asarray(value) - reference[key]) / scale
            worst = np.max([worst, np.max(error[:, inside])])
    return float(worst)


def _energies() -> list[Task]:
    cases = [case for case in read_json("energies.json")["cases"] if case["quick"]]
    groups = {
        f"{builder}, {'closed' if closed else 'open'} shell": [
            case
            for case in cases
            if case["two_electron"] == builder and (case["multiplicity"] == 1) == closed
        ]
        for builder in ("exact", "df")
        for closed in (True, False)
    }
    return [partial(_energies_of, cases, name) for name, cases in groups.items() if cases]


def _energies_of(cases: list[dict], name: str) -> list[Check]:
    calculate = cache(lambda index: _calculate(cases[index]))
    with_forces = [index for index, case in enumerate(cases) if case["forces"]]

    def energy_error(index: int) -> float:
        return abs(float(calculate(index).energy) - cases[index]["energy"])

    def force_error(index: int) -> float:
        return np.max(np.abs(np.asarray(calculate(index).forces()) - cases[index]["forces"]))

    checks = [
        _check(
            f"total energy, {name}",
            len(cases),
            ENERGY_TOLERANCE,
            lambda: np.max([energy_error(index) for index in range(len(cases))]),
            "hartree",
        )
    ]
    if with_forces:
        checks.append(
            _check(
                f"forces, {name}",
                len(with_forces),
                FORCE_TOLERANCE,
                lambda: np.max([force_error(index) for index in with_forces]),
                "hartree/bohr",
            )
        )
    return checks


def _calculate(case: dict):
    """The calculation of a stored case, converged or an error."""
    mol = qchem.Molecule.from_arrays(
        case["symbols"],
        np.array(case["positions"]),
        unit="bohr",
        charge=case["charge"],
        multiplicity=case["multiplicity"],
    )
    names = ("basis", "xc", "two_electron", "aux", "cartesian")
    grid = tuple(case["grid"]) if isinstance(case["grid"], list) else case["grid"]
    result = qchem.energy(mol, grid=grid, **{name: case[name] for name in names})
    if not result.converged:
        raise RuntimeError(f"{case['name']} did not converge")
    return result
