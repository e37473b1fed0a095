"""How far above the minimum is each kind of model, trained on the same geometries?

No labels: passes over the training geometries, then the mean and the largest error of the energy on
held-out ones, in hartree, beside what is known of it without labels (`error_estimate`). Weights are
constants; linear in smooth functions of distances ("gates"); or linear in features that a network
learns. Constants and gates are trained by Gauss-Newton. The network is trained by Adam, for the
second half of the passes after Gauss-Newton has found its constants ("network"), or for all of
them, as first-order training from scratch would be ("adam"). Beside them a network of the kind that
the reference implementation has, from positions straight to coefficients (`benchmarks/direct.py`),
by Adam, for as many passes as make up for its single Fock matrix per geometry ("direct").
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from benchmarks.direct import DirectOrbitals
from benchmarks.measure import configure_jax, device
from benchmarks.molecules import Name, geometries, molecule
from benchmarks.report import Report
from srdft.family import MoleculeFamily, map_geometries
from srdft.model import OperatorMixture
from srdft.network import AbstractFeatures, Constant, Gates, Network
from srdft.objective import GaussNewton, mean_energy

Kind = Literal["constants", "gates", "network", "adam", "direct"]
PRINTED = (
    "molecule kind steps parameters mean_error max_error error_estimate start_error fock_builds "
    "compile_cpu_s train_cpu_s"
).split()


class Data(NamedTuple):
    """A family with geometries, bohr, and the converged energies of the held-out ones, hartree."""

    family: MoleculeFamily
    train: jax.Array
    test: jax.Array
    reference: jax.Array


@dataclass(frozen=True)
class Problem:
    """What models learn."""

    molecule: Name = "water"
    basis: str = "def2-svp"
    xc: str = "b3lyp"
    grid: int = 1
    train: int = 24
    """Geometries to train on."""
    test: int = 16
    """Held-out geometries."""
    scale: float = 0.5
    """Part of each Gauss-Newton step that is gone."""

    def prepare(self) -> Data:
        """Family, geometries near the structure, and references."""
        numbers = molecule(self.molecule).numbers
        family = MoleculeFamily.build(numbers, self.basis, self.xc, grid=self.grid)
        positions = jnp.asarray(geometries(self.molecule, self.train + self.test))
        train, test = positions[: self.train], positions[self.train :]
        solve = eqx.filter_jit(lambda r: map_geometries(family.solve, r))
        return Data(family, train, test, solve(test).require_converged().energy)


@dataclass(frozen=True)
class Options(Problem):
    """Which models to compare."""

    kinds: tuple[Kind, ...] = ("constants", "gates", "network", "adam", "direct")
    steps: tuple[int, ...] = (1, 2)
    passes: int = 12
    """Of Gauss-Newton over the training geometries."""
    degree: int = 2
    """Of the gates' polynomials."""
    width: int = 32
    """Of the networks."""
    learning_rate: float = 1e-3
    out: Path | None = None
    """Append to this file instead of results/models.json."""


def features(kind: Kind, family: MoleculeFamily, options: Options) -> AbstractFeatures:
    """What the weights depend on."""
    if kind == "constants":
        return Constant()
    if kind == "gates":
        return Gates.build([family], options.degree)
    return Network.build([family], width=options.width, key=jax.random.key(0))


def gauss_newton(model, family, positions, passes, scale):
    """The model after `passes` over the geometries; seconds of the processor for the first pass,
    with its compilation, and for the others."""
    method = GaussNewton()
    seconds = []
    for _ in range(passes):
        start = time.process_time()
        state, _ = method.accumulate(method.init(model), family, model, positions)
        model = jax.block_until_ready(method.step(state, model, scale))
        seconds.append(time.process_time() - start)
    return model, seconds[0], sum(seconds[1:])


def adam(model, family, positions, passes, learning_rate):
    """As `gauss_newton`, by gradients of the mean energy of all geometries."""
    transformation = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate))
    state = transformation.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        gradient = eqx.filter_grad(mean_energy)(model, family, positions)
        change, state = transformation.update(gradient, state)
        return eqx.apply_updates(model, change), state

    seconds = []
    for _ in range(passes):
        start = time.process_time()
        model, state = jax.block_until_ready(step(model, state))
        seconds.append(time.process_time() - start)
    return model, seconds[0], sum(seconds[1:])


def errors(model, family, positions, reference):
    """Of each geometry: above the converged energy, and as estimated without it."""
    energies, estimates = _predicted(family, model, positions)
    return np.asarray(energies - reference), np.asarray(estimates)


@eqx.filter_jit
def _predicted(family, model, positions):
    def one(r):
        prediction = family.predict(model, r)
        return prediction.energy, prediction.error_estimate

    return map_geometries(one, positions)


def run(kind: Kind, steps: int, family, train, test, reference, options: Options):
    """One row."""
    passes, scale, builds = options.passes, options.scale, steps + 1
    if kind == "direct":
        passes, builds = passes * builds, 1
        start = model = DirectOrbitals.build([family], width=options.width, key=jax.random.key(0))
    else:
        start = OperatorMixture.build([family], Constant(), steps=steps)
        model = OperatorMixture.build([family], features(kind, family, options), steps=steps)
    start_error, _ = errors(start, family, test, reference)
    if kind in ("constants", "gates"):
        model, compile_cpu_s, train_cpu_s = gauss_newton(model, family, train, passes, scale)
    elif kind == "network":
        begun, *first = gauss_newton(start, family, train, passes // 2, scale)
        weights = model.weights.at[..., :1].set(begun.weights)  # the feature 1
        model = eqx.tree_at(lambda m: m.weights, model, weights)
        rest = passes - passes // 2
        model, *second = adam(model, family, train, rest, options.learning_rate)
        compile_cpu_s, train_cpu_s = (a + b for a, b in zip(first, second))
    else:
        model, compile_cpu_s, train_cpu_s = adam(
            model, family, train, passes, options.learning_rate
        )
    error, estimate = errors(model, family, test, reference)
    parameters = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    return {
        "molecule": options.molecule,
        "basis": options.basis,
        "xc": options.xc,
        "grid": options.grid,
        "device": device(),
        "kind": kind,
        "steps": steps,
        "parameters": sum(x.size for x in parameters),
        "train": len(train),
        "test": len(test),
        "passes": passes,
        "mean_error": float(error.mean()),
        "max_error": float(error.max()),
        "error_estimate": float(estimate.mean()),
        "estimate_correlation": float(np.corrcoef(estimate, error)[0, 1]),
        "start_error": float(start_error.mean()),
        "fock_builds": passes * len(train) * builds,
        "compile_cpu_s": compile_cpu_s,
        "train_cpu_s": train_cpu_s,
    }


def main(options: Options) -> None:
    """Measure and report the rows."""
    configure_jax()
    print(f"device: {device()}")
    report = Report("models", options.out, tuple(PRINTED))
    data = options.prepare()
    for steps in options.steps:
        for kind in options.kinds:
            report.row(**run(kind, steps, *data, options))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
