"""Faults of guests, each played in a real one: what the run's records call it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import paths
from harness.guest.boot import Recipe
from harness.guest.template import Template
from harness.lab import Lab

pytestmark = pytest.mark.guest

TREE = """
import os
from pathlib import Path
import harness.aftermath
import harness.paths
if not os.environ.get("NVH_RELIABILITY"):
    harness.aftermath.LINGER = 20.0  # a loaded host's guest takes long to sleep for a second
ROOT = Path(__file__).parent
harness.paths.source_tree = lambda: ROOT
pytest_plugins = ["harness.pytest_plugin"]
"""
CATALOGUE = """
[F{number}]
title = "a fault"
source = ["the table of faults"]
[F{number}.right]
reached = "yes"
"""


@dataclass(frozen=True)
class Fault:
    """A fault and what a run has to make of it."""

    number: int
    what: str
    status: str
    told: str  # the message, as a regular expression
    limit: int | None  # seconds under KVM
    evidence: str = ""  # what has to be in the test's folder: FILE: regular expression; ...


FAULTS = (
    Fault(2, "sysrq-c during a workload", "FAIL", "kernel panicked: sysrq triggered crash", 5,
          "console.log: Call Trace:"),
    Fault(3, "oops, panic_on_oops=0, the workload exits 0", "FAIL",
          "fault: .*NULL pointer", 15, "dmesg: Call Trace:"),
    Fault(4, "WARNING, the workload exits 0", "FAIL", "fault: WARNING", 15, "dmesg: made_up.c"),
    Fault(5, "oops a second after the workload's end", "FAIL",
          "after the test: .*NULL pointer", 15, "dmesg: Call Trace:"),
    Fault(6, 'user space prints "Kernel panic"', "PASS", "", None),
    Fault(7, "a task in D state", "FAIL", r"hung: touch \(\d+\) state D in \w+: no end after", 25,
          r"dmesg: sysrq: Show Blocked State; stacks.txt: \[<0>\] \w+"),
    Fault(8, "a pinned page, a truncate waits in S state", "FAIL",
          r"hung: truncate \(\d+\) state S in \w+: no end after", 25,
          "stacks.txt: break_(dax_)?layout; dmesg: sysrq: Show Blocked State"),
    Fault(9, "soft lockup", "FAIL", "lockup: BUG: soft lockup - CPU#", 60, "registers.txt: CPU#1"),
    Fault(10, "all CPUs spin with interrupts off", "FAIL",
          "lockup: CPUs 0, 1 in the kernel with interrupts off", 60, "registers.txt: CPU#1"),
    Fault(11, "noise on the console and no progress", "FAIL", "no progress: no end after", 70),
    Fault(12, "QEMU stopped (SIGSTOP)", "MISS", "host stall: QEMU .* is stopped", 10),
    Fault(13, "QEMU killed (SIGKILL)", "MISS", "QEMU died with signal 9", 2),
    Fault(14, "QEMU refuses an argument", "MISS",
          "QEMU refused to start: .*no-such-device.* is not a valid device model name", 5),
    Fault(15, "triple fault", "FAIL", "unexpected reset", 5),
    # What is said once SSH is dead comes through the serial shell.
    Fault(16, "the guest's network is down", "MISS", "the guest's network is down", 30,
          "dmesg: words-before"),
    Fault(17, "SSH server killed", "MISS", "the guest's SSH server is gone", 30,
          "dmesg: words-before"),
    Fault(18, "the guest is out of memory", "FAIL",
          "the guest is out of memory: Killed process", 30, "dmesg: words-before"),
    Fault(19, "a loaded host, a healthy guest", "PASS", "", None),
    Fault(20, "pins that are left when the test is over", "FAIL",
          "pins_left: expected 0, seen [23]$", 15),
)  # fmt: skip


@pytest.fixture(scope="module")
def results(
    tcg_lab: Lab, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, tuple[dict[str, Any], Path]]:
    """Play all faults in one run, with sound guests before and after; records by number."""
    assert isinstance(tcg_lab.template(recipe), Template)
    real, root = paths.source_tree(), tmp_path_factory.mktemp("faults")
    (root / "conftest.py").write_text(TREE)
    (root / "pytest.ini").write_text("[pytest]\njunit_family = xunit1\n")
    (root / "guest-images").symlink_to(real / "guest-images")
    (root / "harness").symlink_to(real / "harness")
    (root / "refused.toml").write_text('[machine]\nqemu_args = ["-device", "no-such-device"]\n')
    cases = root / "testcases"
    (cases / "catalogue").mkdir(parents=True)
    numbers = [1, *(fault.number for fault in FAULTS)]
    (cases / "catalogue" / "f.toml").write_text(
        "".join(CATALOGUE.format(number=number) for number in numbers)
    )
    (cases / "known-issues.toml").write_text("")
    (cases / "workloads").symlink_to(real / "testcases" / "workloads")
    (cases / "test_f.py").write_text((real / "tests" / "guest_faults.py").read_text())
    chosen = os.environ.get("NVH_FAULTS")  # numbers, for who works on one of them
    only = ["-k", f"f1_ or {chosen}"] if chosen else []
    named = os.environ.get("NVH_KERNEL")
    kernel = [f"--nvh-kernel={named}"] if named else []
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "testcases", "-q", "-p", "no:cacheprovider"),
            *("--nvh-accel=tcg", "--nvh-trusted", *only, *kernel),
        ],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(real), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    found = {}
    for file in (root / "results" / "latest" / "tests").glob("*/result.json"):
        record = json.loads(file.read_text())
        found[int(record["row"][1:])] = (record, file)
    assert 1 in found, done.stdout + done.stderr
    summary = json.loads((root / "results" / "latest" / "summary.json").read_text())
    # What is told at the end is what the records say, late findings and all.
    for test in summary["tests"]:
        assert test["status"] == found[int(test["id"][1:])][0]["status"]
    return found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"f{fault.number}")
def test_a_fault_is_told_in_the_right_word(
    results: dict[int, tuple[dict[str, Any], Path]],
    fault: Fault,
    reliability: Callable[..., None],
) -> None:
    if fault.number not in results and os.environ.get("NVH_FAULTS"):
        pytest.skip("not chosen")
    record, file = results[fault.number]
    print(json.dumps(record, indent=1)[:4000])
    assert record["status"] == fault.status
    assert re.search(fault.told, record["message"])
    if fault.status == "PASS":
        assert record["findings"] == []
    for part in filter(None, fault.evidence.split("; ")):
        name, _, pattern = part.partition(": ")
        assert re.search(pattern, (file.parent / name).read_text(errors="replace"))
    assert results[1][0]["status"] == "PASS"  # the results before it are what they were
    begun = record["facts"].get("fault_at", file.stat().st_mtime - record["seconds"])
    reliability(
        fault.what,
        f"{record['status']}: {record['message']}".removesuffix(": "),
        file.stat().st_mtime - begun,
        fault.limit,
    )
