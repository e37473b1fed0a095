"""Energy densities of exchange and correlation: pure mathematics, a file per family.

Each function is named by its libxc identifier, takes a `SpinDensity` and returns the energy per
volume, hartree/bohr³. Numerical constants are those of libxc 7. `qchem/xc/functional.py` lists
them and builds functionals out of them.
"""
