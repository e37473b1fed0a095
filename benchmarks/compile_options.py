"""Do the compiler options of `qchem.program` pay, in time to compile and in time to run?

The two programs of the command on a CPU, integrals and gradient, compiled with the options and
without. `change` is the largest relative difference of the results.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.flatten_util import ravel_pytree

import qchem
from benchmarks.measure import configure_jax, measure
from benchmarks.molecules import Name, molecule
from benchmarks.report import Report
from qchem.compilation import QUICK


@dataclass(frozen=True)
class Options:
    """Which programs to compile."""

    molecule: Name = "ethanol"
    basis: str = "def2-svp"
    xc: str = "b3lyp"
    two_electron: tuple[Literal["exact", "df"], ...] = ("exact", "df")
    grid: int = 3
    repeats: int = 5
    out: Path | None = None
    """Append to this file instead of results/compile_options.json."""


def main(options: Options) -> None:
    """Measure and report the rows."""
    configure_jax()
    report = Report("compile_options", options.out)
    known = molecule(options.molecule)
    positions = jnp.asarray(known.positions)
    for two_electron in options.two_electron:
        energy_fn = qchem.energy_fn(
            known.numbers,
            options.basis,
            options.xc,
            two_electron=two_electron,
            grid=options.grid,
        )
        method = energy_fn.method
        factor = _orbitals(method.basis.nao, sum(known.numbers) // 2)
        programs = {
            "integrals": (lambda r, m=method: m.hamiltonian(r), (positions,)),
            "gradient": (jax.grad(method.energy), (positions, factor)),
        }
        for name, (function, arguments) in programs.items():
            plain, values = None, None
            for compiler_options in ({}, QUICK):
                out, cost = measure(
                    function,
                    *arguments,
                    repeats=options.repeats,
                    compiler_options=compiler_options,
                )
                values = np.asarray(ravel_pytree(out)[0])
                plain = values if plain is None else plain
                report.row(
                    molecule=options.molecule,
                    two_electron=two_electron,
                    program=name,
                    options=str(compiler_options),
                    **asdict(cost),
                    change=float(np.abs(values - plain).max() / np.abs(plain).max()),
                )


def _orbitals(nao: int, nocc: int) -> jax.Array:
    """Any that are not orthonormal."""
    return jnp.asarray(np.random.default_rng(0).normal(size=(1, nao, nocc)))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
