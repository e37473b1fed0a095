"""The first Fock matrix: electrons in a superposition of atomic potentials."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float

_SET = "sap_helfem_large"


@lru_cache(maxsize=64)
def _screening(number: int) -> tuple[np.ndarray, np.ndarray]:
    import basis_set_exchange

    element = basis_set_exchange.get_basis(_SET, elements=[number])["elements"][str(number)]
    (shell,) = element["electron_shells"]
    exponents = np.array(shell["exponents"], dtype=float)
    return np.array(shell["coefficients"][0], dtype=float), 1.0 / exponents


def screened_charges(
    numbers: Sequence[int],
) -> tuple[Float[np.ndarray, "natom nprim"], Float[np.ndarray, "natom nprim"]]:
    """Charges and widths (1/exponent, bohr²) of each atom's nucleus and of its electrons.

    Electrons as Gaussian charges fitted to the effective potential of the free atom: Lehtola,
    Visscher & Engel, J. Chem. Phys. 152, 144105 (2020). The first column is the nucleus, a point.
    """
    atoms = [_screening(number) for number in numbers]
    depth = 1 + max(charge.size for charge, _ in atoms)
    charges = np.zeros((len(atoms), depth))
    widths = np.ones((len(atoms), depth))
    for row, (number, (charge, width)) in enumerate(zip(numbers, atoms, strict=True)):
        charges[row, : charge.size + 1] = [number, *charge]
        widths[row, : charge.size + 1] = [0.0, *width]
    return charges, widths
