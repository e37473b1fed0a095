"""Checkpoints: what is written comes back, damage is recognized, nothing is lost on the way."""

import errno
import os

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from qchem import InputError
from srdft import checkpoint


class State(eqx.Module):
    weights: jnp.ndarray
    count: jnp.ndarray
    name: str = eqx.field(static=True, default="a")


def state(n=3, value=1.0):
    return State(jnp.full(n, value), jnp.asarray(7, jnp.int32))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / checkpoint.LATEST
    checkpoint.save(path, state(), {"step": 5, "error": 0.1})
    return path


def test_round_trip(path):
    loaded, header = checkpoint.load(path, state(value=0.0))
    np.testing.assert_array_equal(loaded.weights, state().weights)
    assert loaded.count.dtype == jnp.int32 and header["step"] == 5 and header["error"] == 0.1
    assert checkpoint.read_header(path)["step"] == 5
    assert [p.name for p in path.parent.iterdir()] == [checkpoint.LATEST]  # nothing left over


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_truncated_files_are_recognized(path, part):
    checkpoint.save(path.with_name("best.ckpt"), state(), {})
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(InputError, match=r"damaged.*best\.ckpt"):
        checkpoint.load(path, state())


def test_changed_bytes_are_recognized(path):
    """Wherever they are, before anything is taken from the file."""
    whole = path.read_bytes()
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1
        path.write_bytes(bytes(content))
        with pytest.raises(checkpoint.DamagedError, match="damaged|not a checkpoint"):
            checkpoint.read_header(path)


def test_another_format_is_no_damage(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", "srdft checkpoint 9")
    with pytest.raises(InputError, match="format 'srdft checkpoint 2'.* reads .*9'") as found:
        checkpoint.read_header(path)
    assert not isinstance(found.value, checkpoint.DamagedError)


def test_another_structure_is_refused(path):
    with pytest.raises(InputError, match="another family, model or optimizer"):
        checkpoint.load(path, state(n=4))
    with pytest.raises(InputError, match="another family, model or optimizer"):
        checkpoint.load(path, (state(), jnp.zeros(2)))


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_previous_checkpoint(path, monkeypatch, step):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    if step == "write":
        opened = open

        def failing(name, mode="r", *arguments, **options):
            file = opened(name, mode, *arguments, **options)
            if mode == "wb":
                file.close()
                full()
            return file

        monkeypatch.setattr("builtins.open", failing)
    else:
        monkeypatch.setattr(os, step, full)
    with pytest.raises(checkpoint.CheckpointError, match="No space left.*--resume"):
        checkpoint.save(path, state(value=2.0), {"step": 6})
    monkeypatch.undo()
    loaded, header = checkpoint.load(path, state(value=0.0))
    assert header["step"] == 5 and float(loaded.weights[0]) == 1.0
    assert [p.name for p in path.parent.iterdir()] == [checkpoint.LATEST]


def test_find_takes_directories_and_files(path):
    run = path.parent
    assert checkpoint.find(run) == path  # no best one yet
    checkpoint.save(run / checkpoint.BEST, state(), {})
    assert checkpoint.find(run).name == checkpoint.BEST
    assert checkpoint.find(run, checkpoint.LATEST) == path
    assert checkpoint.find(path) == path
    path.unlink()
    assert checkpoint.find(run, checkpoint.LATEST).name == checkpoint.BEST
    with pytest.raises(InputError, match="srdft train writes"):
        checkpoint.find(run / "absent")
