"""results/: directories, atomic files, records and what a hostile guest cannot do to them."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from harness.errors import HostError
from harness.report import results
from harness.report.escape import one_line, printable, slug, tail, xml_safe
from harness.report.record import TestRecord
from harness.report.results import ResultsDir, append, write_atomic
from harness.verdict.status import Status

pytestmark = pytest.mark.usefixtures("nvh_on_path")


def test_two_runs_of_one_second_get_two_directories(tmp_path: Path) -> None:
    first = ResultsDir.create(tmp_path / "results")
    second = ResultsDir.create(tmp_path / "results")
    assert first.path != second.path
    assert (tmp_path / "results" / "latest").resolve() == second.path.resolve()
    assert str((tmp_path / "results" / "latest").readlink()) == second.path.name
    assert ResultsDir.open(first.path) == first


def test_open_refuses_another_directory(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no results directory"):
        ResultsDir.open(tmp_path)


def test_results_below_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match=r"cannot write .*file"):
        ResultsDir.create(tmp_path / "file" / "results")


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk full"), (errno.EDQUOT, r"disk full \(quota\)")]
)
def test_full_disk_is_named_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    path = write_atomic(tmp_path / "junit.xml", "old")

    def full(_fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HostError, match=rf"{words}: .*junit\.xml"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_dev_full_is_a_disk_full() -> None:
    with pytest.raises(HostError, match="disk full: /dev/full"):
        append(Path("/dev/full"), "x" * 10000)


def test_record_round_trip(tmp_path: Path) -> None:
    run = ResultsDir.create(tmp_path)
    record = TestRecord(
        nodeid="testcases/test_v_vfio.py::test_v3_fsdax[ext4]",
        status=Status.FAIL,
        seconds=1.23456,
        row="V3",
        title="fsdax",
        message="map: expected EOPNOTSUPP, seen OK",
        expectations=({"what": "map", "expected": "EOPNOTSUPP", "seen": "OK", "ok": False},),
        facts={"pfn": 12},
        findings=({"kind": "warning", "title": "WARNING in f"},),
        excerpts={"dmesg": "line\n"},
    )
    folder = run.test_dir(record.nodeid)
    assert folder == run.path / record.folder
    loaded = TestRecord.load(record.save(folder))
    assert loaded.to_json() == record.to_json()
    assert loaded.again(["--kernel", "a b"]) == ("nvh test -k 'test_v3_fsdax[ext4]' --kernel 'a b'")


def test_record_of_another_format_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    for text in ("{", "[]", '{"format": 99}', '{"format": 1}'):
        file.write_text(text)
        with pytest.raises(HostError, match="no test record"):
            TestRecord.load(file)


def test_selector_drops_parameters_that_the_expression_grammar_cannot_say() -> None:
    record = TestRecord("t.py::test_l1_pin[a b'c]", Status.PASS, 0, row="L1")
    assert record.again() == "nvh test -k test_l1_pin"


def test_another_projects_test_is_pytests_to_run_again() -> None:
    record = TestRecord("t.py::test_mine[a b]", Status.PASS, 0)
    assert record.again(["--kernel", "k"]) == "pytest 't.py::test_mine[a b]' --nvh-kernel k"


@pytest.mark.parametrize(
    ("started_as", "typed"),
    [("/opt/v/bin/nvh", "/opt/v/bin/nvh"), ("/harness/cli.py", ".venv/bin/nvh")],
)
def test_the_way_back_is_a_command_that_is_there(
    monkeypatch: pytest.MonkeyPatch, started_as: str, typed: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(sys, "argv", [started_as])
    record = TestRecord("t.py::test_l1_pin", Status.PASS, 0, row="L1")
    assert record.again() == f"{typed} test -k test_l1_pin"


HOSTILE = [
    "../../etc/passwd",
    "..",
    "",
    "t.py::test_x[../../../root]",
    "t.py::test_x[a\x00b\n\x1b[31m]",
    "t.py::test_x[" + "A" * 5000 + "]",
    "t.py::test_x[]]>]",
    "t.py::test_x[\ud800]",
    "/absolute",
    "-rf",
    ".hidden",
    "t.py::test_x[\u202egnp.exe]",
]


@pytest.mark.parametrize("nodeid", HOSTILE)
def test_slug_is_always_one_plain_name(nodeid: str, tmp_path: Path) -> None:
    name = slug(nodeid)
    assert name.isascii()
    assert name.isprintable()
    assert 0 < len(name) <= 96
    assert "/" not in name
    assert ".." not in name
    assert not name.startswith((".", "-"))
    (tmp_path / name).mkdir()


def test_slugs_differ_where_ids_do() -> None:
    ids = [*HOSTILE, "t.py::test_x[a/b]", "t.py::test_x[a_b]", "t.py::test_x[a b]"]
    assert len({slug(nodeid) for nodeid in ids}) == len(ids)
    assert slug("testcases/test_v.py::test_v3_x[ext4]") == "test_v.test_v3_x-ext4"


def test_printable_removes_what_a_terminal_would_obey() -> None:
    text = "\x1b[31mred\x1b[0m \x1b]0;title\x07ok\x9b2J \x00\x07 \x1b(B tab\tnul\r\nnext\rlast"
    assert printable(text) == "red ok \\x00\\x07  tab\tnul\nnext\nlast"
    assert "\x1b" not in printable("\x1b" * 100)
    assert printable(b"\xff\xfeabc") == "\ufffd\ufffdabc"
    assert printable("\u202eabc") == "\\u202eabc"


def test_printable_is_bounded_and_quick() -> None:
    huge = "\x1b" * (1 << 24)
    assert len(printable(huge, 100)) <= 100
    assert printable("a" * 101, 100).endswith(" [...]")
    assert len(one_line("x\n" * 100000)) <= 200
    assert one_line(" a\n\tb ") == "a b"


def test_tail_keeps_the_end() -> None:
    text = "".join(f"line {number}\n" for number in range(10000))
    assert tail(text, 100).endswith("line 9999\n")
    assert tail(text, 100).startswith("[...]\nline ")
    assert len(tail(text, 100)) < 120


def test_xml_safe_has_no_cdata_end() -> None:
    assert "]]>" not in xml_safe("a]]>b\x00\ufffe")


def test_json_with_odd_values_is_still_written(tmp_path: Path) -> None:
    file = results.write_json(tmp_path / "x.json", {"a": {1}, "s": "\ud800\x00"})
    assert json.loads(file.read_text())["s"] == "\ud800\x00"
