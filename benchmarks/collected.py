"""Geometries of a molecule family from a long run of chains, kept on disk with converged energies.

A model trained from one geometry to an error far below kT samples at 500 K by MALA. One chain gives
held-out geometries, the others those to train on. Chains at a higher temperature give held-out
geometries far from equilibrium. The same seeds always; converged energies by the engine's own SCF.
"""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qchem import program
from srdft.diagnostics import diagnose
from srdft.experiment import Experiment, build_sampler
from srdft.family import map_geometries
from srdft.schedules import Interleaved
from srdft.trainer import TrainState

SEED = 1000  # of no arm
TRAINING = 40  # steps of the optimizer
BURN_IN = 20  # turns of the hot chains


class Collected(NamedTuple):
    """Geometries, bohr, and converged energies, hartree.

    Attributes:
        pool: To train on.
        near, far: Held out: at 500 K, and at the higher temperature.
        near_energy, far_energy: Converged.
        about: How they came about.
    """

    pool: np.ndarray
    near: np.ndarray
    far: np.ndarray
    near_energy: np.ndarray
    far_energy: np.ndarray
    about: dict[str, Any]


def collected(
    path: Path,
    experiment: Experiment,
    size: int,
    held_out: int,
    hot: float,
    say: Callable[[str], None],
) -> Collected:
    """From the file, or else computed and written there.

    Args:
        path: Of the file.
        experiment: Family, and chains at the temperature wanted.
        size: Number of geometries to train on.
        held_out: Number of near and of far ones.
        hot: Temperature of the far ones, kelvin.
        say: Told of the progress.
    """
    if path.exists():
        stored = np.load(path)
        about = json.loads(str(stored["about"]))
        return Collected(*(stored[name] for name in Collected._fields[:-1]), about)
    found = _collect(experiment, size, held_out, hot, say)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.npz")
    np.savez(temporary, **found._asdict() | {"about": json.dumps(found.about)})
    os.replace(temporary, path)
    return found


def _collect(experiment, size, held_out, hot, say):
    family, trainer = experiment.families[0], experiment.trainer
    trainer = trainer.variant(plan=replace(trainer.plan, seed=SEED, steps=TRAINING))
    state = experiment.state
    schedule = Interleaved(trainer)
    while int(state.step) < trainer.plan.total:
        state, _ = schedule.before_step(state, None)
        state, judgement = trainer.take_step(state)
        say(f"trained {int(state.step)}/{trainer.plan.total}: error {float(judgement.error):.1e}")
    nchain = experiment.config.sampler.chains
    turns = max(-(-size // max(nchain - 1, 1)), held_out)
    frames, energies, acceptance, errors = [], [], [], []
    first = int(state.turn)
    samples = state.samples
    for turn in range(first, first + turns):
        turned = trainer.take_turn(state.model, samples, turn, refresh=turn == first)
        samples = turned.samples
        frames.append(np.asarray(samples[0].chains.positions))
        energies.append(np.asarray(samples[0].chains.energy))
        acceptance.append(float(np.mean(turned.info[0].acceptance)))
        errors.append(float(turned.judgement.error))
        if (turn - first + 1) % 20 == 0:
            say(f"collected {(turn - first + 1) * (nchain - 1)}/{size}")
    frames = np.stack(frames)
    rows = np.linspace(0, turns - 1, held_out).round().astype(int)
    near, pool = frames[rows, 0], frames[:, 1:].reshape(-1, *frames.shape[2:])[:size]
    effective, r_hat = diagnose(np.stack(energies, axis=1))
    say(f"effective samples {effective:.0f}, R-hat {r_hat:.2f}")
    far = _far(experiment, state, near, held_out, hot)
    solve = program(lambda r: map_geometries(family.solve, r))
    near_solved, far_solved = solve(jnp.asarray(near)), solve(jnp.asarray(far))
    converged = [np.asarray(x.converged) for x in (near_solved, far_solved)]
    say(f"converged: {converged[0].sum()} of {held_out} near, {converged[1].sum()} far ones")
    about = {
        "evaluations": turns * nchain * trainer.plan.transitions,
        "acceptance": float(np.mean(acceptance)),
        "error_estimate": float(np.mean(errors)),
        "effective_samples": float(effective),
        "r_hat": float(r_hat),
        "hot": hot,
    }
    return Collected(
        pool,
        near[converged[0]],
        far[converged[1]],
        np.asarray(near_solved.energy)[converged[0]],
        np.asarray(far_solved.energy)[converged[1]],
        about,
    )


def _far(experiment: Experiment, state: TrainState, start, n: int, hot: float) -> np.ndarray:
    """Of chains at a higher temperature."""
    family, nstep = experiment.families[0], experiment.config.sampler.steps
    nchain = experiment.config.sampler.chains
    sampler = build_sampler(experiment.config, family, temperature=hot)
    chains = sampler.init(state.model, np.resize(start, (nchain, *start.shape[1:])), 1e-3)

    @program
    def turn(model, chains, key, refresh):
        return sampler.sample(model, chains, nstep, key=key, refresh=refresh)

    kept = []
    keys = jax.random.split(jax.random.key(SEED), BURN_IN + -(-n // nchain))
    for i, key in enumerate(keys):
        chains, _ = turn(state.model, chains, key, jnp.asarray(i == 0))
        if i >= BURN_IN:
            kept.append(np.asarray(chains.positions))
    return np.concatenate(kept)[:n]
