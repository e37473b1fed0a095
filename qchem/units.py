"""Conversion factors from atomic units; CODATA 2018 recommended values.

Source: E. Tiesinga, P. J. Mohr, D. B. Newell, B. N. Taylor, Rev. Mod. Phys. 93, 025010 (2021).
Inside the library everything is in atomic units; these serve files and printed results only.
"""

BOHR_IN_ANGSTROM = 0.529177210903
HARTREE_IN_EV = 27.211386245988
HARTREE_IN_KELVIN = 315775.02480407
HARTREE_IN_KCAL_PER_MOL = 627.5094740631
HARTREE_IN_KJ_PER_MOL = 2625.4996394799
HARTREE_IN_INVERSE_CM = 219474.63136320
ATOMIC_DIPOLE_IN_DEBYE = 2.541746473
DALTON_IN_ELECTRON_MASS = 1822.888486209
