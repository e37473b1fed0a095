"""Running a training: what is written, when the chains turn, how it stops and goes on."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import equinox as eqx
import jax
import numpy as np

from qchem import InputError
from srdft import checkpoint
from srdft.schedules import AbstractSchedule, Asynchronous, Interleaved
from srdft.trainer import Trainer, TrainState, smoothed

METRICS = "metrics.jsonl"
Metrics = dict[str, Any]


class Journal:
    """`metrics.jsonl`: one line of JSON for each step, never ahead of what a resume would redo."""

    def __init__(self, run: Path, step: int):
        """
        Args:
            run: The run's directory.
            step: Of the state that the run goes on from: later lines, and one that was not
                finished, are removed.
        """
        self.path = run / METRICS
        kept = [line for line in read_metrics(run) if line["step"] <= step]
        temporary = run / f".{METRICS}.part"
        try:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
            temporary.replace(self.path)
            self._file = open(self.path, "a")
        except OSError as error:
            raise InputError(f"cannot write {str(self.path)!r}: {error.strerror}.") from error

    def write(self, metrics: Metrics) -> None:
        """Add a line; it is in the file when this returns."""
        try:
            self._file.write(json.dumps(metrics) + "\n")
            self._file.flush()
        except OSError as error:
            raise checkpoint.CheckpointError(
                f"cannot write {str(self.path)!r}: {error.strerror}; the last checkpoint is intact."
            ) from error

    def close(self) -> None:
        """No more lines."""
        with contextlib.suppress(OSError):
            self._file.close()


def read_metrics(run: Path) -> list[Metrics]:
    """The lines of a run's `metrics.jsonl`; those that are damaged, as one that was cut off while
    it was written, are passed over."""
    path = run / METRICS
    if not path.exists():
        return []
    lines = []
    for text in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines


class Session:
    """One run of a training.

    Attributes:
        stop: Set it to end the run after the present step; `interruptible` lets Ctrl-C do so.
    """

    def __init__(
        self,
        trainer: Trainer,
        schedule: AbstractSchedule,
        run: Path | None = None,
        *,
        header: dict[str, Any] | None = None,
        checkpoint_every: int = 20,
        report: Callable[[Metrics], None] = lambda metrics: None,
    ):
        """
        Args:
            trainer: What is trained and how.
            schedule: When the chains take their turns.
            run: Directory of checkpoints and metrics; None writes nothing.
            header: Of the checkpoints.
            checkpoint_every: Steps between them.
            report: Called with the metrics of each step.
        """
        self.trainer, self.schedule = trainer, schedule
        self.run_directory, self.header = run, header or {}
        self.checkpoint_every, self.report = checkpoint_every, report
        self.stop = threading.Event()
        # Processes of one run hold the same state; the first one writes.
        self._writes = run is not None and jax.process_index() == 0

    def run(self, state: TrainState) -> TrainState:
        """Train to the end of the plan, or until `stop` is set; the last state is saved."""
        journal = Journal(self.run_directory, int(state.step)) if self._writes else None
        try:
            state = self._loop(state, journal)
        finally:
            self.schedule.close()
            if journal is not None:
                journal.close()
        return state

    def _loop(self, state, journal):
        plan = self.trainer.plan
        while int(state.step) < plan.total and not self.stop.is_set():
            start = perf_counter()
            state, turned = jax.block_until_ready(self.schedule.before_step(state, self.stop))
            if self.stop.is_set() and turned is None:
                break
            sampling = perf_counter() - start
            state, judgement = jax.block_until_ready(self.trainer.take_step(state))
            seconds = {"sampling": sampling, "total": perf_counter() - start}
            state = self._record(state, judgement, turned, seconds, journal)
        if int(state.step) >= plan.total:
            state = self._save_both(state)
        elif int(state.step) % self.checkpoint_every:
            self._save(checkpoint.LATEST, state)
        return state

    def _record(self, state, judgement, turned, seconds, journal):
        """Metrics of a step; checkpoints where they are due."""
        if turned is not None:
            error = smoothed(state.error, turned.judgement.error)
            state = eqx.tree_at(lambda s: s.error, state, error)
        metrics = self._metrics(state, judgement, turned) | {"seconds": seconds}
        if journal is not None:
            journal.write(metrics)
        self.report(metrics)
        if int(state.step) % self.checkpoint_every == 0:
            state = self._save_both(state)
        return state

    def _metrics(self, state, judgement, turned) -> Metrics:
        step = int(state.step)
        pretraining = step <= self.trainer.plan.pretrain_steps
        metrics = {
            "step": step,
            "phase": "pretrain" if pretraining else "train",
            "energy": float(judgement.energy),
            "error_estimate": float(judgement.error),
            "residual": float(judgement.residual),
            "samples": sum(int(one.buffer.pushed) for one in state.samples),
            "staleness": step - 1 - int(state.chain_step) if not pretraining else 0,
        }
        if turned is not None:
            mean = {
                name: float(np.mean([np.mean(getattr(info, name)) for info in turned.info]))
                for name in ("acceptance", "impossible", "dissociated", "swaps")
            }
            metrics |= mean | {
                "sampled_energy": float(turned.judgement.energy),
                "sampled_error_estimate": float(turned.judgement.error),
                "sampled_residual": float(turned.judgement.residual),
                "smoothed_error": float(state.error),
                "step_size": [np.asarray(one.chains.step_size).tolist() for one in state.samples],
                "chain_energy": [np.asarray(one.chains.energy).tolist() for one in state.samples],
            }
        return _finite(metrics)

    def _save_both(self, state: TrainState) -> TrainState:
        """The latest checkpoint, and the best if the error has never been so small."""
        improved = bool(state.error < state.best)
        if improved:
            state = eqx.tree_at(lambda s: s.best, state, state.error)
        self._save(checkpoint.LATEST, state)
        if improved:
            self._save(checkpoint.BEST, state)
        return state

    def _save(self, name: str, state: TrainState) -> None:
        if self._writes:
            counters = {"step": int(state.step), "turn": int(state.turn)}
            checkpoint.save(self.run_directory / name, state, self.header | counters)


def build_schedule(trainer: Trainer, mode: str, max_staleness: int) -> AbstractSchedule:
    """The schedule of this name: "interleaved" or "asynchronous"."""
    if mode == "interleaved":
        return Interleaved(trainer)
    return Asynchronous(trainer, max_staleness)


@contextlib.contextmanager
def interruptible(session: Session) -> Iterator[None]:
    """Ctrl-C (or SIGTERM) ends the session after its present step; a second time, at once."""

    def handle(number, frame):
        if session.stop.is_set():
            raise KeyboardInterrupt
        session.stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _finite(metrics: Metrics) -> Metrics:
    """JSON has no infinities: what is not finite becomes null."""
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value
        for key, value in metrics.items()
    }
