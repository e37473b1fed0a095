"""What the benchmark of the claim does with its results: the arms are long."""

import json
from dataclasses import replace

import pytest

from benchmarks.claim import ARMS, Options, finished
from benchmarks.claim_plot import draw, tables

CURVE = [
    {"time_s": 0.0, "evaluations": 0, "steps": 0, "near_error": 1e-1, "far_error": None},
    {"time_s": 2.0, "evaluations": 40, "steps": 4, "near_error": 1e-3, "far_error": 2e-2},
    {"time_s": 4.0, "evaluations": 90, "steps": 9, "near_error": 1e-5, "far_error": 1e-4},
]


@pytest.fixture
def options(tmp_path):
    options = Options(out=tmp_path / "claim.json", resume=True, evaluations=50)
    rows = [
        options.settings() | {"arm": arm.name, "seed": seed, "curve": CURVE} | CURVE[-1]
        for arm in ARMS
        for seed in (0, 1)
    ]
    rows.append({"molecule": "ethanol", "arm": "integrals", "build_s": 1.0})
    options.out.write_text(json.dumps([{"command": "x", "rows": rows}]))
    return options


def test_finished_rows_are_those_with_the_same_settings(options):
    assert finished(options) == {(arm.name, seed) for arm in ARMS for seed in (0, 1)}
    assert not finished(replace(options, seconds=1.0))
    assert not finished(replace(options, molecule="h2o2"))
    assert not finished(replace(options, resume=False))


def test_tables_of_results(options):
    """One arm was stopped early: the others are compared with it where they had as many."""
    runs = json.loads(options.out.read_text())
    short = runs[0]["rows"][0]
    short["curve"] = [*CURVE[:2], CURVE[2] | {"evaluations": 60, "near_error": 1e-4}]
    options.out.write_text(json.dumps(runs))
    lines = [line.split("|") for line in tables(options.out).splitlines() if "from" in line]
    assert lines[0][3] == " 10, 1e+02 "
    # 60 is half way from 40 to 90 in logarithms, and 1e-4 half way from 1e-3 to 1e-5.
    assert lines[1][5] == " 1e+02, 1e+02 "


def test_a_picture_of_results(options, tmp_path):
    pytest.importorskip("matplotlib")
    path = draw(options.out, tmp_path / "claim.png")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
