"""Samples of a trained model's Boltzmann distribution, with their diagnostics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from qchem import program
from srdft.diagnostics import FEWEST, diagnose, quantities
from srdft.experiment import Experiment, build_sampler


class Collected(eqx.Module):
    """Geometries and how they came about.

    Attributes:
        positions, energy: Bohr, hartree.
        acceptance, impossible, dissociated: Means over all transitions after the warm-up.
        step_size: Frozen, bohr².
        diagnostics: Effective sample size and R-hat by quantity.
    """

    positions: Float[np.ndarray, "n natom 3"]
    energy: Float[np.ndarray, " n"]
    acceptance: float
    impossible: float
    dissociated: float
    step_size: float
    diagnostics: dict[str, tuple[float, float]]

    def summary(self) -> str:
        """For a person to read."""
        lines = [
            f"{len(self.energy)} geometries; acceptance {self.acceptance:.2f}, step size "
            f"{self.step_size:.2e} bohr², not finite {self.impossible:.1%}, "
            f"dissociated {self.dissociated:.1%} of proposals"
        ]
        for name, (size, rhat) in self.diagnostics.items():
            if not math.isfinite(size):
                lines.append(
                    f"{name:16s} too few geometries of each chain, or none that moved, for R-hat: "
                    f"{FEWEST} of each are needed"
                )
                continue
            lines.append(f"{name:16s} effective samples {size:7.1f}   R-hat {rhat:.3f}")
        return "\n".join(lines)


def collect(
    experiment: Experiment,
    index: int,
    model: Any,
    n: int,
    *,
    temperature: float | None = None,
    seed: int = 0,
    report: Callable[[int], None] = lambda done: None,
) -> Collected:
    """n geometries from chains that start where those of the training stand.

    At the training's temperature, if the warm-up of its chains is over, they need no other; else it
    adapts the step size and serves as burn-in. Then each chain gives a geometry after every
    `sampler.steps` transitions.

    Args:
        experiment: From a checkpoint.
        index: Of the family.
        model: Whose energy is sampled.
        n: Number of geometries.
        temperature: Kelvin; by default the training's, with its ladder.
        seed: Of the random numbers.
        report: Called with the number of geometries.
    """
    settings, state = experiment.config.sampler, experiment.state
    family = experiment.families[index]
    sampler = build_sampler(experiment.config, family, temperature=temperature)
    known = state.samples[index].chains
    step_size = float(known.step_size[0])
    same = sampler.temperatures == (settings.temperature, *settings.ladder)
    ready = same and int(known.steps) >= settings.warmup
    if ready:
        sampler = dataclasses.replace(sampler, warmup=0)
    chains = sampler.init(model, known.positions, step_size)
    if ready:  # each rung has found its own
        chains = eqx.tree_at(lambda c: c.step_size, chains, known.step_size)
    steps = settings.steps

    turn = program(partial(_turn, sampler, steps))
    keys = jax.random.split(jax.random.key(seed), 2)
    for i in range(max(1, -(-sampler.warmup // steps))):
        chains, _ = turn(model, chains, jax.random.fold_in(keys[0], i), jnp.asarray(i == 0))
    positions, energies, infos = [], [], []
    while len(positions) * sampler.at_temperature(chains.energy).shape[0] < n:
        key = jax.random.fold_in(keys[1], len(positions))
        chains, info = turn(model, chains, key, jnp.asarray(False))
        positions.append(np.asarray(sampler.at_temperature(chains.positions)))
        energies.append(np.asarray(sampler.at_temperature(chains.energy)))
        infos.append(jax.tree.map(np.mean, jax.device_get(info)))
        report(min(n, len(positions) * len(energies[0])))
    along = np.stack(positions, axis=1)  # chain, time, atom, axis
    energy = np.stack(energies, axis=1)
    reference = np.asarray(state.given[index][0])
    flat = along.reshape(-1, *along.shape[2:])
    inner = quantities(family.numbers, flat, reference)
    series = {"energy": energy} | {k: v.reshape(energy.shape) for k, v in inner.items()}
    return Collected(
        positions=np.concatenate(positions)[:n],
        energy=np.concatenate(energies)[:n],
        acceptance=float(np.mean([i.acceptance for i in infos])),
        impossible=float(np.mean([i.impossible for i in infos])),
        dissociated=float(np.mean([i.dissociated for i in infos])),
        step_size=float(chains.step_size[0]),
        diagnostics={name: diagnose(values) for name, values in series.items()},
    )


def _turn(sampler, steps, model, chains, key, refresh):
    return sampler.sample(model, chains, steps, key=key, refresh=refresh)
