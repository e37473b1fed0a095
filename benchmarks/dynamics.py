"""Do samples of a trained model agree with molecular dynamics in converged energies?

Langevin dynamics (ASE's) with forces of the converged SCF, at the family's temperature, knows
nothing of the model or of its chains. For every distance between two atoms: mean and standard
deviation of both, how many of their own standard errors they are apart, and the largest difference
between the two cumulative distributions beside what chance alone exceeds once in twenty times
(Kolmogorov and Smirnov). Standard errors count effective samples.

`srdft train examples/water.toml --out runs/water`, then `python -m benchmarks.dynamics runs/water`.
"""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from time import perf_counter
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from ase import Atoms
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.units import Bohr, fs

from benchmarks.measure import device
from benchmarks.report import Report
from qchem import SYMBOLS
from qchem.ase import Calculator
from qchem.command import configure_jax
from srdft.diagnostics import diagnose
from srdft.experiment import model_of
from srdft.sampling import collect

PRINTED = (
    "distance md_mean md_std samples_mean samples_std mean_apart std_apart largest_gap "
    "gap_of_chance"
).split()


@dataclass(frozen=True)
class Options:
    """How long to sample both."""

    run: Annotated[Path, tyro.conf.Positional]
    """Directory of a training of one family."""
    samples: int = 1000
    """Of the model's distribution."""
    steps: int = 6000
    """Of the dynamics."""
    equilibration: int = 500
    """Steps that are left out before these."""
    timestep: float = 0.4
    """fs."""
    friction: float = 0.03
    """1/fs."""
    every: int = 5
    """Steps from one geometry of the dynamics to the next."""
    seed: int = 0
    out: Path | None = None
    """Append to this file instead of results/dynamics.json."""


class Series(NamedTuple):
    """A distance along chains (nchain, n), bohr."""

    values: np.ndarray

    @property
    def effective(self) -> float:
        """Number of independent values that it is worth."""
        return diagnose(self.values)[0]

    def errors(self) -> tuple[float, float]:
        """Standard errors of mean and standard deviation."""
        std = self.values.std()
        return std / self.effective**0.5, std / (2 * self.effective) ** 0.5


def dynamics(family, numbers, positions: np.ndarray, kelvin: float, options: Options) -> np.ndarray:
    """Geometries of the dynamics in converged energies, bohr."""
    settings = {
        key: getattr(family, key)
        for key in ("basis", "xc", "two_electron", "grid", "aux", "cartesian")
    }
    spin = {"charge": family.charge, "multiplicity": family.multiplicity}
    atoms = Atoms(numbers=numbers, positions=positions * Bohr)
    atoms.calc = Calculator(**settings, **spin)
    random = np.random.RandomState(options.seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=kelvin, rng=random)
    frames = []
    # The centroid is free: ASE's way of fixing it disturbs the distribution of few atoms.
    bath = {"temperature_K": kelvin, "friction": options.friction / fs, "fixcm": False}
    with Langevin(atoms, options.timestep * fs, rng=random, **bath) as run:
        run.run(options.equilibration)
        run.attach(lambda: frames.append(atoms.positions / Bohr), interval=options.every)
        for done in range(0, options.steps, 500):
            run.run(min(500, options.steps - done))
            print(f"dynamics: {min(done + 500, options.steps)} of {options.steps}", flush=True)
    return np.array(frames)


def gap(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference between the cumulative distributions."""
    both = np.concatenate([a, b])
    shares = [np.searchsorted(np.sort(x), both, side="right") / x.size for x in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


def rows(numbers, md: np.ndarray, ours: np.ndarray):
    """One for each distance; both are (chain, time, atom, axis)."""
    for i, j in combinations(range(len(numbers)), 2):
        md_r, our_r = (Series(np.linalg.norm(x[:, :, i] - x[:, :, j], axis=-1)) for x in (md, ours))
        errors = [np.hypot(*pair) for pair in zip(md_r.errors(), our_r.errors(), strict=True)]
        moments = [(x.values.mean(), x.values.std()) for x in (md_r, our_r)]
        apart = [(b - a) / e for a, b, e in zip(*moments, errors, strict=True)]
        yield {
            "distance": "-".join(f"{SYMBOLS[numbers[k]]}{k + 1}" for k in (i, j)),
            "md_mean": moments[0][0],
            "md_std": moments[0][1],
            "md_effective": md_r.effective,
            "samples_mean": moments[1][0],
            "samples_std": moments[1][1],
            "samples_effective": our_r.effective,
            "mean_apart": apart[0],
            "std_apart": apart[1],
            "largest_gap": gap(md_r.values.ravel(), our_r.values.ravel()),
            "gap_of_chance": 1.36 * (1 / md_r.effective + 1 / our_r.effective) ** 0.5,
        }


def main(options: Options) -> None:
    """Sample both, and report a row for each distance."""
    configure_jax()
    print(f"device: {device()}")
    experiment, model = model_of(options.run)
    index = experiment.family(None)  # there has to be one alone
    family, sampler = experiment.config.family[index], experiment.config.sampler
    start = perf_counter()
    found = collect(experiment, index, model, options.samples, seed=options.seed)
    print(f"{found.summary()}\n{perf_counter() - start:.0f} s")
    numbers = experiment.families[index].numbers
    nchain = sampler.chains // (1 + len(sampler.ladder))
    ours = found.positions[: len(found.positions) // nchain * nchain]
    ours = np.swapaxes(ours.reshape(-1, nchain, *ours.shape[1:]), 0, 1)
    md = dynamics(family, numbers, np.asarray(found.positions[0]), sampler.temperature, options)
    report = Report("dynamics", options.out, tuple(PRINTED))
    about = {"run": options.run.name, "kelvin": sampler.temperature}
    for row in rows(numbers, md[None], ours):
        report.row(**row, **about)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
