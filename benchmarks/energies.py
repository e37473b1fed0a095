"""How long do energy and forces take, cold and warm, beside PySCF on the same threads?

Each row has a process of its own, with all cores that it may use for both programs; its peak memory
is taken before PySCF is loaded. The first calculation compiles; the timed ones are at other
geometries, through `qchem.energy`, as PySCF's through a new molecule. PySCF converges as by default
(energy change of 1e-9 hartree), `qchem` likewise, with an orbital gradient below 1e-7. Errors are
those against PySCF converged tightly, in hartree and hartree/bohr, at the structure of the
molecule's file; without PySCF, against reference.json. `gradient_ratio` is the time of the forces
of a converged energy over that of one energy evaluation at the converged orbitals, by the same
cores and right after it, the median of all geometries. The evaluation makes all its integrals;
small three-index integrals the forces have from the SCF.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
import tyro
from jax.sharding import NamedSharding, PartitionSpec

import qchem
from benchmarks.measure import (
    configure_jax,
    count_compilations,
    device,
    peak_rss,
    spread,
    stopwatch,
)
from benchmarks.molecules import Name, geometries, molecule
from benchmarks.reference import Case, cases, pyscf_is_installed, stored
from benchmarks.report import Report
from qchem.compilation import program_options

PRINTED = (
    "molecule basis xc two_electron compile_s energy_s forces_s run_s spread_s pyscf_s ratio "
    "gradient_ratio peak_bytes cycles compilations energy_error forces_error"
).split()


@dataclass(frozen=True)
class Options:
    """Which rows to measure; each stands alone."""

    molecules: tuple[Name, ...] = ("water", "ethanol", "aspirin")
    xc: tuple[str, ...] = ("pbe", "b3lyp")
    two_electron: tuple[Literal["exact", "df"], ...] = ("df", "exact")
    """Exact integrals are left out for aspirin."""
    basis: str = "def2-svp"
    grid: int = 3
    """Level, 0 to 9."""
    repeats: int = 3
    """Timed geometries, after one that compiles."""
    pyscf: bool = True
    """Measure PySCF too, if it is installed."""
    out: Path | None = None
    """Append to this file instead of results/energies.json."""


def _placed(mesh, arguments):
    """The arrays where the program takes them, for calls not to bring them there."""
    if mesh is None:
        return arguments
    arrays, rest = eqx.partition(arguments, lambda x: isinstance(x, np.ndarray | jax.Array))
    return eqx.combine(jax.device_put(arrays, NamedSharding(mesh, PartitionSpec())), rest)


def _energy_at_orbitals(*arguments):
    """The compiled program, which has run once."""
    energy = eqx.filter_jit(
        lambda method, *where: method.energy(*where), compiler_options=program_options()
    )
    compiled = energy.lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    return compiled


def run(case: Case, repeats: int, with_pyscf: bool) -> dict[str, Any]:
    """One row, measured in this process."""
    configure_jax()
    mesh = qchem.use_cores()
    numbers = molecule(case.molecule).numbers
    near = geometries(case.molecule, repeats + 1)
    order = [*near[1:], near[0]]  # the first compiles, the last is compared
    settings = {"basis": case.basis, "xc": case.xc, "two_electron": case.two_electron}
    settings |= {"grid": case.grid, "mesh": mesh}
    energies, forces, ratios, at_orbitals = [], [], [], None
    for n, positions in enumerate(order):
        mol = qchem.Molecule.from_arrays(numbers, positions, unit="bohr")
        with count_compilations() as compilations:
            result, seconds = stopwatch(lambda m=mol: qchem.energy(m, forces=True, **settings))
            energies.append(seconds)
            force, seconds = stopwatch(result.forces)
            forces.append(seconds)
        if n == 0:
            first = energies[0] + forces[0]
            warm_compilations = 0
        else:
            warm_compilations += len(compilations)
            arguments = _placed(mesh, (result.method, mol.positions, result.scf.factor))
            if at_orbitals is None:
                peak_bytes = peak_rss()
                at_orbitals = _energy_at_orbitals(*arguments)
            ratios.append(seconds / stopwatch(at_orbitals, *arguments)[1])
    totals = [e + f for e, f in zip(energies[1:], forces[1:], strict=True)]
    row = asdict(case) | {
        "device": device(),
        "nao": result.nao,
        "compile_s": first - median(totals),
        "energy_s": median(energies[1:]),
        "forces_s": median(forces[1:]),
        "run_s": median(totals),
        "spread_s": spread(totals),
        "geometries_per_s": 1 / median(totals),
        "gradient_ratio": median(ratios),
        "peak_bytes": peak_bytes,
        "cycles": result.cycles,
        "compilations": warm_compilations,
    }
    if with_pyscf:
        peers, reference = _pyscf(case, numbers, order)
        row |= peers | {"ratio": row["run_s"] / peers["pyscf_s"]}
    else:
        reference = stored(case, order[-1])
        row |= {"pyscf_s": None, "ratio": None}
    if reference is not None:
        row["energy_error"] = abs(result.energy - reference[0])
        row["forces_error"] = float(np.abs(force - reference[1]).max())
    return row


def _pyscf(case, numbers, order):
    """PySCF's columns, and its tightly converged energy and forces at the last geometry."""
    from benchmarks.peer import calculate  # late, so that its memory is not counted as ours

    results = [calculate(case, numbers, positions) for positions in order]
    last, timed = results[-1], results[1:]
    tight = calculate(case, numbers, order[-1], tight=True, dm=last.dm)
    totals = [r.energy_s + r.forces_s for r in timed]
    row = {
        "pyscf_energy_s": median(r.energy_s for r in timed),
        "pyscf_forces_s": median(r.forces_s for r in timed),
        "pyscf_s": median(totals),
        "pyscf_spread_s": spread(totals),
        "pyscf_cycles": last.cycles,
        "pyscf_energy_error": abs(last.energy - tight.energy),
        "pyscf_forces_error": float(np.abs(last.forces - tight.forces).max()),
    }
    return row, (tight.energy, tight.forces)


def main(options: Options) -> None:
    """Measure and report the rows."""
    report = Report("energies", options.out, tuple(PRINTED))
    with_pyscf = options.pyscf and pyscf_is_installed()
    fresh = {"max_workers": 1, "mp_context": get_context("spawn"), "max_tasks_per_child": 1}
    with ProcessPoolExecutor(**fresh) as pool:
        chosen = cases(options.molecules, options.xc, options.two_electron, options.grid)
        for case in (replace(case, basis=options.basis) for case in chosen):
            report.row(**pool.submit(run, case, options.repeats, with_pyscf).result())


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
