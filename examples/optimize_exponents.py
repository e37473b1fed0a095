"""Optimize the outermost exponents of a small basis for one molecule.

The gradient of a converged energy in the exponents needs no response of the orbitals. Shells of
one primitive are free, alike on atoms of the same element; their exponents stay positive as
exponentials of what is varied.

    python examples/optimize_exponents.py
"""

from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy.optimize import minimize

import qchem


@dataclass(frozen=True)
class Options:
    """Which molecule, and how."""

    file: Path = Path(__file__).with_name("water.xyz")
    basis: str = "6-31g"
    xc: str = "hf"
    tolerance: float = 1e-5
    """Largest derivative by the logarithm of an exponent at the end, hartree."""


def free_shells(mol, basis):
    """Where shells of one primitive are: (element, l, exponent) -> batch and rows."""
    found = {}
    for number, batch in enumerate(basis.batches):
        for row, atom in enumerate(batch.atom):
            if np.count_nonzero(batch.contraction[row]) == 1:
                kind = mol.symbols[atom], batch.l, float(batch.exponents[row].min())
                found.setdefault(kind, (number, []))[1].append(row)
    return found


def main(options: Options) -> None:
    """Optimize and print both sets."""
    jax.config.update("jax_enable_x64", True)
    mol = qchem.Molecule.from_xyz(options.file)
    positions = jnp.asarray(mol.positions)
    function = qchem.energy_fn(mol.numbers, options.basis, options.xc)
    basis = function.method.basis
    shells = free_shells(mol, basis)

    def with_exponents(logarithms):
        exponents = [jnp.asarray(batch.exponents) for batch in basis.batches]
        for logarithm, (number, rows) in zip(logarithms, shells.values()):
            exponents[number] = exponents[number].at[np.array(rows), 0].set(jnp.exp(logarithm))
        where = lambda f: [batch.exponents for batch in f.method.basis.batches]  # noqa: E731
        return eqx.tree_at(where, function, exponents)

    energy = jax.jit(jax.value_and_grad(lambda x: with_exponents(x)(positions)))

    def measured(logarithms):
        value, gradient = energy(jnp.asarray(logarithms))
        return float(value), np.asarray(gradient)

    def report(intermediate_result):
        values = ", ".join(f"{value:.4f}" for value in np.exp(intermediate_result.x))
        print(f"energy {intermediate_result.fun:.8f} hartree, exponents {values}", flush=True)

    start = np.log([exponent for _, _, exponent in shells])
    before, _ = measured(start)
    print(f"{options.xc}/{options.basis}: {before:.8f} hartree", flush=True)
    stop = {"gtol": options.tolerance}
    end = minimize(measured, start, jac=True, method="BFGS", callback=report, options=stop)
    for (element, l, old), new in zip(shells, np.exp(end.x)):
        print(f"{element:2s} {'spdfg'[l]}: {old:.6f} -> {new:.6f} bohr^-2")
    print(f"lowered by {1000 * (before - end.fun):.3f} millihartree, to {end.fun:.8f} hartree")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
