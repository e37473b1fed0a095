"""The training loop's parts: what is kept, one turn of the chains, one step of the optimizer.

Both are pure functions of their state, a number that counts them, and the seed: a training that is
resumed from a checkpoint goes on as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from qchem import InputError, program
from srdft.optimizers import AbstractOptimizer, Judgement, mean_judgement
from srdft.parallel import Workers
from srdft.replay import ReplayBuffer, sampled_rows
from srdft.sampler import ChainInfo, ChainState, Sampler

TURN, DRAW = 0, 1  # streams of random numbers
SMOOTHING = 0.8  # what the past counts in the smoothed error estimate


class Samples(eqx.Module):
    """What belongs to the sampling of one family.

    Attributes:
        chains: Where the chains are.
        buffer: What they have left behind.
    """

    chains: ChainState
    buffer: ReplayBuffer


class TrainState(eqx.Module):
    """All that changes in a training.

    Attributes:
        model: Being trained.
        optimizer: The optimizer's state.
        chain_model: The model whose energy the chains sample: the model of a while ago.
        chain_step: The step in which that was the model.
        samples: Of each family.
        given: Geometries of each family that training started from, bohr.
        step: Steps of the optimizer so far.
        turn: Turns of the chains so far.
        error: Smoothed estimate of the error of sampled geometries, hartree; infinite before the
            first.
        best: The smallest `error` so far.
    """

    model: Any
    optimizer: Any
    chain_model: Any
    chain_step: Int[Array, ""]
    samples: tuple[Samples, ...]
    given: tuple[Float[Array, "_ _ 3"], ...]  # natom differs from family to family
    step: Int[Array, ""]
    turn: Int[Array, ""]
    error: Float[Array, ""]
    best: Float[Array, ""]


@dataclass(frozen=True)
class Plan:
    """How often, how much; the meaning of the fields is that of the configuration's."""

    steps: int
    pretrain_steps: int
    batch: int
    reuse: int
    transitions: int
    refresh_every: int
    data_share: float
    keep_hot: bool
    seed: int

    @property
    def total(self) -> int:
        """All steps of the optimizer."""
        return self.pretrain_steps + self.steps


class Turn(eqx.Module):
    """What a turn of the chains brings.

    Attributes:
        samples: Of each family, the new geometries included.
        info: Of each family's chains.
        judgement: Of the kept geometries under the chains' model, mean over families.
    """

    samples: tuple[Samples, ...]
    info: tuple[ChainInfo, ...]
    judgement: Judgement


class Trainer:
    """Families, samplers and an optimizer, put together; holds no state of the training."""

    def __init__(
        self,
        families: Sequence[Any],
        samplers: Sequence[Sampler],
        optimizer: AbstractOptimizer,
        plan: Plan,
        workers: Workers | None = None,
    ):
        """
        Args:
            families: With `energy_fn(model, positions)`; a `MoleculeFamily` or the like.
            samplers: Of each.
            optimizer: Of the model.
            plan: How often and how much.
            workers: Devices.
        """
        self.families, self.samplers = tuple(families), tuple(samplers)
        self.optimizer, self.plan = optimizer, plan
        self.workers = Workers() if workers is None else workers
        self.workers.check("batch", plan.batch)
        # Compiled once: nothing but the values of arrays changes from call to call.
        parts = self.optimizer, self.families, self.workers
        self._update = self._program(partial(_updated, *parts))
        self._sample = self._chain_programs()
        self._judge = [
            self._program(partial(_judged, self.optimizer, family, self.workers))
            for family in self.families
        ]

    def variant(
        self, *, samplers: Sequence[Sampler] | None = None, plan: Plan | None = None
    ) -> Trainer:
        """The same training with other chains or another plan; what does not change is not
        compiled again."""
        other = copy(self)
        other.plan = plan or self.plan
        other.workers.check("batch", other.plan.batch)
        if samplers is not None or other.plan.transitions != self.plan.transitions:
            other.samplers = self.samplers if samplers is None else tuple(samplers)
            other._sample = other._chain_programs()
        return other

    def init(
        self,
        model: Any,
        given: Sequence[Float[Array | np.ndarray, "_ _ 3"]],
        *,
        nchain: int,
        buffer_size: int,
        step_size: float,
    ) -> TrainState:
        """The state before the first step. Chains start at the given geometries, in turn.

        Args:
            model: Untrained.
            given: Geometries of each family, bohr; one of each is enough.
            nchain: Chains of each family.
            buffer_size: Geometries that each buffer holds.
            step_size: Of the chains, to begin with, bohr².

        Raises:
            InputError: No geometry, or what `Sampler.init` refuses.
        """
        given = tuple(jnp.asarray(positions) for positions in given)
        if any(positions.shape[0] < 1 for positions in given):
            raise InputError("every family needs at least one geometry to start from.")
        samples = []
        for sampler, positions in zip(self.samplers, given, strict=True):
            start = positions[np.arange(nchain) % positions.shape[0]]
            chains = sampler.init(model, start, step_size)
            natom, dtype = positions.shape[1], positions.dtype
            samples.append(Samples(chains, ReplayBuffer.empty(buffer_size, natom, dtype)))
        zero = jnp.zeros((), jnp.int32)
        infinite = jnp.asarray(jnp.inf, given[0].dtype)
        return TrainState(
            model=model,
            optimizer=self.optimizer.init(model),
            chain_model=model,
            chain_step=zero,
            samples=tuple(samples),
            given=given,
            step=zero,
            turn=zero,
            error=infinite,
            best=infinite,
        )

    def take_turn(
        self, model: Any, samples: Sequence[Samples], turn: int, *, refresh: bool
    ) -> Turn:
        """Some transitions of every chain; where the chains end is kept in the buffers.

        Args:
            model: Whose energy is sampled.
            samples: Of each family.
            turn: Counts the turns; random numbers follow from it.
            refresh: The model is not that of the last turn.
        """
        done, infos, judgements = [], [], []
        for i, (sampler, one) in enumerate(zip(self.samplers, samples)):
            again, key = jnp.asarray(refresh), self._key(TURN, turn, i)
            chains, info = self._sample[i](model, one.chains, key, again)
            kept = (
                chains.positions if self.plan.keep_hot else sampler.at_temperature(chains.positions)
            )
            judgements.append(self._judge[i](model, kept))
            done.append(Samples(chains, one.buffer.push(kept)))
            infos.append(info)
        return Turn(tuple(done), tuple(infos), mean_judgement(judgements))

    def take_step(self, state: TrainState) -> tuple[TrainState, Judgement]:
        """One step of the optimizer on a batch of each family.

        The judgement is that of the batch before the step.
        """
        step = int(state.step)
        batches = []
        for i, (given, one) in enumerate(zip(state.given, state.samples)):
            from_buffer = 0
            if step >= self.plan.pretrain_steps and int(one.buffer.pushed):
                index = step - self.plan.pretrain_steps
                from_buffer = sampled_rows(index, self.plan.batch, self.plan.data_share)
            key = self._key(DRAW, step, i)
            batches.append(_batch(given, one.buffer, self.plan.batch, from_buffer, key))
        model, optimizer, judgement = self._update(state.model, state.optimizer, tuple(batches))
        state = eqx.tree_at(
            lambda s: (s.model, s.optimizer, s.step),
            state,
            (model, optimizer, state.step + 1),
        )
        return state, judgement

    def _key(self, stream: int, count: int, family: int) -> PRNGKeyArray:
        key = jax.random.key(self.plan.seed)
        for number in (stream, count, family):
            key = jax.random.fold_in(key, number)
        return key

    def _chain_programs(self):
        parts = self.workers, self.plan.transitions
        return [self._program(partial(_sampled, sampler, *parts)) for sampler in self.samplers]

    def _program(self, function):
        compiled = program(function)
        return lambda *args: compiled(*self.workers.placed(args))


# What is compiled: functions of the module, for programs of these are found again on disk.


def _updated(optimizer, families, workers, model, state, batches):
    return workers.replicated(optimizer.update(model, state, families, batches, workers))


def _sampled(sampler, workers, transitions, model, chains, key, refresh):
    return workers.replicated(sampler.sample(model, chains, transitions, key=key, refresh=refresh))


def _judged(optimizer, family, workers, model, positions):
    return optimizer.judge(family, model, positions, workers)


def smoothed(error: Float[Array, ""], new: Float[Array, ""]) -> Float[Array, ""]:
    """Running geometric mean that forgets: errors fall by orders of magnitude, and an arithmetic
    mean would be that of the first ones. A first value, or one after a failure, starts it anew."""
    floor = jnp.finfo(new.dtype).tiny
    log = [jnp.log(jnp.maximum(x, floor)) for x in (error, new)]
    mean = jnp.exp(SMOOTHING * log[0] + (1 - SMOOTHING) * log[1])
    return jnp.where(jnp.isfinite(error), mean, new)


def _batch(given, buffer, n, from_buffer, key):
    """n geometries: the first `from_buffer` from the buffer, the others given ones.

    No more given ones than there are are drawn twice before all have been drawn once.
    """
    first, second = jax.random.split(key)
    rounds = -(-n // given.shape[0])
    keys = jax.random.split(second, rounds)
    order = jnp.concatenate([jax.random.permutation(k, given.shape[0]) for k in keys])[:n]
    drawn = buffer.draw(n, key=first)
    chosen = jnp.arange(n)[:, None, None] < from_buffer
    return jnp.where(chosen, drawn, given[order])
