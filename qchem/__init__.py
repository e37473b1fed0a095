"""Differentiable quantum chemistry in JAX: integrals, functionals, grids, SCF.

A name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qchem.basis.layout import Basis
    from qchem.batches import Energies, energies
    from qchem.calculation import energy, energy_fn
    from qchem.compilation import platform, program, traced_for
    from qchem.devices import map_geometries, sum_geometries, use_cores
    from qchem.energy_function import EnergyFunction, Relaxed
    from qchem.errors import ConvergenceError, InputError, NotEnoughMemoryError, QChemError
    from qchem.grids import Grid
    from qchem.molecule import SYMBOLS, Molecule
    from qchem.properties import dipole_moment, gradient, moments
    from qchem.result import Result, Stability
    from qchem.scf.guess import atomic_densities
    from qchem.scf.hamiltonian import Hamiltonian, Method
    from qchem.scf.orbitals import canonical_orthogonalizer, density_matrix, diagonalize
    from qchem.scf.solve import SCFResult, solve
    from qchem.units import BOHR_IN_ANGSTROM, HARTREE_IN_KELVIN
    from qchem.xc.functional import Functional
    from qchem.xc.functionals.density import SpinDensity
    from qchem.xc.learned import EnhancementNetwork, LearnedFunctional, load_functional

__all__ = [
    "BOHR_IN_ANGSTROM",
    "Basis",
    "ConvergenceError",
    "Energies",
    "EnergyFunction",
    "EnhancementNetwork",
    "Functional",
    "Grid",
    "HARTREE_IN_KELVIN",
    "Hamiltonian",
    "InputError",
    "LearnedFunctional",
    "Method",
    "Molecule",
    "NotEnoughMemoryError",
    "QChemError",
    "Relaxed",
    "Result",
    "SCFResult",
    "SYMBOLS",
    "SpinDensity",
    "Stability",
    "atomic_densities",
    "canonical_orthogonalizer",
    "density_matrix",
    "diagonalize",
    "dipole_moment",
    "energies",
    "energy",
    "energy_fn",
    "gradient",
    "load_functional",
    "map_geometries",
    "moments",
    "platform",
    "program",
    "solve",
    "sum_geometries",
    "traced_for",
    "use_cores",
]
_MODULES = {
    "qchem.basis.layout": "Basis",
    "qchem.batches": "Energies energies",
    "qchem.calculation": "energy energy_fn",
    "qchem.compilation": "platform program traced_for",
    "qchem.devices": "map_geometries sum_geometries use_cores",
    "qchem.energy_function": "EnergyFunction Relaxed",
    "qchem.errors": "ConvergenceError InputError NotEnoughMemoryError QChemError",
    "qchem.grids": "Grid",
    "qchem.molecule": "SYMBOLS Molecule",
    "qchem.properties": "dipole_moment gradient moments",
    "qchem.result": "Result Stability",
    "qchem.scf.guess": "atomic_densities",
    "qchem.scf.hamiltonian": "Hamiltonian Method",
    "qchem.scf.orbitals": "canonical_orthogonalizer density_matrix diagonalize",
    "qchem.scf.solve": "SCFResult solve",
    "qchem.units": "BOHR_IN_ANGSTROM HARTREE_IN_KELVIN",
    "qchem.xc.functional": "Functional",
    "qchem.xc.functionals.density": "SpinDensity",
    "qchem.xc.learned": "EnhancementNetwork LearnedFunctional load_functional",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # the next time there is no call
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
