"""How many energies with total gradients, at given orbitals, per second?

That is the step of a training or of a sampler: geometries come, orbitals are known, and the energy
and its whole derivative in the positions are wanted. Ours is one compiled program for the batch,
shared by all cores or devices, `chunk` geometries held at once by each. The peer is what training
codes do without integrals of their own (majhas/self-refining-dft, src/dft/molecule.py): PySCF
builds the integrals of each geometry ((ab|cd) without symmetry, the grid, AO values and gradients
on it), and a compiled program evaluates the energy and its derivative in the orbitals; it has no
derivative in the positions.

`ratio` is our throughput over the peer's, `gradient_ratio` the time of an energy with its gradient
over that of the energy alone. `energy_error` is the deviation from PySCF's energy of the same
density matrix, hartree; `forces_error` the largest deviation of directional derivatives from finite
differences of our own energy, hartree/bohr.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh

import qchem
from benchmarks.measure import configure_jax, device, measure, spread, stopwatch
from benchmarks.molecules import Name, geometries, molecule
from benchmarks.reference import Case, pyscf_is_installed
from benchmarks.report import Report
from qchem.xc.quadrature import density_and_gradient

PRINTED = (
    "molecule how devices batch chunk geometries_per_s ratio gradient_ratio compile_s run_s "
    "spread_s peak_bytes energy_error forces_error failure"
).split()
STEP = 1e-4  # bohr, of finite differences


@dataclass(frozen=True)
class Options:
    """Which batches to measure."""

    molecules: tuple[Name, ...] = ("water", "ethanol")
    chunks: tuple[int, ...] = (1, 8)
    """Geometries held at once; on a CPU they follow one another."""
    batch: int | None = None
    """Geometries in all; by default as many as are held at once, and one for each core."""
    xc: str = "b3lyp"
    two_electron: Literal["exact", "df"] = "df"
    basis: str = "def2-svp"
    grid: int = 3
    repeats: int = 5
    out: Path | None = None
    """Append to this file instead of results/given_orbitals.json."""


def orbitals(case: Case) -> np.ndarray:
    """Converged at the molecule's structure: (1, nao, nocc), with the roots of the occupation."""
    result = qchem.energy(
        molecule(case.molecule),
        case.basis,
        case.xc,
        two_electron=case.two_electron,
        grid=case.grid,
    )
    return np.asarray(result.scf.require_converged().factor)


def ours(
    case: Case,
    factor: np.ndarray,
    batch: int | None,
    chunk: int,
    repeats: int,
    mesh: Mesh | None,
) -> dict[str, Any]:
    """One row; a program that needs too much memory leaves the reason in `failure`."""
    settings = {"basis": case.basis, "xc": case.xc, "two_electron": case.two_electron}
    numbers = molecule(case.molecule).numbers
    method = qchem.energy_fn(numbers, grid=case.grid, **settings).method
    count = 1 if mesh is None else mesh.size
    batch = batch or max(chunk, count)
    positions = jnp.asarray(geometries(case.molecule, batch))

    def mapped(function):
        def of_batch(method, positions, factor):
            one = lambda shared, r: function(shared[0], r, shared[1])  # noqa: E731
            shared = method, factor
            return qchem.map_geometries(one, shared, positions, mesh=mesh, chunk=chunk)

        return of_batch

    every = mapped(lambda method, r, factor: jax.value_and_grad(method.energy)(r, factor))
    energies_alone = mapped(lambda method, r, factor: method.energy(r, factor))
    row = {"how": "one program", "devices": count, "batch": batch, "chunk": chunk}
    try:
        arguments = method, positions, factor
        (energies, gradients), cost = measure(every, *arguments, repeats=repeats)
    except jax.errors.JaxRuntimeError as error:
        return row | {"failure": str(error).splitlines()[0]}
    row |= {"geometries_per_s": batch / cost.run_s, **asdict(cost), "failure": None}
    _, alone = measure(energies_alone, *arguments, repeats=repeats)
    row |= {"energy_s": alone.run_s, "gradient_ratio": cost.run_s / alone.run_s}
    direction = np.random.default_rng(1).normal(size=positions.shape[1:])
    ends = [positions[0] + sign * STEP * direction for sign in (1, -1)]
    high, low = jax.jit(lambda r: jax.lax.map(lambda r: method.energy(r, factor), r))(
        jnp.stack(ends)
    )
    slope = float(high - low) / (2 * STEP)
    row["forces_error"] = abs(float(np.vdot(gradients[0], direction)) - slope)
    row["energy_error"] = None
    if pyscf_is_installed():
        from benchmarks.peer import energy_of_density

        expected = energy_of_density(case, numbers, np.asarray(positions[0]), factor)
        row["energy_error"] = abs(float(energies[0]) - expected)
    return row


def pipeline(case: Case, factor: np.ndarray, repeats: int) -> dict[str, Any]:
    """The row of the peer: one geometry after another, as it works."""
    from benchmarks.peer import dense_integrals, energy_of_density

    numbers = molecule(case.molecule).numbers
    functional = qchem.Functional.from_name(case.xc)
    case = Case(case.molecule, case.xc, "exact", case.grid, case.basis)

    def energy(factor, hcore, eri, ao, weights, nuclear):
        dm = factor[0] @ factor[0].T
        coulomb = jnp.einsum("abcd,cd->ab", eri, dm)
        exchange = jnp.einsum("acbd,cd->ab", eri, dm)
        rho, sigma = density_and_gradient(dm[None], tuple(jnp.swapaxes(ao, 1, 2)))
        xc = jnp.vdot(weights, functional.energy_density(rho, sigma, None))
        two = 0.5 * coulomb - 0.25 * functional.exchange_fraction * exchange
        return nuclear + jnp.vdot(hcore + two, dm) + xc

    evaluate = jax.jit(jax.value_and_grad(energy))
    first, *others = geometries(case.molecule, repeats + 1)

    def build_and_evaluate(positions):
        return evaluate(factor, *dense_integrals(case, numbers, positions))

    value, compile_s = stopwatch(build_and_evaluate, first)
    seconds = [stopwatch(build_and_evaluate, positions)[1] for positions in others]
    expected = energy_of_density(case, numbers, first, factor)
    return {
        "how": "PySCF's integrals",
        "devices": 1,
        "batch": 1,
        "chunk": 1,
        "geometries_per_s": 1 / median(seconds),
        "compile_s": compile_s,
        "run_s": median(seconds),
        "spread_s": spread(seconds),
        "energy_error": abs(float(value[0]) - expected),
        "failure": None,
    }


def main(options: Options) -> None:
    """Measure and report the rows."""
    configure_jax()
    cores = qchem.use_cores()
    mesh = None if cores is None else Mesh(cores.devices, ("geometry",))
    print(f"device: {device()}")
    report = Report("given_orbitals", options.out, tuple(PRINTED))
    missing = dict.fromkeys((*PRINTED, "energy_s"))
    for name in options.molecules:
        case = Case(name, options.xc, options.two_electron, options.grid, options.basis)
        same = missing | asdict(case) | {"device": device()}
        factor = orbitals(case)
        peer = pipeline(case, factor, options.repeats) if pyscf_is_installed() else None
        if peer is not None:
            report.row(**same | peer | {"ratio": 1.0})
        for chunk in options.chunks:
            row = ours(case, factor, options.batch, chunk, options.repeats, mesh)
            if peer is not None and row["failure"] is None:
                row["ratio"] = row["geometries_per_s"] / peer["geometries_per_s"]
            report.row(**same | row)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
