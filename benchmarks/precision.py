"""How far are the mixed mode and single precision from float64, and what do they cost?

Each row is a molecule in one precision: `double`, `mixed` (see docs/precision.md) or `single`,
float32 throughout. `energy_error` is the deviation of the converged energy from that in `double`,
`fixed_error` and `forces_error` those of the energy and of its gradient at the converged orbitals
of `double`, hartree and hartree/bohr. All are density-fitted. `compile_s` is the time of the first
calculation less that of the others; `peak_bytes` is that of the program of energy and gradient.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro

import qchem
from benchmarks.measure import configure_jax, device, measure, spread, stopwatch
from benchmarks.molecules import FILES
from benchmarks.report import Report

Mode = Literal["double", "mixed", "single"]
# "symbol x y z" separated by semicolons, ångström; charge; multiplicity.
CASES: dict[str, tuple[str, int, int]] = {
    "hydrogen": ("H 0 0 0; H 0 0 0.74", 0, 1),
    "water": ("", 0, 1),
    "hydroxide": ("O 0 0 0; H 0 0 0.97", -1, 1),
    "methyl": ("C 0 0 0; H 0 1.079 0; H 0.9344 -0.5395 0; H -0.9344 -0.5395 0", 0, 2),
    "oxygen": ("O 0 0 0; O 0 0 1.208", 0, 3),
    "hydrogen chloride": ("Cl 0 0 0; H 0 0 1.275", 0, 1),
    "ethanol": ("", 0, 1),
    "zinc": ("Zn 0 0 0", 0, 1),
    "chromium": ("Cr 0 0 0", 0, 7),
    "aspirin": ("", 0, 1),
}
PRINTED = (
    "molecule xc mode nao energy_error fixed_error forces_error converged cycles compile_s run_s "
    "spread_s gradient_s peak_bytes"
).split()
TIMES = "compile_s run_s spread_s gradient_compile_s gradient_s".split()
LIMIT = 1e-5  # hartree: what the mixed mode promises


@dataclass(frozen=True)
class Options:
    """Which rows to measure."""

    molecules: tuple[str, ...] = tuple(CASES)
    xc: tuple[str, ...] = ("hf", "pbe", "b3lyp")
    modes: tuple[Mode, ...] = get_args(Mode)
    """`double` is always measured: it is what the others are compared with."""
    basis: str = "def2-svp"
    grid: int = 3
    """Level, 0 to 9."""
    repeats: int = 3
    """Timed calculations, after one that compiles; 0 for errors without times."""
    out: Path | None = None
    """Append to this file instead of results/precision.json."""


def molecule(name: str) -> qchem.Molecule:
    """A molecule of the set."""
    geometry, charge, multiplicity = CASES[name]
    if not geometry:
        return qchem.Molecule.from_xyz(FILES[name])
    atoms = [atom.split() for atom in geometry.split(";")]
    positions = [[float(x) for x in atom[1:]] for atom in atoms]
    symbols = [atom[0] for atom in atoms]
    state = {"charge": charge, "multiplicity": multiplicity}
    return qchem.Molecule.from_arrays(symbols, positions, unit="angstrom", **state)


@dataclass(frozen=True)
class Calculation:
    """A molecule in one precision, and what came out."""

    result: qchem.Result
    energy: float
    gradient: np.ndarray
    row: dict[str, Any]


def run(name: str, xc: str, mode: Mode, options: Options, orbitals: Any) -> Calculation:
    """One row, without errors.

    Args:
        orbitals: At which the energy and its gradient are taken; None for those converged here.
    """
    mol = molecule(name)
    if mode == "single":
        mol = replace(mol, positions=np.asarray(mol.positions, np.float32))
    settings = {"two_electron": "df", "grid": options.grid}
    settings["precision"] = "mixed" if mode == "mixed" else "double"

    def converged():
        return qchem.energy(mol, options.basis, xc, **settings)

    result, first = stopwatch(converged)
    seconds = [stopwatch(converged)[1] for _ in range(options.repeats)]
    orbitals = result.scf.factor if orbitals is None else orbitals
    positions = jnp.asarray(mol.positions)
    factor = jnp.asarray(orbitals, positions.dtype)
    function = eqx.filter_value_and_grad(lambda x, method: method.energy(x, factor))
    (energy, gradient), cost = measure(
        lambda x: function(x, result.method), positions, repeats=max(1, options.repeats)
    )
    times = dict.fromkeys(TIMES)
    if seconds:
        run_s = median(seconds)
        found = first - run_s, run_s, spread(seconds), cost.compile_s, cost.run_s
        times = dict(zip(TIMES, found, strict=True))
    row = {
        "molecule": name,
        "xc": xc,
        "mode": mode,
        "device": device(),
        "basis": options.basis,
        "nao": result.nao,
        "converged": result.converged,
        "cycles": result.cycles,
        "residual": result.residual,
        **times,
        "peak_bytes": cost.peak_bytes,
    }
    return Calculation(result, float(energy), np.asarray(gradient), row)


def main(options: Options) -> None:
    """Measure and report each row, and the largest error of each mode."""
    configure_jax()
    report = Report("precision", options.out, PRINTED)
    largest: dict[str, float] = {}
    for name in options.molecules:
        for xc in options.xc:
            double = run(name, xc, "double", options, None)
            report.row(**double.row, energy_error=0.0, fixed_error=0.0, forces_error=0.0)
            for mode in options.modes:
                if mode == "double":
                    continue
                other = run(name, xc, mode, options, double.result.scf.factor)
                error = abs(other.result.energy - double.result.energy)
                largest[mode] = max(largest.get(mode, 0.0), error)
                report.row(
                    **other.row,
                    energy_error=error,
                    fixed_error=abs(other.energy - double.energy),
                    forces_error=float(np.abs(other.gradient - double.gradient).max()),
                )
            jax.clear_caches()
    for mode, error in largest.items():
        verdict = f", {'within' if error < LIMIT else 'ABOVE'} {LIMIT:g}" if mode == "mixed" else ""
        print(f"{mode}: largest error of a converged energy {error:.1e} hartree{verdict}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
