"""Self-refining training of amortized density functional theory, on `qchem`.

A model predicts the orbitals of any conformation of a molecule family. It is trained without labels
on the variational energy of its own predictions, at geometries that chains sample from its own
Boltzmann distribution. The `srdft` command does it from a configuration file; from Python,
`srdft.experiment.Experiment` builds what `srdft.session.Session` runs, and
`srdft.family.MoleculeFamily` and `srdft.model.OperatorMixture` stand alone.
"""

__version__ = "0.1.0"
