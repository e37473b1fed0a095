"""The arms of `benchmarks/claim.py`: what is trained, for how long, and what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.collected import Collected, collected
from benchmarks.emulation import STEP_SIZE, ReferenceSampler, restarted
from benchmarks.measure import device
from benchmarks.molecules import FILES, molecule
from qchem import program
from srdft.config import Config, FamilyConfig, ModelConfig, SamplerConfig, TrainConfig
from srdft.data import Frames
from srdft.experiment import Experiment
from srdft.family import map_geometries
from srdft.schedules import Interleaved
from srdft.trainer import Trainer, TrainState

if TYPE_CHECKING:
    from benchmarks.claim import Arm, Options

PRETRAINING = 3  # steps
Errors = Callable[[Any], dict[str, float | None]]


def rows(options: Options, todo: Sequence[tuple[Arm, int]]) -> Iterator[dict[str, Any]]:
    """Of arms with seeds, one after another; everything is compiled before a clock runs."""
    experiment = experiment_of(options)
    frames = collected(
        options.file(), experiment, options.pool, options.held_out, options.hot, options.say
    )
    options.say(f"collected: {frames.about}")
    errors, ours = errors_of(experiment, frames), experiment.trainer
    emulated = ReferenceSampler.build(ours.samplers[0], experiment.families[0])
    trainers = {"ours": ours, "none": ours, "reference": ours.variant(samplers=[emulated])}

    def begin(arm, seed):
        start = trainers[arm.chains]
        trainer = start.variant(plan=replace(start.plan, seed=seed))
        given = np.asarray(experiment.state.given[0])
        if arm.given > 1:
            size = min(arm.given, len(frames.pool))
            given = np.random.default_rng(seed).choice(frames.pool, size, replace=False)
        state = trainer.init(
            experiment.state.model,
            [given],
            nchain=options.chains,
            buffer_size=experiment.config.buffer.size,
            step_size=STEP_SIZE if arm.chains == "reference" else 1e-3,
        )
        return trainer, state

    errors(experiment.state.model)
    # Pretraining, a turn of the chains, and a step on what it has brought.
    enough = 2 * options.batch * (PRETRAINING + 1)
    few = replace(options, seconds=0.0, evaluations=enough, patience=math.inf)
    for arm in dict.fromkeys(arm for arm, _ in todo):
        start = perf_counter()
        train(*begin(arm, 0), arm, few, lambda model: {"near_error": 0.0, "far_error": 0.0})
        options.say(f"compiled ({arm.name}) in {perf_counter() - start:.0f} s")
    for arm, seed in todo:
        about = options.settings() | {"device": device(), "arm": arm.name, "seed": seed}
        row = train(*begin(arm, seed), arm, options, errors)
        yield about | row | {"collected": frames.about}


def experiment_of(options: Options) -> Experiment:
    """Family, model, optimizer and our chains, from the structure's file alone."""
    basis, xc = options.method
    family = FamilyConfig(str(FILES[options.molecule]), basis=basis, xc=xc, grid=options.grid)
    config = Config(
        (family,),
        ModelConfig(features=options.features),
        SamplerConfig(chains=options.chains, steps=options.transitions, warmup=60),
        train=TrainConfig(
            batch=options.batch,
            reuse=options.reuse,
            pretrain_steps=PRETRAINING,
            chunk=options.chunk,
        ),
    )
    found = molecule(options.molecule)
    return Experiment(config, [Frames(found.numbers, np.asarray(found.positions)[None])])


def errors_of(experiment: Experiment, frames: Collected) -> Errors:
    """What a model's errors on the held-out geometries are."""
    family = experiment.families[0]

    def predicted(model, positions):
        def one(r):
            prediction = family.predict(model, r)
            return prediction.energy, prediction.error_estimate

        return map_geometries(one, positions)

    predict = program(predicted)

    def errors(model):
        found = {}
        for name in ("near", "far"):
            energies, estimates = predict(model, jnp.asarray(getattr(frames, name)))
            error = np.asarray(energies) - getattr(frames, f"{name}_energy")
            low, high = np.percentile(error, (5, 95))
            found |= {
                f"{name}_error": error.mean(),
                f"{name}_5": low,
                f"{name}_95": high,
                f"{name}_max": error.max(),
                f"{name}_estimate": np.mean(estimates),
            }
        return {key: float(x) if np.isfinite(x) else None for key, x in found.items()}

    return errors


def train(
    trainer: Trainer, state: TrainState, arm: Arm, options: Options, errors: Errors
) -> dict[str, Any]:
    """One row: an arm with a seed, until time and evaluations are both spent."""
    clock = process_time if options.clock == "processor" else perf_counter
    schedule, plan = Interleaved(trainer), trainer.plan
    of_step, of_turn = 2 * plan.batch, options.chains * (plan.transitions + 2)
    seconds = {"step": 0.0, "turn": 0.0}
    steps = turns = 0
    records: list[dict[str, Any]] = []
    acceptance = None
    due = options.seconds / 16
    while True:
        elapsed, evaluations = sum(seconds.values()), steps * of_step + turns * of_turn
        enough = evaluations >= options.evaluations or elapsed > options.patience * options.seconds
        done = elapsed >= options.seconds and enough
        if done or not records or elapsed >= due:
            here = {"time_s": elapsed, "evaluations": evaluations, "steps": steps}
            records.append(here | errors(state.model))
            due = max(2 * due, elapsed)
        if done:
            break
        start = clock()
        if arm.chains != "none":
            if arm.chains == "reference":
                key = jax.random.fold_in(jax.random.key(plan.seed), steps)
                again = restarted(state.samples[0], state.given[0], key)
                state = eqx.tree_at(lambda s: s.samples, state, (again,))
            state, turned = jax.block_until_ready(schedule.before_step(state, None))
            if turned is not None:
                turns, acceptance = turns + 1, float(np.mean(turned.info[0].acceptance))
                seconds["turn"] += clock() - start
        start = clock()
        state, _ = jax.block_until_ready(trainer.take_step(state))
        seconds["step"] += clock() - start
        steps += 1
    chains = state.samples[0].chains
    kept = turns * options.chains
    return {
        "given": arm.given,
        **records[-1],
        "trained_per_s": steps * plan.batch / seconds["step"],
        "kept_per_s": kept / seconds["turn"] if turns else None,
        "acceptance": acceptance,
        "step_size": float(chains.step_size[0]) if turns else None,
        "curve": [_short(record) for record in records],
    }


def _short(record):
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in record.items()}
