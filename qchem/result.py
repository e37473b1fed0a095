"""The result of one calculation, with what can be computed from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Float

from qchem.errors import InputError
from qchem.fitted_jk import Fit
from qchem.memory import check_memory
from qchem.molecule import Molecule
from qchem.padding import Padded
from qchem.properties import dipole_moment
from qchem.scf.converge import curvature
from qchem.scf.hamiltonian import ENERGIES, Hamiltonian, Method
from qchem.scf.orbitals import (
    OVERLAP_THRESHOLD,
    slope_of_kept_space,
    slope_of_orthonormality,
    spin_square,
)
from qchem.scf.solve import SCFResult
from qchem.scf.stability import UNSTABLE


@dataclass(frozen=True)
class Stability:
    """Lowest second derivatives of the energy along rotations of the orbitals, hartree.

    Attributes:
        internal: Among orbitals of the same kind; infinite where there is nothing to rotate.
        external: For a closed shell, where the two spins may rotate apart; else None.
        stable: Whether the solution is a minimum among orbitals of the same kind.
    """

    internal: float
    external: float | None
    stable: bool


class Result:
    """A finished calculation, in hartree and bohr.

    Attributes:
        molecule, method: What was calculated, and how.
        scf: The state of the SCF.
        energy: Total energy.
        energies: Its parts: nuclear, one_electron, coulomb, exchange, xc and, where the functional
            has it, dispersion.
        converged, cycles, residual: Of the SCF; the residual is max|FDS - SDF|.
        dipole: e bohr, about the origin of the coordinates.
        homo, lumo: Orbital energies; one per spin if unrestricted; None where there is no orbital.
        s2: Expectation value of S².
        free_energy: `energy` less kT times the electrons' entropy, where the occupation is smeared.
        stages: What was done to converge: methods in turn, their cycles, and where they ended.
        nao, nelectron: Numbers of basis functions and electrons.
        mo_coeff, mo_energy, mo_occ, dm: With the spin axis leading.
        settings, timings: What was calculated and how long it took, s.
    """

    def __init__(
        self,
        molecule: Molecule,
        padded: Padded,
        hamiltonian: Hamiltonian,
        scf: SCFResult,
        energies: Mapping[str, Array],
        settings: dict[str, Any],
        timings: dict[str, float],
        fitted: tuple[Fit, ...] | None = None,
    ):
        self.molecule, self.scf, self._padded = molecule, scf, padded
        self.method: Method = padded.alone
        self._fitted, self._forces = fitted, None
        self.stages: list[dict[str, Any]] = settings.get("stages", [])
        self.free_energy = float(scf.energy - settings.get("smearing", 0.0) * scf.entropy)
        self.energy = float(scf.energy)
        self.energies = {name: float(energies[name]) for name in ENERGIES if name in energies}
        self.converged = bool(scf.converged)
        self.cycles, self.residual = int(scf.cycles), float(scf.residual)
        self.mo_coeff, self.mo_energy = np.asarray(scf.mo_coeff), np.asarray(scf.mo_energy)
        self.mo_occ, self.dm = np.asarray(scf.mo_occ), np.asarray(scf.dm)
        self.nao, self.nelectron = padded.nao, molecule.nelectron
        self.settings, self.timings = settings, timings
        frontier = [_frontier(e, n) for e, n in zip(self.mo_energy, self.mo_occ, strict=True)]
        homo, lumo = (list(values) for values in zip(*frontier, strict=True))
        self.homo, self.lumo = (homo, lumo) if len(homo) == 2 else (homo[0], lumo[0])
        matrices = np.asarray(hamiltonian.dipole)[:, : self.nao, : self.nao]
        self.dipole = dipole_moment(self.method.charges, molecule.positions, matrices, self.dm)
        self._overlap = np.asarray(hamiltonian.overlap)[: self.nao, : self.nao]
        self.s2 = 0.0 if len(self.dm) == 1 else float(spin_square(scf.factor, self._overlap))

    def forces(self) -> Float[np.ndarray, "natom 3"]:
        """-dE/dR of the computed energy, basis and grid response included, hartree/bohr.

        With smearing, of `free_energy`.

        Raises:
            ConvergenceError: The SCF has not converged: its energy is not stationary.
            NotEnoughMemoryError: More memory is needed than there is, by an estimate.
        """
        self.scf.require_converged()
        if self._forces is not None:
            return self._forces.copy()
        nocc = (self.scf.factor.shape[2],) * len(self.dm)
        check_memory(self.method, nocc, forces=True, itemsize=self.dm.dtype.itemsize)
        start = perf_counter()
        fitted, self._fitted = self._fitted, None
        of_overlap = slope_of_orthonormality(self.scf.fock, self.scf.mo_coeff, self.mo_occ)
        if not np.isfinite(self.mo_energy).all():  # directions have been left out
            matrices = self._overlap, self.scf.fock, self.dm
            threshold = self.settings.get("overlap_threshold", OVERLAP_THRESHOLD)
            of_overlap = of_overlap + np.asarray(slope_of_kept_space(*matrices, threshold))
        orbitals = self.scf.factor, of_overlap
        self._forces = -self._padded.gradient(self.molecule.positions, *orbitals, fitted)
        self.timings["forces"] = perf_counter() - start
        return self._forces.copy()

    def stability(self) -> Stability:
        """Whether the solution is a minimum, by the lowest eigenvalues of the orbital Hessian.

        What an instability leads to: `energy(..., follow_instability=True)`, with
        `unrestricted=True` for an external one.

        Raises:
            ConvergenceError: The SCF has not converged.
            InputError: The occupation is fractional.
        """
        self.scf.require_converged()
        if self.settings.get("smearing"):
            raise InputError("stability is that of whole occupation: leave smearing out.")
        hamiltonian, _ = self._padded.hamiltonian(self.molecule.positions)
        nocc = tuple(int(round(n.sum() * len(self.mo_occ) / 2)) for n in self.mo_occ)
        here = hamiltonian, self._padded.grown(self.scf, nocc), self._padded.occupied(nocc)
        internal = float(curvature(*here).eigenvalue)
        external = None
        if len(nocc) == 1:
            external = float(curvature(*here, True).eigenvalue)
        return Stability(internal, external, internal >= UNSTABLE)

    def require_converged(self) -> Result:
        """This result, or `ConvergenceError`."""
        self.scf.require_converged()
        return self


def _frontier(mo_energy, mo_occ):
    occupied, exists = mo_occ > 0, np.isfinite(mo_energy)
    below, above = mo_energy[occupied], mo_energy[~occupied & exists]
    return float(below.max()) if below.size else None, float(above.min()) if above.size else None
