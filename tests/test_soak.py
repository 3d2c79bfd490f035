"""The soak loop's comparison of runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.soak import Loop, counted, differing, ranges, verdicts
from harness.errors import UsageError


def test_a_verdict_holds_the_known_issue(tmp_path: Path) -> None:
    tests = [
        {"test": "t.py::a", "status": "PASS", "known": ""},
        {"test": "t.py::b", "status": "FAIL", "known": "leak"},
    ]
    (tmp_path / "summary.json").write_text(json.dumps({"tests": tests}))
    assert verdicts(tmp_path / "summary.json") == {"t.py::a": "PASS", "t.py::b": "FAIL leak"}


def test_runs_that_agree_differ_in_nothing() -> None:
    assert differing([{"a": "PASS", "b": "FAIL x"}] * 3) == {}


def test_what_differs_is_told_with_its_runs_and_what_vanished_too() -> None:
    runs = [{"a": "PASS", "b": "PASS"}, {"a": "FAIL", "b": "PASS"}, {"a": "PASS"}]
    found = differing(runs)
    assert found == {"a": {"PASS": [1, 3], "FAIL": [2]}, "b": {"PASS": [1, 2], "not run": [3]}}


def test_a_miss_differs_even_if_every_run_has_it() -> None:
    assert differing([{"a": "MISS", "b": "SKIP"}] * 2) == {"a": {"MISS": [1, 2]}}


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([4], "4"), ([1, 2, 3, 5, 7, 8], "1-3, 5, 7-8")]
)
def test_runs_are_named_as_a_person_does(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


def test_a_loop_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    loop = Loop(tmp_path, "this harness")
    for number, status in enumerate(("PASS", "FAIL")):
        run = tmp_path / f"run-{number}"
        run.mkdir()
        tests = [{"test": "t.py::a", "status": status, "known": ""}]
        (run / "summary.json").write_text(json.dumps({"tests": tests}))
        loop.add(run, 1.5)
    loop.save({})
    again = Loop.load(tmp_path)
    assert again == loop
    assert again.verdicts() == [{"t.py::a": "PASS"}, {"t.py::a": "FAIL"}]
    again.check("this harness")
    with pytest.raises(UsageError, match="another harness"):
        again.check("that harness")


def test_a_loop_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no soak was begun in"):
        Loop.load(tmp_path)


def test_known_issues_are_counted_together() -> None:
    seen = {"a": "PASS", "b": "FAIL x", "c": "FAIL y", "d": "FAIL", "e": "PASS"}
    assert counted(seen) == "1 FAIL, 2 KNOWN, 2 PASS"
