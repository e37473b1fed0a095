"""What a person sees of a training, and what TensorBoard gets."""

import sys

import pytest

from qchem import InputError
from srdft.progress import reporter

METRICS = {
    "step": 1,
    "phase": "train",
    "energy": -1.25,
    "error_estimate": 2e-5,
    "acceptance": 0.5,
    "samples": 8,
    "step_size": [[1e-3]],
}


def test_lines_without_a_terminal(capsys):
    with reporter(2) as report:
        report(METRICS)
        report(METRICS | {"step": 2, "energy": None, "samples": 16})
    _, err = capsys.readouterr()
    first, last = err.strip().splitlines()
    assert first.startswith("step 1 of 2: energy -1.250000, error 2.0e-05, acceptance 0.50")
    assert last.startswith("step 2 of 2: energy -1.25") and "samples/s" in last


def test_tensorboard_gets_the_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    with reporter(1, tmp_path) as report:
        report(METRICS)
    (events,) = tmp_path.glob("events.out.tfevents.*")
    content = events.read_bytes()
    for name in ("energy", "error_estimate", "acceptance", "samples"):
        assert name.encode() in content
    assert b"phase" not in content and b"step_size" not in content


def test_tensorboard_that_is_not_installed_is_said_first(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"tensorboardX"), reporter(1, tmp_path):
        pass
