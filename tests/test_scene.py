"""The lines of a run that goes on, and what they are made from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len

from harness import doing
from harness.doing import Doing, Told
from harness.images.advance import Advance, watched
from harness.images.store import to_log
from harness.report.record import TestRecord
from harness.scene import Gauge, Scene, activity, bar, spent
from harness.steps import Steps
from harness.verdict.status import Status

WIDE = "\u6f22" * 90
NODE = "testcases/test_v.py::test_v3_fsdax_is_refused[private-copied-ext4]"


def record(nodeid: str, status: Status = Status.PASS, *, known: str = "") -> TestRecord:
    return TestRecord(nodeid, status, 1.5, message=f"why {status}", known=known)


def shown(scene: Scene, doing: list[Doing], width: int = 100, height: int = 30) -> list[str]:
    return [line.plain.rstrip() for line in scene.lines(doing, width, height, now=130.0)]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0 s"), (99.4, "99 s"), (100, "1:40"), (3661, "1:01:01"), (-1, "0 s")],
)
def test_times(seconds: float, told: str) -> None:
    assert spent(seconds) == told


def test_a_gauge_has_rate_and_time_left() -> None:
    gauge = Gauge()
    assert str(gauge) == ""
    gauge.note("fetching", 0, 100_000_000, "B", 0.0)
    assert str(gauge) == "0.0 of 100.0 MB"
    gauge.note("fetching", 20_000_000, 100_000_000, "B", 5.0)
    assert str(gauge) == "20.0 of 100.0 MB, 4.0 MB/s, 20 s left"
    # What was quick long ago does not count: the rate is that of the last seconds.
    for second in range(6, 30):
        gauge.note("fetching", 20_000_000 + (second - 5) * 1_000_000, 100_000_000, "B", second)
    assert "1.0 MB/s" in str(gauge)
    # Another thing, or the same from its begin, is measured anew.
    gauge.note("compiling", 10, 0, "steps", 31.0)
    gauge.note("compiling", 30, 0, "steps", 32.0)
    assert str(gauge) == "30 steps, 20.0/s"
    assert gauge.share is None
    gauge.note("compiling", 5, 0, "steps", 33.0)
    assert str(gauge) == "5 steps"


@pytest.mark.parametrize("width", [10, 20, 40, 80, 200])
def test_an_activity_fits_its_width(width: int) -> None:
    gauge = Gauge()
    gauge.note("x", 1, 100_000_000, "B", 0.0)
    gauge.note("x", 50_000_000, 100_000_000, "B", 1.0)
    line = activity("fetching \u6f22\u5b57 linux-image-6.12.117+deb12-amd64", gauge, width)
    assert cell_len(line.plain) <= width
    assert ("━" in line.plain) is (width == 200)
    assert bar(0.5, 10, ascii_only=True).plain == "#####-----"


@pytest.mark.parametrize("width", [30, 60, 79, 80, 120, 300])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    scene = Scene(begun=100.0, total=301, workers=12)
    for number, status in enumerate(Status):
        scene.add(record(f"t::test_{number}", status))
    tests = [
        Doing(f"gw{n}", f"t.py::test_v1_{n}_{WIDE}[x]", 110.0, "w" * 300, 120.0) for n in range(3)
    ]
    tests.append(Doing("gw5", "t.py::test_x", 1.0, "f" * 200, 1.0, 5, 9, "B", building=True))
    lines = scene.lines(tests, width, 30, 130.0)
    assert len(lines) == 6
    assert all(cell_len(line.plain) <= width for line in lines)


def test_the_view_has_tests_their_times_and_counts() -> None:
    scene = Scene(begun=100.0, total=20, workers=2)
    for number in range(9):
        scene.add(record(f"t::test_{number}"))
    scene.add(record("t::test_9", Status.FAIL))
    lines = shown(
        scene,
        [
            Doing("gw0", NODE, 118.0, "vfio_map --device edu", 120.0),
            Doing("gw1", "t::test_9", 118.0, "over", 120.0),
            Doing("gw2"),
        ],
    )
    (name, told), filled, counts = lines[0].split("  ", 1), lines[1], lines[2]
    assert name == "v3_fsdax_is_refused[private-copied-ext4]"
    assert told.split(maxsplit=2) == ["12", "s", "vfio_map --device edu"]
    assert filled.count("━") == pytest.approx(47, abs=1)
    assert filled.endswith(" 10/20")
    assert counts == "30 s  9 PASS  1 FAIL  about 30 s left  2 at once"


def test_parameters_are_cut_last() -> None:
    scene = Scene(total=1)
    (line, *_) = shown(scene, [Doing("gw0", NODE, 118.0)], width=40)
    assert line == "v3_fsdax_i…[private-copied-ext4]    12 s"


def test_a_narrow_view_tells_a_download_in_the_tests_place() -> None:
    scene = Scene(total=1)
    building = Doing("main", NODE, 118.0, "fetching x", 118.0, 1_000_000, 4_000_000, "B", True)
    assert "fetching x  " in shown(scene, [building], width=60)[0]
    assert "1.0 of 4.0 MB" in shown(scene, [building], width=60)[0]


def test_a_low_terminal_and_many_workers() -> None:
    scene = Scene(begun=0.0, total=50, workers=40)
    tests = [Doing(f"gw{n}", f"t::test_{n}", float(n)) for n in range(40)]
    lines = shown(scene, tests, height=8)
    assert [line.split()[0] for line in lines[:3]] == ["0", "1", "2"]
    assert lines[3] == "and 37 more"
    assert len(lines) == 6
    assert len(shown(scene, tests, height=100)) <= 10


def test_workers_that_died_run_nothing() -> None:
    scene = Scene(total=2, gone={"gw0"})
    assert scene.running([Doing("gw0", "t::test_a", 1.0), Doing("gw1", "t::test_b", 1.0)]) == [
        Doing("gw1", "t::test_b", 1.0)
    ]


def test_what_is_told_at_once() -> None:
    scene = Scene()
    assert scene.add(record("t::test_a")) is None
    assert scene.add(record("t::test_b", Status.SKIP)) is None
    line = scene.add(record("t::test_c", Status.FAIL))
    assert line is not None
    assert line.plain == "FAIL  test_c 2 s: why FAIL"
    # A known issue when it first shows; a verdict that was taken back; the same one again.
    assert scene.add(record("t::test_d", Status.FAIL, known="issue")) is not None
    assert scene.add(record("t::test_e", Status.FAIL, known="issue")) is None
    assert scene.add(record("t::test_a", Status.FAIL)) is not None
    assert scene.add(record("t::test_a", Status.FAIL)) is None
    assert scene.told([Doing("gw0", "t::test_x", 100.0)], scene.begun + 9).startswith(
        "5 of 0 tests in 9 s: 2 FAIL, 2 KNOWN, 1 SKIP; 1 running, x for "
    )


def test_a_process_tells_others_what_it_is_at(tmp_path: Path) -> None:
    told = Told(tmp_path, "gw10")
    Told(tmp_path, "gw9").test("t::test_b")
    told.test("t::test_a")
    told.build(Advance("fetching", 5, 10))
    second, first = list(doing.told(tmp_path))[::-1]
    assert (first.worker, second.worker) == ("gw9", "gw10")
    assert (first.what, first.unit, first.building) == ("waits for its guest", "", False)
    assert (second.what, second.done, second.total, second.unit) == ("fetching", 5, 10, "B")
    assert second.building
    since = second.since
    told.build(Advance("fetching", 7, 10))
    assert list(doing.told(tmp_path))[1].since == since
    told.say("\x1b[2J\u202e" + "\ud800" * 9999)
    evil = list(doing.told(tmp_path))[1]
    assert "\x1b" not in evil.what
    assert (evil.test, evil.building) == ("t::test_a", False)
    # Half a file, of a process that has just begun, is none.
    (tmp_path / doing.FOLDER / "gw11").write_text('{"test": "t:')
    (tmp_path / doing.FOLDER / "gw12").write_text(json.dumps({"other": 1}))
    assert len(list(doing.told(tmp_path))) == 2
    doing.forget(tmp_path)
    assert list(doing.told(tmp_path)) == []
    told.say("after the end")


def test_who_cannot_write_goes_on(tmp_path: Path) -> None:
    Told(tmp_path / "not there", "main").test("t::test_a")


def test_a_test_tells_its_commands_as_they_begin_and_end() -> None:
    heard: list[str] = []
    steps = Steps(time.time(), tell=heard.append)
    steps.waited("waits for its guest")
    steps.begin("one")
    steps.begin("two")
    steps.end()
    steps.end()
    assert heard == ["", "one", "", "two", ""]
    assert [step["what"] for step in steps.all()] == ["waits for its guest", "one", "two"]


def test_how_far_a_thing_is(
    eventually: Callable[[Callable[[], object]], None], caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []
    looks = iter([Advance("x", 1), Advance("x", 1)])

    def look() -> str:
        line = next(looks, None)
        if line is None:
            raise FileNotFoundError
        return line

    with watched(heard.append, look):
        eventually(lambda: heard)
    assert heard == ["x: 0.0 MB"]
    assert str(Advance("x", 3_400_000, 98_200_000)) == "x: 3.4 of 98.2 MB"
    assert str(Advance("x", 3, 4, "files")) == "x: 3 of 4 files"
    with caplog.at_level("INFO"):
        to_log(Advance("x", 1))
        to_log("told")
    assert caplog.messages == ["told"]
