"""All that is asked of an accelerator, in one command.

Runs the other scripts one after another, each in a process of its own, and goes on if one fails or
takes too long: energies with gradients at given orbitals, batches of converged energies, single
large molecules, stages beside the device's measured peak. Rows go to `results` (or `--out DIR`);
`python -m benchmarks.summary` then shows them beside what is asked. Where GPU4PySCF is installed
its times for the single molecules are printed.
"""

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import tyro

from benchmarks.measure import stopwatch
from benchmarks.molecules import FILES
from benchmarks.report import RESULTS, Report

# Script and its arguments; the most telling first. Each program takes minutes to compile.
RUNS = (
    ("given_orbitals", "--molecules ethanol --chunks 128 --repeats 5"),
    ("batch", "--molecules ethanol --chunks 128 --checked 1 --repeats 3"),
    ("energies", "--molecules aspirin --xc b3lyp --two-electron df --basis def2-tzvp"),
    ("energies", "--molecules ethanol --xc b3lyp --two-electron df"),
    ("roofline", "--molecule ethanol"),
    ("given_orbitals", "--molecules ethanol water --chunks 1 512 --repeats 5"),
    ("batch", "--molecules water --chunks 1 32 512 --checked 1 --repeats 3"),
    ("integrals", "--no-classes"),
)


@dataclass(frozen=True)
class Options:
    """What to run, and for how long."""

    minutes: float = 25.0
    """For everything; what has not begun by then is left out."""
    each: float = 9.0
    """Minutes for one script."""
    out: Path = RESULTS
    """Folder of the rows."""
    only: tuple[str, ...] = ()
    """These scripts alone."""


def run(script: str, arguments: str, minutes: float, out: Path) -> str:
    """What became of one script."""
    command = [sys.executable, "-m", f"benchmarks.{script}", *arguments.split()]
    command += ["--out", str(out / f"{script}.json")]
    print(f"\n$ {' '.join(command[1:])}", flush=True)
    try:
        code = subprocess.run(command, timeout=60 * minutes).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {minutes:g} minutes"
    return "done" if code == 0 else f"failed, exit code {code}"


def gpu4pyscf(out: Path) -> None:
    """Energy and forces of the single molecules by GPU4PySCF, in density fitting."""
    from gpu4pyscf import dft
    from pyscf import gto

    report = Report("gpu4pyscf", out / "gpu4pyscf.json")
    for name, basis in (("ethanol", "def2-svp"), ("aspirin", "def2-tzvp")):
        mol = gto.M(atom=str(FILES[name]), basis=basis, verbose=0)

        def calculate(mol=mol):
            mf = dft.RKS(mol, xc="b3lyp").density_fit()
            energy = mf.kernel()
            gradient = mf.nuc_grad_method()
            gradient.grid_response = True
            return energy, gradient.kernel()

        (energy, _), first = stopwatch(calculate)
        seconds = [stopwatch(calculate)[1] for _ in range(3)]
        report.row(
            molecule=name, basis=basis, first_s=first, run_s=median(seconds), energy=float(energy)
        )


def main(options: Options) -> None:
    """Run the scripts and say what became of each."""
    start, said = perf_counter(), []
    for script, arguments in RUNS:
        if options.only and script not in options.only:
            continue
        left = options.minutes - (perf_counter() - start) / 60
        outcome = "no time left"
        if left > 0:
            outcome = run(script, arguments, min(options.each, left), options.out)
        said.append(f"{script} {arguments}: {outcome}")
    if importlib.util.find_spec("gpu4pyscf"):
        gpu4pyscf(options.out)
    print("\n" + "\n".join(said))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
