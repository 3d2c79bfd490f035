"""Runs with two tests at once, as a user starts, interrupts and loses them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from junitparser import Properties

from harness import paths
from harness.guest import template as templates
from harness.guest.template import Template
from harness.images.store import file_hash
from tests.real_runs import BUILDER, CHEAP, Cache, Eventually, Started

pytestmark = pytest.mark.guest


def checksums(template: Template) -> dict[str, str]:
    files = [file for file in template.path.iterdir() if file.is_file()]
    return {file.name: file_hash(file) for file in files}


def properties_of(element: Any) -> dict[str, str]:
    return {item.name: item.value for item in element.child(Properties)}


def test_every_test_runs_once_and_the_template_is_never_written(
    started: Started, template: Template
) -> None:
    before = checksums(template)
    run = started(CHEAP)
    out = run.end(600)
    assert run.process.returncode == 0, out
    assert checksums(template) == before

    suite, *others = run.junit()
    assert not others
    properties = properties_of(suite)
    summary = run.summary()
    assert properties == {name: str(value) for name, value in summary["properties"].items()}
    assert properties["accel"] == "tcg"
    assert summary["counts"]["PASS"] == suite.tests == len(summary["tests"])
    seen = Counter(f"{case.classname.replace('.', '/')}.py::{case.name}" for case in suite)
    assert seen == Counter(run.verdicts().keys())
    assert len(seen) == 5
    for case in suite:
        own = properties_of(case)
        assert own["status"] == "PASS"
        assert own["row"] in {"V10", "S6"}
        assert own["source"]
        folder = run.results / "latest" / own["folder"]
        assert json.loads((folder / "result.json").read_text())["status"] == "PASS"
        assert (folder / "guest-console.log").is_file()
    assert list(run.cache.temporary.iterdir()) == []
    # No folder of a guest is left behind: each went to its test or was worth nothing.
    assert not (run.results / "latest" / "guests").exists()


def test_ctrl_c_ends_a_run_in_order(started: Started, eventually: Eventually) -> None:
    run = started("V10 or S6")
    eventually((run.results / "latest" / "junit.xml").exists, seconds=240)
    eventually(run.cache.guests, seconds=240)
    os.killpg(run.process.pid, signal.SIGINT)
    out = run.end(120)
    assert run.process.returncode == 130
    assert out.count("nvh: interrupted") == 1
    eventually(lambda: not run.cache.guests())
    assert list(run.cache.temporary.iterdir()) == []
    summary = run.summary()
    assert summary["finished"] is False
    assert summary["exit_code"] == 130
    assert 0 < len(summary["tests"]) < 8
    assert set(run.verdicts().values()) == {"PASS"}  # what was cut short is not judged
    assert sum(suite.tests for suite in run.junit()) == len(summary["tests"])


def test_a_killed_worker_costs_its_test_and_is_named(
    started: Started, eventually: Eventually
) -> None:
    run = started(CHEAP)
    guests: list[int] = []

    def noted() -> bool:
        guests.extend(run.cache.guests())
        return bool(guests)

    eventually(noted, seconds=240)
    stat = Path(f"/proc/{guests[0]}/stat").read_text()
    worker = int(stat.rpartition(")")[2].split()[1])  # the parent
    assert worker != run.process.pid
    os.kill(worker, signal.SIGKILL)
    out = run.end(600)
    assert run.process.returncode == 125
    lost = [test for test in run.summary()["tests"] if test["status"] != "PASS"]
    assert len(lost) == 1
    assert lost[0]["status"] == "MISS"
    assert lost[0]["message"].startswith("the worker died: worker 'gw")
    assert "the worker died: worker 'gw" in " ".join(out.split())
    assert len(run.verdicts()) == len(run.summary()["tests"]) == 5  # another took over


def test_of_two_that_ask_for_a_template_one_makes_it(cache: Cache, tmp_path: Path) -> None:
    machine = tmp_path / "bare.toml"
    machine.write_text('[machine]\nmemory = "512M"\n')
    (cache.path / "store" / templates.KIND).unlink()
    asking = [
        subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(machine)],
            cwd=paths.source_tree(),
            env=cache.env,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=600)[0].splitlines() for process in asking]
    assert [process.returncode for process in asking] == [0, 0]
    assert sum(line.startswith("making a template") for lines in said for line in lines) == 1
    assert said[0][-1] == said[1][-1]
    assert len(list((cache.path / "store" / templates.KIND).iterdir())) == 1
