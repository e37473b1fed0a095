"""Differentiable quantum chemistry in JAX: integrals, functionals, grids, SCF."""

from qchem.basis.layout import Basis
from qchem.calculation import energy, energy_fn
from qchem.compilation import platform, program, traced_for
from qchem.energy_function import EnergyFunction, Relaxed
from qchem.errors import ConvergenceError, InputError, QChemError
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
    "energy",
    "energy_fn",
    "gradient",
    "load_functional",
    "moments",
    "platform",
    "program",
    "solve",
    "traced_for",
]
