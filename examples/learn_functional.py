"""Fit a small neural exchange-correlation term to atomization energies.

A network on top of the local density approximation learns the atomization energies of four small
molecules, either those of another functional, PBE by default, or measured ones
(`--reference experiment`). Each step converges all systems with the functional as it is: the
gradient of a converged energy in the network's parameters needs no response of the orbitals. The
result is a file for `qchem energy --xc`, written every ten steps.

    python examples/learn_functional.py --out learned.eqx
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import qchem

# Bond lengths and angles near experiment, angstrom.
_ANGLE = math.radians(104.5)
MOLECULES = {
    "H2": ("HH", [[0, 0, 0], [0, 0, 0.741]]),
    "LiH": (("Li", "H"), [[0, 0, 0], [0, 0, 1.595]]),
    "HF": ("HF", [[0, 0, 0], [0, 0, 0.917]]),
    "H2O": (
        "OHH",
        [[0, 0, 0], [0, 0, 0.958], [0, 0.958 * math.sin(_ANGLE), 0.958 * math.cos(_ANGLE)]],
    ),
}
MULTIPLICITY = {"H": 2, "Li": 2, "O": 3, "F": 2}
# Measured, zero-point energy removed, kcal/mol: Table I of Perdew, Burke & Ernzerhof, Phys. Rev.
# Lett. 77, 3865 (1996).
EXPERIMENT = {"H2": 109.0, "LiH": 58.0, "HF": 141.0, "H2O": 232.0}
KCAL_PER_HARTREE = 627.5094740631


@dataclass(frozen=True)
class Options:
    """What to fit, and how long."""

    out: Path = Path("learned.eqx")
    reference: Literal["pbe", "experiment"] = "pbe"
    basis: str = "6-31g"
    steps: int = 60
    learning_rate: float = 0.01
    width: int = 12
    seed: int = 0


def systems(basis, xc):
    """Converged energies as functions, and positions, of all molecules and atoms."""
    found = {}
    for name, (symbols, positions) in MOLECULES.items():
        mol = qchem.Molecule.from_arrays(list(symbols), np.array(positions, float), unit="angstrom")
        found[name] = mol
    for symbol, multiplicity in MULTIPLICITY.items():
        found[symbol] = qchem.Molecule.from_arrays(
            [symbol], np.zeros((1, 3)), unit="bohr", multiplicity=multiplicity
        )
    return {
        name: (
            qchem.energy_fn(
                mol.numbers, basis, xc, multiplicity=mol.multiplicity, grid=1, solver="auto"
            ),
            jnp.asarray(mol.positions),
        )
        for name, mol in found.items()
    }


def atomization(energies):
    """Energies of the atoms less that of the molecule, kcal/mol."""
    return {
        name: KCAL_PER_HARTREE * (sum(energies[symbol] for symbol in symbols) - energies[name])
        for name, (symbols, _) in MOLECULES.items()
    }


@eqx.filter_jit
@eqx.filter_value_and_grad(has_aux=True)
def energy(xc, function, positions):
    """Converged energy and state; the gradient in what the functional has learned."""
    function = eqx.tree_at(lambda f: f.method.functional, function, xc)
    scf = function.solve(positions)
    return function.method.energy(positions, scf.factor), scf


def main(options: Options) -> None:
    """Fit, print the table, write the functional."""
    jax.config.update("jax_enable_x64", True)
    correction = qchem.EnhancementNetwork(options.width, key=jax.random.key(options.seed))
    xc = qchem.LearnedFunctional(qchem.Functional.from_name("svwn"), correction)
    targets = EXPERIMENT
    if options.reference == "pbe":
        exact = {name: float(f(r)) for name, (f, r) in systems(options.basis, "pbe").items()}
        targets = atomization(exact)
    functions = systems(options.basis, xc)
    optimizer = optax.adam(optax.cosine_decay_schedule(options.learning_rate, options.steps))
    state = optimizer.init(eqx.filter(xc, eqx.is_array))
    for step in range(options.steps + 1):
        energies, gradients = {}, {}
        for name, (function, positions) in functions.items():
            (value, scf), gradient = energy(xc, function, positions)
            scf.require_converged()
            energies[name], gradients[name] = float(value), gradient
        errors = {n: e - targets[n] for n, e in atomization(energies).items()}
        if step % 10 == 0:
            mean = np.mean(np.abs(list(errors.values())))
            print(f"step {step:3d}: mean error {mean:7.3f} kcal/mol", flush=True)
            xc.save(options.out)
        if step == options.steps:
            break
        # Mean of the squared errors; each is linear in the energies.
        total = None
        for name, (symbols, _) in MOLECULES.items():
            factor = 2 * errors[name] * KCAL_PER_HARTREE / len(MOLECULES)
            for part, sign in ((name, -1), *((symbol, 1) for symbol in symbols)):
                term = jax.tree.map(lambda g, w=factor * sign: w * g, gradients[part])
                total = term if total is None else jax.tree.map(jnp.add, total, term)
        updates, state = optimizer.update(total, state)
        xc = eqx.apply_updates(xc, updates)
    xc.save(options.out)
    for name, value in atomization(energies).items():
        print(f"{name:4s} {value:8.2f} kcal/mol, wanted {targets[name]:8.2f}")
    print(f"written: {options.out}; try: qchem energy examples/water.xyz --xc {options.out}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
