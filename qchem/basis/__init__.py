"""Gaussian basis sets: where they come from, how they are laid out, their values at points."""

from qchem.basis.evaluate import evaluate_ao
from qchem.basis.layout import Basis, ShellBatch
from qchem.basis.library import default_auxiliary

__all__ = ["Basis", "ShellBatch", "default_auxiliary", "evaluate_ao"]
