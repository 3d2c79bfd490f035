"""The benchmarks' figures, and the file that they are kept in."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import reliability
from benchmarks.figures import Figure, lines, ratio, record

SLOW = Figure("a boot", "s", (6.0, 4.0, 5.0), 8.0)
FAST = Figure("a clone", "s", (0.25, 0.5, 0.125), 0.2)


def loaded(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.mark.parametrize(
    ("median", "goal", "at_least", "met"),
    [
        (1.0, None, False, None),
        (1.0, 1.0, False, True),
        (1.1, 1.0, False, False),
        (15.0, 15.0, True, True),
        (14.9, 15.0, True, False),
    ],
)
def test_a_goal_is_a_bound(median: float, goal: float | None, at_least: bool, met: object) -> None:
    assert Figure("x", "s", (median,), goal, at_least).met is met


def test_a_figure_is_quoted_by_its_median_and_keeps_its_samples() -> None:
    assert SLOW.as_dict() == {
        "name": "a boot",
        "unit": "s",
        "median": 5.0,
        "min": 4.0,
        "max": 6.0,
        "samples": [6.0, 4.0, 5.0],
        "goal": 8.0,
        "at_least": False,
        "met": True,
    }


def test_a_ratio_is_of_medians_and_more_is_better() -> None:
    found = ratio("how much faster", SLOW, FAST, goal=15.0)
    assert found.median == 20.0
    assert found.unit == "times"
    assert found.met
    assert ratio("how much faster", SLOW, FAST, goal=21.0).met is False


def test_the_table_names_what_was_missed() -> None:
    head, slow, fast, times = lines([SLOW, FAST, ratio("r", SLOW, FAST)])
    assert head.split() == ["figure", "median", "min", "max", "n", "goal"]
    assert slow.split() == ["a", "boot", "5.000", "4.000", "6.000", "3", "≤", "8", "s", "met"]
    assert fast.endswith("≤ 0.2 s MISSED")
    assert times.split() == ["r", "20.000", "20.000", "20.000", "1"]


def test_what_was_measured_is_kept_when_the_next_figure_fails(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"

    def measured() -> Iterator[Figure]:
        yield SLOW
        assert loaded(file)["figures"] == [SLOW.as_dict()]
        yield FAST
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(file, {"host": "made up"}, measured())
    assert loaded(file) == {
        "host": "made up",
        "finished": False,
        "figures": [SLOW.as_dict(), FAST.as_dict()],
    }


def test_a_whole_measurement_says_that_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    assert list(record(file, {}, iter([SLOW]))) == [SLOW]
    assert loaded(file)["finished"] is True


def test_the_page_of_faults_says_which_came_too_late() -> None:
    rows = [
        ["a fault", "FAIL: a|b\nc", 2.04, 5],
        ["another", "MISS", 16.0, 5],
        ["a third", "", 1, None],
    ]
    lines = reliability.page(rows, "head\n", 3.0).splitlines()
    assert lines[0] == "head"
    assert lines[1] == "| a fault | FAIL: a\\|b c | 2.0 | 15 |"
    assert lines[2].endswith("| 16.0 | 15 MISSED |")
    assert lines[3].endswith("| 1.0 | - |")


def test_other_kernels_stand_beside_each_other() -> None:
    rows = {
        "6.1.1": [["a panic", "FAIL: it | panicked", 1.25, 5]],
        "7.2.0": [["a hang", "MISS", 3.0, 5]],
    }
    assert reliability.other_kernels(rows).splitlines() == [
        "",
        "Guests' faults on other kernels, verdict and seconds (`--also`):",
        "",
        "| fault | 6.1.1 | 7.2.0 |",
        "| --- | --- | --- |",
        "| a panic | FAIL 1.2 | another verdict |",
        "| a hang | another verdict | MISS 3.0 |",
    ]


@pytest.mark.parametrize("load", [0.0, 1000.0])
def test_a_late_verdict_fails_its_test_on_an_idle_host(
    reliability: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    load: float,
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.delenv("NVH_RELIABILITY", raising=False)
    reliability("a fault on a slow machine", "FAIL", 1e6, 5)
    monkeypatch.setenv("NVH_RELIABILITY", str(tmp_path / "noted"))
    reliability("a fault", "FAIL", 14.9, 5)
    reliability("a fault without a limit", "PASS", 1e6, None)
    late = pytest.raises(AssertionError, match=r"a fault: 15\.1 s, 15 are allowed")
    with contextlib.nullcontext() if load else late:
        reliability("a fault", "FAIL", 15.1, 5)
