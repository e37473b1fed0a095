"""How well does the error that needs no labels track the true one?

A model of constants starts untrained and is trained by Gauss-Newton, pass after pass. Each row has,
over held-out geometries, the true error E - E0 of the predicted energy, its estimate from the
occupied-virtual block of the Fock matrix (both in hartree), how the quotient estimate / error is
spread, and the correlation of their ranks among the geometries.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from scipy.stats import spearmanr

from benchmarks.measure import configure_jax, device
from benchmarks.models import Problem, errors, gauss_newton
from benchmarks.report import Report
from srdft.model import OperatorMixture

QUOTIENTS = (5, 50, 95)  # percentiles


@dataclass(frozen=True)
class Options(Problem):
    """What to train, and for how long."""

    steps: int = 2
    """Learned steps of the model."""
    passes: int = 10
    """Over the training geometries; a row for each, and one before the first."""
    out: Path | None = None
    """Append to this file instead of results/estimates.json."""


def row(error, estimate):
    """Statistics of true and estimated errors."""
    low, median, high = np.percentile(estimate / error, QUOTIENTS)
    return {
        "mean_error": float(error.mean()),
        "mean_estimate": float(estimate.mean()),
        "quotient_5": float(low),
        "quotient_50": float(median),
        "quotient_95": float(high),
        "rank_correlation": float(spearmanr(error, estimate).statistic),
    }


def main(options: Options) -> None:
    """Train, and report a row for each pass."""
    configure_jax()
    print(f"device: {device()}")
    report = Report("estimates", options.out)
    family, train, test, reference = options.prepare()
    model = OperatorMixture.build([family], steps=options.steps)
    for done in range(options.passes + 1):
        if done:
            model, *_ = gauss_newton(model, family, train, 1, options.scale)
        about = {key: getattr(options, key) for key in ("molecule", "basis", "xc", "grid")}
        about |= {"passes": done}
        report.row(**about, **row(*errors(model, family, test, reference)))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
