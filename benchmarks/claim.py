"""Does self-refining training pay: against fixed geometries, and against the reference's rules?

The same model and optimizer, at equal time and at equal number of energy evaluations, for each
seed: "self-refining" from 1 and from 25 geometries; "fixed", on 25, 250 and 1,000 geometries that a
long run at 500 K has collected before, at no cost to the arm; "reference rules", sampling as the
reference implementation does (`benchmarks/emulation.py`), from 25. Errors, in hartree, are those of
predicted energies against converged ones, on held-out geometries at 500 K ("near") and from hotter
chains ("far"): the mean, the 5th and 95th percentile, the largest; beside the estimate that needs
no converged energy. Compilation is not part of the time, nor is the measurement of errors. With
`--clock processor` other work on the machine does not count.

An energy evaluation is a geometry whose integrals are built: each of a batch twice (its equations,
and the energy after the step), each transition of a chain, each energy of a chain under a new
model, each geometry that the chains bring (its error estimate).

Beside it throughput: geometries trained on and samples kept per second, and the seconds that PySCF
takes for the integrals that the reference builds 22 times per kept sample.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import jax
import numpy as np
import tyro

from benchmarks.claim_plot import draw, tables
from benchmarks.measure import device, threads
from benchmarks.molecules import FILES
from benchmarks.reference import pyscf_is_installed
from benchmarks.report import RESULTS, Report
from qchem.command import configure_jax

METHODS = {  # basis set, functional
    "water": ("def2-svp", "b3lyp"),
    "h2o2": ("6-31g", "hf"),
    "ethanol": ("def2-svp", "b3lyp"),
}
BUILDS = 22  # of integrals for each sample that the reference keeps: 2 and 2 per transition
PRINTED = (
    "molecule arm seed steps evaluations time_s near_error near_95 near_estimate far_error "
    "trained_per_s kept_per_s"
).split()


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: Of the rows.
        given: Geometries to start from.
        chains: What the chains do.
    """

    name: str
    given: int
    chains: Literal["ours", "reference", "none"]


ARMS = (
    Arm("self-refining from 1", 1, "ours"),
    Arm("self-refining from 25", 25, "ours"),
    Arm("fixed 25", 25, "none"),
    Arm("fixed 250", 250, "none"),
    Arm("fixed 1000", 1000, "none"),
    Arm("reference rules from 25", 25, "reference"),
)


@dataclass(frozen=True)
class Options:
    """What to train, and for how long."""

    molecule: Literal["water", "h2o2", "ethanol"] = "water"
    basis: str | None = None
    """By default def2-svp; 6-31g for h2o2."""
    xc: str | None = None
    """By default b3lyp; hf for h2o2."""
    grid: int = 1
    features: Literal["constant", "gates"] = "constant"
    seconds: float = 45.0
    """Of each arm and seed, by `clock`."""
    clock: Literal["wall", "processor"] = "wall"
    """Processor time is that of all cores together."""
    evaluations: int = 300
    """Energy evaluations of each arm and seed; it ends when it has had both."""
    patience: float = 3.0
    """An arm that is short of evaluations ends after so many times these seconds."""
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = tuple(arm.name for arm in ARMS)
    pool: int = 1000
    """Geometries collected to train on."""
    held_out: int = 16
    """Near and far ones each, to measure errors."""
    hot: float = 2500.0
    """Temperature of the far ones, kelvin."""
    batch: int = 4
    chains: int = 4
    transitions: int = 3
    """Between one kept geometry of a chain and the next."""
    reuse: int = 2
    """Optimizer steps for each turn of the chains."""
    chunk: int = 8
    """Geometries held at once by a device that is not a CPU."""
    run: Path = Path("runs/claim")
    """Folder of collected geometries and converged energies."""
    out: Path | None = None
    """Append to this file instead of results/claim.json."""
    resume: bool = False
    """Leave out rows that the file of results has already, with the same settings."""
    plot: bool = False
    """Print tables of the file of results and draw docs/claim.png, and nothing else."""

    @property
    def method(self) -> tuple[str, str]:
        """Basis set and functional."""
        basis, xc = METHODS[self.molecule]
        return self.basis or basis, self.xc or xc

    def settings(self) -> dict[str, Any]:
        """All that a row depends on, but for arm and seed."""
        names = "grid features pool held_out hot batch chains transitions reuse clock"
        basis, xc = self.method
        about = {"molecule": self.molecule, "basis": basis, "xc": xc}
        budget = {"budget_s": self.seconds, "budget_evaluations": self.evaluations}
        return about | {name: getattr(self, name) for name in names.split()} | budget

    def say(self, text: str) -> None:
        """Progress, for a person."""
        print(text, flush=True)

    def file(self) -> Path:
        """Of the collected geometries."""
        basis, xc = self.method
        parts = (self.molecule, basis, xc, self.grid, self.pool, self.held_out, self.chains)
        return self.run / f"{'_'.join(map(str, parts))}_{self.transitions}_{self.hot:g}K.npz"


def integrals_row(name: str) -> dict[str, Any]:
    """Seconds that PySCF takes for the reference's integrals of a molecule, once and 22 times.

    Overlap, kinetic, nuclear attraction and all two-electron integrals in def2-SVP with Cartesian
    functions, the grid of level 3 and the AOs there with first derivatives.
    """
    from pyscf import dft, gto, lib

    lib.num_threads(threads())
    mol = gto.M(atom=str(FILES[name]), basis="def2-svp", cart=True, verbose=0)
    seconds = []
    for _ in range(3):
        start = perf_counter()
        for integral in ("int1e_ovlp", "int1e_kin", "int1e_nuc", "int2e"):
            mol.intor(integral)
        grids = dft.gen_grid.Grids(mol)
        grids.level = 3
        grids.build()
        dft.numint.eval_ao(mol, grids.coords, deriv=1)
        seconds.append(perf_counter() - start)
    once = float(np.median(seconds))
    return {"molecule": name, "arm": "integrals", "build_s": once, "kept_sample_s": BUILDS * once}


def finished(options: Options) -> set[tuple[str, int]]:
    """Arms and seeds that the file of results has with these settings."""
    path = options.out or RESULTS / "claim.json"
    runs = json.loads(path.read_text()) if options.resume and path.exists() else []
    settings = options.settings()
    rows = [row for run in runs for row in run["rows"] if "seed" in row]
    same = [row for row in rows if all(row.get(k) == v for k, v in settings.items())]
    return {(row["arm"], row["seed"]) for row in same}


def main(options: Options) -> None:
    """Measure and report the rows, or draw them."""
    if options.plot:
        results = options.out or RESULTS / "claim.json"
        print(tables(results))
        print(draw(results))
        return
    configure_jax()
    jax.config.update("jax_num_cpu_devices", threads())  # as the command does; before any array
    from benchmarks.claim_run import rows

    print(f"device: {device()}")
    report = Report("claim", options.out, tuple(PRINTED))
    done = finished(options)
    arms = [arm for arm in ARMS if arm.name in options.arms]
    todo = [(arm, seed) for seed in options.seeds for arm in arms if (arm.name, seed) not in done]
    if not todo:
        print("every row is there already")
        return
    for row in rows(options, todo):
        report.row(**row)
    if pyscf_is_installed():
        for name in dict.fromkeys((options.molecule, "ethanol")):
            report.row(**integrals_row(name))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
