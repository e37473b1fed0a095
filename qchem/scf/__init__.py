"""Self-consistent field: orbitals, the energy as a function of them, the fixed point."""

from qchem.scf.orbitals import (
    canonical_orthogonalizer,
    density_matrix,
    diagonalize,
    occupation_numbers,
    orbital_factor,
    reorthonormalize,
    spin_square,
)
from qchem.scf.solve import SCFResult, solve

__all__ = [
    "SCFResult",
    "canonical_orthogonalizer",
    "density_matrix",
    "diagonalize",
    "occupation_numbers",
    "orbital_factor",
    "reorthonormalize",
    "solve",
    "spin_square",
]
