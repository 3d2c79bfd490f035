"""nvh report --format kcidb: what KernelCI's own library says of it."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import kcidb_io
import pytest
from jsonschema.exceptions import ValidationError

from harness import pages
from harness.errors import HarnessError, UsageError
from harness.report import kcidb, stored
from harness.report.record import TestRecord
from harness.verdict.known import KnownIssue
from harness.verdict.status import Status
from tests.made_up_results import (
    HOSTILE,
    hostile,
    of_every_verdict,
    record,
    write_matrix,
    write_run,
)

ISSUE = KnownIssue(
    id="dax-unmapped-pins",
    title="A pinned page is not seen as busy",
    tests=("test_l6_*",),
    kernels=(),
    requires=None,
    symptom=re.compile("x"),
    evidence="fs/dax.c",
    link="https://lore.kernel.org/r/1@example.org",
)


def report(folder: Path, issues: Sequence[KnownIssue] = (), **options: str) -> dict[str, Any]:
    """Return a report that has gone through JSON and past KernelCI's library."""
    found: dict[str, Any] = json.loads(
        json.dumps(kcidb.build(stored.load(folder), issues, **options))
    )
    kcidb_io.schema.V5_3.validate_exactly(found)
    assert kcidb.check(found)
    for name in ("checkouts", "builds", "tests", "issues", "incidents"):
        ids = [one["id"] for one in found.get(name, ())]
        assert len(ids) == len(set(ids))
    return found


def of(tmp_path: Path, *records: TestRecord, **options: str) -> dict[str, Any]:
    return report(write_run(tmp_path / "run", records), [ISSUE], **options)


def test_each_status_goes_over_as_it_is(tmp_path: Path) -> None:
    records = of_every_verdict()
    found = of(tmp_path, *records)
    statuses = {one["misc"]["test"]: one["status"] for one in found["tests"]}
    assert statuses == {one.nodeid: one.status.value for one in records}
    assert set(statuses.values()) == {status.value for status in Status}
    (build,) = found["builds"]
    (checkout,) = found["checkouts"]
    assert build["checkout_id"] == checkout["id"]
    assert {one["build_id"] for one in found["tests"]} == {build["id"]}
    assert {one["origin"] for one in found["tests"]} == {"nvdimm_harness"}


def test_a_test_has_what_kernelci_shows_of_it(tmp_path: Path) -> None:
    (test,) = of(tmp_path, record("test_l1_x[truncate-ext4]", started=1_700_000_000.25))["tests"]
    assert test["path"] == "nvdimm.test_l_layout.test_l1_x.truncate-ext4"
    assert test["comment"] == "L1: an operation waits for the pin"
    assert test["start_time"] == "2023-11-14T22:13:20.250+00:00"
    assert test["duration"] == 1.7
    assert test["environment"]["comment"] == "machine default, tcg"
    assert test["environment"]["misc"]["guest"]["how"] == "clone"
    assert test["misc"]["facts"] == {"refs_before": 1}
    assert test["misc"]["expectations"][0]["source"] == "commit 430657b6be89"
    assert "layout --op truncate" in test["log_excerpt"]
    assert "output_files" not in test  # nobody knows where they are


def test_a_known_failure_is_a_fail_with_an_incident(tmp_path: Path) -> None:
    showed = next(one for one in of_every_verdict() if one.known)
    gone = record("test_l6_y", fixed=(ISSUE.id, "another"))
    found = of(tmp_path, showed, gone)
    tests = {one["misc"]["test"]: one for one in found["tests"]}
    assert tests[showed.nodeid]["status"] == "FAIL"
    issues = {one["misc"]["id"]: one for one in found["issues"]}
    assert set(issues) == {ISSUE.id, "another"}
    issue = issues[ISSUE.id]
    assert issue["report_subject"] == ISSUE.title
    assert issue["report_url"] == ISSUE.link
    assert issue["culprit"]["code"] is True
    seen = {(one["test_id"], one["issue_id"], one["present"]) for one in found["incidents"]}
    assert seen == {
        (tests[gone.nodeid]["id"], issue["id"], False),
        (tests[gone.nodeid]["id"], issues["another"]["id"], False),
        (tests[showed.nodeid]["id"], issue["id"], True),
    }
    assert {one["issue_version"] for one in found["incidents"]} == {issue["version"]}


def test_files_are_named_where_they_can_be_had(tmp_path: Path) -> None:
    bad = of_every_verdict()[-2]
    folder = write_run(tmp_path / "run", [bad])
    (folder / bad.folder / "output.txt").write_text("said\n")
    (folder / bad.folder / "a b#c").write_text("odd\n")
    (folder / bad.folder / "empty").touch()
    (folder / "bundles").mkdir()
    (folder / bad.bundle).write_bytes(b"x")
    (test,) = report(folder, url="https://ci.example.org/run-7/")["tests"]
    base = f"https://ci.example.org/run-7/{bad.folder}"
    assert test["log_url"] == f"{base}/output.txt"
    urls = {one["name"]: one["url"] for one in test["output_files"]}
    assert urls == {
        "a b#c": f"{base}/a%20b%23c",
        "console.log": f"{base}/console.log",
        "result.json": f"{base}/result.json",
        Path(bad.bundle).name: f"https://ci.example.org/run-7/{bad.bundle}",
    }


def test_the_same_results_are_the_same_objects(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", of_every_verdict())
    again = tmp_path / "elsewhere"
    folder.rename(again)
    before, now = report(again), report(again)
    assert before == now
    other = report(write_run(tmp_path / "other", of_every_verdict(), started="2026-02-02T00:00:00"))
    assert before["builds"] == other["builds"]  # one kernel
    assert not {one["id"] for one in before["tests"]} & {one["id"] for one in other["tests"]}


def test_a_matrix_is_one_report(tmp_path: Path) -> None:
    runs: dict[str, Sequence[TestRecord] | str] = {
        "debian:6.1": of_every_verdict(),
        "sid": [record("test_x")],
        "none": "it panicked",
    }
    folder = write_matrix(tmp_path, runs)
    found = report(folder, url="https://ci.example.org/night")
    assert len(found["builds"]) == len(found["checkouts"]) == 3
    (missed,) = [one for one in found["tests"] if one["path"] == "nvdimm.run"]
    assert (missed["status"], missed["comment"]) == ("MISS", "it panicked")
    (url,) = {
        one["url"]
        for test in found["tests"]
        if test.get("misc", {}).get("test", "").endswith("::test_x")
        for one in test["output_files"]
        if one["name"] == "console.log"
    }
    assert url.startswith("https://ci.example.org/night/sid%2Cdefault/night/tests/")


def test_tests_can_be_those_of_a_build_that_kernelci_knows(tmp_path: Path) -> None:
    found = of(tmp_path, record("test_x"), build_id="maestro:68a1", origin="my_lab")
    assert set(found) == {"version", "tests"}
    assert found["tests"][0]["build_id"] == "maestro:68a1"
    assert found["tests"][0]["id"].startswith("my_lab:")
    folder = write_matrix(tmp_path, {"a": [record("test_x")], "b": [record("test_x")]})
    with pytest.raises(UsageError, match="several kernels"):
        report(folder, build_id="maestro:68a1")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"origin": "My Lab"}, "is no origin"),
        ({"url": "results/"}, "is no address"),
        ({"url": "javascript://x"}, "is no address"),
        ({"url": "https://ci.example.org/run 7"}, "is no address"),
        ({"build_id": "68a1"}, "is no build's id"),
        ({"build_id": "maestro:\0"}, "is no build's id"),
    ],
)
def test_what_kcidb_would_refuse_is_refused(
    tmp_path: Path, options: dict[str, str], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        of(tmp_path, record("test_x"), **options)


def test_a_hostile_guest_is_refused_by_no_database(tmp_path: Path) -> None:
    deep: Any = "end"
    for _ in range(100):
        deep = {"x": [deep]}
    facts = {"deep": deep, "long": HOSTILE * 1000, "many": list(range(5000)), "nan": float("nan")}
    evil = replace(hostile(), facts=facts, known=HOSTILE, fixed=(HOSTILE,), seconds=float("inf"))
    # None of these can come back from a file, so the record is held against it as it is.
    folder = write_run(tmp_path / "run", [record("test_x")])
    (run,) = stored.load(folder)
    found = kcidb.build([replace(run, records=(evil,))], [ISSUE])
    text = json.dumps(found, allow_nan=False)
    kcidb_io.schema.V5_3.validate_exactly(json.loads(text))
    # Neither NUL nor half a surrogate pair, which PostgreSQL's jsonb and BigQuery refuse.
    assert not re.search(r"\\u0000|\\ud[89a-f]", text.replace("\\\\", ""))
    assert len(text) < 100_000


def test_a_report_that_kcidb_would_refuse_is_told(tmp_path: Path) -> None:
    found = of(tmp_path, record("test_x"))
    broken = copy.deepcopy(found)
    broken["tests"][0]["status"] = "KNOWN"
    with pytest.raises(ValidationError):
        kcidb_io.schema.V5_3.validate_exactly(copy.deepcopy(broken))
    with pytest.raises(HarnessError, match=r"KCIDB would refuse \$\.tests\[0\]\.status: 'KNOWN'"):
        kcidb.check(broken)


def test_the_library_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = of(tmp_path, record("test_x"))
    monkeypatch.setitem(sys.modules, "kcidb_io", None)
    assert not kcidb.check(found)


def test_the_checkouts_known_issues_go_over(tmp_path: Path) -> None:
    known = pages.known_issues()
    assert known
    records = [record(f"test_x[{number}]", fixed=(one.id,)) for number, one in enumerate(known)]
    found = report(write_run(tmp_path / "run", records), known)
    assert {one["report_subject"] for one in found["issues"]} == {one.title for one in known}
