"""Self-refining training of amortized density functional theory.

Not written yet: this package holds the version of the distribution and nothing else. What works
today is `qchem`, the quantum chemistry that the training will stand on.
"""

__version__ = "0.1.0"
