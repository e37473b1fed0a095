"""500 steps of NVE dynamics of ethanol with ASE, and how well the energy is conserved.

PBE/def2-SVP, density fitting: a quarter of an hour on two cores.

python examples/ase_dynamics.py
"""

from pathlib import Path

import jax
import numpy as np
from ase.io import read
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet
from ase.units import fs

from qchem.ase import Calculator

STEPS, EVERY = 500, 50
KELVIN = 300.0
TIMESTEP = 0.5  # fs

jax.config.update("jax_enable_x64", True)

atoms = read(Path(__file__).with_name("ethanol.xyz"))
atoms.calc = Calculator(basis="def2-svp", xc="pbe", two_electron="df", grid=1)
MaxwellBoltzmannDistribution(atoms, temperature_K=KELVIN, rng=np.random.RandomState(0))
Stationary(atoms)
ZeroRotation(atoms)
totals = []
with VelocityVerlet(atoms, timestep=TIMESTEP * fs) as dynamics:
    dynamics.attach(lambda: totals.append(atoms.get_total_energy()))
    for step in range(0, STEPS, EVERY):
        dynamics.run(EVERY)
        drift = 1000 * (totals[-1] - totals[0])
        print(f"step {step + EVERY}: total energy {totals[-1]:.6f} eV, drift {drift:+.3f} meV")
slope = np.polyfit(np.arange(len(totals)) * TIMESTEP / 1000, totals, 1)[0]
print(f"drift {1000 * slope:+.3f} meV/ps, fluctuation {1000 * np.std(totals):.3f} meV")
