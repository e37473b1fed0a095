"""500 steps of NVE dynamics of water with ASE, and how well the energy is conserved.

python examples/ase_dynamics.py
"""

from pathlib import Path

import jax
import numpy as np
from ase.io import read
from ase.md.verlet import VelocityVerlet
from ase.units import fs, kB

from qchem.ase import Calculator

STEPS, EVERY = 500, 50

jax.config.update("jax_enable_x64", True)

atoms = read(Path(__file__).with_name("water.xyz"))
atoms.calc = Calculator(
    basis="6-31g", xc="pbe", two_electron="df", aux="def2-universal-jkfit", grid=1
)
masses = atoms.get_masses()[:, None]
velocities = np.random.default_rng(0).normal(size=(len(atoms), 3)) * np.sqrt(300 * kB / masses)
atoms.set_velocities(velocities - (masses * velocities).sum(0) / masses.sum())
totals = []
with VelocityVerlet(atoms, timestep=0.5 * fs) as dynamics:
    dynamics.attach(lambda: totals.append(atoms.get_total_energy()))
    for step in range(0, STEPS, EVERY):
        dynamics.run(EVERY)
        drift = 1000 * (totals[-1] - totals[0])
        print(f"step {step + EVERY}: total energy {totals[-1]:.6f} eV, drift {drift:+.3f} meV")
slope = np.polyfit(np.arange(len(totals)) * 0.5e-3, totals, 1)[0]
print(f"drift {1000 * slope:+.3f} meV/ps, fluctuation {1000 * np.std(totals):.3f} meV")
