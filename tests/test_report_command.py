"""nvh report --format: which file comes of it, and what is refused."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.commands.results import Format
from harness.report import kcidb
from harness.report.record import TestRecord
from tests.made_up_results import of_every_verdict, record, write_matrix, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", of_every_verdict())


@pytest.mark.parametrize(
    ("name", "file", "begin"),
    [
        ("junit", "junit.xml", "<?xml"),
        ("xunit2", "xunit2.xml", "<?xml"),
        ("kcidb", "kcidb.json", "{"),
        ("ktap", "results.ktap", "KTAP version 1\n"),
    ],
)
def test_each_format_has_its_file(
    run: Path, capfdbinary: pytest.CaptureFixture[bytes], name: str, file: str, begin: str
) -> None:
    assert cli.main(["report", str(run), "--format", name]) == 0
    assert capfdbinary.readouterr().out.decode() == f"{run / file}\n"
    assert (run / file).read_text().startswith(begin)
    assert cli.main(["report", str(run), "--format", name, "--output", "-"]) == 0
    assert capfdbinary.readouterr().out == (run / file).read_bytes()
    other = run.parent / "other"
    assert cli.main(["report", str(run), "--format", name, "--output", str(other)]) == 0
    assert other.read_bytes() == (run / file).read_bytes()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--origin", "x"], "go with --format kcidb"),
        (["--format", "ktap", "--url", "https://x"], "go with --format kcidb"),
        (["--output", "x.html"], "leads to the files beside it"),
        (["--format", "ktap", "--open"], "--open shows the page"),
        (["--format", "kcidb", "--origin", "X"], "'X' is no origin"),
    ],
)
def test_what_does_not_go_together_is_told(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert cli.main(["report", str(run), *words]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert said.err.count("\n") == 1
    assert not said.out


def test_a_matrix_has_the_class_names_that_its_own_junit_has(tmp_path: Path) -> None:
    runs: dict[str, Sequence[TestRecord] | str] = {
        "debian:6.1": [record("test_x")],
        "none": "it panicked",
    }
    folder = write_matrix(tmp_path, runs)
    assert cli.main(["report", str(folder), "--format", "junit"]) == 0
    document = ET.parse(folder / "junit.xml").getroot()
    names = [(case.get("classname"), case.get("name")) for case in document.iter("testcase")]
    assert names == [
        ("debian-6_1.default.testcases.test_l_layout", "test_x"),
        ("none.default", "the run itself"),
    ]
    found = {one.get("name"): one.get("value") for one in document.iter("property")}
    assert found["results"] == ""
    first = next(document.iter("testsuite"))
    (results,) = first.findall("properties/property[@name='results']")
    assert results.get("value") == "debian-6.1,default/night"


def test_without_kernelcis_library_it_is_said(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kcidb, "check", lambda _: False)
    assert cli.main(["report", str(run), "--format", "kcidb"]) == 0
    assert "nvdimm-harness[kcidb]" in capsys.readouterr().err
    assert json.loads((run / "kcidb.json").read_text())["version"] == {"major": 5, "minor": 3}


WRONG: tuple[Any, ...] = (
    *(None, 5, -1.5, float("nan"), "x", "\ud800\0", True),
    *([], {}, [1], ["x"], [[]], {"a": 1}, {"": None}),
)
KEYS = sorted(of_every_verdict()[0].to_json())


@pytest.mark.parametrize("key", KEYS)
def test_a_record_of_anything_is_written_or_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], key: str
) -> None:
    """Results may come from elsewhere, or from a disk that was full."""
    bad = replace(of_every_verdict()[-2], fixed=("an-issue",), known="another")
    folder = write_run(tmp_path / "run", [bad])
    file = folder / bad.folder / "result.json"
    whole = json.loads(file.read_text())
    for value in WRONG:
        wrong: dict[str, Any] = {**whole, key: value}
        inner = whole[key][0] if isinstance(whole[key], list) and whole[key] else None
        if isinstance(inner, dict):
            file.write_text(json.dumps({**whole, key: [dict.fromkeys(inner, value)]}))
            write_all(folder)
        file.write_text(json.dumps(wrong))
        write_all(folder)
    capfd.readouterr()


@pytest.mark.parametrize("value", [float("nan"), 10**400, "1", [], -1, True])
def test_a_summary_may_have_any_number(tmp_path: Path, value: object) -> None:
    folder = write_run(tmp_path / "run", of_every_verdict()[:1])
    file = folder / "summary.json"
    whole = json.loads(file.read_text())
    test = {**whole["tests"][0], "seconds": value}
    shutil.rmtree(folder / "tests")
    for wrong in ({**whole, "seconds": value}, {**whole, "tests": [test]}):
        file.write_text(json.dumps(wrong))
        write_all(folder)


def write_all(folder: Path) -> None:
    for name in Format:
        assert cli.main(["report", str(folder), "--format", name]) == 0
