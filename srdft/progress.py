"""What a person sees while something runs: to stderr, as a bar on a terminal, else as lines."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qchem import InputError

LINES = 20  # of a whole training, where there is no terminal


@contextlib.contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar that is told how many of `total` are done."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextlib.contextmanager
def reporter(
    total: int, tensorboard: Path | None = None
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function to be given the metrics of each step of a training.

    Args:
        total: Number of steps.
        tensorboard: Directory of TensorBoard's files; None writes none.

    Raises:
        InputError: TensorBoard is asked for and its writer is not installed.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    board = _board(tensorboard)
    latest: dict[str, Any] = {}
    start, first = perf_counter(), [None]
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=total, text="compiling")

        def report(metrics: dict[str, Any]) -> None:
            latest.update({k: v for k, v in metrics.items() if v is not None})
            step, samples = metrics["step"], metrics["samples"]
            if first[0] is None:
                first[0] = samples
            rate = (samples - first[0]) / max(perf_counter() - start, 1e-9)
            text = _line(latest, rate)
            progress.update(task, completed=step, text=text)
            if not console.is_terminal and (step % max(1, total // LINES) == 0 or step == total):
                print(f"step {step} of {total}: {text}", file=sys.stderr, flush=True)
            if board is not None:
                for name, value in metrics.items():
                    if isinstance(value, int | float):
                        board.add_scalar(name, value, step)

        try:
            yield report
        finally:
            if board is not None:
                board.close()


def _line(metrics, rate):
    parts = [f"energy {metrics['energy']:.6f}" if "energy" in metrics else "energy not finite"]
    if "error_estimate" in metrics:
        parts.append(f"error {metrics['error_estimate']:.1e}")
    if "acceptance" in metrics:
        parts.append(f"acceptance {metrics['acceptance']:.2f}")
        parts.append(f"{rate:.2g} samples/s")
    return ", ".join(parts)


def _board(folder):
    if folder is None:
        return None
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise InputError(
            "train.tensorboard = true needs tensorboardX: pip install tensorboardX."
        ) from None
    return SummaryWriter(str(folder))
