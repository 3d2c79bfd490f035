"""The soak loop's comparison of runs."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.soak import differing, verdicts


def test_a_verdict_holds_the_known_issue(tmp_path: Path) -> None:
    tests = [
        {"test": "t.py::a", "status": "PASS", "known": ""},
        {"test": "t.py::b", "status": "FAIL", "known": "leak"},
    ]
    (tmp_path / "summary.json").write_text(json.dumps({"tests": tests}))
    assert verdicts(tmp_path / "summary.json") == {"t.py::a": "PASS", "t.py::b": "FAIL leak"}


def test_runs_that_agree_differ_in_nothing() -> None:
    assert differing([{"a": "PASS", "b": "FAIL x"}] * 3) == {}


def test_what_differs_is_counted_and_what_vanished_too() -> None:
    runs = [{"a": "PASS", "b": "PASS"}, {"a": "FAIL", "b": "PASS"}, {"a": "PASS"}]
    assert differing(runs) == {"a": {"PASS": 2, "FAIL": 1}, "b": {"PASS": 2, "not run": 1}}
