"""Families and models whose energies are closed forms: what trainer and sampler tests run on."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from srdft.kernels import kernel_from_name
from srdft.optimizers import FirstOrder
from srdft.parallel import Workers
from srdft.potential import TotalDrift
from srdft.sampler import Sampler
from srdft.trainer import Plan, Trainer

DIATOMIC = ((0.0, 0.0, -0.75), (0.0, 0.0, 0.75))  # H2-like, at rest, bohr
TRIATOMIC = ((0.0, 0.0, 0.0), (0.0, 0.0, 1.5), (0.0, 1.3, 0.75))
ANCHOR = 0.3  # the weight at which a toy model's energy is the true one


class ToyPrediction(eqx.Module):
    energy: jnp.ndarray
    error_estimate: jnp.ndarray
    residual: jnp.ndarray


class ToyModel(eqx.Module):
    """Weights that raise the energy by the square of their distance from the anchor."""

    weights: jnp.ndarray


class HarmonicMolecule(eqx.Module):
    """Springs between all pairs of atoms, k (r - r0)² / 2 each; hartree, bohr."""

    numbers: tuple[int, ...] = eqx.field(static=True)
    stiffness: float = eqx.field(static=True, default=0.5)
    length: float = eqx.field(static=True, default=1.5)
    name: str = eqx.field(static=True, default="toy")

    def energy_fn(self, model, positions):
        i, j = (jnp.asarray(x) for x in jnp.triu_indices(len(self.numbers), 1))
        apart = jnp.sqrt(jnp.sum((positions[i] - positions[j]) ** 2, axis=1))
        springs = 0.5 * self.stiffness * jnp.sum((apart - self.length) ** 2)
        return springs + self._error(model, positions)

    def _error(self, model, positions):
        size = jnp.sum((positions - jnp.mean(positions, axis=0, keepdims=True)) ** 2)
        return jnp.sum((model.weights - ANCHOR) ** 2) * (1 + 0.1 * size)

    def predict(self, model, positions):
        error = self._error(model, positions)
        return ToyPrediction(self.energy_fn(model, positions), error, jnp.sqrt(error))


def toy_model(dtype=jnp.float64):
    return ToyModel(jnp.zeros(3, dtype))


def toy_trainer(
    steps=24, pretrain_steps=3, reuse=2, kernel="mala", devices=None, molecules=(DIATOMIC,), **plan
):
    """A trainer of harmonic molecules of hydrogen, by default a diatomic, and its first state."""
    families = [HarmonicMolecule((1,) * len(molecule)) for molecule in molecules]
    defaults = {"batch": 4, "transitions": 3, "refresh_every": 2, "data_share": 0.2, "seed": 1}
    settings = Plan(
        steps=steps,
        pretrain_steps=pretrain_steps,
        reuse=reuse,
        keep_hot=False,
        **(defaults | plan),
    )
    workers = Workers.over(jax.devices()[:1] if devices is None else devices)
    samplers = [
        Sampler(
            TotalDrift(family.energy_fn),
            kernel_from_name(kernel),
            family.numbers,
            (500.0,),
            guard=4.0,
            warmup=12,
            workers=workers,
        )
        for family in families
    ]
    optimizer = FirstOrder.adam(settings.total, learning_rate=0.02, warmup_steps=2)
    trainer = Trainer(families, samplers, optimizer, settings, workers)
    given = [np.array([molecule]) for molecule in molecules]
    state = trainer.init(toy_model(), given, nchain=4, buffer_size=16, step_size=1e-2)
    return trainer, state
