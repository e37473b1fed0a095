"""A model against converged SCF of the same engine on given geometries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import qchem
from qchem import ConvergenceError, program
from srdft.family import MoleculeFamily, PredictsOrbitals
from srdft.orbitals import orbitals

MAX_STEPS = 2  # SCF steps taken from the prediction
# Mean absolute errors of what; name in the report: unit.
ERRORS = {
    "energy_mae": "hartree",
    "fock_mae": "hartree",
    "orbital_energy_mae": "hartree",
    "occupied_orbital_energy_mae": "hartree",
    "homo_mae": "hartree",
    "lumo_mae": "hartree",
    "gap_mae": "hartree",
    "force_mae": "hartree/bohr",
    "dipole_mae": "e bohr",
    "occupied_cosine": "",
}


class Reference(eqx.Module):
    """Converged SCF at one geometry."""

    scf: qchem.SCFResult
    cycles_model: Array
    overlap: Float[Array, "nao nao"]
    dipole: Float[Array, " 3"]
    gradient: Float[Array, "natom 3"]


def evaluate(
    family: MoleculeFamily,
    model: PredictsOrbitals,
    positions: Float[np.ndarray, "n natom 3"],
    report: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Mean absolute errors of a model's predictions.

    `fock_mae` is over the elements of F[P] of the predicted density; orbital energies and
    orbitals are those of that matrix, as in published comparisons. `occupied_cosine` is the mean
    of |<predicted|converged>| over occupied orbitals in the order of their energies. Forces are
    the total derivative of the model's energy. `after_steps` lists what plain SCF steps from the
    prediction make of it: after 0, 1 and 2.

    Args:
        family: The molecule.
        model: Its orbitals.
        positions: Geometries, bohr.
        report: Called with the number of geometries done.

    Returns:
        The report of `srdft evaluate`; hartree and bohr.

    Raises:
        ConvergenceError: The SCF of a geometry has not converged.
    """
    rows = []
    for i, frame in enumerate(jnp.asarray(positions)):
        states, predicted_gradient, prediction = _predict(family, model, frame)
        reference = _solve(family, frame, prediction.fock)
        if not bool(reference.scf.converged):
            raise ConvergenceError(
                f"the SCF of geometry {i + 1} of {len(positions)} has not converged: residual "
                f"{float(reference.scf.residual):.1e}. Leave it out, or look at the geometry.",
                residual=float(reference.scf.residual),
                cycles=int(reference.scf.cycles),
            )
        states = jax.device_get(states)
        errors = [
            _errors(family, {name: x[k] for name, x in states.items()}, reference)
            for k in range(MAX_STEPS + 1)
        ]
        force = jnp.mean(jnp.abs(predicted_gradient - reference.gradient))
        rows.append(
            {
                "steps": errors,
                "force_mae": float(force),
                "scf_cycles_guess": int(reference.scf.cycles),
                "scf_cycles_model": int(reference.cycles_model),
                "error_estimate": float(prediction.error_estimate),
            }
        )
        report(i + 1)
    return _summary(rows)


def _summary(rows):
    def mean(values):
        return float(np.mean(list(values)))

    names = list(rows[0]["steps"][0])
    table = {
        name: [mean(row["steps"][k][name] for row in rows) for k in range(MAX_STEPS + 1)]
        for name in names
    }
    energies = [row["steps"][0]["energy_mae"] for row in rows]
    return {
        "n": len(rows),
        **{name: values[0] for name, values in table.items()},
        "force_mae": mean(row["force_mae"] for row in rows),
        "energy_max": max(energies),
        "error_estimate": mean(row["error_estimate"] for row in rows),
        "scf_cycles_guess": mean(row["scf_cycles_guess"] for row in rows),
        "scf_cycles_model": mean(row["scf_cycles_model"] for row in rows),
        "after_steps": {"steps": list(range(MAX_STEPS + 1)), **table},
    }


@program
def _predict(family, model, positions):
    """States after 0, 1, ... SCF steps, the total gradient, and the prediction."""
    prediction = family.predict(model, positions)
    gradient = jax.grad(family.energy_fn, argnums=1)(model, positions)
    hamiltonian = family.place(positions).hamiltonian

    def step(factor, _):
        energy, fock = hamiltonian.energy_and_fock(factor)
        mo_coeff, mo_energy = orbitals(fock, hamiltonian.overlap)
        dipole = _dipole(family, positions, hamiltonian.dipole, qchem.density_matrix(factor))
        state = {"energy": energy, "fock": fock, "dipole": dipole}
        state |= {"mo_coeff": mo_coeff, "mo_energy": mo_energy}
        return _occupied(mo_coeff, family.nocc), state

    _, states = jax.lax.scan(step, prediction.factor, length=MAX_STEPS + 1)
    return states, gradient, prediction


@program
def _solve(family, positions, fock):
    """The reference, from the atomic guess; and how long it takes from the prediction's matrix."""
    hamiltonian, guess = family.method.hamiltonian(positions)
    guesses = jnp.stack([jnp.broadcast_to(guess, fock.shape), fock])
    both = jax.lax.map(lambda guess: qchem.solve(hamiltonian, family.nocc, guess), guesses)
    scf = jax.tree.map(lambda x: x[0], both)
    return Reference(
        scf=scf,
        cycles_model=both.cycles[1],
        overlap=hamiltonian.overlap,
        dipole=_dipole(family, positions, hamiltonian.dipole, scf.dm),
        gradient=family.held(scf.factor, positions)[1],
    )


def _dipole(family, positions, matrices, dm):
    charges = jnp.asarray(family.method.charges, positions.dtype)
    return qchem.dipole_moment(charges, positions, matrices, dm)


def _occupied(mo_coeff, nocc):
    occupied = np.arange(max(nocc))[None, :] < np.asarray(nocc)[:, None]
    return mo_coeff[:, :, : max(nocc)] * jnp.asarray(
        occupied[:, None] * (2 / len(nocc)) ** 0.5, mo_coeff.dtype
    )


def _errors(family, step, reference) -> dict[str, float]:
    scf, nocc = reference.scf, family.nocc
    exists = np.isfinite(scf.mo_energy) & np.isfinite(step["mo_energy"])
    occupied = np.arange(exists.shape[1])[None, :] < np.asarray(nocc)[:, None]
    predicted, converged = step["mo_energy"], np.asarray(scf.mo_energy)
    difference = np.abs(np.where(exists, predicted, 0) - np.where(exists, converged, 0))
    change = _frontier(predicted, nocc) - _frontier(converged, nocc)
    overlaps = np.einsum(
        "sai,ab,sbi->si", step["mo_coeff"], reference.overlap, np.asarray(scf.mo_coeff)
    )
    return {
        "energy_mae": float(np.abs(step["energy"] - scf.energy)),
        "fock_mae": float(np.mean(np.abs(step["fock"] - scf.fock))),
        "orbital_energy_mae": float(np.mean(difference[exists])),
        "occupied_orbital_energy_mae": float(np.mean(difference[occupied])),
        "homo_mae": float(abs(change[0])),
        "lumo_mae": float(abs(change[1])),
        "gap_mae": float(abs(change[1] - change[0])),
        "dipole_mae": float(np.mean(np.abs(step["dipole"] - reference.dipole))),
        "occupied_cosine": float(np.mean(np.abs(overlaps)[occupied])),
    }


def _frontier(mo_energy, nocc):
    """Highest occupied and lowest virtual orbital energy of all spins; not a number if there
    is none."""
    below = [e[n - 1] for e, n in zip(mo_energy, nocc, strict=True) if n]
    above = [e[n] for e, n in zip(mo_energy, nocc, strict=True) if n < e.size]
    above = [e for e in above if np.isfinite(e)]
    return np.array([max(below), min(above) if above else np.nan])


def table(report: dict[str, Any]) -> Any:
    """The report as a table to print: raw predictions and those after SCF steps."""
    from rich.table import Table

    title = f"{report['n']} geometries: mean absolute errors against converged SCF"
    shown = Table(title=title)
    for column in ("", "prediction", *(f"{k} SCF steps" for k in range(1, MAX_STEPS + 1)), "unit"):
        shown.add_column(column, justify="left" if column in ("", "unit") else "right")
    for name, unit in ERRORS.items():
        label = (
            name.removesuffix("_mae").replace("_", " ").replace("occupied orbital", "occ. orbital")
        )
        values = report["after_steps"].get(name, [report[name]])
        style = ".6f" if name == "occupied_cosine" else ".2e"
        cells = [format(value, style) for value in values]
        cells += [""] * (MAX_STEPS + 1 - len(cells))
        shown.add_row(label, *cells, unit)
    shown.caption = (
        f"largest energy error {report['energy_max']:.1e}, mean estimate without labels "
        f"{report['error_estimate']:.1e} hartree; SCF cycles {report['scf_cycles_guess']:.1f} "
        f"from the atomic guess, {report['scf_cycles_model']:.1f} from the prediction"
    )
    return shown
