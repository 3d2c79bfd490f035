"""A report made by nvh new-report in a real guest; the bundle that it leaves, run again."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.real_runs import nvh

pytestmark = pytest.mark.guest


def told(reports: Path | None, *words: str) -> subprocess.CompletedProcess[str]:
    env = None if reports is None else {"NVH_REPORTS": str(reports)}
    return nvh(*words, timeout=600, env=env)


def run(reports: Path, results: Path) -> subprocess.CompletedProcess[str]:
    words = ("-k", "test_report", "-n", "1", "--accel", "tcg", "--results", str(results))
    return told(reports, "test", *words)


def test_a_new_report_runs_and_its_bundle_runs_again(tmp_path: Path) -> None:
    reports, results = tmp_path / "reports", tmp_path / "results"
    assert told(reports, "new-report", "made_bug", "--mail", "a mail").returncode == 0
    done = run(reports, results)
    assert done.returncode == 0, done.stdout
    (test,) = json.loads((results / "latest/summary.json").read_text())["tests"]
    assert (test["id"], test["status"]) == ("made_bug", "PASS")
    assert [item["what"] for item in test["expectations"]] == ["result", "data"]
    bundles = results / "latest/bundles"
    assert [file.name for file in bundles.iterdir()] == [".shared"]

    # The same, but for what is right.
    toml = reports / "made_bug.toml"
    toml.write_text(toml.read_text().replace('data = "equal"', 'data = "differs"'))
    done = run(reports, results)
    assert done.returncode == 1, done.stdout
    (archive,) = (results / "latest/bundles").resolve().glob("*.tar.zst")
    assert archive.name in done.stdout
    folder = archive.with_name(archive.name.removesuffix(".tar.zst"))
    assert "made_bug" in (folder / "evidence/commands").read_text()

    # Without the directory that the report lay in.
    again = ("repro", "--accel", "tcg", "--results", str(results / "again"))
    done = told(None, *again, "--repeat", "3", "--until-fail", str(archive))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "run 1: FAIL data: expected differs, seen equal: the same symptom" in done.stdout
    assert "run 2" not in done.stdout

    copy = folder / "shared/testcases/reports/made_bug"
    right = copy.with_suffix(".toml").read_text()
    copy.with_suffix(".toml").unlink()  # a link: the archive's source stays as it is
    copy.with_suffix(".toml").write_text(right.replace('data = "differs"', 'data = "equal"'))
    done = told(None, *again, "--repeat", "2", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("does not show in 2 runs\n")

    script = copy.with_suffix(".sh").read_text()
    copy.with_suffix(".sh").unlink()
    copy.with_suffix(".sh").write_text(script.replace("fact data", "fact otherwise"))
    done = told(None, *again, str(folder))
    assert done.returncode == 125, done.stdout + done.stderr
    assert done.stdout.endswith("another symptom\n")
