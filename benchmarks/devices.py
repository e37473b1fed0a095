"""How do several devices speed up a batch of geometries, and one molecule?

Each row has a process of its own, with as many devices as it names; on a CPU these are forced, and
share its cores. A batch is shared by geometries, one molecule by integrals and grid (energy and
gradient of `energy_fn` in density fitting). `gain` is the throughput over that of one
geometry after another on one device with all cores, the first row of each molecule. `peak_bytes` is
what the program takes on each device. Errors, in hartree and hartree/bohr: `energy_error` and
`forces_error` are the largest deviations from `qchem.energy` at single geometries of the batch,
`reference_error` that of the first energy from PySCF, tightly converged (from reference.json where
PySCF is not installed).
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh

import qchem
from benchmarks.batch import reference_energy, single
from benchmarks.measure import configure_jax, device, measure
from benchmarks.molecules import Name, geometries, molecule
from benchmarks.reference import Case
from benchmarks.report import Report

PRINTED = (
    "molecule shared devices batch geometries_per_s gain compile_s run_s spread_s peak_bytes "
    "unconverged energy_error forces_error reference_error"
).split()
Shared = Literal["geometry", "molecule"]


@dataclass(frozen=True)
class Options:
    """Which molecules, on how many devices."""

    molecules: tuple[Name, ...] = ("water", "ethanol")
    devices: tuple[int, ...] = (1, 2, 4)
    shared: tuple[Shared, ...] = ("geometry", "molecule")
    batch: int = 32
    """Geometries, where these are shared."""
    xc: str = "b3lyp"
    grid: int = 3
    """Level, 0 to 9."""
    repeats: int = 5
    checked: int = 2
    """Geometries that are calculated again one by one."""
    out: Path | None = None
    """Append to this file instead of results/devices.json."""


def compared(case: Case, checked: int) -> tuple[list[tuple[float, np.ndarray]], float | None]:
    """Energies and gradients of single geometries, and PySCF's energy of the first."""
    configure_jax()
    return single(case, geometries(case.molecule, checked)), reference_energy(case)


def run(
    case: Case, shared: Shared, count: int, batch: int, repeats: int, comparison
) -> dict[str, Any]:
    """One row, measured in this process."""
    configure_jax()
    jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices()[:count]
    mesh = Mesh(np.array(devices), (shared,)) if count > 1 else None
    settings = {"basis": case.basis, "xc": case.xc, "two_electron": case.two_electron}
    numbers = molecule(case.molecule).numbers
    energy_fn = qchem.energy_fn(numbers, grid=case.grid, mesh=mesh, chunk=batch, **settings)
    positions = jnp.asarray(geometries(case.molecule, batch))
    function = jax.vmap(jax.value_and_grad(energy_fn))
    (energies, gradients), cost = measure(function, positions, repeats=repeats)
    expected, reference = comparison
    pairs = list(zip(expected, np.asarray(energies), np.asarray(gradients)))  # the first few
    return asdict(case) | {
        "device": device(),
        "shared": shared,
        "devices": len(devices),
        "batch": batch,
        "geometries_per_s": batch / cost.run_s,
        **asdict(cost),
        "unconverged": int(np.isnan(energies).sum()),
        "energy_error": max(abs(float(e) - one[0]) for one, e, _ in pairs),
        "forces_error": max(float(np.abs(g - one[1]).max()) for one, _, g in pairs),
        "reference_error": None if reference is None else abs(float(energies[0]) - reference),
    }


def main(options: Options) -> None:
    """Measure and report the rows."""
    report = Report("devices", options.out, tuple(PRINTED))
    fresh = {"max_workers": 1, "mp_context": get_context("spawn"), "max_tasks_per_child": 1}
    with ProcessPoolExecutor(**fresh) as pool:
        for name in options.molecules:
            case = Case(name, options.xc, "df", options.grid)
            comparison = pool.submit(compared, case, max(1, options.checked)).result()
            rows = [("molecule", 1, 1)]
            if "geometry" in options.shared:
                rows += [("geometry", count, options.batch) for count in options.devices]
            if "molecule" in options.shared:
                rows += [("molecule", count, 1) for count in options.devices if count > 1]
            first = None
            for kind in rows:
                row = pool.submit(run, case, *kind, options.repeats, comparison).result()
                first = first or row["geometries_per_s"]
                report.row(**row, gain=row["geometries_per_s"] / first)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
