"""How long does the `qchem` command take on a fresh machine, and how long the second time?

And how long does `import qchem` take beside `import jax` (medians of several processes)?

The installed command, which uses all cores, in a process of its own, with an empty compilation
cache and then with what that run has left there. Wall time counts from the start of the process to
its end; files of the environment may be in the operating system's cache. Errors are against
reference.json, in hartree and hartree/bohr.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.molecules import FILES, Name, geometries
from benchmarks.reference import Case, stored
from benchmarks.report import Report

IMPORTS = 7  # processes
PRINTED = (
    "molecule two_electron forces cache wall_s peak_bytes exit_code cache_bytes cycles plan_s "
    "integrals_s scf_s forces_s energy_error forces_error"
).split()


@dataclass(frozen=True)
class Options:
    """Which commands to run."""

    molecules: tuple[Name, ...] = ("water", "ethanol")
    forces: tuple[Name, ...] = ("ethanol", "aspirin")
    """Molecules whose forces are asked for."""
    xc: str = "b3lyp"
    two_electron: Literal["exact", "df"] = "exact"
    out: Path | None = None
    """Append to this file instead of results/cold_start.json."""


def run(case: Case, forces: bool, cache: Path) -> dict[str, Any]:
    """Wall time, memory and result of one command."""
    command = [str(Path(sys.executable).with_name("qchem")), "energy", str(FILES[case.molecule])]
    command += ["--basis", case.basis, "--xc", case.xc, "--two-electron", case.two_electron]
    command += ["--json"] + ["--forces"] * forces
    start = perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, stdout=output, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = perf_counter() - start
        output.seek(0)
        result = json.loads(output.read() or "{}")
    timings = {f"{key}_s": value for key, value in result.get("timings", {}).items()}
    row = {
        "wall_s": wall_s,
        "peak_bytes": usage.ru_maxrss * 1024,
        "exit_code": process.returncode,
        "cache_bytes": sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()),
        "cycles": result.get("cycles"),
        **{key: timings.get(key) for key in ("plan_s", "integrals_s", "scf_s", "forces_s")},
    }
    reference = stored(case, geometries(case.molecule, 1)[0])
    if reference is not None and process.returncode == 0:
        row["energy_error"] = abs(result["energy"] - reference[0])
        if forces:
            row["forces_error"] = float(np.abs(np.array(result["forces"]) - reference[1]).max())
    return row


def importing(module: str) -> float:
    """Seconds of the statement in a process of its own."""
    code = f"from time import perf_counter as t; s = t(); import {module}; print(t() - s)"
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(IMPORTS)
    ]
    return median(seconds)


def main(options: Options) -> None:
    """Measure and report the rows."""
    report = Report("cold_start", options.out, tuple(PRINTED))
    for module in ("jax", "qchem", "qchem.calculation"):
        empty = dict.fromkeys(PRINTED)
        report.row(**empty | {"molecule": f"import {module}", "wall_s": importing(module)})
    for name in options.molecules:
        case, forces = Case(name, options.xc, options.two_electron), name in options.forces
        same = {"molecule": name, "two_electron": case.two_electron, "xc": case.xc}
        missing = {"energy_error": None, "forces_error": None}
        with tempfile.TemporaryDirectory() as cache:
            for state in ("empty", "warm"):
                row = run(case, forces, Path(cache))
                report.row(**same, forces=forces, cache=state, **missing | row)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
