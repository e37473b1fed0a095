"""The validation against packaged values: it passes, and it would notice."""

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose

from qchem import validate
from qchem.data import project, read_json
from tests.reference_cases import CASES

RNG = np.random.default_rng(3)


def test_one_wrong_element_shows_in_its_row():
    matrix = RNG.normal(size=(7, 40))
    for column in range(40):
        wrong = matrix.copy()
        wrong[3, column] += 1e-6
        change = np.abs(project(wrong) - project(matrix))
        assert np.all(change[3] >= 0.499e-6)
        assert np.all(change[[0, 1, 2, 4, 5, 6]] == 0)


def test_two_swapped_elements_show():
    matrix = RNG.normal(size=(1, 30))
    for i, j in zip(*np.triu_indices(30, 1)):
        swapped = matrix.copy()
        swapped[0, [i, j]] = matrix[0, [j, i]]
        change = np.max(np.abs(project(swapped) - project(matrix)))
        assert change > 1e-4 * np.abs(matrix[0, i] - matrix[0, j])


def test_each_class_is_measured_by_its_own_size():
    reference = np.array([[100.0, 200.0], [0.5, 0.1]])
    values = reference + [[0.0, 0.0], [0.0, 1e-3]]
    assert_allclose(validate.deviation_by_class(values, reference, ["s", "p"]), 2e-3)
    assert_allclose(validate.deviation_by_class(values, reference, ["s", "s"]), 5e-6)
    tiny = reference * [[1.0], [1e-6]]  # relative to 0.2, a thousandth of the largest
    error = [[0.0, 0.0], [0.0, 1e-9]]
    assert_allclose(validate.deviation_by_class(tiny + error, tiny, ["s", "p"]), 5e-9, rtol=1e-6)
    assert np.isnan(validate.deviation_by_class(reference * np.nan, reference, ["s", "p"]))


@pytest.mark.parametrize("deviation, passed", [(0.5, True), (1.5, False), (np.nan, False)])
def test_verdict(deviation, passed):
    assert validate.Check("overlap", 15, deviation, 1.0).passed is passed


def test_a_check_that_raises_is_a_miss_with_a_note():
    def measure():
        raise RuntimeError("no such class")

    check = validate._check("overlap", 15, 1.0, measure)
    assert not check.passed
    assert check.note == "RuntimeError: no such class"


def test_packed_pairs_unfold_row_by_row():
    assert_allclose(
        validate._square(np.arange(1.0, 7.0)), [[1.0, 2.0, 4.0], [2.0, 3.0, 5.0], [4.0, 5.0, 6.0]]
    )


def test_stored_energies_are_those_of_the_cases():
    stored = read_json("energies.json")["cases"]
    inputs = [json.loads(json.dumps(case.inputs())) for case in CASES]
    for record, wanted in zip(stored, inputs, strict=True):
        assert (record["forces"] is not None) == wanted.pop("forces")
        assert {key: record[key] for key in wanted} == wanted
    assert len({case["molecule"] for case in stored}) >= 12


def misses(parts):
    """Checks of these parts that do not pass, with what they measured."""
    checks = list(validate.run(parts))
    assert checks
    return [(c.quantity, c.deviation, c.note) for c in checks if not c.passed]


def test_functionals_pass(monkeypatch):
    monkeypatch.setattr(validate, "FUNCTIONALS", ("svwn", "pbe"))
    assert misses(("functionals",)) == []


def test_a_wrong_functional_is_noticed(monkeypatch):
    right = validate.Functional.from_name
    monkeypatch.setattr(validate.Functional, "from_name", lambda name: right(f"1.0000001*{name}"))
    monkeypatch.setattr(validate, "FUNCTIONALS", ("svwn",))
    [(quantity, deviation, note)] = misses(("functionals",))
    assert (quantity, note) == ("functional svwn", "")
    assert_allclose(deviation, 1e-7, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("part", validate.PARTS)
def test_everything_passes(part):
    assert misses((part,)) == []
