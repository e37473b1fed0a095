"""Compiled programs are kept on disk, found by their fingerprints, and never mistaken."""

import gc
import re
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from numpy.testing import assert_allclose

from qchem import compilation
from qchem.compilation import FOLDER, _Request, program, remove_unused, standing, traced_for
from qchem.fingerprint import NoFingerprint, fingerprint
from qchem.fitted_jk import DensityFittedJK
from qchem.scf.orbitals import canonical_orthogonalizer
from qchem.xc.functional import Functional
from tests import oracle

OVERLAP = np.array([[1.0, 0.3], [0.3, 1.0]])


@pytest.fixture
def collecting():
    """The collector on, which is off where tests run."""
    gc.enable()
    yield
    gc.disable()


@pytest.fixture
def cache(tmp_path):
    with oracle.programs_kept_in(tmp_path):
        yield tmp_path


def kept(cache: Path) -> list[Path]:
    return sorted((cache / FOLDER).glob("*"))


def test_another_wrapper_finds_the_program(cache):
    """As another process would: nothing is traced, nothing compiled, and the result is the same."""
    first = program(canonical_orthogonalizer)(OVERLAP)
    (path,) = kept(cache)
    again = program(canonical_orthogonalizer)
    with oracle.compilations() as compiled:
        second = again(OVERLAP)
    assert compiled == []
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    again(2 * OVERLAP)
    assert kept(cache) == [path]  # values are arguments


def test_what_holds_a_mesh_is_found_again(cache):
    """Devices are not written as they are."""
    mesh = Mesh(np.array(jax.devices()[:1]), ("molecule",))
    jk = DensityFittedJK(jnp.asarray(OVERLAP))
    for number in (1, 0):
        with oracle.compilations() as compiled:
            on_mesh = program(replace)(jk, mesh=mesh)
        assert len(compiled) == number
        assert on_mesh.mesh == mesh
        np.testing.assert_array_equal(on_mesh.fitted, OVERLAP)


def test_shapes_dtypes_and_static_arguments_tell_programs_apart(cache):
    run = program(canonical_orthogonalizer)
    for n, arguments in enumerate(
        [(OVERLAP,), (np.eye(3),), (OVERLAP.astype(np.float32),), (OVERLAP, 1e-3)], start=1
    ):
        run(*arguments)
        assert len(kept(cache)) == n


def test_the_platform_that_it_is_traced_for_tells_programs_apart(cache):
    run = program(canonical_orthogonalizer)
    run(OVERLAP)
    for known in (run, program(canonical_orthogonalizer)):  # in memory, and on disk alone
        with traced_for("cuda"), oracle.compilations() as compiled:
            known(OVERLAP)
        assert compiled


def test_a_truncated_file_is_made_anew(cache):
    expect = program(canonical_orthogonalizer)(OVERLAP)
    (path,) = kept(cache)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="made anew"):
        found = program(canonical_orthogonalizer)(OVERLAP)
    jax.tree.map(np.testing.assert_array_equal, found, expect)


def test_functions_of_others_are_compiled_and_not_kept(cache):
    """Their source may change without their name."""

    def double(x):
        return 2 * x

    assert program(double)(jnp.asarray(3.0)) == 6
    assert kept(cache) == []
    with pytest.raises(NoFingerprint):
        fingerprint(double)
    with pytest.raises(NoFingerprint):
        fingerprint(partial(canonical_orthogonalizer, double))


def test_a_folder_that_cannot_be_written_is_no_obstacle(cache):
    (cache / FOLDER).touch()
    with pytest.warns(UserWarning, match="not kept"):
        program(canonical_orthogonalizer)(OVERLAP)


def test_a_program_works_under_transformations():
    run = program(lambda x, power: x**power)
    assert_allclose(jax.grad(run)(3.0, 2), 6)
    assert_allclose(jax.vmap(lambda x: run(x, 2))(jnp.arange(3.0)), [0, 1, 4])


def test_what_is_no_array_is_returned_as_it_is():
    class Both(eqx.Module):
        array: jax.Array
        name: str

    run = program(lambda x: (Both(2 * x, "twice"), None, 3))
    both, nothing, three = run(np.ones(2))
    assert (both.name, nothing, three) == ("twice", None, 3)
    assert_allclose(both.array, [2, 2])


def test_fingerprints_tell_values_apart():
    functionals = [Functional.from_name(name) for name in ("pbe", "b3lyp", "0.5*hf + 0.5*pbe")]
    values = [
        *functionals,
        *(jax.tree.structure(x) for x in functionals),
        OVERLAP,
        2 * OVERLAP,
        1,
        1.0,
        True,
        "1",
        (1,),
        [1],
        {"a": 1},
        None,
        np.float32,
        partial(canonical_orthogonalizer, threshold=1e-3),
        canonical_orthogonalizer,
    ]
    prints = [fingerprint(x) for x in values]
    assert len(set(prints)) == len(values)
    assert prints == [fingerprint(x) for x in values]


def test_the_mode_of_precision_is_in_the_fingerprint():
    with jax.enable_x64(False):
        narrow = fingerprint(1)
    assert narrow != fingerprint(1)


def test_what_was_not_used_for_a_month_is_removed(tmp_path):
    import os
    import time

    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "file").touch()
    os.utime(old, (time.time() - 40 * 86400,) * 2)
    remove_unused(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_program_is_made_ahead(cache):
    """Of other values, in another thread; the call then finds it in memory."""
    run = program(canonical_orthogonalizer)
    run.ahead(np.zeros_like(OVERLAP))
    for _ in range(600):
        if kept(cache):
            break
        time.sleep(0.1)
    with oracle.compilations() as compiled:
        found = run(OVERLAP)
    assert compiled == []
    jax.tree.map(np.testing.assert_array_equal, found, program(canonical_orthogonalizer)(OVERLAP))


def test_what_it_will_return_is_told_before(cache):
    """Where a program is compiled and where it is read from the disk, not where it is known."""

    def told(run):
        heard = []
        return heard, run.announced(heard.append)(OVERLAP)

    run = program(canonical_orthogonalizer)
    (types,), values = told(run)
    assert [(x.shape, x.dtype) for x in types] == [((2, 2), np.float64), ((2,), np.bool_)]
    assert _Request.of(types, {}).key == _Request.of(values, {}).key
    assert told(run)[0] == []
    with oracle.compilations() as compiled:
        assert told(program(canonical_orthogonalizer))[0] == [types]
    assert compiled == []


def test_what_cannot_be_made_ahead_fails_where_it_is_called(cache):
    run = program(canonical_orthogonalizer)
    run.ahead(np.zeros(3))
    with pytest.raises((TypeError, ValueError)):
        run(np.zeros(3))
    assert kept(cache) == []


def test_programs_are_traced_one_at_a_time_without_collections(collecting):
    """Of two threads; the collector is on again afterwards, also where tracing fails."""
    order, both = [], threading.Barrier(2, timeout=60)

    def traced(x, name):
        order.append((name, gc.isenabled()))
        time.sleep(0.3)
        order.append((name, gc.isenabled()))
        return x

    def call(name):
        both.wait()
        program(traced)(OVERLAP, name)

    threads = [threading.Thread(target=call, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(order) == [("a", False)] * 2 + [("b", False)] * 2
    assert order[0] == order[1]
    with pytest.raises(TypeError):
        program(lambda x: x + None)(OVERLAP)
    assert gc.isenabled()


def test_what_stands_in_memory_is_made_once():
    """Once for the value and once for its derivative; else anew for each array it goes into."""

    def several(stand):
        def function(x):
            made = stand(lambda x: [jnp.sin(x) * x], x)[0]
            return made[:, :1] + made, made[:1] * made, made[::-1] - made

        def along(x):
            return jax.jvp(function, (x,), (jnp.ones_like(x),))

        x = jnp.linspace(0.0, 1.0, 12).reshape(3, 4)
        compiled = [jax.jit(f).lower(x).compile() for f in (function, along)]
        counts = [c.as_text().count(" sine(") for c in compiled]
        return counts, [c(x) for c in compiled]

    (once, values), (often, expected) = several(standing), several(lambda f, *x: f(*x))
    assert once == [1, 2]
    assert often[0] > 1 and often[1] > 2, often
    for value, other in zip(jax.tree.leaves(values), jax.tree.leaves(expected), strict=True):
        assert_allclose(value, other, rtol=1e-15, atol=1e-16)


def test_functions_within_what_stands_are_inlined():
    """Those of JAX's own too, and in derivatives: a call for each would take long to compile."""

    def function(x):
        return standing(lambda x: jnp.sum(jnp.where(x > 0.5, x**2, 0.0) * jnp.clip(x, 0, 1)), x)

    def called(f):
        text = jax.jit(f).lower(jnp.linspace(0.0, 1.0, 12)).as_text()
        calls = [line for line in text.splitlines() if " call @" in line]
        return sorted({re.search(r"@(\w+?)(_\d+)?\(", x)[1] for x in calls if '"false"' in x})

    assert called(function) == ["plain"]
    assert called(jax.value_and_grad(function)) == ["plain"]


def test_an_option_that_the_compiler_does_not_know_is_left_out_alone(monkeypatch):
    plain, known = compilation.program_options.__wrapped__, compilation.program_options()
    assert known and known.items() <= compilation.QUICK.items()
    monkeypatch.setattr(compilation, "QUICK", {"xla_of_no_version": True, **compilation.QUICK})
    assert plain() == known


def test_what_cannot_change_is_taken_to_a_device_once(monkeypatch):
    """What can, each time; and nothing is kept longer than its array."""
    given, taken = [OVERLAP, *compilation.unchanging([OVERLAP])], []
    put = jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda x, *to: taken.append(x) or put(x, *to))
    add = program(lambda x, y: x + y)
    for factor in (1.0, 2.0):
        given[0] = factor * OVERLAP
        assert_allclose(add(*given), given[0] + OVERLAP)
    assert sum(type(x) is np.ndarray and x.flags.writeable for x in taken) == 1  # a copy
    (weak,) = [found[0] for found in compilation._known_places.values() if found[0]() is given[1]]
    taken.clear()
    given.clear()
    assert weak() is None
    assert all(found[0] is not weak for found in compilation._known_places.values())
