"""The `qchem` command: energies of xyz files, and validation against reference values.

Exit codes: 0 converged or validated; 1 a calculation that failed or a deviation that is too large;
2 wrong input; 130 interrupted. Results that programs read go to stdout, text for people to stderr.
"""

import json
import math
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from qchem.errors import ConvergenceError, InputError

PACKAGES = ("srdft", "jax", "jaxlib", "equinox", "numpy", "scipy", "basis-set-exchange")
OPTIONAL_PACKAGES = ("dftd3", "dftd4")  # named where they are installed
_MISSING = "not installed"


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
    """Functional: hf, svwn, pbe, blyp, b3lyp, b3lyp5, pbe0."""
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
    aux: str | None = None
    """Auxiliary basis set of density fitting; by default the one that suits the basis."""
    max_cycles: int | None = None
    """Give up after so many cycles."""
    tolerance: float | None = None
    """Convergence threshold of the orbital gradient."""
    forces: bool = False
    """Also compute the forces."""
    json: bool = False
    """Print one JSON object to stdout."""
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
        print(f"qchem (srdft {_version('srdft')})")
        return 0
    command = tyro.cli(
        Annotated[Energy, tyro.conf.subcommand("energy")]
        | Annotated[Validate, tyro.conf.subcommand("validate")],
        prog="qchem",
        description="Kohn-Sham and Hartree-Fock energies in JAX.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        return _energy(command) if isinstance(command, Energy) else _validate(command)
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except Exception as error:
        if command.debug:
            traceback.print_exc()
        if isinstance(error, InputError):
            _say(str(error))
            return 2
        lines = str(error).strip().splitlines() or ["no message"]
        hint = "" if command.debug else " (--debug shows where)"
        _say(f"the calculation failed: {type(error).__name__}: {lines[0]}{hint}")
        return 1


def configure_jax() -> None:
    """Use 64-bit numbers, and keep compiled programs in the user's cache directory.

    JAX_COMPILATION_CACHE_DIR, where set, is left to say where; a directory that cannot be written
    means no cache.
    """
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    try:
        directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "srdft", "jax")
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return
    if os.access(directory, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(directory))


def _energy(options: Energy) -> int:
    start = perf_counter()
    settings: dict[str, Any] = {
        "basis": options.basis,
        "xc": options.xc,
        "cartesian": options.cartesian,
        "grid": _grid(options.grid),
        "two_electron": options.two_electron,
        "aux": options.aux,
    }
    for name in ("max_cycles", "tolerance"):
        if getattr(options, name) is not None:
            settings[name] = getattr(options, name)
    with _output_file(options) as write:
        configure_jax()
        import qchem
        from qchem.molecule import Molecule

        mol = Molecule.from_xyz(
            options.file, charge=options.charge, multiplicity=options.multiplicity
        )
        try:
            result = qchem.energy(mol, **settings)
        except ConvergenceError as error:
            report = {"converged": False, "residual": error.residual, "cycles": error.cycles}
        else:
            report = _report(result, forces=options.forces)
            settings |= result.settings
        report["timings"] = {**report.get("timings", {}), "total": perf_counter() - start}
        settings |= {"file": options.file, "charge": options.charge}
        settings |= {"multiplicity": options.multiplicity, "versions": versions()}
        report = _jsonable(report | {"settings": settings})
        text = json.dumps(report, allow_nan=False)
        if options.json:
            print(text, flush=True)
        else:
            _say(_summary(report, mol.symbols))
        if not report["converged"]:
            _say(_unconverged(report))
            return 1
        write(text + "\n")
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


@contextmanager
def _output_file(options: Energy) -> Iterator[Callable[[str], None]]:
    """A function that puts text into the `--out` file in one step.

    A file beside it is opened at once, so that a place that cannot be written shows before the
    calculation starts; it takes the place of the named file only when it is complete.
    """
    if options.out is None:
        yield lambda text: None
        return
    target = options.out.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        if target == options.file.resolve():
            raise InputError(f"--out would overwrite the geometry {str(options.file)!r}.")
        if target.exists() and not target.is_file():
            raise InputError(f"cannot write {str(options.out)!r}: it is not a regular file.")
        if target.exists() and not os.access(target, os.W_OK):
            raise InputError(f"cannot write {str(options.out)!r}: the file is read-only.")
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise InputError(f"cannot write {str(options.out)!r}: {error.strerror}.") from error

    def write(text: str) -> None:
        temporary.write_text(text)
        temporary.replace(target)

    try:
        yield write
    finally:
        temporary.unlink(missing_ok=True)


def _report(result: Any, *, forces: bool) -> dict[str, Any]:
    names = ("energy", "energies", "converged", "cycles", "residual", "dipole", "homo", "lumo")
    report = {name: getattr(result, name) for name in (*names, "s2", "nao", "nelectron")}
    if forces:
        report["forces"] = result.forces() if result.converged else None
    return report | {"timings": result.timings}


def _jsonable(value: Any) -> Any:
    """The value in JSON's types; arrays become lists, and what is not finite becomes null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return _jsonable(np.asarray(value).tolist())


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {name: _version(name) for name in PACKAGES}
    optional = {name: _version(name) for name in OPTIONAL_PACKAGES}
    found |= {name: version for name, version in optional.items() if version != _MISSING}
    return {"python": platform.python_version(), **found}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return _MISSING


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
        _say(f"{check.quantity}: {check.note or 'deviates by more than the tolerance'}")
    return 1 if failed else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
