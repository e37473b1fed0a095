"""Programs have not grown: counted quantities against the committed ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.quantities import Options, grown, version

ROOT = Path(__file__).parents[1]
BEFORE = {"compilations": {"first": 3}, "gradient": {"operations": 100.0, "peak_bytes": 50}}


def test_growth_is_named():
    assert grown(BEFORE, BEFORE) == []
    assert grown(BEFORE | {"gradient": {"operations": 104.0, "peak_bytes": 20}}, BEFORE) == []
    found = {"compilations": {"first": 4}, "gradient": {"operations": 110.0, "peak_bytes": 50}}
    assert grown(found, BEFORE) == [
        "compilations: first 4, was 3",
        "gradient: operations 110, was 100.0",
    ]
    assert grown({"new": {"operations": 1.0}}, BEFORE) == ["new: operations 1, was None"]


def test_nothing_has_grown():
    if version() not in json.loads(Options().committed.read_text()):
        pytest.skip(f"no committed values for {version()}")
    # In its own process: what it counts depends on what has been compiled before.
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.quantities"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
