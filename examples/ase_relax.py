"""Relax ethanol with ASE: B3LYP/def2-SVP, density fitting.

python examples/ase_relax.py
"""

from pathlib import Path

import jax
from ase.io import read
from ase.optimize import BFGS

from qchem.ase import Calculator

jax.config.update("jax_enable_x64", True)

atoms = read(Path(__file__).with_name("ethanol.xyz"))
atoms.calc = Calculator(basis="def2-svp", xc="b3lyp", two_electron="df", grid=2)
BFGS(atoms).run(fmax=0.02)  # eV/Å
print(f"energy {atoms.get_potential_energy():.4f} eV")
print(f"C-C {atoms.get_distance(0, 1):.4f} Å, dipole {atoms.get_dipole_moment()} e Å")
