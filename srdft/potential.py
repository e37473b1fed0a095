"""The energy that is sampled, with the gradient that proposes moves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float


class AbstractPotential(eqx.Module):
    """The energy that is sampled, and the gradient that proposes moves.

    The gradient need not be the derivative of the energy: kernels with an accept step sample
    exp(-beta energy) whatever it is.
    """

    @abstractmethod
    def energy(self, model: Any, positions: Float[Array, "natom 3"]) -> Float[Array, ""]:
        """Hartree."""

    @abstractmethod
    def energy_and_gradient(
        self, model: Any, positions: Float[Array, "natom 3"]
    ) -> tuple[Float[Array, ""], Float[Array, "natom 3"]]:
        """Hartree and hartree/bohr."""


class TotalDrift(AbstractPotential):
    """With the total derivative of the energy.

    Attributes:
        energy_fn: (model, positions) -> hartree.
    """

    energy_fn: Callable[[Any, Array], Array]

    def energy(self, model, positions):
        return self.energy_fn(model, positions)

    def energy_and_gradient(self, model, positions):
        return jax.value_and_grad(self.energy_fn, argnums=1)(model, positions)


class HeldDrift(AbstractPotential):
    """With the derivative at held orbitals, which are only kept orthonormal.

    It costs less than the total derivative and differs from it by what the predicted orbitals are
    short of stationary.

    Attributes:
        family: A `MoleculeFamily`.
    """

    family: Any

    def energy(self, model, positions):
        return self.family.energy_fn(model, positions)

    def energy_and_gradient(self, model, positions):
        orbitals = model.orbitals(self.family.place(positions))
        return self.family.held(orbitals.factor, positions)
