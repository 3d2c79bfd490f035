"""What a test costs that does nothing: pytest, fixtures, guest, log and record, all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.figures import Figure
from harness import paths
from harness.errors import HarnessError

#: A tree of its own, whose conftest times each test from its set-up to its record.
_CONFTEST = """
import json, time
from pathlib import Path

import pytest

import harness.paths
import harness.pool

ROOT = Path(__file__).parent
harness.paths.source_tree = lambda: ROOT
harness.pool.AHEAD = {ahead}
pytest_plugins = ["harness.pytest_plugin"]
pool = None


@pytest.fixture(scope="session", autouse=True)
def _pool(guests):
    global pool
    pool = guests


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    begun = time.monotonic()
    done = yield
    with (ROOT / "seconds").open("a") as out:
        out.write(json.dumps(time.monotonic() - begun) + "\\n")
    while not pool.ready():  # the next one begins as after a test of some length
        time.sleep(0.02)
    return done
"""
_TEST = """
import pytest


@pytest.mark.parametrize("number", range({runs}))
def test_f1_nothing(guest, case, number):
    case.expect("reached", "yes")
"""
_ROW = """
[F1]
title = "nothing"
source = ["none"]
[F1.right]
reached = "yes"
"""


def trivial_tests(base: Path, runs: int, *, ahead: int, kernel: str | None, accel: str) -> Figure:
    """Time tests that do nothing, from set-up to tear-down, with or without a clone ahead."""
    root = base / f"ahead-{ahead}"
    real, cases = paths.source_tree(), root / "testcases"
    (cases / "catalogue").mkdir(parents=True)
    (root / "conftest.py").write_text(_CONFTEST.format(ahead=ahead))
    (root / "pytest.ini").write_text("[pytest]\njunit_family = xunit1\n")
    for shared in ("guest-images", "harness", "testcases/workloads"):
        (root / shared).symlink_to(real / shared)
    (cases / "catalogue" / "f.toml").write_text(_ROW)
    (cases / "known-issues.toml").write_text("")
    # The first waits for the template, the last for what its guest still says.
    (cases / "test_f.py").write_text(_TEST.format(runs=runs + 2))
    command = [sys.executable, "-m", "pytest", "testcases", "-q", "-p", "no:cacheprovider"]
    command += [f"--nvh-accel={accel}", "--nvh-trusted"]
    command += [f"--nvh-kernel={kernel}"] if kernel else []
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(real), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise HarnessError(f"the trivial tests failed: {(done.stdout + done.stderr)[-500:]}")
    seconds = [json.loads(line) for line in (root / "seconds").read_text().splitlines()]
    name = "with" if ahead else "without"
    return Figure(
        f"trivial test {name} a warm clone", "s", tuple(seconds[1:-1]), 0.2 if ahead else 0.8
    )
