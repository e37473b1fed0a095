"""Dipole moment and polarizability of water, by derivatives and by finite fields.

mu = -dE/dF and alpha = dmu/dF in a uniform electric field F, at F = 0. The derivatives are those of
converged orbitals: one calculation and the coupled-perturbed equations instead of twelve
calculations in fields.

    python examples/polarizability.py
"""

from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro

import qchem

STEP = 2e-3  # hartree/(e bohr), of the finite fields


@dataclass(frozen=True)
class Options:
    """Which molecule, and how."""

    file: Path = Path(__file__).with_name("water.xyz")
    basis: str = "def2-svpd"
    xc: str = "pbe"
    grid: int = 2


def main(options: Options) -> None:
    """Print both."""
    jax.config.update("jax_enable_x64", True)
    mol = qchem.Molecule.from_xyz(options.file)
    positions, none = jnp.asarray(mol.positions), jnp.zeros(3)
    settings = {"grid": options.grid, "field": none, "tolerance": 1e-9}
    function = qchem.energy_fn(mol.numbers, options.basis, options.xc, **settings)

    def in_field(field):
        return eqx.tree_at(lambda f: f.method.field, function, field)

    def dipole(field):
        return in_field(field).relaxed(positions).dipole

    @jax.jit
    def converged_dipole(field):
        method, scf = in_field(field).method, in_field(field).solve(positions)
        return jnp.where(scf.converged, qchem.moments(method, positions, scf.factor)[0], jnp.nan)

    def difference(field):
        return converged_dipole(field) - converged_dipole(-field)

    print(f"{options.xc}/{options.basis}: derivatives", flush=True)
    moment, alpha = jax.jit(lambda f: (dipole(f), jax.jacfwd(dipole)(f)))(none)
    print("dipole moment, e bohr", without_noise(moment))
    show("polarizability by derivatives, bohr^3", alpha)
    columns = []
    for axis, unit in zip("xyz", np.eye(3)):
        print(f"finite fields along {axis}", flush=True)
        far, near = (difference(n * STEP * unit) for n in (2, 1))
        columns.append((8 * near - far) / (12 * STEP))
    show("polarizability by finite fields, bohr^3", np.stack(columns, 1))
    print(f"largest difference {np.max(np.abs(alpha - np.stack(columns, 1))):.1e} bohr^3")


def show(title, alpha):
    """The tensor and its mean."""
    print(title)
    for row in without_noise(alpha):
        print("".join(f"{value:12.6f}" for value in row))
    print(f"mean {np.trace(alpha) / 3:.6f}", flush=True)


def without_noise(values):
    """Six digits, without negative zeros."""
    return np.round(values, 6) + 0.0


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
