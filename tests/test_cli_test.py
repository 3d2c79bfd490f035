"""nvh test on the command line: what is selected, and how each bad input ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness import paths, pool, rundir
from harness.lab import Lab, Options
from harness.report import summary
from harness.report.matrix import Combination, Matrix
from harness.report.record import TestRecord
from harness.report.results import ResultsDir
from harness.verdict.status import Status
from tests.test_cli import Nvh, Said, complaint, nvh

__all__ = ["nvh"]  # a fixture


@pytest.fixture
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where bad usage is not told before anything is looked up, built or written."""

    def never(*_: object) -> None:
        pytest.fail("it went on")

    monkeypatch.setattr(Lab, "recipe", never)
    monkeypatch.setattr(ResultsDir, "create", never)


@pytest.mark.usefixtures("no_images")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-n", "many"], "-n many: neither a number from 1 on nor auto"),
        (["-n", "-3"], "-n -3"),
        (["-n", "0"], "-n 0"),
        (["-n", "²"], "-n ²"),
        (["--set", "nosuch"], "no set is called 'nosuch' (known: first"),
        (["--set", "first", "-k", "V2"], "no test of set first matches 'V2'"),
        (["-k", "V99"], "no test matches 'V99'"),
        (["-k", "(("], "Wrong expression"),
        (["--", "--nosuch"], "unrecognized arguments: --nosuch"),
        (["--", "--maxfail=x"], "argument --maxfail: invalid int value: 'x'"),
        (["--", "nosuch.py"], "file or directory not found: nosuch.py"),
        (["--", "-p", "nosuch"], 'Error importing plugin "nosuch"'),
    ],
)
def test_bad_usage_of_test_leaves_nothing_behind(nvh: Nvh, words: list[str], told: str) -> None:
    assert told in complaint(nvh("test", *words), 2)


@pytest.mark.parametrize(
    ("file", "text", "status", "told"),
    [
        (
            "test_v_broken.py",
            "import nosuchmodule\n",
            125,
            "test_v_broken.py: ModuleNotFoundError: No module named 'nosuchmodule'",
        ),
        ("reports/slip.toml", "titel = 1\n", 2, "reports/slip.toml: report: is missing"),
    ],
)
def test_a_testcase_that_cannot_be_loaded(
    tmp_path: Path, file: str, text: str, status: int, told: str
) -> None:
    tree, root = paths.source_tree(), tmp_path / "tree"
    shutil.copytree(tree / "testcases", root / "testcases")
    shutil.copytree(tree / "guest-images" / "machines", root / "guest-images" / "machines")
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(tree / name, root)
    (root / "testcases" / file).write_text(text)
    script = (
        "import pathlib, sys, harness.paths\n"
        f"harness.paths.source_tree = lambda: pathlib.Path({str(root)!r})\n"
        "from harness.cli import main\n"
        "sys.exit(main(['test', '--kernel', '/none']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    line = complaint(Said(done.returncode, done.stdout, done.stderr), status)
    assert told in line
    assert "Error: " not in line.removesuffix(told)
    assert not (root / "results").exists()


def test_a_dry_run_of_test_prints_what_would_be_started(nvh: Nvh, tmp_path: Path) -> None:
    said = nvh("test", "-k", "V3", "--machine", "default", "--dry-run", "--", "-m", "not guest")
    assert said.code == 0
    assert said.out.startswith("pytest ")
    assert " -k V3 " in said.out
    assert said.out.rstrip().endswith(" -m 'not guest'")
    assert not (tmp_path / "cache" / "store").exists()
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("guests", "asked", "workers", "told"),
    [
        (0, "8", "", "nvh: 1 test at once instead of 8: memory is short\n"),
        (5, "8", "-n 2 ", "nvh: 2 tests at once instead of 8: memory is short\n"),
        (5, "auto", "-n 2 ", "nvh: 2 tests at once instead of 6: memory is short\n"),
        (5, "2", "-n 2 ", ""),
        (16, "8", "-n 8 ", ""),
        (99, "16", "-n 12 ", "nvh: 12 tests at once instead of 16: 4 a core is the most\n"),
        (0, "1", "", ""),
    ],
)
def test_memory_and_cores_limit_how_many_tests_run_at_once(
    nvh: Nvh, monkeypatch: pytest.MonkeyPatch, guests: int, asked: str, workers: str, told: str
) -> None:
    """A test takes two guests: its own, and the one that gets ready behind it."""
    one = Lab(Options()).machine.memory + pool.OVERHEAD
    monkeypatch.setattr(pool, "memory_available", lambda: guests * one)
    monkeypatch.setattr(rundir, "room", lambda: 99)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    said = nvh("test", "-k", "V3", "-n", asked, "--dry-run")
    assert said.code == 0
    assert "".join(line for line in said.err.splitlines(True) if line[0] != "[") == told
    command = said.out.partition("--nvh-results=")[2].partition(" ")[2]
    assert command.startswith(f"{workers}--dist worksteal " if workers else "/")


def test_room_for_files_limits_how_many_tests_run_at_once(
    nvh: Nvh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "memory_available", lambda: 1 << 40)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    for room, possible in ((0, "1 test"), (1, "1 test"), (3, "3 tests")):
        monkeypatch.setattr(rundir, "room", lambda room=room: room)
        said = nvh("test", "-k", "V3", "-n", "4", "--dry-run")
        words = "files of guests have no room, 1 GiB each"
        assert f"nvh: {possible} at once instead of 4: {words}\n" in said.err
    monkeypatch.setattr(rundir, "room", lambda: 4)
    assert "instead" not in nvh("test", "-k", "V3", "-n", "4", "--dry-run").err


def test_the_list_names_rows_in_order_with_their_sources(nvh: Nvh) -> None:
    said = nvh("test", "--list")
    assert said.code == 0
    ids = [line.split()[0] for line in said.out.splitlines() if not line.startswith(" ")]
    assert {"V1", "V3", "V8", "V11", "V13", "V18", "L1", "L5", "S1", "S6", "K1"} <= set(ids)
    rows = [name for name in ids if name[1:].isdigit()]
    assert rows == sorted(rows, key=lambda name: (name[0], int(name[1:])))
    assert ids[: len(rows)] == rows
    assert "vfio_fsdax_pins" in ids[len(rows) :]  # reports come behind the catalogue
    assert said.out.count("source: ") == len(ids)
    assert said.out.count(" test_v3_fsdax_is_refused\n") == 1  # once, without its parameters


def test_the_list_is_of_what_is_selected(nvh: Nvh) -> None:
    def ids(*words: str) -> set[str]:
        out = nvh("test", "--list", *words).out
        return {line.split()[0] for line in out.splitlines() if not line.startswith(" ")}

    assert ids("-k", "V1 or S6") == {"V1", "S6"}
    assert ids("--set", "first") > {"V1", "K1"}
    assert "V2" not in ids("--set", "first")
    assert "no test matches 'V99'" in complaint(nvh("test", "--list", "-k", "V99"), 2)


def test_what_failed_is_selected_by_its_ids(nvh: Nvh, tmp_path: Path) -> None:
    ids = [
        "testcases/test_v_dax.py::test_v3_fsdax_is_refused[shared-ext4]",
        "testcases/test_s_dax_state.py::test_s1_dax_never_covers_nothing[xfs]",
        "testcases/test_v_dax.py::test_v9_devdax_pins_are_given_back",
    ]
    words = [Status.FAIL, Status.PASS, Status.FAIL]
    records = [TestRecord(one, word, 1.0) for one, word in zip(ids, words, strict=True)]
    records[2] = replace(records[2], known="an-issue")
    summary.write(tmp_path / "summary.json", records, {})
    said = nvh("test", "--failed", str(tmp_path), "--dry-run", "--accel", "tcg")
    assert said.code == 0
    assert f"{paths.source_tree() / ids[0]}" in said.out
    assert not any(one in said.out for one in ids[1:])
    summary.write(tmp_path / "summary.json", records[1:], {})
    said = nvh("test", "--failed", str(tmp_path), "--dry-run")
    assert said.code == 2
    assert "failed" in said.err


@pytest.mark.usefixtures("no_images")
def test_what_failed_and_is_gone_is_named_whole(nvh: Nvh, tmp_path: Path) -> None:
    there = "test_v_dax.py::test_v3_fsdax_is_refused[shared-ext4]"
    ids = [there, "test_reports.py::test_report[a-b]"]
    for failed in (ids, [*ids, "test_v_gone.py::test_v3_x"]):
        records = [TestRecord(f"testcases/{one}", Status.FAIL, 1.0) for one in failed]
        summary.write(tmp_path / "summary.json", records, {})
        line = complaint(nvh("test", "--failed", str(tmp_path)), 2)
        assert "no test is called testcases/test_reports.py::test_report[a-b]" in line
        assert ("and 1 more" in line) is (len(failed) == 3)
        assert "nvh test -k NAME runs the others" in line


@pytest.mark.usefixtures("no_images")
def test_what_failed_is_asked_of_a_run(nvh: Nvh, tmp_path: Path) -> None:
    good = Combination("good", "m", "good,m", exit_code=0, results="good,m/2026")
    bad = replace(good, kernel="k", folder="k,m", exit_code=1, results="k,m/2026")
    Matrix("", {}, "", (good, bad)).save(tmp_path)
    line = complaint(nvh("test", "--failed", str(tmp_path)), 2)
    assert f"a matrix, not a run (name one of its runs, such as {tmp_path}/k,m/2026)" in line
    (tmp_path / "matrix.json").rename(tmp_path / "bisect.json")
    line = complaint(nvh("test", "--failed", str(tmp_path)), 2)
    assert f"a bisection, not a run (name a run of it, below {tmp_path}/steps)" in line
    line = complaint(nvh("test", "--failed", "none"), 2)
    assert "--failed none: none/summary.json: No such file or directory (the results of" in line


def test_verbose_is_pytests_own_words(nvh: Nvh) -> None:
    assert " -q " in nvh("test", "-k", "V3", "--dry-run", "--accel", "tcg").out
    said = nvh("test", "-k", "V3", "--dry-run", "--accel", "tcg", "-v").out
    assert " -v " in said
    assert " -q " not in said
