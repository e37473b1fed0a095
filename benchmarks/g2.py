"""Do all neutral molecules of the G2 test set converge, and as low as PySCF's?

The 148 neutral molecules of ASE's `g2` collection (structures at MP2/6-31G*; Curtiss et al., J.
Chem. Phys. 106, 1063 (1997)), in 6-31G* with spherical functions, by Hartree-Fock, PBE and B3LYP.
Both programs use their defaults, but ours follows instabilities of open shells, and PySCF goes on
with its second-order solver where DIIS fails. `error` is our energy less PySCF's, hartree: positive
is worse. Rows are appended to the file as they come, and those that it has are not calculated
again.
"""

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import ase.build
import numpy as np
import tyro
from ase.data.g2 import molecule_names

import qchem
from benchmarks.measure import configure_jax
from benchmarks.report import RESULTS
from benchmarks.table import Table, result_row
from qchem.atomic_grid import period_of

COLUMNS = (
    "molecule xc multiplicity nao energy pyscf error converged cycles products stages s2 pyscf_s2 "
    "seconds pyscf_seconds peak_mib commit"
).split()
TOLERANCE = 1e-6  # hartree above PySCF
PER_PROCESS = 40  # rows; compiled programs of other sizes only take memory


@dataclass(frozen=True)
class Options:
    """Which rows to calculate."""

    xc: tuple[str, ...] = ("hf", "pbe", "b3lyp")
    molecules: tuple[str, ...] = ()
    """ASE's names; by default all."""
    basis: str = "6-31g*"
    grid: int = 3
    pyscf: bool = True
    """Compare with PySCF."""
    out: Path = RESULTS / "g2.csv"


def molecule(name: str) -> qchem.Molecule:
    """ASE's structure; as many unpaired electrons as its magnetic moments add up to."""
    atoms = ase.build.molecule(name)
    unpaired = round(abs(atoms.get_initial_magnetic_moments().sum()))
    return qchem.Molecule.from_arrays(
        atoms.numbers, atoms.positions, unit="angstrom", multiplicity=unpaired + 1
    )


def size(name: str) -> tuple[int, ...]:
    """Molecules of one size share compiled programs: open shell, atoms by period."""
    mol = molecule(name)
    count = Counter(period_of(number) for number in mol.numbers)
    return int(mol.multiplicity > 1), *(count[period] for period in (2, 1, 0))


def run(name: str, xc: str, options: Options) -> dict[str, Any]:
    """One row, measured in this process."""
    configure_jax()
    mol = molecule(name)
    start = perf_counter()
    follow = mol.multiplicity > 1
    result = qchem.energy(mol, options.basis, xc, grid=options.grid, follow_instability=follow)
    row = {
        "molecule": name,
        "xc": xc,
        "multiplicity": mol.multiplicity,
        **result_row(result, start),
    }
    if options.pyscf:
        from benchmarks.peer import converged

        start = perf_counter()
        peer = converged(mol, options.basis, xc, grid=options.grid)
        row |= {
            "pyscf": f"{peer.energy:.9f}",
            "pyscf_s2": f"{peer.s2:.4f}",
            "pyscf_seconds": f"{perf_counter() - start:.1f}",
            "error": f"{result.energy - peer.energy:.1e}",
        }
    return row


def main(options: Options) -> None:
    """Calculate what the file has not, and sum up what it has."""
    table = Table(options.out, COLUMNS)
    present = {(row["molecule"], row["xc"]) for row in table.rows()}
    wanted = [(n, xc) for xc in options.xc for n in options.molecules or molecule_names]
    missing = [case for case in wanted if case not in present]
    missing.sort(key=lambda case: (options.xc.index(case[1]), size(case[0])))
    fresh = {
        "max_workers": 1,
        "mp_context": get_context("spawn"),
        "max_tasks_per_child": PER_PROCESS,
    }
    with ProcessPoolExecutor(**fresh) as pool:
        for n, (name, xc) in enumerate(missing):
            row = pool.submit(run, name, xc, options).result()
            table.append(row)
            print(f"{n + 1}/{len(missing)}", *(row.get(c, "-") for c in COLUMNS), flush=True)
    for xc in options.xc:
        sum_up(xc, [row for row in table.rows() if (row["molecule"], row["xc"]) in set(wanted)])


def sum_up(xc: str, rows: list[dict[str, str]]) -> None:
    """Print what came out with one functional."""
    rows = [row for row in rows if row["xc"] == xc]
    failed = [row for row in rows if row["converged"] != "True"]
    above = [row for row in rows if row["error"] and float(row["error"]) > TOLERANCE]
    below = [row for row in rows if row["error"] and float(row["error"]) < -TOLERANCE]
    seconds = np.sum([float(row["seconds"]) for row in rows])
    print(
        f"{xc}: {len(rows)} molecules in {seconds:.0f} s, {len(failed)} not converged, "
        f"{len(above)} above PySCF by more than {TOLERANCE:g} hartree, {len(below)} below"
    )
    for row in [*failed, *above]:
        print(row["molecule"], row["energy"], row["pyscf"], row["error"])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
