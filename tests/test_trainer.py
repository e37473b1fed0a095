"""Training loops on a toy family: what they lower, how they stop, and that nothing is lost."""

import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qchem import InputError
from srdft import checkpoint
from srdft.checkpoint import CheckpointError
from srdft.optimizers import Judgement
from srdft.schedules import Asynchronous, Interleaved, SamplerError
from srdft.session import Session, read_metrics
from srdft.trainer import smoothed
from tests.toys import DIATOMIC, TRIATOMIC, toy_trainer

ROOT = Path(__file__).parents[1]
EVERY = 5  # steps between checkpoints
PROGRAMS = {}  # environment of other processes: where compiled programs are kept


def numbers(run):
    """All metrics but the times."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(run)]


def train(run, trainer, state, schedule=Interleaved, report=lambda metrics: None):
    session = Session(trainer, schedule(trainer), run, checkpoint_every=EVERY, report=report)
    return session, session.run(state)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run without interruption: directory, trainer, first state, last state."""
    run = tmp_path_factory.mktemp("finished")
    trainer, state = toy_trainer()
    return run, trainer, state, train(run, trainer, state)[1]


def test_training_lowers_the_error(finished):
    run, trainer, _, state = finished
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == list(range(1, trainer.plan.total + 1))
    assert [line["phase"] for line in lines[:4]] == ["pretrain"] * 3 + ["train"]
    assert lines[-1]["error_estimate"] < 0.1 * lines[0]["error_estimate"]
    assert float(state.best) <= float(state.error) < np.inf
    assert lines[-1]["samples"] == 12 * 4  # a turn of four chains for every second step
    assert max(line["staleness"] for line in lines) == 3  # two turns of two steps each
    turned = [line for line in lines if "acceptance" in line]
    assert len(turned) == 12 and turned[0]["sampled_energy"] > 0
    best, _ = checkpoint.load(run / checkpoint.BEST, state)
    assert float(best.best) == float(state.best)


def test_damaged_lines_of_the_metrics_are_passed_over(tmp_path):
    lines = b'{"step": 1}', b'{"step": 2}\xff', b"3", b'{"energy": 1}', b'{"step": 4}', b'{"ste'
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 4]


def test_families_train_one_model_together(tmp_path):
    trainer, state = toy_trainer(molecules=(DIATOMIC, TRIATOMIC))
    _, state = train(tmp_path, trainer, state)
    lines = read_metrics(tmp_path)
    assert [one.buffer.positions.shape[1] for one in state.samples] == [2, 3]
    assert lines[-1]["samples"] == 2 * 12 * 4 and len(lines[3]["step_size"]) == 2
    assert lines[-1]["error_estimate"] < 0.1 * lines[0]["error_estimate"]


def test_batches_hold_the_share_of_given_geometries(finished):
    _, trainer, state, _ = finished
    trainer = trainer.variant(plan=replace(trainer.plan, data_share=0.3))
    # To be told apart from chains that have not moved yet.
    state = eqx.tree_at(lambda s: s.given[0], state, state.given[0] + 1)
    seen = []
    nothing = Judgement(*jnp.zeros(3))

    def record(model, optimizer, batches):
        seen.append(batches[0])
        return model, optimizer, nothing

    trainer._update = record
    schedule = Interleaved(trainer)
    for _ in range(13):
        state, _ = schedule.before_step(state, threading.Event())
        state, _ = trainer.take_step(state)
    given = np.array([[(np.abs(x - state.given[0][0]) < 1e-12).all() for x in b] for b in seen])
    assert given[:3].all()  # pretraining
    assert given[3:].sum() == 12  # 0.3 of ten batches of four
    assert (given[3:].sum(axis=1) <= 2).all()


@pytest.mark.parametrize("after", [0, 4, 12])
def test_a_stopped_training_goes_on_as_if_it_had_not(finished, tmp_path, after):
    whole, trainer, first, last = finished

    def report(metrics):
        if metrics["step"] == after:
            session.stop.set()

    session = Session(
        trainer, Interleaved(trainer), tmp_path, checkpoint_every=EVERY, report=report
    )
    if after == 0:
        session.stop.set()
    stopped = session.run(first)
    assert int(stopped.step) == after
    if after == 0:
        return  # nothing to go on from; nothing was written either
    state, header = checkpoint.load(tmp_path / checkpoint.LATEST, first)
    assert header["step"] == after
    _, state = train(tmp_path, trainer, state)
    assert numbers(tmp_path) == numbers(whole)
    for name in (checkpoint.LATEST, checkpoint.BEST):
        ours, theirs = (checkpoint.load(d / name, first)[0] for d in (tmp_path, whole))
        assert eqx.tree_equal(ours, theirs)  # bit by bit


@pytest.fixture(scope="module", autouse=True)
def kept_programs(tmp_path_factory):
    """A folder of compiled programs, shared by all processes that are started here."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    PROGRAMS["JAX_COMPILATION_CACHE_DIR"] = str(folder / "toy_programs")
    PROGRAMS["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def start(run, *options, stderr=None, **environment):
    command = [sys.executable, "-m", "tests.toy_training", str(run), *options]
    environment = os.environ | PROGRAMS | environment
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
    )


def test_sigkill_loses_nothing(finished, tmp_path):
    process = start(tmp_path, "--pause", "0.05")
    for line in process.stdout:
        if int(line) == 13:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "ene')  # as if cut off while it was written
    _, trainer, first, last = finished
    state, header = checkpoint.load(tmp_path / checkpoint.LATEST, first)
    assert header["step"] == 10
    train(tmp_path, trainer, state)
    assert numbers(tmp_path) == numbers(finished[0])


def test_ctrl_c_saves_and_ends(finished, tmp_path):
    process = start(tmp_path, "--pause", "0.05")
    for line in process.stdout:
        if int(line) == 7:
            process.send_signal(signal.SIGINT)
            break
    process.stdout.read()
    process.stdout.close()
    assert process.wait() == 0
    header = checkpoint.read_header(tmp_path / checkpoint.LATEST)
    assert 7 <= header["step"] < 27 and header["step"] == read_metrics(tmp_path)[-1]["step"]


def test_devices_share_the_work_with_the_same_result(finished, tmp_path):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = {"XLA_FLAGS": flags, "JAX_LOG_COMPILES": "1"}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # what is found is not counted
    process = start(tmp_path, "--devices", "4", stderr=subprocess.STDOUT, **environment)
    out = process.stdout.read()
    process.stdout.close()
    assert process.wait() == 0
    assert_close(numbers(tmp_path), numbers(finished[0]))
    for name in ("updated", "sampled"):
        assert out.count(f"Finished XLA compilation of jit({name})") == 1


def test_two_processes_train_together(finished, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    runs = [tmp_path / str(i) for i in range(2)]
    processes = []
    for i, run in enumerate(runs):
        run.mkdir()
        processes.append(start(run, "--devices", "2", "--process", str(i), "--port", port))
    for process in processes:
        process.stdout.read()
        process.stdout.close()
    assert [process.wait() for process in processes] == [0, 0]
    assert_close(numbers(runs[0]), numbers(finished[0]))
    assert not list(runs[1].iterdir())  # the first one writes


def assert_close(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert a.keys() == b.keys()
        for name in a:
            if isinstance(a[name], float):
                np.testing.assert_allclose(a[name], b[name], rtol=1e-9, atol=1e-12)


def test_devices_must_divide_the_work():
    with pytest.raises(InputError, match="batch = 3 cannot be shared equally by 2 devices"):
        toy_trainer(devices=[jax.devices()[0]] * 2, batch=3)


def test_asynchronous_training_bounds_the_age_of_the_model(finished, tmp_path):
    _, trainer, state, _ = finished
    _, state = train(tmp_path, trainer, state, lambda t: Asynchronous(t, 3))
    lines = read_metrics(tmp_path)
    assert len(lines) == 27 and lines[-1]["samples"] >= 4
    assert lines[-1]["error_estimate"] < 0.1 * lines[0]["error_estimate"]
    assert max(line["staleness"] for line in lines if "acceptance" in line) <= 3
    loaded, _ = checkpoint.load(tmp_path / checkpoint.LATEST, state)
    assert eqx.tree_equal(loaded, state)
    assert int(state.samples[0].buffer.pushed) == 4 * int(state.turn)
    assert not [t for t in threading.enumerate() if t.name == "sampler"]


@pytest.mark.parametrize("device", [0, 1])
def test_asynchronous_chains_take_a_second_device(finished, tmp_path, device):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    options = "--mode", "asynchronous", "--chains-on", str(device)
    process = start(tmp_path, *options, stderr=subprocess.STDOUT, XLA_FLAGS=flags)
    out, _ = process.communicate(timeout=300)
    if device == 0:
        assert process.returncode == 1 and "the chains are on {1}" in out
        return
    lines = read_metrics(tmp_path)
    assert process.returncode == 0 and len(lines) == 27 and lines[-1]["samples"] >= 4
    assert lines[-1]["error_estimate"] < 0.1 * lines[0]["error_estimate"]
    state, _ = checkpoint.load(tmp_path / checkpoint.LATEST, finished[2])
    assert int(state.samples[0].buffer.pushed) == 4 * int(state.turn)


def test_a_broken_sampler_stops_the_run_with_its_cause(finished, tmp_path):
    _, trainer, state, _ = finished
    trainer = trainer.variant()
    turn = trainer.take_turn

    def breaks(model, samples, count, *, refresh):
        # Turns of a thread of its own may be done before the first checkpoint.
        if count >= 3 and (tmp_path / checkpoint.LATEST).exists():
            raise ValueError("no more energy")
        return turn(model, samples, count, refresh=refresh)

    trainer.take_turn = breaks
    for schedule, kind in (
        (lambda t: Asynchronous(t, 3), SamplerError),
        (Interleaved, ValueError),
    ):
        with pytest.raises(kind, match="no more energy"):
            train(tmp_path, trainer, state, schedule)
        checkpoint.load(tmp_path / checkpoint.LATEST, state)  # the last one is there
    assert not [t for t in threading.enumerate() if t.name == "sampler"]


def test_a_broken_trainer_stops_the_sampler(finished, tmp_path):
    _, trainer, state, _ = finished

    def report(metrics):
        if metrics["step"] == 9:
            raise RuntimeError("broken on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        train(tmp_path, trainer, state, lambda t: Asynchronous(t, 3), report)
    assert not [t for t in threading.enumerate() if t.name == "sampler"]


@pytest.mark.parametrize(
    ("mode", "failure"),
    [
        ("interleaved", ("--fail", "9")),
        ("asynchronous", ("--fail", "9")),
        ("asynchronous", ("--fail-turn", "4")),
    ],
)
def test_a_crash_on_either_side_ends_the_process(tmp_path, mode, failure):
    process = start(tmp_path, *failure, "--mode", mode, stderr=subprocess.STDOUT)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "broken on purpose" in out
    assert read_metrics(tmp_path)[-1]["step"] < 27


def test_a_full_disk_is_an_error_of_its_own(finished, tmp_path, monkeypatch):
    _, trainer, first, _ = finished

    def full(*arguments):
        raise OSError(28, "No space left on device")

    def report(metrics):
        if metrics["step"] == 6:
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(CheckpointError, match="No space left"):
        train(tmp_path, trainer, first, report=report)
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / checkpoint.LATEST, first)[1]["step"] == 5


def test_gradients_that_are_not_finite_change_nothing(finished):
    _, trainer, state, _ = finished
    broken = eqx.tree_at(lambda s: s.given[0], state, jnp.full_like(state.given[0], jnp.nan))
    after, judgement = trainer.take_step(broken)
    assert not np.isfinite(judgement.energy)
    assert eqx.tree_equal(after.model, state.model)
    assert eqx.tree_equal(after.optimizer, state.optimizer) and int(after.step) == 1


def test_a_training_needs_geometries(finished):
    _, trainer, state, _ = finished
    with pytest.raises(InputError, match="at least one geometry"):
        trainer.init(state.model, [np.zeros((0, 2, 3))], nchain=4, buffer_size=4, step_size=1e-3)


def test_smoothed_errors_follow_orders_of_magnitude():
    error = jnp.asarray(jnp.nan)
    for n in range(30):
        new = jnp.asarray(1e-2 * 0.5**n)
        error = smoothed(error, new)
    assert 1 < error / new < 2**5
    assert smoothed(jnp.asarray(jnp.inf), new) == new
    assert jnp.isfinite(smoothed(error, jnp.asarray(0.0)))
