"""Does the SCF converge where it is hard, as low as PySCF's second-order solver?

Each row is a molecule on which plain iterations fail or end in the wrong place. Ours is
`qchem.energy` as it comes, following instabilities where the case says so; `stages` is what it took
and `needs` what the case is known for. `newton` is PySCF's second-order solver from its default
guess, `followed` the same with internal instabilities followed. `error` is our energy less the
energy of the one that does what we did, hartree: positive is worse. Rows are appended to the file
as they come, and those that it has are not calculated again.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import tyro

import qchem
from benchmarks.measure import configure_jax
from benchmarks.report import RESULTS
from benchmarks.table import Table, result_row

COLUMNS = (
    "case needs xc basis charge multiplicity nao energy newton followed error converged cycles "
    "products stages s2 newton_s2 seconds pyscf_seconds peak_mib commit"
).split()
TOLERANCE = 1e-6  # hartree above PySCF


@dataclass(frozen=True)
class Case:
    """A calculation; the geometry in ångström, "symbol x y z" separated by semicolons."""

    geometry: str
    needs: str
    xc: str = "b3lyp"
    basis: str = "def2-svp"
    charge: int = 0
    multiplicity: int = 1
    unrestricted: bool = False
    follow: bool = False

    def molecule(self) -> qchem.Molecule:
        """As qchem takes it."""
        rows = [atom.split() for atom in self.geometry.split(";")]
        positions = [[float(x) for x in row[1:]] for row in rows]
        symbols = [row[0] for row in rows]
        return qchem.Molecule.from_arrays(
            symbols,
            positions,
            unit="angstrom",
            charge=self.charge,
            multiplicity=self.multiplicity,
        )


def _text(atoms) -> str:
    return "; ".join(f"{symbol} {x:.6f} {y:.6f} {z:.6f}" for symbol, (x, y, z) in atoms)


def _diatomic(first: str, second: str, distance: float) -> str:
    return f"{first} 0 0 0; {second} 0 0 {distance}"


def _water(stretch: float) -> str:
    y, z = 0.7572 * stretch, 0.5865 * stretch
    return f"O 0 0 0; H 0 {y:.6f} {z:.6f}; H 0 {-y:.6f} {z:.6f}"


def _carbonyl() -> str:
    """Ni(CO)4, a tetrahedron: Ni-C 1.838, C-O 1.141 (Hedberg, Iijima & Hedberg 1979)."""
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5
    ligands = [(s, r * corner) for corner in corners for s, r in (("C", 1.838), ("O", 2.979))]
    return _text([("Ni", np.zeros(3)), *ligands])


def _hexaaqua() -> str:
    """[Fe(H2O)6]2+ of symmetry T_h: Fe-O 2.13, O-H 0.97, H-O-H 107 degrees."""
    atoms = [("Fe", np.zeros(3))]
    half = np.radians(107 / 2)
    for axis in range(3):
        for sign in (1, -1):
            out, across = np.zeros(3), np.zeros(3)
            out[axis], across[(axis + 1) % 3] = sign, 1
            atoms.append(("O", 2.13 * out))
            for side in (1, -1):
                hydrogen = 0.97 * (np.cos(half) * out + side * np.sin(half) * across)
                atoms.append(("H", 2.13 * out + hydrogen))
    return _text(atoms)


OZONE = "O 0 0 0; O 0 1.0885 0.6697; O 0 -1.0885 0.6697"
AMMONIUM_CHLORIDE = (
    "N 0 0 0; H 0.59 0.59 0.59; H -0.59 -0.59 0.59; H 0.59 -0.59 -0.59; H -0.59 0.59 -0.59; "
    "Cl 0 0 6"
)
CHAIN = _text([("H", (0, 0, 0.8 * n)) for n in range(10)])
BROKEN = {"multiplicity": 1, "unrestricted": True, "follow": True}

CASES = {
    "N2 2.0, closed": Case(_diatomic("N", "N", 2.0), "three bonds half broken", "hf", "cc-pvdz"),
    "N2 2.0": Case(_diatomic("N", "N", 2.0), "broken symmetry", "hf", "cc-pvdz", **BROKEN),
    "N2 3.0": Case(_diatomic("N", "N", 3.0), "broken symmetry", "b3lyp", "cc-pvdz", **BROKEN),
    "H2O x2, closed": Case(_water(2.0), "two bonds half broken", "hf", "cc-pvdz"),
    "H2O x2": Case(_water(2.0), "broken symmetry", "b3lyp", "cc-pvdz", **BROKEN),
    "H2O x3": Case(_water(3.0), "broken symmetry", "pbe", "cc-pvdz", **BROKEN),
    "H2 4.0": Case(_diatomic("H", "H", 4.0), "broken symmetry", "pbe", "cc-pvdz", **BROKEN),
    "O2 singlet": Case(_diatomic("O", "O", 1.21), "broken symmetry", "b3lyp", **BROKEN),
    "O3": Case(OZONE, "biradical, closed", "hf", "cc-pvdz"),
    "O3 open": Case(OZONE, "biradical, broken symmetry", "hf", "cc-pvdz", **BROKEN),
    "C2": Case(_diatomic("C", "C", 1.243), "near degeneracy", "hf", "cc-pvdz"),
    "C2 open": Case(_diatomic("C", "C", 1.243), "broken symmetry", "b3lyp", "cc-pvdz", **BROKEN),
    "NO2": Case("N 0 0 0; O 0 1.1 0.46; O 0 -1.1 0.46", "radical", "b3lyp", multiplicity=2),
    "BeO 1.33": Case(_diatomic("Be", "O", 1.33), "two configurations", "pbe", "cc-pvdz"),
    "FeO, hf": Case(_diatomic("Fe", "O", 1.616), "d shell", "hf", multiplicity=5, follow=True),
    "FeO, pbe": Case(_diatomic("Fe", "O", 1.616), "d shell", "pbe", multiplicity=5, follow=True),
    "CrO": Case(_diatomic("Cr", "O", 1.615), "d shell", "b3lyp", multiplicity=5, follow=True),
    "TiO": Case(_diatomic("Ti", "O", 1.62), "d shell", "pbe", multiplicity=3, follow=True),
    "CuO": Case(_diatomic("Cu", "O", 1.724), "d shell", "b3lyp", multiplicity=2, follow=True),
    "Ni(CO)4, pbe": Case(_carbonyl(), "complex", "pbe"),
    "Ni(CO)4, hf": Case(_carbonyl(), "complex", "hf"),
    "[Fe(H2O)6]2+": Case(_hexaaqua(), "high spin", "b3lyp", charge=2, multiplicity=5, follow=True),
    "F-": Case("F 0 0 0", "diffuse functions", "pbe", "aug-cc-pvtz", charge=-1),
    "CN-": Case(_diatomic("C", "N", 1.18), "diffuse functions", "b3lyp", "aug-cc-pvdz", charge=-1),
    "OH-": Case(_diatomic("O", "H", 0.97), "diffuse functions", "hf", "6-311++g**", charge=-1),
    "H10 chain": Case(CHAIN, "near-singular overlap", "pbe", "aug-cc-pvdz"),
    "NH4+ Cl-": Case(AMMONIUM_CHLORIDE, "charges far apart", "pbe"),
    "LiF 5.0": Case(_diatomic("Li", "F", 5.0), "ions or atoms", "hf", "6-31+g*"),
    "C atom": Case("C 0 0 0", "open p shell", "pbe", multiplicity=3),
    "O atom": Case("O 0 0 0", "open p shell", "b3lyp", multiplicity=3),
    "Fe atom": Case("Fe 0 0 0", "open d shell", "pbe", multiplicity=5, follow=True),
    "V atom": Case("V 0 0 0", "open d shell", "hf", multiplicity=4, follow=True),
    "Ni atom": Case("Ni 0 0 0", "open d shell", "b3lyp", multiplicity=3, follow=True),
    "Cr atom": Case("Cr 0 0 0", "half-filled d shell", "pbe", multiplicity=7),
}


@dataclass(frozen=True)
class Options:
    """Which cases to calculate."""

    cases: tuple[str, ...] = ()
    """By name; by default all."""
    basis: str | None = None
    """Instead of that of each case."""
    grid: int = 3
    pyscf: bool = True
    """Compare with PySCF."""
    out: Path = RESULTS / "hard.csv"


def run(name: str, options: Options) -> dict[str, Any]:
    """One row, measured in this process."""
    configure_jax()
    case = CASES[name]
    mol, basis = case.molecule(), options.basis or case.basis
    shared = {"grid": options.grid, "unrestricted": case.unrestricted}
    start = perf_counter()
    result = qchem.energy(mol, basis, case.xc, follow_instability=case.follow, **shared)
    row = {
        "case": name,
        "needs": case.needs,
        "xc": case.xc,
        "basis": basis,
        "charge": case.charge,
        "multiplicity": case.multiplicity,
        **result_row(result, start),
    }
    if options.pyscf:
        from benchmarks.peer import converged

        start = perf_counter()
        peer = converged(mol, basis, case.xc, newton=True, **shared)
        same = followed = peer
        if case.follow:
            same = followed = converged(mol, basis, case.xc, newton=True, follow=True, **shared)
        row |= {
            "newton": f"{peer.energy:.9f}",
            "followed": f"{followed.energy:.9f}",
            "newton_s2": f"{same.s2:.4f}",
            "pyscf_seconds": f"{perf_counter() - start:.1f}",
            "error": f"{result.energy - same.energy:.1e}",
        }
    return row


def main(options: Options) -> None:
    """Calculate what the file has not, and sum up what it has."""
    unknown = sorted(set(options.cases) - set(CASES))
    if unknown:
        raise SystemExit(f"unknown case {', '.join(unknown)}; there are {', '.join(CASES)}")
    table = Table(options.out, COLUMNS)
    basis = {name: options.basis or CASES[name].basis for name in options.cases or CASES}
    present = {(row["case"], row["basis"]) for row in table.rows()}
    fresh = {"max_workers": 1, "mp_context": get_context("spawn"), "max_tasks_per_child": 1}
    with ProcessPoolExecutor(**fresh) as pool:
        for name in basis:
            if (name, basis[name]) not in present:
                row = pool.submit(run, name, options).result()
                table.append(row)
                print(*(f"{c}={row[c]}" for c in COLUMNS if c in row), flush=True)
    rows = [row for row in table.rows() if basis.get(row["case"]) == row["basis"]]
    failed = [row["case"] for row in rows if row["converged"] != "True"]
    above = [row["case"] for row in rows if row["error"] and float(row["error"]) > TOLERANCE]
    print(f"{len(rows)} rows; not converged: {failed}; above PySCF: {above}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
