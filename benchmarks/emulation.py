"""The reference implementation's rules of sampling, in our code, for comparison.

From github.com/majhas/self-refining-dft (src/sampling/mcmc.py, src/models/components/energy.py):

- Its target is exp(-E) with E in hartree: kT = 1 hartree.
- Its force differentiates the repulsion of the nuclei and what the network makes of positions.
  Overlap, core Hamiltonian, two-electron integrals, quadrature points and the AOs there are
  constants.
- After every transition the step size is multiplied by 1.1 where more than 0.55 of the proposals
  were accepted, divided by 1.1 where fewer than 0.5 were, and never frozen.
- Every turn of the chains begins at stored geometries.

What our model makes of positions is its features; its operators are made of integrals, and are held
with them. A model whose weights are constants has no features that move, so that its force is the
repulsion of the nuclei alone. All chains share a step size, adapted to their mean probability of
acceptance, where the reference has one chain.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qchem import HARTREE_IN_KELVIN
from qchem.scf.hamiltonian import nuclear_repulsion
from srdft.family import MoleculeFamily, PlacedMolecule
from srdft.kernels import kernel_from_name
from srdft.potential import AbstractPotential
from srdft.sampler import ChainInfo, ChainState, Sampler
from srdft.trainer import Samples

TEMPERATURE = HARTREE_IN_KELVIN  # kT = 1 hartree
STEP_SIZE = 2e-3  # bohr², to begin with
FACTOR, FEW, MANY = 1.1, 0.5, 0.55


class HeldIntegrals(AbstractPotential):
    """The energy, with its derivative at held integrals: nuclear repulsion and features alone."""

    family: MoleculeFamily

    def energy(self, model, positions):
        return self.family.energy_fn(model, positions)

    def energy_and_gradient(self, model, positions):
        held = self.family.place(positions).hamiltonian
        charges = jnp.asarray(self.family.numbers, positions.dtype)

        def energy(positions):
            molecule = PlacedMolecule(self.family, positions, held)
            energies = held.energies(model.orbitals(molecule).factor)
            moved = nuclear_repulsion(charges, positions)
            return sum(energies.values()) - energies["nuclear"] + moved

        return jax.value_and_grad(energy)(positions)


class ReferenceSampler(eqx.Module):
    """Chains as the reference moves them; in place of a `Sampler` in a `Trainer`."""

    sampler: Sampler

    @classmethod
    def build(cls, like: Sampler, family: MoleculeFamily) -> "ReferenceSampler":
        """For a family, on the devices of another sampler."""
        sampler = Sampler(
            HeldIntegrals(family),
            kernel_from_name("mala"),
            family.numbers,
            (TEMPERATURE,),
            guard=0.0,
            warmup=0,
            workers=like.workers,
        )
        return cls(sampler)

    def init(self, model: Any, positions: Float[Array, "nchain natom 3"], step_size: float):
        """As `Sampler.init`."""
        return self.sampler.init(model, positions, step_size)

    def at_temperature(self, values: Array) -> Array:
        """All chains have one temperature."""
        return values

    def sample(
        self,
        model: Any,
        state: ChainState,
        nstep: int,
        *,
        key: PRNGKeyArray,
        refresh: Array | bool = False,
    ) -> tuple[ChainState, ChainInfo]:
        """As `Sampler.sample`, and the step size changes after every transition."""
        first = jnp.arange(nstep) == 0

        def one(state, x):
            key, first = x
            state, info = self.sampler.sample(
                model, state, 1, key=key, refresh=first & jnp.asarray(refresh)
            )
            size = adapted(state.step_size, jnp.mean(info.acceptance))
            return eqx.tree_at(lambda s: s.step_size, state, size), info

        state, info = jax.lax.scan(one, state, (jax.random.split(key, nstep), first))
        return state, jax.tree.map(lambda x: jnp.mean(x, axis=0), info)


def adapted(step_size: Float[Array, " n"], acceptance: Float[Array, ""]) -> Float[Array, " n"]:
    """The next step size."""
    longer = jnp.where(acceptance > MANY, step_size * FACTOR, step_size)
    return jnp.where(acceptance < FEW, step_size / FACTOR, longer)


def restarted(samples: Samples, given: Float[Array, "n natom 3"], key: PRNGKeyArray) -> Samples:
    """Chains at geometries drawn from all that are stored, given and sampled."""
    nchain, nsampled = samples.chains.positions.shape[0], int(samples.buffer.size)
    draw, choose = jax.random.split(key)
    rows = jax.random.randint(choose, (nchain,), 0, given.shape[0] + nsampled)
    sampled = samples.buffer.draw(nchain, key=draw)
    start = jnp.where(
        (rows < given.shape[0])[:, None, None],
        given[jnp.minimum(rows, given.shape[0] - 1)],
        sampled,
    )
    return eqx.tree_at(lambda s: s.chains.positions, samples, start)
