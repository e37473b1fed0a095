"""How many geometries per second does vmap(value_and_grad(energy_fn)) serve?

A batch of geometries near the molecule's structure, `chunk` of them held at once, in one compiled
program; on whatever device JAX finds. Errors, in hartree and hartree/bohr: `energy_error` and
`forces_error` are the largest deviations from `qchem.energy` at single geometries of the batch,
`reference_error` that of the first energy from PySCF, tightly converged (from reference.json where
PySCF is not installed).
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import qchem
from benchmarks.measure import Measurement, configure_jax, device, measure
from benchmarks.molecules import Name, geometries, molecule
from benchmarks.reference import Case, pyscf_is_installed, stored
from benchmarks.report import Report

PRINTED = (
    "molecule xc grid batch chunk geometries_per_s compile_s run_s spread_s peak_bytes "
    "unconverged energy_error forces_error reference_error failure"
).split()


@dataclass(frozen=True)
class Options:
    """Which batches to measure."""

    molecules: tuple[Name, ...] = ("water", "ethanol")
    chunks: tuple[int, ...] = (1, 8, 32, 128)
    """Geometries held at once."""
    batch: int | None = None
    """Geometries in all; by default as many as are held at once."""
    xc: str = "b3lyp"
    two_electron: Literal["exact", "df"] = "df"
    grid: int = 3
    """Level, 0 to 9."""
    repeats: int = 3
    checked: int = 2
    """Geometries that are calculated again one by one."""
    out: Path | None = None
    """Append to this file instead of results/batch.json."""


def single(case: Case, positions: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """Energy and gradient of each geometry by `qchem.energy`."""
    numbers = molecule(case.molecule).numbers
    values = []
    for one in positions:
        mol = qchem.Molecule.from_arrays(numbers, one, unit="bohr")
        result = qchem.energy(
            mol, case.basis, case.xc, two_electron=case.two_electron, grid=case.grid
        )
        values.append((result.energy, -result.forces()))
    return values


def reference_energy(case: Case) -> float | None:
    """PySCF's energy at the molecule's structure, if it can be had."""
    positions = geometries(case.molecule, 1)[0]
    found = stored(case, positions)
    if found is None and pyscf_is_installed():
        from benchmarks.peer import calculate

        numbers = molecule(case.molecule).numbers
        return calculate(case, numbers, positions, tight=True).energy
    return None if found is None else found[0]


def run(case: Case, batch: int, chunk: int, repeats: int, expected, reference) -> dict[str, Any]:
    """One row; a program that needs too much memory leaves the reason in `failure`."""
    settings = {"basis": case.basis, "xc": case.xc, "two_electron": case.two_electron}
    numbers = molecule(case.molecule).numbers
    energy_fn = qchem.energy_fn(numbers, grid=case.grid, chunk=chunk, **settings)
    positions = jnp.asarray(geometries(case.molecule, batch))
    row = asdict(case) | {"device": device(), "batch": batch, "chunk": chunk}
    try:
        (energies, gradients), cost = measure(
            jax.vmap(jax.value_and_grad(energy_fn)), positions, repeats=repeats
        )
    except jax.errors.JaxRuntimeError as error:
        missing = dict.fromkeys(field.name for field in fields(Measurement))
        return row | {"geometries_per_s": None, **missing, "failure": str(error).splitlines()[0]}
    pairs = list(zip(expected, energies, gradients))  # the first few
    return row | {
        "geometries_per_s": batch / cost.run_s,
        **asdict(cost),
        "unconverged": int(jnp.isnan(energies).sum()),
        "energy_error": max(abs(float(e) - one[0]) for one, e, _ in pairs),
        "forces_error": max(float(np.abs(g - one[1]).max()) for one, _, g in pairs),
        "reference_error": None if reference is None else abs(float(energies[0]) - reference),
        "failure": None,
    }


def main(options: Options) -> None:
    """Measure and report the rows."""
    configure_jax()
    print(f"device: {device()}")
    report = Report("batch", options.out, tuple(PRINTED))
    for name in options.molecules:
        case = Case(name, options.xc, options.two_electron, options.grid)
        expected = single(case, geometries(name, max(1, options.checked)))
        reference = reference_energy(case)
        for chunk in options.chunks:
            batch = options.batch or chunk
            report.row(**run(case, batch, chunk, options.repeats, expected, reference))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
