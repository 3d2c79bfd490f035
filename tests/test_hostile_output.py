"""What a guest says is harmless wherever it is shown or kept, and ends within the run's limits."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from junitparser import JUnitXml
from rich.console import Console

from harness import paths, ui
from harness.errors import HarnessError, OutOfTime
from harness.report import results
from harness.report.results import ResultsDir
from harness.time_limit import TimeLimit
from tests.made_up_runs import Runs

pytest_plugins = ["pytester"]

#: Escape sequences that clear, retitle and type; NUL; the end of CDATA; text that turns round.
EVIL = (
    "\x1b[2J\x1b]0;owned\x07\x9b31m\x00]]><!-- & \u202egnp.\u2066 \ud800 \x7f\x08 ../../etc/passwd"
)
#: Nothing of this may reach a terminal.
DANGEROUS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def snapshot(folder: Path) -> dict[str, int]:
    return {
        str(file.relative_to(folder)): file.stat().st_mtime_ns
        for file in folder.rglob("*")
        if file.is_file()
        and "results" not in file.relative_to(folder).parts
        and not {"__pycache__", ".pytest_cache"} & set(file.parts)
    }


@pytest.fixture
def test_of_evil() -> str:
    return f"""
EVIL = {EVIL!r}

def test_v1_facts(guest, case):
    guest.log = "[   1.0] BUG: KASAN: use-after-free in " + EVIL + "+0x1/0x2"
    print(EVIL.encode("utf-8", "replace").decode())
    case.fact(EVIL, {{EVIL: [EVIL, float("inf"), float("nan")]}})
    case.expect("map", EVIL)

def test_v1_lost(guest, case):
    raise GuestLost("it said " + EVIL, hint=EVIL)

def test_v1_broken(guest, case):
    raise RuntimeError(EVIL)

def test_v1_wrong(guest, case):
    assert "OK" == EVIL

def test_v1_skips(guest, case):
    case.skip(EVIL, enable=EVIL)

@pytest.mark.parametrize("name", [EVIL, "../../../../tmp/escaped", "a" * 5000])
def test_v1_named(guest, case, name):
    case.expect("map", "OK")
"""


def test_a_hostile_guest_in_every_report(
    runs: Runs, pytester: pytest.Pytester, test_of_evil: str
) -> None:
    runs("def test_v1_x(case): case.expect('map', 'OK')")  # what any run leaves is there
    before = snapshot(pytester.path.parent)
    found = runs(test_of_evil)
    assert found.code == 1

    # The terminal.
    assert not DANGEROUS.search(found.output)

    # JUnit, read by another program.
    latest = found.results / "latest"
    raw = (latest / "junit.xml").read_bytes()
    assert len(raw) < 1 << 20
    assert not DANGEROUS.search(raw.decode())
    (suite,) = JUnitXml.fromfile(str(latest / "junit.xml"))
    assert len(list(suite)) == suite.tests == 8

    # JSON, as a strict reader takes it.
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    for file in latest.rglob("*.json"):
        json.loads(file.read_text(), parse_constant=refuse)
        assert not DANGEROUS.search(file.read_text())

    # File names, and files elsewhere.
    names = [file.name for file in (latest / "tests").iterdir()]
    assert len(names) == 8
    assert all(re.fullmatch(r"[A-Za-z0-9_.,=+@-]{1,96}", name) for name in names)
    assert not any(name.startswith(".") or ".." in name for name in names)
    after = snapshot(pytester.path.parent)
    changed = {
        Path(name).name
        for name in after
        if after[name] != before.get(name) and Path(name).parent.name != "the-guests"
    }
    # The test's own source, the made-up pool's notes and what pytester keeps.
    assert changed <= {"test_v.py", "wishes", "stdout", "stderr"}
    assert not Path("/tmp/escaped").exists()


def test_the_log_of_a_run_is_plain_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "LOG_LIMIT", 100_000)
    root = logging.getLogger()
    level = root.level
    monkeypatch.setattr(root, "handlers", [])  # pytest's own would pass it on to xdist as it is
    made = ResultsDir.create(tmp_path)
    made.start_log()
    try:
        for _ in range(1000):
            logging.getLogger("harness.x").warning("the guest said %s", EVIL + "x" * 1000)
    finally:
        for handler in root.handlers:
            handler.close()
        root.setLevel(level)
    text = (made.path / "harness.log").read_text()
    assert "the guest said" in text
    assert not DANGEROUS.search(text)
    assert len(text) < 110_000


def test_a_complaint_with_a_guests_words(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(ui, "terminal", Console(file=out, soft_wrap=True, force_terminal=False))
    ui.complain(HarnessError(f"its last line: {EVIL} [bold]x[/bold] {'A' * (1 << 20)}"))
    assert not DANGEROUS.search(out.getvalue())
    assert "[bold]x[/bold]" in out.getvalue()
    assert len(out.getvalue()) < 3000


# Whose files


def test_nobody_else_writes_a_runs_files(tmp_path: Path) -> None:
    """A mask of 000 leaves all that a program makes open to all users."""
    script = (
        "import os, sys, tempfile; os.umask(0)\n"
        "from pathlib import Path\n"
        "from harness import cli, rundir\n"
        "from harness.report.results import ResultsDir, write_atomic\n"
        "assert cli.main(['machine', 'list']) == 0\n"
        "made = ResultsDir.create(Path(sys.argv[1]) / 'results')\n"
        "made.start_log(); write_atomic(made.test_dir('x.py::test_a') / 'result.json', '{}')\n"
        "with rundir.rundir() as folder: print(oct(folder.stat().st_mode & 0o7777))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=paths.source_tree(),
        env={**os.environ, "NVH_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0o700"
    made = list((tmp_path / "results").rglob("*"))
    assert len(made) >= 5
    for file in [tmp_path / "results", *made]:
        if not file.is_symlink():
            assert not file.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH), file


# Limits on time


@pytest.fixture
def soon() -> TimeLimit:
    return TimeLimit(test=0.2, end=time.time() + 3600)


def test_a_block_that_does_not_end(soon: TimeLimit) -> None:
    begun = time.monotonic()
    with pytest.raises(OutOfTime, match=r"no end after 0\.2 s"), soon.applied():
        time.sleep(60)
    assert time.monotonic() - begun < 30
    time.sleep(0.3)  # the alarm is off


def test_a_record_is_logged_whole_before_time_is_up(soon: TimeLimit) -> None:
    """Else logging would keep a lock that nobody gives back."""

    class Slow(logging.Handler):
        whole = 0

        def emit(self, record: logging.LogRecord) -> None:
            time.sleep(0.4)
            self.whole += 1

    log = logging.Logger("of a test")
    log.addHandler(slow := Slow())

    def tell() -> None:
        log.info("told")
        time.sleep(20)

    with pytest.raises(OutOfTime), soon.applied():
        tell()
    assert slow.whole == 1


def test_what_was_used_counts_and_the_run_comes_first(soon: TimeLimit) -> None:
    with pytest.raises(OutOfTime, match="no end"), soon.applied(used=1.0):
        raise AssertionError("it is late already")
    over = TimeLimit(test=60, end=time.time() - 1)
    with pytest.raises(OutOfTime, match="the run's time is over"), over.applied():
        raise AssertionError("it is late already")


def test_a_test_without_an_end_is_a_miss_and_the_next_one_runs(runs: Runs) -> None:
    found = runs(
        """
import time
@pytest.fixture
def slow(): time.sleep(60)
def test_v1_hangs(case):
    while True: time.sleep(0.01)
def test_v1_hangs_before(slow, case): pass
def test_v1_sound(case): case.expect("map", "OK")
""",
        "--nvh-max-test-time=5",
    )
    assert {name: entry["status"] for name, entry in found.tests.items()} == {
        "hangs": "MISS",
        "hangs_before": "MISS",
        "sound": "PASS",
    }
    assert found.tests["hangs"]["message"] == "no end after 5 s"
    assert found.code != 0


def test_tests_after_the_runs_end_are_misses(runs: Runs) -> None:
    found = runs(
        "def test_v1_a(guest, case): case.expect('map', 'OK')\n"
        "def test_v1_b(guest, case): case.expect('map', 'OK')\n",
        "--nvh-end=1",
    )
    assert {entry["status"] for entry in found.tests.values()} == {"MISS"}
    assert {entry["message"] for entry in found.tests.values()} == {"the run's time is over"}
    assert found.summary["exit_code"] == 125
    assert not (found.results.parent / "wishes").exists()  # no guest was started for them
