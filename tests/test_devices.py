"""Several devices, and several processes, against one: the same numbers, less on each."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose, assert_array_equal

import qchem
from qchem.devices import Share
from qchem.integrals.pairs import Distribution, npair
from qchem.integrals.shared import filled_lists, from_device_order, to_device_order
from qchem.integrals.solid import SolidShells
from qchem.jk import _dealt_rows

ROOT = Path(__file__).parents[1]
RTOL = 1e-12  # of the largest element: rounding of sums in another order
SCREENED_ATOL = 1e-11  # hartree, and hartree/bohr: as in test_screening.py


def start(out, *options):
    command = [sys.executable, "-m", "tests.device_program", str(out), *options]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"})


def numbers(out, *parts):
    assert start(out, *parts).wait() == 0
    return np.load(out)


def numbers_of_two_processes(tmp_path, part):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    outs = [tmp_path / f"{i}.npz" for i in range(2)]
    options = part, "--port", port, "--process"
    processes = [start(out, *options, str(i)) for i, out in enumerate(outs)]
    assert [process.wait() for process in processes] == [0, 0]
    return [np.load(out) for out in outs]


def assert_same(found, expected, name, count):
    keys = [key for key in found.files if key.startswith(f"{name} {count} value")]
    assert keys
    for key in keys:
        value = expected[key.replace(f"{name} {count}", f"{name} 0")]
        assert np.abs(value).max() > 1e-3  # not zeros on both sides
        assert_allclose(found[key], value, rtol=0, atol=RTOL * np.abs(value).max())


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    out = tmp_path_factory.mktemp("devices") / "numbers.npz"
    more = "exact:0,2", "nonlocal_correlation:0,2", "together:0,2", "known:0,4"
    return numbers(out, "converged:0,4", "given:0,4", "molecule:0,4", *more)


def test_several_devices_give_the_same(computed):
    assert_same(computed, computed, "converged", 4)
    assert_same(computed, computed, "molecule", 4)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_devices_gives_the_same(computed, count, tmp_path):
    found = numbers(tmp_path / "out.npz", f"converged:{count}", f"molecule:{count}")
    assert_same(found, computed, "converged", count)
    assert_same(found, computed, "molecule", count)
    assert_holds_its_part(found, count)


def test_exact_integrals(computed):
    assert_same(computed, computed, "exact", 2)


def test_nonlocal_correlation(computed):
    assert_same(computed, computed, "nonlocal_correlation", 2)


def test_known_integrals(computed):
    assert_same(computed, computed, "known", 4)


def test_derivatives_in_small_arrays_meet_as_one(computed):
    """Beside those in a large one, the energy, and what multiplies the energy."""
    assert_same(computed, computed, "together", 2)
    assert computed["together 2 held 0"] == 4


@pytest.mark.parametrize(
    "name", ["screened", pytest.param("screened_gradient", marks=pytest.mark.slow)]
)
def test_shells_left_out_by_devices_of_a_filled_up_molecule(name, tmp_path):
    """Energy and derivatives are those of all shells of the molecule alone, on one device."""
    screened = numbers(tmp_path / "out.npz", f"{name}:0,2")
    (needed,) = (screened[key] for key in screened.files if key.startswith(f"{name} 2 held"))
    assert len(needed) % 2 == 0
    for of_device in np.split(needed, 2):  # else nothing is left out, and all this says nothing
        assert np.mean(of_device < 2) > 0.5
    for n in range(4):
        found, expected = (screened[f"{name} {count} value {n}"] for count in (2, 0))
        assert found.shape == expected.shape and np.abs(expected).max() > 1e-2
        assert_allclose(found, expected, rtol=0, atol=SCREENED_ATOL)
    # Were all shells taken all the same, shells that reach too little would not matter.
    short, energy = screened[f"{name} 2 value 4"], screened[f"{name} 0 value 0"]
    assert abs(short - energy) > 1e3 * SCREENED_ATOL


def test_energies_of_given_orbitals(computed):
    assert_same(computed, computed, "given", 4)


def test_each_device_holds_its_part(computed):
    assert_holds_its_part(computed, 4)


def assert_holds_its_part(found, count):
    """7 auxiliary functions and 168 points in chunks of 30; filled up to equal parts."""
    fitted, ao, weights = (found[f"molecule {count} held {n}"] for n in range(3))
    assert tuple(fitted) == (6, -(-7 // count))
    nchunk = -(-6 // count)
    assert tuple(ao) == (nchunk, 3, 30) and tuple(weights) == (nchunk, 30)


def test_two_processes_share_a_batch(computed, tmp_path):
    for found in numbers_of_two_processes(tmp_path, "energies:2"):
        assert_allclose(found["energies 2 value 0"], computed["converged 0 value 0"], rtol=RTOL)


@pytest.mark.slow
def test_all_kinds_of_terms_and_whole_calculations(tmp_path):
    found = numbers(tmp_path / "out.npz", "thorough:0,1,4", "energy:0,2")
    for count in (1, 4):
        assert_same(found, found, "thorough", count)
    assert_same(found, found, "energy", 2)


@pytest.mark.slow
def test_two_processes_share_a_molecule(computed, tmp_path):
    for found in numbers_of_two_processes(tmp_path, "molecule:2"):
        assert_same(found, computed, "molecule", 2)


def distributions(nrow, nfunction):
    rows = np.ones((nrow, 1)), np.ones((nrow, 1, 3)), np.ones((nrow, nfunction, 1, 1))
    return lambda index: Distribution(0, 0, *(jnp.asarray(x) for x in (*rows, index)))


def shells(single, several, nfunction):
    """Of two primitives, where there are several."""
    width = jnp.ones(single + 2 * several)
    places = jnp.ones((width.size, 3)), width
    return lambda index: SolidShells(nfunction // 2, 2, width, *places, jnp.asarray(index))


def is_real(rows):
    """Of the functions of a list, those that do not fill up."""
    if isinstance(rows, Distribution):
        return np.asarray(rows.coefficient[:, :, 0, 0].T).ravel() > 0
    nshell, nfunction = rows.index.shape
    return np.tile(np.asarray(rows.charge[:nshell]) > 0, nfunction)


@pytest.mark.parametrize(
    "kinds",
    [[(distributions, 3, 2), (distributions, 5, 1)], [(shells, 3, 0, 1), (shells, 3, 5, 3)]],
    ids=["any", "solid"],
)
def test_order_of_columns_on_several_devices(kinds):
    """Two lists, the columns numbered as they stand alone."""
    lists, first = [], 0
    for make, *counts, nfunction in kinds:
        size = sum(counts) * nfunction
        index = first + np.arange(size).reshape(nfunction, -1).T
        lists.append(make(*counts, nfunction)(index))
        first += size
    metric = jnp.arange(float(first**2)).reshape(first, first)
    filled = filled_lists(tuple(lists), 2)
    halves = [jax.tree.map(lambda x, n=n: jnp.split(x, 2)[n], filled) for n in (0, 1)]
    share = Share("molecule", 2)
    moved = to_device_order(metric, tuple(lists), share)
    # Where a function is real, its column is that of the whole metric.
    index = np.concatenate([np.asarray(rows.index.T).ravel() for half in halves for rows in half])
    real = np.concatenate([is_real(rows) for half in halves for rows in half])
    assert real.sum() == first < real.size
    expected = np.where(real[:, None] & real[None], metric[index[:, None], index[None]], 0)
    assert_array_equal(moved, expected)
    assert_array_equal(from_device_order(moved, tuple(lists), share), metric)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_rows_of_integrals_are_dealt_out(count):
    """Every device finds its own rows where they start, and none overlap."""
    size = 28
    row, start, starts, each = _dealt_rows(size, 7, count)
    starts = np.asarray(starts)
    taken = np.zeros(count * each, int)
    device = np.repeat(np.arange(count), row.size // count)
    for n, own, place in zip(row.ravel(), start.ravel(), device):
        if n >= 0:
            assert starts[n] == own + place * each
            assert own + size <= each
            taken[starts[n] : starts[n] + n + 1] += 1
    assert taken.max() == 1 and taken.sum() == npair(size)
    assert _dealt_rows(820, 40, count)[3] < 1.25 * npair(820) / count


def test_what_a_mesh_must_be():
    devices = np.array(jax.devices()[:1])
    with pytest.raises(qchem.InputError, match="one axis is needed, 'geometry'"):
        qchem.energy_fn((1, 1), "sto-3g", "hf", mesh=Mesh(devices, ("data",)))
    with pytest.raises(qchem.InputError, match="1 or more"):
        qchem.use_cores(0)
    molecule = qchem.Molecule.from_arrays((1, 1), [[0, 0, 0], [0, 0, 1.4]], unit="bohr")
    with pytest.raises(qchem.InputError, match="qchem.energy_fn"):
        qchem.energy(molecule, "sto-3g", "hf", mesh=Mesh(devices, ("geometry",)))


def run_script(script, *arguments):
    """What it prints, line by line, without the compiler's options that tests have."""
    environment = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", script, *arguments]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


FAULTS = """
import resource, qchem, numpy as np
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(1 << 24)  # 128 MiB, then freed
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(3)))
qchem.use_cores(1)
print(min(faults() for _ in range(3)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory as GNU's C library has it")
def test_cores_keep_freed_memory():
    """A block that is freed and wanted again does not come from the system page by page."""
    before, after = map(int, run_script(FAULTS))
    assert after < before / 10


IS_SPLIT = """
import sys, warnings, jax, jax.numpy as jnp, qchem
from qchem.devices import mesh_for
if sys.argv[1] == "late":
    jax.config.update("jax_num_cpu_devices", 2)
    jax.devices()
mesh = qchem.use_cores(2)
function = jax.jit(lambda x: jnp.sin(x) * jnp.exp(x))
text = function.lower(jnp.ones((2000, 2000))).compile().as_text()
print('outer_dimension_partitions":["' in text)
with warnings.catch_warnings(record=True) as said:
    mesh_for(mesh, "molecule")
print([str(x.message) for x in said])
"""


def test_cores_do_not_split_loops():
    """What follows a loop that is split over threads may begin too early (jaxlib 0.10)."""
    assert run_script(IS_SPLIT, "early") == ["False", "[]"]
    split, said = run_script(IS_SPLIT, "late")
    assert split == str((os.cpu_count() or 1) > 1)
    assert "use_cores() before JAX" in said


FORCES = """
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, numpy as np, qchem
from benchmarks.molecules import molecule
from qchem.compilation import program
mesh = qchem.use_cores(2)
known = molecule("aspirin")
terms = {"basis": "def2-tzvp", "xc": "hf", "two_electron": "df"}
method = qchem.energy_fn(known.numbers, **terms).method
random = np.random.default_rng(0)
nao, nocc = method.basis.nao, sum(known.numbers) // 2
orbitals = jnp.asarray((np.eye(nao)[:, :nocc] + 0.02 * random.normal(size=(nao, nocc)))[None])
slope = program(lambda method, *x: jax.grad(method.energy)(*x))
positions = jnp.asarray(known.positions)
alone, shared = (slope(x, positions, orbitals) for x in (method, method.on(mesh)))
print(abs(alone).max(), abs(alone - shared).max())
"""


@pytest.mark.slow
def test_forces_in_a_large_basis():
    """Of arrays so large that XLA would split loops over them, and not wait for all parts."""
    largest, difference = map(float, run_script(FORCES)[0].split())
    assert largest > 0.1
    assert difference < 1e-9


def test_explicit_placement_is_refused():
    mesh = jax.make_mesh((1,), ("geometry",), axis_types=(AxisType.Explicit,))
    batch = jax.device_put(np.zeros((2, 2, 3)), NamedSharding(mesh, P("geometry")))
    function = qchem.energy_fn((1, 1), "sto-3g", "hf", mesh=mesh)
    with pytest.raises(qchem.InputError, match="AxisType.Auto"):
        jax.vmap(function)(batch)
    with pytest.raises(qchem.InputError, match="AxisType.Auto"):
        qchem.map_geometries(lambda f, x: f(x), function, batch, mesh=mesh)
