"""When the chains take their turns: between steps of the optimizer, or at the same time."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from qchem import QChemError
from srdft.trainer import Trainer, TrainState, Turn


class SamplerError(QChemError):
    """The chains of an asynchronous training stopped; the cause is chained to this error."""


class AbstractSchedule(ABC):
    """Lets the chains of a training take their turns."""

    @abstractmethod
    def before_step(
        self, state: TrainState, stop: threading.Event
    ) -> tuple[TrainState, Turn | None]:
        """The state with what the chains have brought since the last step, and the last turn."""

    @abstractmethod
    def close(self) -> None:
        """No more turns."""


class Interleaved(AbstractSchedule):
    """A turn after every `reuse` steps; the same seed gives the same numbers."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def before_step(self, state, stop):
        plan = self.trainer.plan
        done = int(state.step) - plan.pretrain_steps
        if done < 0 or done % plan.reuse:
            return state, None
        turn = int(state.turn)
        refresh = turn % plan.refresh_every == 0
        if refresh:
            state = _with_chain_model(state, state.model, int(state.step))
        turned = self.trainer.take_turn(state.chain_model, state.samples, turn, refresh=refresh)
        return _with_turn(state, turned, turn + 1), turned

    def close(self):
        pass


class Asynchronous(AbstractSchedule):
    """Turns in a thread of their own, as fast as they go, each with the newest model.

    What a turn brings is never from a model more than `max_staleness` steps older than the one that
    is being trained: the optimizer waits where it would be. With several devices the chains have
    one for themselves.
    """

    def __init__(self, trainer: Trainer, max_staleness: int):
        """
        Args:
            trainer: Whose chains take turns.
            max_staleness: Steps of the optimizer.
        """
        self.trainer, self.max_staleness = trainer, max_staleness
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._failure: BaseException | None = None
        self._newest: tuple[Any, int] | None = None  # model and step, for the next turn
        self._in_use = 0  # step of the model of the present turn
        self._done: tuple[Turn, Any, int, int] | None = None  # turn, its model, step, count
        spare = jax.local_devices()[1:]
        self._device = spare[0] if spare and trainer.workers.mesh is None else None

    def before_step(self, state, stop):
        step = int(state.step)
        if step < self.trainer.plan.pretrain_steps:
            return state, None
        with self._changed:
            self._newest = (state.model, step)
            if self._thread is None:
                self._start(state)
            self._changed.notify_all()
            while step - self._in_use >= self.max_staleness and not self._failure:
                if stop.is_set():
                    return state, None
                self._changed.wait(0.2)
            if self._failure is not None:
                raise SamplerError(
                    f"the sampler stopped: {type(self._failure).__name__}: {self._failure}"
                ) from self._failure
            done, self._done = self._done, None
        if done is None:
            return state, None
        turned, model, model_step, count = done
        return _with_turn(_with_chain_model(state, model, model_step), turned, count), turned

    def close(self):
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _start(self, state):
        self._in_use = int(state.step)
        self._thread = threading.Thread(
            target=self._run, args=(state.samples, int(state.turn)), name="sampler", daemon=True
        )
        self._thread.start()

    def _run(self, samples, turn):
        try:
            with jax.default_device(self._device):
                self._turns(samples, turn)
        except BaseException as error:  # whatever it is, the training must learn of it
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _turns(self, samples, turn):
        known = None
        while True:
            with self._changed:
                if self._closing:
                    return
                model, step = self._newest
                self._in_use = step
                self._changed.notify_all()
            there, samples = _to(self._device, (model, samples))
            turned = self.trainer.take_turn(there, samples, turn, refresh=step != known)
            turned = jax.block_until_ready(turned)
            samples, known, turn = turned.samples, step, turn + 1
            back = None if self._device is None else jax.local_devices()[0]
            with self._changed:
                self._done = (_to(back, turned), model, step, turn)


def _to(device, tree):
    if device is None:
        return tree
    return jax.tree.map(lambda x: jax.device_put(x, device) if eqx.is_array(x) else x, tree)


def _with_chain_model(state: TrainState, model: Any, step: int) -> TrainState:
    return eqx.tree_at(
        lambda s: (s.chain_model, s.chain_step), state, (model, jnp.asarray(step, jnp.int32))
    )


def _with_turn(state: TrainState, turned: Turn, count: int) -> TrainState:
    return eqx.tree_at(
        lambda s: (s.samples, s.turn), state, (turned.samples, jnp.asarray(count, jnp.int32))
    )
