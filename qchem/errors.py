"""Errors that a caller can act on; everything else is a plain Python exception."""


class QChemError(Exception):
    """Base of all errors raised by qchem."""


class InputError(QChemError, ValueError):
    """The input is wrong: nothing has been computed yet (exit code 2)."""


class MoleculeError(InputError):
    """Elements, coordinates, charge or multiplicity that make no molecule."""


class BasisError(InputError):
    """A basis set that cannot be read or used."""


class BasisNotFoundError(BasisError):
    """No basis set of this name, or none of its shells for an element present."""


class FunctionalNotFoundError(InputError):
    """No exchange-correlation functional of this name."""


class NotEnoughMemoryError(InputError):
    """A calculation that this machine's memory would not hold.

    Args:
        message: What would be needed, what there is, and what would fit.
        needed, available: Bytes.
    """

    def __init__(self, message: str, *, needed: int, available: int):
        super().__init__(message)
        self.needed = needed
        self.available = available


class ConvergenceError(QChemError):
    """An iteration stopped before its thresholds were met (exit code 1).

    Args:
        message: What stopped, and what to try.
        residual: Largest element of the residual at the last cycle.
        cycles: Number of cycles done.
    """

    def __init__(self, message: str, *, residual: float, cycles: int):
        super().__init__(message)
        self.residual = residual
        self.cycles = cycles
