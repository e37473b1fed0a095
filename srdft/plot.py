"""Pictures of a run: loss and error, the chains, internal coordinates, the curve of a diatomic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from qchem import BOHR_IN_ANGSTROM, InputError
from srdft import checkpoint
from srdft.data import Frames, load_frames
from srdft.diagnostics import quantities
from srdft.experiment import Experiment, model_of
from srdft.session import read_metrics

FOLDER = "plots"
CURVE = np.linspace(0.5, 2.5, 21)  # ångström; bond lengths of a diatomic's energy curve


def plot_run(run: Path, data: Path | None = None, samples: Path | None = None) -> list[Path]:
    """Draw what a run directory holds; the pictures go into its `plots` folder.

    Args:
        run: The directory.
        data: Reference geometries for the histograms, of the family that has these atoms.
        samples: Geometries to compare with them, likewise; by default those of the replay buffer
            that were sampled at the temperature asked for, whatever is trained on.

    Returns:
        The files written.

    Raises:
        InputError: No run, no matplotlib, or geometries of another molecule.
    """
    if not run.is_dir():
        raise InputError(f"{str(run)!r} is not the directory of a run.")
    metrics = read_metrics(run)
    experiment, model = model_of(run)
    latest = Experiment.from_checkpoint(checkpoint.find(run, checkpoint.LATEST))
    references, sampled = (_by_family(path, experiment.families) for path in (data, samples))
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    written = []
    if metrics:
        written += [
            _draw(folder / "training.png", _training, metrics),
            _draw(folder / "chains.png", _chains, metrics),
        ]
    several = len(experiment.families) > 1
    for index, family in enumerate(experiment.families):
        suffix = f"_{family.name}" if several else ""
        start, reference = np.asarray(latest.state.given[index][0]), references[index]
        if reference is not None:
            reference = reference.bonded_as(start)
        if any(line.get("chain_energy") for line in metrics):
            path = folder / f"energies{suffix}.png"
            temperatures = latest.trainer.samplers[index].temperatures
            written.append(_draw(path, _energies, metrics, index, temperatures))
        frames = _samples(latest, index) if sampled[index] is None else sampled[index]
        if frames.n and quantities(family.numbers, frames.positions[:1], start):
            path = folder / f"coordinates{suffix}.png"
            written.append(_draw(path, _coordinates, frames, reference, start))
        if len(family.numbers) == 2:
            written.append(_draw(folder / f"curve{suffix}.png", _curve, family, model))
    return written


def _by_family(path, families):
    """The frames of a file for each family whose atoms they have; None for others."""
    found, errors = [], []
    for family in families if path is not None else ():
        try:
            frames = load_frames(path, charge=family.charge, multiplicity=family.multiplicity)
            found.append(frames.ordered_as(family.numbers, str(path)))
        except InputError as error:
            found.append(None)
            errors.append(error)
    if errors and len(errors) == len(families):
        raise errors[0]
    return found or [None] * len(families)


def _samples(experiment, index):
    family = experiment.families[index]
    buffer, settings = experiment.state.samples[index].buffer, experiment.config.sampler
    pushed = np.arange(int(buffer.pushed))[-buffer.capacity :]
    if settings.keep_hot:  # chains of the first temperature come first in every turn
        per_rung = settings.chains // (1 + len(settings.ladder))
        pushed = pushed[pushed % settings.chains < per_rung]
    return Frames(family.numbers, np.asarray(buffer.positions)[pushed % buffer.capacity])


def _draw(path: Path, draw, *arguments: Any) -> Path:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("plots need matplotlib: pip install matplotlib.") from None
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, *arguments)
    figure.savefig(path, dpi=120)
    return path


def _series(metrics, name):
    """Steps and values of a metric, where it has any."""
    found = [(line["step"], line[name]) for line in metrics if line.get(name) is not None]
    steps, values = zip(*found) if found else ((), ())
    return np.array(steps), np.array(values)


def _training(figure, metrics):
    figure.set_size_inches(9, 3.5)
    left, right = figure.subplots(1, 2)
    steps, energy = _series(metrics, "energy")
    left.plot(steps, energy, lw=0.8)
    left.set(xlabel="step", ylabel="mean energy of a batch, hartree")
    for name, label in (
        ("error_estimate", "training batches"),
        ("sampled_error_estimate", "sampled batches"),
        ("smoothed_error", "sampled, smoothed"),
    ):
        steps, values = _series(metrics, name)
        if values.size:
            right.plot(steps, np.maximum(values, 1e-12), lw=0.8, label=label)
    right.set(xlabel="step", ylabel="estimated energy error, hartree", yscale="log")
    right.legend()


def _chains(figure, metrics):
    figure.set_size_inches(9, 3.5)
    left, right = figure.subplots(1, 2)
    for name in ("acceptance", "impossible", "dissociated", "swaps"):
        steps, values = _series(metrics, name)
        if values.size and (name == "acceptance" or values.any()):
            left.plot(steps, values, lw=0.8, label=name)
    left.set(xlabel="step", ylabel="part of the proposals", ylim=(0, 1))
    if left.lines:
        left.legend()
    steps, sizes = _series(metrics, "step_size")
    for i in range(sizes.shape[1] if sizes.size else 0):
        for j in range(sizes.shape[2]):
            right.plot(steps, sizes[:, i, j], lw=0.8)
    right.set(xlabel="step", ylabel="step size, bohr²", yscale="log")


def _energies(figure, metrics, index, temperatures):
    """Energy along each chain of a family, above the lowest; a colour for each temperature."""
    figure.set_size_inches(7, 3.5)
    axis = figure.subplots()
    turns = [(m["step"], m["chain_energy"][index]) for m in metrics if m.get("chain_energy")]
    steps, energies = (np.array(x, dtype=float) for x in zip(*turns))
    above = energies - np.nanmin(energies)
    per_rung = above.shape[1] // len(temperatures)
    for chain, values in enumerate(above.T):
        rung, first = chain // per_rung, chain % per_rung == 0
        label = f"{temperatures[rung]:g} K" if first else None
        axis.plot(steps, values, lw=0.6, color=f"C{rung}", label=label)
    axis.set(xlabel="step", ylabel="energy of each chain, hartree", ylim=(0, None))
    axis.legend()


def _coordinates(figure, frames, reference, start):
    ours = quantities(frames.numbers, frames.positions, start)
    theirs = quantities(frames.numbers, reference.positions, start) if reference else {}
    columns = min(4, len(ours))
    rows = -(-len(ours) // columns)
    figure.set_size_inches(3 * columns, 2.4 * rows)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, (name, values) in zip(axes, ours.items(), strict=False):
        is_angle = name.count("-") == 3
        scale = 1.0 if is_angle else BOHR_IN_ANGSTROM
        together = np.concatenate([values, theirs.get(name, values)]) * scale
        edges = np.linspace(together.min() - 1e-9, together.max() + 1e-9, 31)
        axis.hist(values * scale, edges, density=True, alpha=0.6, label="samples")
        if name in theirs:
            axis.hist(theirs[name] * scale, edges, density=True, histtype="step", label="reference")
        axis.set(title=name, xlabel="degrees" if is_angle else "Å", yticks=[])
    if len(ours):
        axes[0].legend()
    for axis in axes[len(ours) :]:
        axis.set_visible(False)


def _curve(figure, family, model):
    """Energy of a diatomic along its bond: the model's and the converged one."""
    figure.set_size_inches(6, 5)
    above, below = figure.subplots(2, 1, sharex=True)
    predicted, converged = [], []
    for length in CURVE / BOHR_IN_ANGSTROM:
        positions = jnp.array([[0.0, 0.0, -length / 2], [0.0, 0.0, length / 2]])
        predicted.append(float(family.energy_fn(model, positions)))
        result = family.solve(positions)
        converged.append(float(result.energy) if bool(result.converged) else np.nan)
    above.plot(CURVE, converged, label="converged SCF")
    above.plot(CURVE, predicted, "--", label="model")
    above.set(ylabel="energy, hartree")
    above.legend()
    below.plot(CURVE, np.maximum(np.array(predicted) - np.array(converged), 1e-14))
    below.set(xlabel="bond length, Å", ylabel="error, hartree", yscale="log")
