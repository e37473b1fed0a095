"""A small batch and a small molecule on meshes of devices, as a program of its own.

python -m tests.device_program OUT PART:N,N,... [PART:N,N,...] [--process I --port P]

Writes what it computed, and what a device held, to OUT (.npz), by part and number N of devices; 0
is without a mesh.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import tests.conftest  # noqa: F401  (settings of every test)

parser = argparse.ArgumentParser()
parser.add_argument("out", type=Path)
parser.add_argument("parts", nargs="+")
parser.add_argument("--process", type=int)
parser.add_argument("--port", type=int)

POSITIONS = np.array([[0.02, -0.01, 0.05], [0.1, 0.2, 1.6]])
BATCH = POSITIONS + 0.05 * np.random.default_rng(0).normal(size=(5, 2, 3))
ORBITALS = np.array([[[0.9], [0.3], [0.5]]])


def compiled(function):
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def mesh_of(count, axis):
    return Mesh(np.array(jax.devices()[:count]), (axis,)) if count else None


def converged(count, derivative=jax.value_and_grad):
    """Energies and gradients of a batch that does not divide by the number of devices."""
    from qchem import energy_fn

    function = energy_fn((1, 1), "sto-3g", "hf", mesh=mesh_of(count, "geometry"))
    return compiled(jax.vmap(derivative(function)))(BATCH), []


def energies(count):
    """The energies alone."""
    return converged(count, lambda function: function)


def given(count):
    """The same of given orbitals."""
    from qchem import energy_fn, map_geometries

    method = energy_fn((1, 1), "sto-3g", "hf").method
    factors = np.linspace(0.5, 1, 10).reshape(5, 1, 2, 1)

    def both(positions, factors):
        mesh = mesh_of(count, "geometry")
        slope = lambda method, *x: jax.value_and_grad(method.energy)(*x)  # noqa: E731
        return map_geometries(slope, method, positions, factors, mesh=mesh)

    return compiled(both)(BATCH, factors), []


def small_method(xc, count, l=0):
    """A molecule whose programs compile quickly: s functions and one auxiliary shell of any l."""
    from qchem import Basis, Functional, Grid, Method
    from qchem.basis.library import Shell

    def shells(*exponents, l=0):
        return [Shell(l, (a,), (1.0,)) for a in exponents]

    numbers = 2, 1
    basis = Basis.from_shells([shells(1.3, 0.4), shells(0.6)])
    aux = Basis.from_shells([shells(3.0, 1.0, 0.4, 0.2), shells(1.5, 0.5) + shells(0.7, l=l)])
    functional = Functional.from_name(xc)
    grid = Grid.from_numbers(numbers, sizes=(6, 14), prune=False)
    method = Method.build(numbers, basis, functional, aux=aux, grid=grid, chunk=30)
    return method.on(mesh_of(count, "molecule"))


def molecule(count, xc="0.3*hf + lda_x", l=0, nspin=1, more=lambda *_: ()):
    """Energy, Fock matrix and derivatives at given orbitals; shapes of what a device holds."""
    from qchem.xc.quadrature import GridXC

    method = small_method(xc, count, l)
    factor = jnp.concatenate([ORBITALS, 0.8 * ORBITALS[:, ::-1]])[:nspin]

    def everything(positions, factor):
        hamiltonian, _ = method.hamiltonian(positions)
        energies, fock = hamiltonian.energies_and_fock(factor)
        slopes = jax.value_and_grad(method.energy, (0, 1))(positions, factor)
        how = {"chunk": 30, "storage_bytes": 1 << 20, "mesh": method.mesh, "rows": method.rows}
        stored = GridXC(method.functional, method.basis, method.grid, positions, **how)
        large = hamiltonian.jk, stored
        return (sum(energies.values()), fock, slopes, more(method, positions, factor)), large

    values, (jk, xc) = compiled(everything)(POSITIONS, factor)
    held = jk.fitted, xc.ao[0], xc.weights
    return values, [x.addressable_shards[0].data.shape for x in held]


def thorough(count):
    """The same with two spins, gradients of the density, separated ranges, two lists of auxiliary
    functions; and the derivative of a Fock matrix in reverse mode."""

    def slope_of_fock(method, positions, factor):
        def square(x, reverse):
            return jnp.sum(method.hamiltonian(x, reverse=reverse)[0].fock(factor) ** 2)

        return [jax.grad(square)(positions, reverse) for reverse in (False, True)]

    return molecule(count, "0.2*sr_hf(0.4) + 0.9*lr_hf(0.4) + b88", 2, 2, slope_of_fock)


def known(count):
    """Derivatives with (ab|P) that a Hamiltonian has, without exact exchange."""
    method = small_method("lda_x", count, 2)

    def slope(positions):
        hamiltonian, _ = method.hamiltonian(jax.lax.stop_gradient(positions))
        return method.energy(
            positions, jnp.asarray(ORBITALS), fitted=method.known_fitted(hamiltonian)
        )

    assert method.reuses_fitted
    return compiled(jax.value_and_grad(slope))(POSITIONS), []


def exact(count):
    """Stored and recomputed integrals without fitting: energies, Fock matrices and derivatives."""
    from qchem import Method

    fitted = small_method("hf", count)
    terms = fitted.numbers, fitted.basis, fitted.functional
    stored, direct = (Method.build(*terms, stored_bytes=n).on(fitted.mesh) for n in (1 << 20, 0))

    def everything(positions, factor):
        parts = [method.hamiltonian(positions)[0] for method in (stored, direct)]
        focks = [part.energy_and_fock(factor) for part in parts]
        return focks, jax.value_and_grad(stored.energy, (0, 1))(positions, factor)

    return compiled(everything)(POSITIONS, ORBITALS), []


def nonlocal_correlation(count):
    """VV10's double sum and its derivatives."""
    from qchem import Grid
    from qchem.xc.nonlocal_correlation import NonlocalCorrelation

    method = small_method("hf", count)
    grid = Grid.from_numbers(method.numbers, sizes=(6, 14), prune=False)

    def energy(positions, dm):
        place = method.basis, grid, positions
        terms = ((1.0, 6.0, 0.01),)
        return NonlocalCorrelation(terms, *place, chunk=30, mesh=method.mesh).energy(dm)

    dm = ORBITALS @ ORBITALS.swapaxes(1, 2)
    return compiled(jax.value_and_grad(energy, (0, 1)))(POSITIONS, dm), []


def together(count):
    """Derivatives in small arrays and a large one that all devices have, and in one they share;
    and how many arrays these devices add up."""
    from jax.sharding import PartitionSpec as P

    from qchem.devices import Share, spread

    mesh = mesh_of(count, "molecule")
    small = [jnp.linspace(1.0, 2.0, n).reshape(-1, 1) for n in range(1, 9)]
    large, own = jnp.linspace(0.0, 1.0, 40_000), jnp.linspace(1.0, 3.0, 8)

    def energy(small, large, own, number):
        terms = sum(jnp.sum(x**2) for x in small) + jnp.sum(large) * small[3][number, 0]
        return Share.of(mesh).total(terms * jnp.sum(own**2))

    def shared(*arrays):
        places = P(), P(), P("molecule"), P()
        return spread(energy, mesh, places, P())(*arrays, jnp.asarray(2))

    slopes = compiled(jax.value_and_grad(shared, (0, 1, 2))).lower(small, large, own).compile()
    lines = [line for line in slopes.as_text().splitlines() if " all-reduce(" in line]
    arrays = [line.split(" all-reduce(")[1].split(")")[0].count(",") + 1 for line in lines]
    return slopes(small, large, own), [sum(arrays)]


def screened(count, xc="svwn"):
    """XC energy, derivatives by positions and orbitals, and Fock matrix of fragments in a row.

    With devices, of the molecule filled up with atoms that have no functions, and without the
    shells that do not reach a chunk; else of all shells. Then the energy where shells reach 5 bohr
    too short, so that some are left out that count. Returned beside: how much room each chunk
    needs, of 0, 1 and 2, the last of which is that for all shells.
    """
    from dataclasses import replace

    import equinox as eqx

    from qchem import Basis, Functional, Grid, Method
    from qchem.padding import Padded

    numbers, sizes = (8, 1) * 5, (8, 50)  # filled up to six of each
    positions = np.array([[0.3 * k, 9.0 * k, 1.8 * h] for k in range(5) for h in range(2)])
    basis, grid = Basis.from_name(numbers, "def2-svp"), Grid.from_numbers(numbers, sizes=sizes)
    alone = Method.build(numbers, basis, Functional.from_name(xc), grid=grid, chunk=64)
    orbitals = 0.3 * np.random.default_rng(2).normal(size=(1, basis.nao, 3))
    padded = Padded.build(alone, "def2-svp", None, sizes)
    assert (padded.natom, len(padded.method.numbers)) == (10, 12)
    if count:
        method = padded.method.on(mesh_of(count, "molecule"))
        groups = method.rows.depths
        room = [tuple(tuple(-(-k * n // 4) for n, _ in g) for g in groups) for k in (1, 2)]
        method = replace(method, rows=replace(method.rows, capacities=tuple(room)))
        place, orbitals = padded.positions(positions), padded.orbitals(orbitals, 3)
    else:
        method, place = alone, positions

    def integrator(place, closer=0.0):
        xc = method._xc(place)
        radii = tuple(radius - closer for radius in xc.reach.radii)
        return eqx.tree_at(lambda xc: xc.reach, xc, replace(xc.reach, radii=radii))

    def energy(place, orbitals, closer):
        return integrator(place, closer).energy_of_orbitals(orbitals)

    @compiled
    def everything(place, orbitals, closer):
        dm = orbitals @ jnp.swapaxes(orbitals, 1, 2)
        fock = integrator(place, closer).energy_and_fock(dm, orbitals)[1]
        return *jax.value_and_grad(energy, (0, 1))(place, orbitals, closer), fock

    place, orbitals = jnp.asarray(place), jnp.asarray(orbitals)
    value, slopes, fock = everything(place, orbitals, 0.0)
    values = value, slopes[0][: padded.natom], slopes[1][:, : basis.nao]
    values = *values, fock[:, : basis.nao, : basis.nao], everything(place, orbitals, 5.0)[0]
    return values, [np.array(needed_room(integrator(place)))] if count else []


def needed_room(xc):
    """For each chunk of an integrator, how many of its capacities are too small."""
    from qchem.xc import screening

    def of_chunk(part):
        points = xc.positions[part.atom] + part.offsets
        excess = screening.excess_reach(xc.basis, xc.reach, xc.positions, points)
        return screening.too_small(excess, xc.depths, xc.reach.capacities)

    return jax.lax.map(of_chunk, xc.points)


def screened_gradient(count):
    """The same of a functional of the gradient."""
    return screened(count, "pbe")


def energy(count):
    """`qchem.energy`, its programs one after another, filled up; and forces. What was expected of
    arrays was right: there is one program of each. The second geometry compiles nothing."""
    import qchem
    from qchem import padding
    from qchem.scf import converge
    from tests import oracle

    names = {"basis": "sto-3g", "xc": "b3lyp", "two_electron": "df", "aux": "def2-universal-jkfit"}
    names |= {"grid": (12, 26), "mesh": mesh_of(count, "molecule"), "forces": True}
    programs = padding._hamiltonian, converge._diis, padding._gradient
    known = [len(program._known) for program in programs]

    def both(positions):
        molecule = qchem.Molecule.from_arrays((1, 1), positions, unit="bohr")
        result = qchem.energy(molecule, **names)
        return result.energy, result.forces(), result.mo_energy

    first = both(POSITIONS)
    with oracle.compilations() as compiled:
        second = both(1.1 * POSITIONS)
    assert not compiled
    assert [len(program._known) for program in programs] == [n + 1 for n in known]
    return (first, second), []


def main() -> None:
    options = parser.parse_args()
    if options.process is None:
        jax.config.update("jax_num_cpu_devices", 4)
    else:
        jax.config.update("jax_num_cpu_devices", 1)
        jax.distributed.initialize(f"127.0.0.1:{options.port}", 2, options.process)
    found = {}
    for part in options.parts:
        name, counts = part.split(":")
        for count in counts.split(","):
            values, held = globals()[name](int(count))
            for n, value in enumerate(jax.tree.leaves(values)):
                found[f"{name} {count} value {n}"] = whole(value)
            for n, shape in enumerate(held):
                found[f"{name} {count} held {n}"] = shape
    np.savez(options.out, **found)


def whole(x):
    """As an array of this process."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(x, tiled=True)


if __name__ == "__main__":
    main()
