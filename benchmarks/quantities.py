"""Has anything grown? Counted quantities against committed ones: seconds do not matter.

For each main program on water (def2-SVP, B3LYP, a coarse grid): floating-point operations and
equations of the traced program, operations by XLA's cost analysis (which counts the body of a loop
once) and peak bytes of the compiled one; and how many programs `qchem.energy` compiles for a first
molecule, for another geometry and for another molecule of like size. The committed values are
those of one version of JAX on a CPU; elsewhere there is nothing to compare with.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import qchem
from benchmarks.counting import equations, operations
from benchmarks.measure import configure_jax, count_compilations, program_bytes
from benchmarks.report import RESULTS

GROWTH = 1.05  # of a quantity; compilations may not grow at all
_WATER = np.array([[0.0, 0.0, 0.2217], [0.0, 1.4309, -0.8867], [0.0, -1.4309, -0.8867]])


@dataclass(frozen=True)
class Options:
    """What to do with the numbers."""

    update: bool = False
    """Write them instead of comparing them."""
    committed: Path = RESULTS / "quantities.json"


def version() -> str:
    """What the numbers depend on besides our code."""
    return f"jax {jax.__version__}, {jax.default_backend()}"


def programs() -> Iterator[tuple[str, Callable, tuple[Any, ...]]]:
    """Name, function and arguments of each; shapes stand for what takes time to make."""
    positions = jnp.asarray(_WATER)
    rng = np.random.default_rng(0)
    for two_electron in ("df", "exact"):
        method = qchem.energy_fn(
            (8, 1, 1), "def2-svp", "b3lyp", two_electron=two_electron, grid=0
        ).method
        factor = jnp.asarray(rng.normal(size=(1, method.basis.nao, 5)))
        yield f"Hamiltonian, {two_electron}", method.hamiltonian, (positions,)
        yield f"gradient, {two_electron}", jax.grad(method.energy), (positions, factor)
    hamiltonian, _ = jax.eval_shape(lambda r: method.hamiltonian(r), positions)
    yield "Fock matrix, exact", lambda h, factor: h.energy_and_fock(factor), (hamiltonian, factor)


def count(function: Callable, arguments: tuple[Any, ...]) -> dict[str, float]:
    """The quantities of one program."""
    compiled = jax.jit(lambda *args: function(*args)).lower(*arguments).compile()
    return {
        "operations": operations(function, *arguments).total,
        "equations": equations(function, *arguments),
        "xla_operations": compiled.cost_analysis()["flops"],
        "peak_bytes": program_bytes(compiled),
    }


def compilations() -> dict[str, int]:
    """Programs that energies and forces compile, one molecule after another."""
    water = qchem.Molecule.from_arrays("OHH", _WATER, unit="bohr")
    moved = qchem.Molecule.from_arrays("OHH", 1.1 * _WATER, unit="bohr")
    other = qchem.Molecule.from_arrays("CHH", _WATER, unit="bohr")
    found = {}
    for name, mol in (("first", water), ("another geometry", moved), ("another molecule", other)):
        with count_compilations() as seconds:
            qchem.energy(mol, "sto-3g", "hf").forces()
        found[name] = len(seconds)
    return found


def grown(found: dict[str, Any], committed: dict[str, Any]) -> list[str]:
    """Names of what is larger than it was, with both values."""
    messages = []
    for name, quantities in found.items():
        for quantity, value in quantities.items():
            before = committed.get(name, {}).get(quantity)
            allowed = 1.0 if name == "compilations" else GROWTH
            if before is None or value > allowed * before:
                messages.append(f"{name}: {quantity} {value:g}, was {before}")
    return messages


def measured() -> dict[str, Any]:
    """All quantities."""
    found: dict[str, Any] = {"compilations": compilations()}
    for name, function, arguments in programs():
        found[name] = count(function, arguments)
    return found


def main(options: Options) -> None:
    """Compare, or write."""
    configure_jax()
    found = measured()
    print(json.dumps(found, indent=2))
    every = json.loads(options.committed.read_text()) if options.committed.exists() else {}
    if options.update:
        text = json.dumps(every | {version(): found}, indent=2)
        options.committed.write_text(text + "\n")
    elif version() not in every:
        print(f"there are no committed values for {version()}: --update writes them")
    elif messages := grown(found, every[version()]):
        raise SystemExit("\n".join(["grown:", *messages]))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
