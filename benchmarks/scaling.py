"""How do time and memory grow with the size of a molecule, stage by stage, beside PySCF?

Clusters of water molecules on a cubic lattice, turned at random but never too close, in density
fitting, on all cores. Each row has a process of its own and is its second calculation. The first
compiles, and is content with two cycles; the time that it needs beyond that of as many cycles, and
the first forces beyond the second, are `compile_s`. `scf_s` is per cycle. Errors are deviations
from PySCF's energy, converged by its defaults, hartree. The last rows are the exponents k of
time ~ nao^k, fitted by least squares to the three largest sizes.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import qchem
from benchmarks.measure import configure_jax, device, peak_rss, stopwatch
from benchmarks.reference import Case, pyscf_is_installed
from benchmarks.report import Report

PRINTED = (
    "waters nao xc compile_s integrals_s scf_s cycles energy_s forces_s peak_bytes "
    "pyscf_energy_s ratio energy_error failure"
).split()
SPACING = 5.7  # bohr, about the distance of oxygen atoms in the liquid
CLOSEST = 3.2  # bohr, between atoms of different molecules
ROUGH = 1e9  # hartree: what the second cycle reaches
TIMED = ("integrals_s", "scf_s", "energy_s", "forces_s", "pyscf_energy_s")


@dataclass(frozen=True)
class Options:
    """Which sizes to measure."""

    waters: tuple[int, ...] = (2, 4, 8, 12, 16)
    """Numbers of molecules."""
    xc: tuple[str, ...] = ("pbe", "b3lyp")
    basis: str = "def2-svp"
    grid: int = 1
    """Level, 0 to 9."""
    forces: int = 16
    """Forces up to this number of molecules."""
    pyscf: bool = True
    """Measure PySCF too, if it is installed."""
    out: Path | None = None
    """Append to this file instead of results/scaling.json."""


def cluster(count: int) -> qchem.Molecule:
    """A compact piece of the lattice, always the same."""
    random = np.random.default_rng(0)
    water = np.array([[0.0, 0.0, 0.0], [0.0, 1.43, 1.11], [0.0, -1.43, 1.11]])
    side = int(np.ceil(count ** (1 / 3))) + 1
    sites = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    center = sites.mean(axis=0) + 0.01  # no two sites equally far
    sites = sites[np.argsort(np.linalg.norm(sites - center, axis=1), kind="stable")][:count]
    placed: list[np.ndarray] = []
    for site in sites:
        while True:
            turned = water @ np.linalg.qr(random.normal(size=(3, 3)))[0] + SPACING * site
            apart = [np.linalg.norm(a[:, None] - turned[None], axis=-1).min() for a in placed]
            if min(apart, default=np.inf) > CLOSEST:
                break
        placed.append(turned)
    return qchem.Molecule.from_arrays([8, 1, 1] * count, np.concatenate(placed), unit="bohr")


def run(count: int, xc: str, options: Options) -> dict[str, Any]:
    """One row, measured in this process."""
    configure_jax()
    mesh = qchem.use_cores()
    mol = cluster(count)
    row: dict[str, Any] = {"waters": count, "xc": xc, "basis": options.basis, "grid": options.grid}
    row |= dict.fromkeys(("forces_s", "pyscf_energy_s", "ratio", "energy_error", "failure"))
    with_forces = count <= options.forces
    calculate = _stages(mol, xc, options, with_forces, mesh)
    try:
        stages = dict(calculate)
    except qchem.NotEnoughMemoryError as error:
        return row | {"failure": str(error)}
    result = stages.pop("result")
    row |= stages | {"device": device(), "nao": result.nao, "cycles": result.cycles}
    row |= {"converged": result.converged, "peak_bytes": peak_rss()}
    if options.pyscf and pyscf_is_installed():
        from benchmarks.peer import calculate as peer  # late: its memory is not counted as ours

        case = Case("water", xc, "df", options.grid, options.basis)
        found = peer(case, mol.numbers, np.asarray(mol.positions), forces=False)
        row |= {
            "pyscf_energy_s": found.energy_s,
            "pyscf_cycles": found.cycles,
            "ratio": row["energy_s"] / found.energy_s,
            "energy_error": abs(result.energy - found.energy),
        }
    return row


def _stages(mol, xc, options, with_forces, mesh):
    """Seconds of each stage, compiled, and the result."""
    settings = {"two_electron": "df", "grid": options.grid, "mesh": mesh}
    calculate = partial(qchem.energy, mol, options.basis, xc, **settings)
    rough, first_s = stopwatch(partial(calculate, energy_tolerance=ROUGH, tolerance=ROUGH))
    result, energy_s = stopwatch(calculate)
    _, integrals_s = stopwatch(result._padded.hamiltonian, mol.positions)
    yield "integrals_s", integrals_s
    cycle_s = (energy_s - integrals_s) / result.cycles
    yield "scf_s", cycle_s
    yield "energy_s", energy_s
    yield "result", result
    compile_s = first_s - integrals_s - rough.cycles * cycle_s
    if with_forces:
        _, first_s = stopwatch(rough.forces)  # a result keeps its forces
        _, forces_s = stopwatch(result.forces)
        yield "forces_s", forces_s
        compile_s += first_s - forces_s
    yield "compile_s", compile_s


def exponents(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Of the number of basis functions, for each stage, from the three largest sizes."""
    found: dict[str, float | None] = {}
    for name in TIMED:
        points = [(row["nao"], row[name]) for row in rows if row.get(name)]
        points = sorted(points)[-3:]
        if len(points) < 2:
            found[name] = None
            continue
        x, y = np.log(np.array(points)).T
        found[name] = float(np.polyfit(x, y, 1)[0])
    return found


def main(options: Options) -> None:
    """Measure and report the rows."""
    report = Report("scaling", options.out, tuple(PRINTED))
    fresh = {"max_workers": 1, "mp_context": get_context("spawn"), "max_tasks_per_child": 1}
    for xc in options.xc:
        rows = []
        with ProcessPoolExecutor(**fresh) as pool:
            for count in options.waters:
                rows.append(pool.submit(run, count, xc, options).result())
                report.row(**rows[-1])
        report.row(**dict.fromkeys(PRINTED) | {"waters": "exponent", "xc": xc} | exponents(rows))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
