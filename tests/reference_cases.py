"""Molecules and settings of the stored total energies; `tests.make_reference` computes them.

Geometries are in bohr and deliberately off equilibrium, so that forces do not vanish and no
orbital is degenerate by symmetry alone. Bond lengths are near experiment or the G2 set's MP2
structures (Curtiss et al., J. Chem. Phys. 94, 7221 (1991)), rounded.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

BOHR = 0.529177210903  # angstrom, CODATA 2018

GEOMETRIES = {
    "hydrogen atom": "H 0 0 0",
    "hydrogen": "H 0 0 0; H 0.1 0.2 1.4",
    "lithium hydride": "Li 0 0 0; H 0.3 -0.2 2.95",
    "water": "O 0.02 -0.01 0.22; H 1.46 0.05 -0.90; H -1.41 -0.06 -0.93",
    "hydroxide": "O 0 0 0; H 0.3 0.4 1.75",
    "ammonia": "N 0.01 0.02 0.2; H 0.03 1.78 -0.51; H 1.55 -0.88 -0.52; H -1.52 -0.9 -0.5",
    "ammonium": (
        "N 0 0 0; H 1.12 1.11 1.13; H -1.12 -1.13 1.1; H -1.1 1.12 -1.14; H 1.11 -1.12 -1.11"
    ),
    "methyl": "C 0 0 0.05; H 0.02 2.05 0; H 1.76 -1.02 0.1; H -1.77 -1.0 -0.04",
    "oxygen": "O 0 0 0; O 0.2 0.3 2.25",
    "nitrogen dioxide": "N 0 0 0.62; O 0.05 2.11 -0.27; O 0 -2.12 -0.29",
    "hydrogen cyanide": "C 0 0 -0.97; N 0.05 0.1 1.25; H 0.1 -0.1 -2.99",
    "hydrogen sulfide": "S 0 0 0.2; H 0.05 1.84 -1.55; H -0.04 -1.82 -1.53",
    "silane": (
        "Si 0 0 0; H 1.62 1.61 1.64; H -1.63 -1.6 1.61; H -1.61 1.62 -1.64; H 1.6 -1.63 -1.62"
    ),
    "hydrogen fluoride": "F 0 0 0; H 0.2 0.3 1.7",
    "copper hydride": "Cu 0 0 0; H 0.2 0.3 2.74",
    "manganese": "Mn 0 0 0",
    "hydrogen bromide": "Br 0 0 0; H 0.2 0.3 2.65",
    "krypton": "Kr 0 0 0",
}


@dataclass(frozen=True)
class Case:
    """One total energy: the settings, named as `qchem.energy` names them."""

    molecule: str
    basis: str
    xc: str
    two_electron: str = "exact"
    aux: str | None = None
    charge: int = 0
    multiplicity: int = 1
    cartesian: bool = False
    grid: int | tuple[int, int] = 3
    forces: bool = False
    quick: bool = False  # run by `qchem validate`

    @property
    def name(self) -> str:
        parts = [self.molecule, self.basis, self.xc, self.two_electron]
        if self.charge:
            parts.append(f"charge {self.charge:+d}")
        if self.cartesian:
            parts.append("cartesian")
        if self.grid != 3:
            grid = self.grid if isinstance(self.grid, int) else "x".join(map(str, self.grid))
            parts.append(f"grid {grid}")
        return ", ".join(parts)

    def inputs(self) -> dict:
        """Everything `qchem.energy` needs, ready for JSON."""
        symbols, positions = geometry(self.molecule)
        return {"name": self.name, **asdict(self), "symbols": symbols, "positions": positions}


def geometry(name: str) -> tuple[list[str], list[list[float]]]:
    """Symbols and positions in bohr; ethanol is the one of the README."""
    if name == "ethanol":
        lines = Path(__file__).parents[1].joinpath("examples/ethanol.xyz").read_text().splitlines()
        rows, scale = [line.split() for line in lines[2:]], 1 / BOHR
    else:
        rows, scale = [atom.split() for atom in GEOMETRIES[name].split(";")], 1.0
    return [row[0] for row in rows], [[float(x) * scale for x in row[1:4]] for row in rows]


JKFIT = "def2-universal-jkfit"

CASES = (
    Case("hydrogen", "sto-3g", "hf", forces=True, quick=True),
    Case("hydrogen atom", "6-31G*", "b3lyp", multiplicity=2, quick=True),
    Case("lithium hydride", "cc-pVDZ", "b3lyp5"),
    Case("water", "def2-SVP", "b3lyp", forces=True),
    Case("water", "def2-SVP", "b3lyp", "df", JKFIT, forces=True, quick=True),
    Case("water", "def2-SVP", "pbe", "df", JKFIT, grid=(50, 194)),
    Case("water", "def2-SVP", "pbe0", "df", JKFIT, charge=1, multiplicity=2),
    Case("water", "6-31G*", "hf", cartesian=True),
    Case("water", "aug-cc-pVDZ", "pbe0", "df", "cc-pVTZ-jkfit", grid=5),
    Case("hydroxide", "6-311++G**", "blyp", charge=-1),
    Case("ammonia", "cc-pVDZ", "pbe0", grid=1),
    Case("ammonium", "sto-3g", "svwn", charge=1),
    Case("methyl", "6-31G*", "b3lyp", multiplicity=2, cartesian=True, forces=True, quick=True),
    Case("oxygen", "cc-pVDZ", "pbe", multiplicity=3, forces=True),
    Case("nitrogen dioxide", "def2-SVP", "pbe0", "df", JKFIT, multiplicity=2, forces=True),
    Case("hydrogen cyanide", "cc-pVTZ", "b3lyp5"),
    Case("hydrogen sulfide", "def2-TZVP", "pbe", "df", JKFIT, forces=True),
    Case("silane", "def2-SVP", "blyp", "df", JKFIT, cartesian=True),
    Case("hydrogen fluoride", "def2-QZVP", "svwn"),
    Case("copper hydride", "def2-SVP", "b3lyp"),
    Case("manganese", "def2-SVP", "pbe", charge=2, multiplicity=6),
    Case("hydrogen bromide", "cc-pVDZ", "hf"),
    Case("krypton", "def2-TZVP", "b3lyp", "df", JKFIT),
    Case("ethanol", "def2-SVP", "b3lyp", "df", JKFIT, forces=True),
    Case("ethanol", "def2-SVP", "b3lyp", forces=True),
)
