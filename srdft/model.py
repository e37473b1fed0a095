"""Models: positions to orthonormal orbitals, exactly symmetric by construction."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from qchem import InputError
from srdft.family import MoleculeFamily, Orbitals, PlacedMolecule
from srdft.network import AbstractFeatures, Constant
from srdft.operators import (
    BlockClasses,
    mix,
    operator_names,
    operator_scales,
    operators,
    shell_of_ao,
    shell_order,
)
from srdft.orbitals import occupied_orbitals, orbitals

KEPT = 0.5  # of the Fock matrix before; full steps of the self-consistent field diverge


class AbstractOrbitalModel(eqx.Module):
    """Positions to orthonormal orbitals."""

    @abc.abstractmethod
    def orbitals(self, molecule: PlacedMolecule) -> Orbitals:
        """Orthonormal orbitals of a family's molecule at one geometry."""

    def __call__(self, family: MoleculeFamily, positions: Float[Array, "natom 3"]) -> Orbitals:
        """Orthonormal orbitals at positions, bohr."""
        return self.orbitals(family.place(positions))


class Steps(eqx.Module):
    """What the learned steps did, one after another along the leading axis.

    Attributes:
        operators, features: What was added, and what its weights depend on.
        fock: The mixtures, which `mo_coeff` solve.
        factor: Occupied orbitals times the root of their occupation.
        mo_coeff: All orbitals.
    """

    operators: Float[Array, "nstep nspin nop nao nao"]
    features: Float[Array, "nshell nshell nfeature"]
    fock: Float[Array, "nstep nspin nao nao"]
    factor: Float[Array, "nstep nspin nao nocc"]
    mo_coeff: Float[Array, "nstep nspin nao nmo"]


class OperatorMixture(AbstractOrbitalModel):
    """Operators of a guess density, mixed block by block with learned numbers.

    F = F[P] + sum_k w_k(c) O_k, with P superposed atoms in the first step and the density of the
    step before in others, where F[P] counts half and the mixture that gave P the other half. c is
    the class of a block of shells, and each w_k(c) a linear function of invariant features of the
    block's atoms. Every block is multiplied by a number that no rotation, reflection, translation
    or other order of the atoms changes, so the energy does not change either, whatever the
    weights. With weights of zero these are damped steps of the self-consistent field.

    Attributes:
        classes: Of shell pairs, over all families.
        operator_names: In the order of the weights.
        features: What weights depend on.
        weights: Of each step.
    """

    classes: BlockClasses
    operator_names: tuple[str, ...] = eqx.field(static=True)
    features: AbstractFeatures
    weights: Float[Array, "nstep nspin nclass nop nfeature"]

    @classmethod
    def build(
        cls,
        families: Sequence[MoleculeFamily],
        features: AbstractFeatures | None = None,
        *,
        steps: int = 1,
        dtype: DTypeLike = float,
    ) -> OperatorMixture:
        """Weights of zero for the given families.

        Args:
            families: All that the model will ever see; they share basis set and functional.
            features: By default constants.
            steps: Number of learned steps; each takes a Fock matrix.
            dtype: Of the weights; by default the widest that JAX is set to.

        Raises:
            InputError: Families that cannot share a model, or no step.
        """
        if steps < 1:
            raise InputError(f"steps = {steps}; a model has at least one learned step.")
        classes = BlockClasses.build(families)
        names = [operator_names(family.method.functional) for family in families]
        if any(other != names[0] for other in names):
            raise InputError(
                "families of one model must share the kind of functional: exact exchange and "
                "a density functional, in all of them or in none."
            )
        features = Constant() if features is None else features
        nspin = max(len(family.nocc) for family in families)
        shape = (steps, nspin, classes.size, len(names[0]), features.size)
        return cls(classes, names[0], features, jnp.zeros(shape, dtype))

    def orbitals(self, molecule: PlacedMolecule) -> Orbitals:
        """Orbitals of the last step."""
        last = jax.tree.map(lambda x: x[-1], self._run(molecule)[1:])
        return Orbitals(*last)

    def steps(self, molecule: PlacedMolecule) -> Steps:
        """Everything that the learned steps did."""
        (operators, fock), factor, mo_coeff = self._run(molecule)
        return Steps(
            operators,
            self.shell_features(molecule.family, molecule.positions),
            fock,
            factor,
            mo_coeff,
        )

    def _run(self, molecule):
        family, hamiltonian = molecule.family, molecule.hamiltonian
        dtype, nocc = molecule.positions.dtype, family.nocc
        overlap = hamiltonian.overlap
        features = self.shell_features(molecule.family, molecule.positions)
        ao, index = shell_of_ao(family), self.classes.index(family)
        scales = operator_scales(family, self.operator_names, hamiltonian.kinetic)
        guess = jnp.asarray(family.guess_factor, dtype)
        ncolumn = max(guess.shape[-1], *nocc)

        def widened(factor):
            return jnp.pad(factor, ((0, 0), (0, 0), (0, ncolumn - factor.shape[-1])))

        def step(carry, weights):
            factor, before, damping = carry
            fock = hamiltonian.fock(factor)
            next_factor = occupied_orbitals(fock, overlap, *orbitals(fock, overlap), nocc)
            change = damping * (fock - before)
            known = operators(hamiltonian, factor, fock, next_factor, change) * scales[None]
            chosen = weights[: len(nocc)].astype(dtype)[:, index]
            mixed = jnp.einsum("sabkf,abf->skab", chosen, features, precision="highest")
            fock = fock - KEPT * change + mix(mixed, known, ao)
            mo_coeff, mo_energy = orbitals(fock, overlap)
            factor = occupied_orbitals(fock, overlap, mo_coeff, mo_energy, nocc)
            carry = widened(factor), fock, jnp.ones_like(damping)
            return carry, ((known, fock), factor, mo_coeff)

        nothing = jnp.zeros((len(nocc), *overlap.shape), dtype)
        first = widened(guess), nothing, jnp.zeros((), dtype)
        return jax.lax.scan(step, first, self.weights)[1]

    def shell_features(
        self, family: MoleculeFamily, positions: Float[Array, "natom 3"]
    ) -> Float[Array, "nshell nshell nfeature"]:
        """Features of the atoms of each pair of shells; symmetric in the pair.

        Between two atoms odd features are multiplied by the order of the shells.
        """
        atom = jnp.asarray([shell.atom for shell in family.shells], jnp.int32)
        features = self.features(family, positions)[atom[:, None], atom[None, :]]
        order = jnp.asarray(shell_order(family), features.dtype)[:, :, None]
        odd = jnp.asarray(self.features.odd)[None, None, :]
        apart = (atom[:, None] != atom[None, :])[:, :, None]
        return features * jnp.where(odd & apart, order, 1)
