"""Two results held against each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.errors import UsageError
from harness.report import compare, summary
from harness.report.compare import Change
from harness.report.matrix import Combination, Matrix, State
from harness.report.record import TestRecord
from harness.verdict.status import Status


def record(word: str, name: str = "test_v3_x[ext4]", **extra: Any) -> TestRecord:
    known = "an-issue" if word == "KNOWN" else ""
    return TestRecord(
        **{
            "nodeid": f"testcases/test_v.py::{name}",
            "status": Status.FAIL if known else Status(word),
            "seconds": 0.5,
            "row": "V3",
            "message": "" if word in ("PASS", "DONE") else "map: expected OK, seen ENOSYS",
            "known": known,
            **extra,
        }
    )


def written(
    folder: Path, *records: TestRecord, finished: bool = True, kernel: str = "6.12.1"
) -> Path:
    folder.mkdir(parents=True)
    properties = {"kernel": kernel, "machine": "default", "accel": "tcg"}
    code = summary.verdict(records) if finished else None
    file = folder / "summary.json"
    summary.write(file, records, properties, exit_code=code, finished=finished)
    return folder


def change(tmp_path: Path, old: TestRecord | None, new: TestRecord | None) -> Change:
    """Return what became of one test, beside one that passes in both."""
    other = record("PASS", "test_v1_y")
    sides = [
        compare.load(written(tmp_path / name, *([one] if one else []), other))
        for name, one in (("old", old), ("new", new))
    ]
    found = compare.differences(*sides)
    (mine,) = [one for one in found if one.entry.name == "test_v3_x[ext4]"]
    assert compare.exit_code(found) == int(mine.change in (Change.NEW_FAILURE, Change.MISSING))
    return mine.change


WORDS = ["PASS", "FAIL", "KNOWN", "SKIP", "ERROR", "MISS", "DONE"]


@pytest.mark.parametrize("new", ["FAIL", "ERROR", "MISS"])
@pytest.mark.parametrize("old", [*WORDS, None])
def test_what_is_bad_now(tmp_path: Path, old: str | None, new: str) -> None:
    expected = Change.STILL_FAILING if old == new else Change.NEW_FAILURE
    assert change(tmp_path, record(old) if old else None, record(new)) is expected


@pytest.mark.parametrize("new", ["PASS", "DONE"])
@pytest.mark.parametrize("old", [*WORDS, None])
def test_what_is_good_now(tmp_path: Path, old: str | None, new: str) -> None:
    expected = {"PASS": Change.SAME, "DONE": Change.SAME, "SKIP": Change.NEW, None: Change.NEW}
    found = change(tmp_path, record(old) if old else None, record(new))
    assert found is expected.get(old, Change.FIXED)


@pytest.mark.parametrize("old", [*WORDS, None])
def test_what_is_known_now(tmp_path: Path, old: str | None) -> None:
    expected = {"KNOWN": Change.STILL_KNOWN, None: Change.NEW}
    found = change(tmp_path, record(old) if old else None, record("KNOWN"))
    assert found is expected.get(old, Change.NOW_KNOWN)


@pytest.mark.parametrize("old", [*WORDS, None])
def test_what_is_skipped_now_is_no_pass(tmp_path: Path, old: str | None) -> None:
    expected = {
        "SKIP": Change.SAME,
        "ERROR": Change.SKIPPED,
        "MISS": Change.SKIPPED,
        None: Change.NEW,
    }
    found = change(tmp_path, record(old) if old else None, record("SKIP"))
    assert found is expected.get(old, Change.MISSING)


@pytest.mark.parametrize("old", WORDS)
def test_what_vanished_is_no_pass(tmp_path: Path, old: str) -> None:
    assert change(tmp_path, record(old), None) is Change.MISSING


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("held 12 refs after 3.4 s", "held 9 refs after 11 s", Change.STILL_FAILING),
        ("at 0xffff8881 of pid 7", "at 0xffff0001 of pid 99", Change.STILL_FAILING),
        ("map: expected OK, seen EIO", "map: expected OK, seen EFAULT", Change.NEW_FAILURE),
        ("map: expected OK, seen EIO", "left: expected 0, seen 1", Change.NEW_FAILURE),
    ],
)
def test_another_symptom_is_a_new_failure(
    tmp_path: Path, old: str, new: str, expected: Change
) -> None:
    assert change(tmp_path, record("FAIL", message=old), record("FAIL", message=new)) is expected


def test_another_splat_is_a_new_failure(tmp_path: Path) -> None:
    warning, bug = ({"kind": "k", "title": title} for title in ("WARNING in f", "BUG in g"))
    before = record("FAIL", findings=(warning,))
    assert change(tmp_path / "a", before, record("FAIL", findings=(bug,))) is Change.NEW_FAILURE
    both = record("FAIL", findings=(bug, warning))
    assert change(tmp_path / "b", before, both) is Change.NEW_FAILURE
    turned = record("FAIL", findings=(warning, bug))
    assert change(tmp_path / "c", both, turned) is Change.STILL_FAILING


def test_why_the_host_could_not_test_may_be_worded_anew(tmp_path: Path) -> None:
    old, new = record("MISS", message="no memory"), record("MISS", message="no disk")
    assert change(tmp_path, old, new) is Change.STILL_FAILING


def test_another_known_issue_is_told(tmp_path: Path) -> None:
    old = replace(record("KNOWN"), known="another-issue")
    assert change(tmp_path, old, record("KNOWN")) is Change.NOW_KNOWN


# What is said


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["compare", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_line_for_each_test_and_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = written(
        tmp_path / "old",
        record("PASS", "test_v1_a"),
        record("PASS", "test_v2_b"),
        record("FAIL", "test_v3_c"),
        record("PASS", "test_v4_d"),
    )
    new = written(
        tmp_path / "new",
        record("FAIL", "test_v1_a", message="bad\x1b[31m\nmore"),
        record("PASS", "test_v3_c"),
        record("PASS", "test_v4_d"),
    )
    code, out, _ = said(capsys, str(old), str(new / "summary.json"))
    assert code == 1
    lines = out.splitlines()
    assert lines[0] == f"old: {old} (6.12.1, default, tcg)"
    assert lines[3:6] == [
        "new failure    V3   test_v1_a  PASS -> FAIL    bad more",
        "gone missing   V3   test_v2_b  PASS -> -       it is not there any more",
        "fixed          V3   test_v3_c  FAIL -> PASS",
    ]
    assert lines[7].startswith("again: ")
    assert lines[7].endswith("nvh test -k test_v1_a")
    assert lines[-1] == "1 new failure, 1 gone missing, 1 fixed, 1 as before"
    assert said(capsys, str(new), str(new))[0] == 0


def test_an_unfinished_run_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = written(tmp_path / "old", record("PASS"))
    new = written(tmp_path / "new", record("PASS"), finished=False)
    code, out, _ = said(capsys, str(old), str(new))
    assert code == 0
    assert "unfinished: it was killed, or goes on" in out
    found = json.loads(said(capsys, "--json", str(old), str(new))[1])
    assert found["old"]["unfinished"] == ""
    assert "killed" in found["new"]["unfinished"]


def test_json_has_all_but_what_is_as_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = written(tmp_path / "old", record("PASS"), record("PASS", "test_v1_y"))
    new = written(tmp_path / "new", record("KNOWN"), record("PASS", "test_v1_y"))
    code, out, _ = said(capsys, "--json", str(old), str(new))
    found = json.loads(out)
    assert code == found["exit_code"] == 0
    assert found["counts"]["now known"] == found["counts"]["as before"] == 1
    (test,) = found["tests"]
    assert (test["old"], test["new"], test["known"]) == ("PASS", "KNOWN", "an-issue")


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", "{}", '{"format": 1}', '{"format": 99}', "\x00", "null"]
)
def test_what_is_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    good = written(tmp_path / "good", record("PASS"))
    bad = tmp_path / "bad"
    if content is not None:
        bad.mkdir()
        (bad / "summary.json").write_text(content)
    for words in ([str(good), str(bad)], [str(bad), str(good)]):
        code, out, err = said(capsys, *words)
        assert (code, out) == (2, "")
        assert err.startswith(f"nvh: {bad} is no result: ")
        assert err.count("\n") == 1


def test_two_empty_runs_are_no_comparison(tmp_path: Path) -> None:
    sides = [compare.load(written(tmp_path / name)) for name in ("old", "new")]
    with pytest.raises(UsageError, match="there is no test in "):
        compare.differences(*sides)


# Matrices


def a_matrix(
    folder: Path, release: str = "6.12.1", **kernels: tuple[TestRecord, ...] | str
) -> Path:
    """Write a matrix: the records of each kernel, or why it could not be tested."""
    combinations = []
    for kernel, found in kernels.items():
        if isinstance(found, str):
            one = Combination(kernel, "default", kernel, State.DONE, 125, 1.0, why=found)
        else:
            written(folder / kernel / "run", *found, kernel=release)
            one = Combination(kernel, "default", kernel, State.DONE, 0, 1.0, f"{kernel}/run")
        combinations.append(one)
    folder.mkdir(exist_ok=True)
    Matrix("now", {}, "", tuple(combinations), 0).save(folder)
    return folder


def test_nights_are_compared_kernel_by_kernel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = a_matrix(tmp_path / "old", a=(record("PASS"),), b=(record("PASS"),))
    new = a_matrix(tmp_path / "new", a=(record("PASS"),), b=(record("FAIL"),))
    code, out, _ = said(capsys, str(old), str(new / "matrix.json"))
    assert code == 1
    assert "new failure    V3   b on default: test_v3_x[ext4]  PASS -> FAIL" in out
    assert "1 new failure, 3 as before" in out


def test_a_kernel_that_no_longer_boots_is_a_failure_and_its_tests_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = a_matrix(tmp_path / "old", a=(record("PASS"),))
    new = a_matrix(tmp_path / "new", a="it panics")
    code, out, _ = said(capsys, str(old), str(new))
    assert code == 1
    assert "a on default: the run itself   PASS -> MISS    it panics" in out
    assert "1 new failure, 1 gone missing" in out
    assert said(capsys, str(new), str(new))[0] == 0  # still failing
    assert said(capsys, str(new), str(old))[0] == 0  # fixed


def test_a_selector_that_stands_for_another_kernel_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = a_matrix(tmp_path / "old", "7.1.9", sid=(record("PASS"),))
    new = a_matrix(tmp_path / "new", "7.2.1", sid=(record("PASS"),))
    assert (
        "\nanother kernel: sid on default: 7.1.9 -> 7.2.1\n" in said(capsys, str(old), str(new))[1]
    )
    found = json.loads(said(capsys, "--json", str(old), str(new))[1])
    assert found["kernels"] == {"sid on default": {"old": "7.1.9", "new": "7.2.1"}}
    assert "another kernel" not in said(capsys, str(new), str(new))[1]


def test_a_matrix_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, many = written(tmp_path / "run", record("PASS")), a_matrix(tmp_path / "m", a="why")
    code, _, err = said(capsys, str(run), str(many))
    assert code == 2
    assert "a matrix cannot be compared with a run" in err
