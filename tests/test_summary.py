"""The tables of README and docs are what the committed results say."""

import pytest

from benchmarks.summary import TABLES, TARGETS, newest, table, with_table


@pytest.mark.parametrize("path, name, make", TABLES, ids=[name for _, name, _ in TABLES])
def test_tables_are_made_from_the_results(path, name, make):
    text = path.read_text()
    assert with_table(text, name, make()) == text, "run python -m benchmarks.summary"


def test_a_table_goes_between_its_marks():
    text = "a\n<!-- x: made by benchmarks.summary -->\nold\n<!-- end of x -->\nb"
    made = with_table(text, "x", table(("p", "q"), [("1", "2")]))
    assert "| p | q |\n| --- | --- |\n| 1 | 2 |\n<!-- end of x -->\nb" in made and "old" not in made
    with pytest.raises(ValueError, match="no place for the table 'y'"):
        with_table(text, "y", "")


def test_rows_are_of_the_device_asked_for():
    target = TARGETS[0]
    row = newest(target.file, target.where)
    assert row["device"] == "cpu" and row["commit"] and row["molecule"] == "ethanol"
    assert newest(target.file, target.where | {"device": "none"}) is None


def test_share_says_what_is_missing():
    more = next(target for target in TARGETS if target.more)
    assert TARGETS[0].share(2 * TARGETS[0].limit) == 2
    assert more.share(more.limit / 2) == 2
