"""A network from geometries straight to orbital coefficients, as the reference implementation has.

For comparison (arXiv 2506.01225; github.com/majhas/self-refining-dft): atoms exchange messages that
depend on where they are, each atom's last state gives the rows of its AOs, and the columns are made
orthonormal: C = S^(-1/2) Q with Q from a QR decomposition. There is no guess density and no
operator: all that is known of the molecule must be learned. Positions enter as they are, so that
neither rotations nor reflections leave the energy unchanged. Closed shells.
"""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from srdft.family import MoleculeFamily, Orbitals, PlacedMolecule
from srdft.model import AbstractOrbitalModel


class DirectOrbitals(AbstractOrbitalModel):
    """Rounds of messages between atoms, then coefficients row by row."""

    elements: tuple[int, ...] = eqx.field(static=True)
    embedding: eqx.nn.Linear
    messages: tuple[eqx.nn.MLP, ...]
    updates: tuple[eqx.nn.MLP, ...]
    heads: tuple[eqx.nn.Linear, ...]

    @classmethod
    def build(
        cls,
        families: Sequence[MoleculeFamily],
        *,
        width: int = 32,
        layers: int = 2,
        key: PRNGKeyArray,
    ) -> DirectOrbitals:
        """Random parameters.

        Args:
            families: With one number of occupied orbitals.
            width: Length of the state of an atom.
            layers: Rounds of messages.
        """
        (nocc,) = {nocc for family in families for nocc in family.nocc}
        functions = {
            number: sum(shell.size for shell in family.shells if shell.atom == atom)
            for family in families
            for atom, number in enumerate(family.numbers)
        }
        elements = tuple(sorted(functions))
        keys = iter(jax.random.split(key, 1 + 2 * layers + len(elements)))

        def mlp(size):
            return eqx.nn.MLP(size, width, width, 1, jax.nn.silu, key=next(keys))

        return cls(
            elements,
            eqx.nn.Linear(len(elements) + 3, width, key=next(keys)),
            tuple(mlp(2 * width + 4) for _ in range(layers)),
            tuple(mlp(2 * width) for _ in range(layers)),
            tuple(eqx.nn.Linear(width, functions[z] * nocc, key=next(keys)) for z in elements),
        )

    def orbitals(self, molecule: PlacedMolecule) -> Orbitals:
        """Orthonormal orbitals; differentiable in the parameters alone."""
        overlap = jax.lax.stop_gradient(molecule.hamiltonian.overlap)
        (nocc,) = molecule.family.nocc
        values, vectors = jnp.linalg.eigh(overlap)
        root = (vectors / jnp.sqrt(values)[None]) @ vectors.T
        rows = self._rows(molecule.family, molecule.positions).reshape(overlap.shape[0], nocc)
        occupied, _ = jnp.linalg.qr(rows)
        every, _ = jnp.linalg.qr(jax.lax.stop_gradient(rows), mode="complete")
        return Orbitals(2**0.5 * (root @ occupied)[None], (root @ every)[None])

    def _rows(self, family, positions) -> Float[Array, " n"]:
        centred = positions - jnp.mean(positions, axis=0, keepdims=True)
        known = np.asarray(family.numbers)[:, None] == np.asarray(self.elements)[None]
        state = jnp.concatenate([jnp.asarray(known, positions.dtype), centred], axis=1)
        state = jax.vmap(self.embedding)(state)
        natom = len(family.numbers)
        apart = centred[None] - centred[:, None]
        distance = jnp.sqrt(jnp.sum(apart**2, axis=-1, keepdims=True) + 1e-6)
        for message, update in zip(self.messages, self.updates):
            pairs = [
                jnp.broadcast_to(x, (natom, natom, x.shape[-1]))
                for x in (state[:, None], state[None])
            ]
            told = jax.vmap(jax.vmap(message))(jnp.concatenate([*pairs, apart, distance], axis=-1))
            both = jnp.concatenate([state, jnp.sum(told, axis=1)], axis=1)
            state = state + jax.vmap(update)(both)
        heads = dict(zip(self.elements, self.heads))
        return jnp.concatenate([heads[z](x) for z, x in zip(family.numbers, state)])
