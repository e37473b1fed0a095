"""Gaussian integrals as pure functions of positions, exponents and coefficients."""

from qchem.integrals.assemble import (
    dipole,
    eri,
    eri_2c,
    eri_3c,
    kinetic,
    nuclear_attraction,
    overlap,
    second_moment,
)

__all__ = [
    "dipole",
    "eri",
    "eri_2c",
    "eri_3c",
    "kinetic",
    "nuclear_attraction",
    "overlap",
    "second_moment",
]
