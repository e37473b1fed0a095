"""How near is each stage of a calculation to what this machine can do?

Operations are counted in the traced program (benchmarks/counting.py; screened tiles included, so
shares of large molecules are too good), bytes are those of arguments and results alone. `share` is
the time that this machine's matrix product and memory would need at least, as a part of the time
measured: the higher of operations / peak and bytes / bandwidth, which `limit` names.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import qchem
from benchmarks.counting import compulsory_bytes, operations
from benchmarks.measure import configure_jax, device, measure, stopwatch
from benchmarks.molecules import Name, molecule
from benchmarks.report import Report
from qchem.devices import ALONE
from qchem.fitted_jk import DensityFittedJK, fit_of
from qchem.integrals.fitting import fitting_2c, fitting_3c
from qchem.integrals.kernel import _operands, _separated
from qchem.integrals.pairs import npair, pair_distributions
from qchem.integrals.solid import solid_shells
from qchem.integrals.tiles import blocks_of
from qchem.integrals.two_electron import _tile_indices, _tiles, coulomb_4c
from qchem.jk import PackedJK
from qchem.xc.quadrature import GridXC, density_and_gradient

GEMM, STREAM = 2048, 1 << 25  # sizes


@dataclass(frozen=True)
class Options:
    """Which calculation to take apart."""

    molecule: Name = "ethanol"
    basis: str = "def2-svp"
    xc: str = "b3lyp"
    grid: int = 3
    exact: bool = True
    """Four-centre integrals too."""
    repeats: int = 5
    out: Path | None = None
    """Append to this file instead of results/roofline.json."""


def peaks(repeats: int) -> tuple[float, float]:
    """Operations and bytes per second: a matrix product, and y = 2 x of long vectors in place
    (by NumPy: a new array for each result would measure the operating system)."""
    a = jnp.asarray(np.random.default_rng(0).normal(size=(GEMM, GEMM)))
    product = measure(lambda a: jnp.dot(a, a, precision="highest"), a, repeats=repeats)[1]
    x, y = np.ones(STREAM), np.ones(STREAM)
    seconds = [stopwatch(lambda: np.multiply(x, 2.0, out=y))[1] for _ in range(repeats)]
    return 2 * GEMM**3 / product.run_s, 2 * x.nbytes / min(seconds)


def stages(options: Options) -> Iterator[tuple[str, Callable, tuple[Any, ...]]]:
    """Name, function and arguments of each."""
    mol = molecule(options.molecule)
    function = partial(qchem.energy_fn, mol.numbers, options.basis, options.xc, grid=options.grid)
    method = function(two_electron="df").method
    basis, aux, nao = method.basis, method.aux, method.basis.nao
    positions, size = jnp.asarray(mol.positions), npair(nao)
    plan = partial(pair_distributions, basis, method.pairs)
    fitting = partial(solid_shells, aux, method.fitting)
    pairs, charges = jax.jit(lambda r: (plan(r), fitting(r)))(positions)
    nocc = sum(mol.numbers) // 2
    factor = jnp.asarray(np.random.default_rng(0).normal(size=(1, nao, nocc)) / nao)
    dm = factor @ jnp.swapaxes(factor, 1, 2)

    yield "pair data", plan, (positions,)
    three = partial(fitting_3c, npair=size)
    yield "(ab|P)", three, (pairs, charges)
    integrals = jax.jit(three)(pairs, charges)

    def solve(three, charges):
        return DensityFittedJK(fit_of(three, fitting_2c(charges)).columns)

    yield "metric and solve", solve, (integrals, charges)
    fitted = jax.jit(solve)(integrals, charges)
    yield "J, fitted", lambda jk, dm: jk.coulomb(dm), (fitted, dm[0])
    yield "K, fitted", lambda jk, factor: jk.exchange(factor), (fitted, factor)
    if options.exact:
        yield "R of (ab|cd)", every_r, (pairs,)
        four = partial(coulomb_4c, npair=size)
        yield "(ab|cd)", four, (pairs,)
        packed = jax.jit(partial(PackedJK.build, nao=nao))(pairs)
        yield "J, exact", lambda jk, dm: jk.coulomb(dm), (packed, dm[0])
        yield "K, exact", lambda jk, factor: jk.exchange(factor), (packed, factor)

    def place(positions):
        how = {"chunk": method.npoint, "storage_bytes": 1 << 40, "rows": method.rows}
        xc = GridXC(method.functional, method.basis, method.grid, positions, **how)
        return xc.ao, xc.weights

    yield "AO values and weights", place, (positions,)
    ao, weights = jax.jit(place)(positions)

    def density(ao, dm):
        return jax.lax.map(lambda x: density_and_gradient(dm, x), ao)

    yield "density", density, (ao, dm)
    rho, sigma = (jnp.swapaxes(x, 0, 1).reshape(x.shape[1], -1) for x in density(ao, dm))

    def functional(rho, sigma, weights):
        return jax.value_and_grad(
            lambda *x: jnp.vdot(method.functional.energy_density(*x), weights.ravel()), (0, 1)
        )(rho, sigma)

    yield "functional", functional, (rho, sigma, weights)

    def potential(positions, dm, factor):
        return method._xc(positions).energy_and_fock(dm, factor)

    yield "XC energy and matrix", potential, (positions, dm, factor)

    def given(positions, factor):
        return method._xc(positions).energy_of_orbitals(factor)

    yield "XC energy, given orbitals", given, (positions, factor)
    yield "its gradient", jax.grad(given), (positions, factor)
    yield "energy, fitted", method.energy, (positions, factor)
    yield "gradient, fitted", jax.grad(method.energy), (positions, factor)
    if options.exact:
        method = function(two_electron="exact").method
        yield "energy, exact", method.energy, (positions, factor)
        yield "gradient, exact", jax.grad(method.energy), (positions, factor)


def every_r(pairs):
    """Sum of all R of (ab|cd), made tile by tile as the integrals make them."""
    total = jnp.zeros(())
    for n, bra in enumerate(pairs):
        for ket in pairs[: n + 1]:
            nbra, nket = _tiles(bra, ket, ALONE)
            bras, kets = blocks_of(bra, nbra, 0), blocks_of(ket, nket, 0)
            sizes = len(bra.width), len(ket.width), nbra, nket
            tiles = _tile_indices(*sizes, bra is ket)

            def of_tile(tile, bras=bras, kets=kets):
                one, other = (
                    jax.tree.map(lambda x, i=i: jnp.asarray(x)[i], blocks)
                    for i, blocks in zip(tile, (bras, kets))
                )
                (side, ket_side), width, center, _, *points, _ = _operands(one, other)
                return jnp.sum(_separated(side[0] + ket_side[0], width, center, *points))

            total = total + jnp.sum(jax.lax.map(of_tile, tiles))
    return total


def main(options: Options) -> None:
    """Measure and report the rows."""
    configure_jax()
    speed, bandwidth = peaks(options.repeats)
    print(f"device: {device()}, {speed / 1e9:.3g} Gflop/s, {bandwidth / 1e9:.3g} GB/s")
    report = Report("roofline", options.out)
    for name, function, arguments in stages(options):
        count = operations(function, *arguments)
        nbyte = compulsory_bytes(function, *arguments)
        _, cost = measure(function, *arguments, repeats=options.repeats)
        least = {"operations": count.total / speed, "memory": nbyte / bandwidth}
        limit = max(least, key=least.__getitem__)
        report.row(
            molecule=options.molecule,
            stage=name,
            gflop=count.total / 1e9,
            of_matrices=count.matrix / count.total,
            moved_bytes=nbyte,
            compile_s=cost.compile_s,
            run_s=cost.run_s,
            spread_s=cost.spread_s,
            gflop_per_s=count.total / cost.run_s / 1e9,
            limit=limit,
            share=least[limit] / cost.run_s,
            peak_gflop_per_s=speed / 1e9,
            peak_gb_per_s=bandwidth / 1e9,
            device=device(),
        )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
