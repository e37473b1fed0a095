"""Does a cheaper drift pay: the gradient at held orbitals, in place of the total derivative?

A model of constants is trained by Gauss-Newton, a little or well; then MALA chains sample its
energy with either drift. The accept step is exact, so both sample the same distribution; what
counts is effective samples of the energy per second. Seconds are the processor's, of compiled
programs: run it on one core (`taskset -c 0`).
"""

from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.measure import configure_jax, device
from benchmarks.models import Problem, errors, gauss_newton
from benchmarks.report import Report
from qchem import program
from srdft.diagnostics import diagnose
from srdft.kernels import kernel_from_name
from srdft.model import OperatorMixture
from srdft.potential import HeldDrift, TotalDrift
from srdft.sampler import Sampler


@dataclass(frozen=True)
class Options(Problem):
    """What to sample, and for how long."""

    passes: tuple[int, ...] = (1, 10)
    """Of the training: how good the models are."""
    drifts: tuple[Literal["total", "held"], ...] = ("total", "held")
    chains: int = 4
    warmup: int = 60
    """Transitions."""
    transitions: int = 100
    """After the warm-up."""
    temperature: float = 500.0
    """Kelvin."""
    out: Path | None = None
    """Append to this file instead of results/drift.json."""


def sample(sampler: Sampler, model: Any, positions, options: Options) -> dict[str, float]:
    """Acceptance, seconds per transition of a chain, effective samples of the energy."""

    @program
    def turn(model, chains, key, refresh):
        return sampler.sample(model, chains, 1, key=key, refresh=refresh)

    keys = jax.random.split(jax.random.key(0), options.warmup + options.transitions)
    chains = sampler.init(model, positions, 1e-3)
    energies, accepted = [], []
    for n, key in enumerate(keys):
        if n == options.warmup:
            start = process_time()
        chains, info = jax.block_until_ready(turn(model, chains, key, jnp.asarray(n == 0)))
        if n >= options.warmup:
            energies.append(np.asarray(chains.energy))
            accepted.append(float(np.mean(info.acceptance)))
    seconds = process_time() - start
    effective, r_hat = diagnose(np.stack(energies, axis=1))
    return {
        "acceptance": float(np.mean(accepted)),
        "step_size": float(chains.step_size[0]),
        "transition_cpu_s": seconds / (options.transitions * options.chains),
        "effective_samples": effective,
        "r_hat": r_hat,
        "effective_per_cpu_s": effective / seconds,
    }


def main(options: Options) -> None:
    """Train, sample, and report a row for each model and drift."""
    configure_jax()
    print(f"device: {device()}")
    report = Report("drift", options.out)
    family, train, test, reference = options.prepare()
    drifts = {"total": TotalDrift(family.energy_fn), "held": HeldDrift(family)}
    for passes in options.passes:
        start = OperatorMixture.build([family], steps=2)
        model, *_ = gauss_newton(start, family, train, passes, options.scale)
        error, _ = errors(model, family, test, reference)
        for name in options.drifts:
            sampler = Sampler(
                potential=drifts[name],
                kernel=kernel_from_name("mala"),
                numbers=family.numbers,
                temperatures=(options.temperature,),
                warmup=options.warmup,
            )
            about = {key: getattr(options, key) for key in ("molecule", "basis", "xc", "grid")}
            about |= {"passes": passes, "mean_error": float(error.mean()), "drift": name}
            report.row(**about, **sample(sampler, model, train[: options.chains], options))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
