"""The `qchem` command: energies of xyz files, and validation against reference values.

Exit codes: 0 converged or validated; 1 a calculation that failed or a deviation that is too large;
2 wrong input; 130 interrupted. Results that programs read go to stdout, text for people to stderr.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

import tyro

from qchem.command import (
    configure_jax,
    exit_code,
    jsonable,
    output_file,
    say,
    show_version,
    version,
    versions,
)
from qchem.errors import ConvergenceError, InputError


@dataclass(frozen=True)
class Energy:
    """Energy, dipole and, if asked, forces of one molecule.

    Coordinates are read in angstrom; everything printed is in hartree, bohr and e bohr.
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE.xyz")]
    """The geometry, in angstrom."""
    basis: str = "def2-svp"
    """Name of the basis set in the Basis Set Exchange."""
    xc: str = "b3lyp"
    """Functional: hf, pbe, b3lyp, r2scan, wb97x-v, b3lyp-d3bj and many more; a sum such as
    "0.5*hf + 0.5*b88, lyp"; the .eqx file of a learned one. See docs/functionals.md."""
    charge: int = 0
    """Total charge."""
    multiplicity: int = 1
    """2S + 1; 1 is a closed shell, anything else is unrestricted."""
    cartesian: bool = False
    """Cartesian instead of spherical functions."""
    grid: Annotated[str, tyro.conf.arg(metavar="LEVEL|RADIAL,ANGULAR")] = "3"
    """Integration grid: a level from 0 to 9, or numbers of points such as 75,302."""
    two_electron: Literal["exact", "df"] = "exact"
    """Exact integrals, or density fitting."""
    precision: Literal["double", "mixed"] = "double"
    """"mixed" has float32 where most of the time goes: for devices slow in float64."""
    aux: str | None = None
    """Auxiliary basis set of density fitting; by default the one that suits the basis."""
    max_cycles: int | None = None
    """Give up after so many cycles."""
    tolerance: float | None = None
    """Convergence threshold of the orbital gradient."""
    forces: bool = False
    """Also compute the forces."""
    cores: int | None = None
    """Cores that share the calculation, without an accelerator; by default all there are."""
    json: bool = False
    """Print one JSON object to stdout; without it, text for people goes to stderr."""
    out: Path | None = None
    """Also write that JSON object to a file; an existing one is replaced once all has converged."""
    debug: bool = False
    """Show the traceback of a failure."""


@dataclass(frozen=True)
class Validate:
    """Compare integrals, functionals and energies with the packaged reference values."""

    only: Literal["integrals", "functionals", "energies"] | None = None
    """One part instead of all three."""
    debug: bool = False
    """Show the traceback of a failure."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; wrong usage exits with 2 from the parser.

    Args:
        arguments: What follows the program's name; by default that of the process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        return show_version(f"qchem (srdft {version('srdft')})")
    command = tyro.cli(
        Annotated[Energy, tyro.conf.subcommand("energy")]
        | Annotated[Validate, tyro.conf.subcommand("validate")],
        prog="qchem",
        description="Kohn-Sham and Hartree-Fock energies in JAX.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    run = _energy if isinstance(command, Energy) else _validate
    return exit_code(lambda: run(command), debug=command.debug, failure="the calculation failed")


def _energy(options: Energy) -> int:
    start = perf_counter()
    settings: dict[str, Any] = {
        "basis": options.basis,
        "xc": options.xc,
        "cartesian": options.cartesian,
        "grid": _grid(options.grid),
        "two_electron": options.two_electron,
        "aux": options.aux,
        "precision": options.precision,
    }
    for name in ("max_cycles", "tolerance"):
        if getattr(options, name) is not None:
            settings[name] = getattr(options, name)
    out = options.out
    with nullcontext(lambda text: None) if out is None else output_file(out, options.file) as write:
        configure_jax()
        import qchem
        from qchem.molecule import Molecule

        mesh = qchem.use_cores(options.cores)

        mol = Molecule.from_xyz(
            options.file, charge=options.charge, multiplicity=options.multiplicity
        )
        try:
            result = qchem.energy(mol, forces=options.forces, mesh=mesh, **settings)
        except ConvergenceError as error:
            report = {"converged": False, "residual": error.residual, "cycles": error.cycles}
        else:
            report = _report(result, forces=options.forces)
            settings |= result.settings
        report["timings"] = {**report.get("timings", {}), "total": perf_counter() - start}
        settings |= {"file": options.file, "charge": options.charge}
        settings |= {"multiplicity": options.multiplicity, "versions": versions()}
        report = jsonable(report | {"settings": settings})
        text = json.dumps(report, allow_nan=False)
        if report["converged"]:
            write(text + "\n")
        if options.json:
            print(text, flush=True)
        else:
            say(_summary(report, mol.symbols))
        if not report["converged"]:
            say(_unconverged(report))
            return 1
    return 0


def _grid(text: str) -> int | tuple[int, int]:
    try:
        match [int(part) for part in text.split(",")]:
            case [level]:
                return level
            case [radial, angular]:
                return radial, angular
    except ValueError:
        pass
    raise InputError(
        f"grid {text!r} is neither a level from 0 to 9 nor two numbers of points such as 75,302."
    )


def _report(result: Any, *, forces: bool) -> dict[str, Any]:
    names = ("energy", "energies", "converged", "cycles", "residual", "dipole", "homo", "lumo")
    report = {name: getattr(result, name) for name in (*names, "s2", "nao", "nelectron")}
    if forces:
        report["forces"] = result.forces() if result.converged else None
    return report | {"timings": result.timings}


def _summary(report: dict[str, Any], symbols: Sequence[str]) -> str:
    """The result for a person to read, in hartree and bohr."""
    if report.get("energy") is None:
        return "no energy"
    settings = report["settings"]
    rows = [
        f"{settings['xc']}/{settings['basis']}, {settings['two_electron']} two-electron integrals, "
        f"{report['nelectron']} electrons, {report['nao']} functions"
    ]
    rows += [f"{name:16s}{_number(value, 8)}" for name, value in report["energies"].items()]
    rows.append(f"{'total energy':16s}{_number(report['energy'], 8)} hartree")
    for name, unit in (("homo", "hartree"), ("lumo", "hartree"), ("dipole", "e bohr")):
        values = report[name] if isinstance(report[name], list) else [report[name]]
        rows.append(f"{name:16s}{''.join(_number(value, 6) for value in values)} {unit}")
    rows.append(f"{'<S^2>':16s}{_number(report['s2'], 6)}")
    if report.get("forces"):
        rows.append("forces, hartree/bohr")
        for symbol, force in zip(symbols, report["forces"]):
            rows.append(f"{symbol:16s}{''.join(_number(value, 6) for value in force)}")
    rows.append(f"{report['cycles']} cycles, {report['timings']['total']:.1f} s")
    return "\n".join(rows)


def _number(value: float | None, digits: int) -> str:
    return f"{'-':>17s}" if value is None else f"{value:17.{digits}f}"


def _unconverged(report: dict[str, Any]) -> str:
    residual = "not finite" if report["residual"] is None else f"{report['residual']:.1e}"
    return (
        f"not converged after {report['cycles']} cycles: the residual is {residual}. Check charge, "
        "multiplicity and the geometry; then try a larger --max-cycles, or hf or a smaller basis "
        "set to see whether the molecule converges at all."
    )


def _validate(options: Validate) -> int:
    configure_jax()
    from rich.console import Console

    from qchem import validate

    progress = Console(stderr=True)
    checks = []
    with progress.status("validating: integrals, functionals, energies"):
        for check in validate.run(validate.PARTS if options.only is None else (options.only,)):
            checks.append(check)
            if progress.is_terminal:
                progress.print(f"{check.quantity}: {check.deviation:.1e}")
    console = Console() if sys.stdout.isatty() else Console(width=100)
    console.print(validate.table(checks))
    failed = [check for check in checks if not check.passed]
    for check in failed:
        say(f"{check.quantity}: {check.note or 'deviates by more than the tolerance'}")
    return 1 if failed else 0
