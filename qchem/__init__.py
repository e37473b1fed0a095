"""Differentiable quantum chemistry in JAX: integrals, functionals, grids, SCF."""

from qchem.basis.layout import Basis
from qchem.calculation import EnergyFunction, Result, energy, energy_fn
from qchem.errors import ConvergenceError, InputError, QChemError
from qchem.grids import Grid
from qchem.molecule import Molecule
from qchem.xc.functional import Functional

__all__ = [
    "Basis",
    "ConvergenceError",
    "EnergyFunction",
    "Functional",
    "Grid",
    "InputError",
    "Molecule",
    "QChemError",
    "Result",
    "energy",
    "energy_fn",
]
