"""ASE calculator: energies, forces and dipole moments for relaxations and dynamics in ASE."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

from ase import Atoms
from ase.calculators.calculator import Calculator as AbstractCalculator
from ase.calculators.calculator import all_changes
from ase.units import Bohr, Hartree

from qchem.calculation import energy, resolved_options
from qchem.errors import InputError
from qchem.molecule import Molecule
from qchem.result import Result

_NAMED = {*inspect.signature(energy).parameters} - {"molecule", "scf_options"}


class Calculator(AbstractCalculator):
    """Kohn-Sham or Hartree-Fock calculations for ASE, in eV, Å and e Å.

    Programs are compiled for the first geometry of a molecule alone; every later one starts from
    the orbitals of the one before. The positions are float64, which needs
    `jax.config.update("jax_enable_x64", True)` in the program.

    Attributes:
        result: The last `qchem.Result`, in hartree and bohr; None before the first.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "dipole"]
    default_parameters: ClassVar[dict[str, Any]] = {
        "basis": "def2-svp",
        "xc": "b3lyp",
        "charge": 0,
        "multiplicity": 1,
    }

    def __init__(self, atoms: Atoms | None = None, **parameters: Any):
        """A calculator with the settings of `qchem.energy`.

        Args:
            atoms: To attach it to at once.
            **parameters: `charge` and `multiplicity` of the molecule, and what `qchem.energy`
                takes: `basis`, `xc`, `two_electron`, `grid`, `tolerance`, ...

        Raises:
            InputError: A parameter that `qchem.energy` does not know.
        """
        self.result: Result | None = None
        super().__init__(atoms=atoms, **parameters)

    def set(self, **parameters: Any) -> dict[str, Any]:
        """Change parameters; what was calculated with others is forgotten."""
        known = _NAMED.union(self.default_parameters)
        resolved_options({name: value for name, value in parameters.items() if name not in known})
        changed = super().set(**parameters)
        if changed:
            self.reset()
            self.result = None
        return changed

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results`; ASE calls it where a property is asked for that is not known.

        Raises:
            InputError: Periodic atoms, or whatever `qchem.energy` refuses.
            ConvergenceError: No solution, neither from the last orbitals nor from atoms.
        """
        super().calculate(atoms, properties, system_changes)
        if self.atoms.pbc.any():
            raise InputError("atoms are periodic; qchem calculates molecules: atoms.pbc = False.")
        if self.result is None or {"positions", "numbers"} & {*system_changes}:
            # Until it succeeds there is none: ASE would take an older one for that of these atoms.
            before, self.result = self.result, None
            self.result = self._converged(before)
        result = self.result
        self.results["energy"] = result.energy * Hartree
        self.results["free_energy"] = result.free_energy * Hartree
        self.results["dipole"] = result.dipole * Bohr
        if "forces" in properties:
            self.results["forces"] = result.forces() * (Hartree / Bohr)

    def _converged(self, before: Result | None) -> Result:
        parameters = dict(self.parameters)
        molecule = Molecule.from_arrays(
            self.atoms.numbers,
            self.atoms.positions / Bohr,
            unit="bohr",
            charge=parameters.pop("charge"),
            multiplicity=parameters.pop("multiplicity"),
        )
        if before is not None and before.molecule.numbers == molecule.numbers:
            again = energy(molecule, **parameters | {"guess": before})
            if again.converged:
                return again
        return energy(molecule, **parameters).require_converged()
