"""junit.xml as Jenkins, GitLab and GitHub read it: schemas, attachments, sizes, hostile words."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xmlschema
from junitparser import JUnitXml, Properties

from harness.report import junit, summary
from harness.report.junit import Family
from harness.report.record import Made, TestRecord
from harness.verdict.status import Status
from tests.made_up_results import HOSTILE, hostile, of_every_verdict, record, write_run

SCHEMA = Path(__file__).parent / "schemas" / "junit-10.xsd"
XS = "{http://www.w3.org/2001/XMLSchema}"
PROPERTIES = {"kernel": "6.12.1", "machine": "default"}
#: What Jenkins' plugin looks for, which is greedy, and what GitLab does.
JENKINS = re.compile(r"\[\[ATTACHMENT\|.+\]\]")
GITLAB = re.compile(r"\[\[ATTACHMENT\|(?P<path>.+?)\]\]")


@pytest.fixture(autouse=True)
def no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no CI system that these tests themselves run in say where files are."""
    for name in ("CI_PROJECT_DIR", "WORKSPACE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def xunit2() -> xmlschema.XMLSchema:
    return xmlschema.XMLSchema(SCHEMA.read_text())


@pytest.fixture(scope="module")
def xunit1() -> xmlschema.XMLSchema:
    """Return the schema with what pytest's xunit1 adds to a test: its properties and its file."""
    tree = ET.fromstring(SCHEMA.read_text())
    case = tree.find(f"{XS}element[@name='testcase']/{XS}complexType")
    assert case is not None
    choice = case.find(f"{XS}sequence/{XS}choice")
    assert choice is not None
    ET.SubElement(choice, f"{XS}element", ref="properties", minOccurs="0")
    ET.SubElement(case, f"{XS}attribute", name="file", type="xs:string")
    ET.register_namespace("xs", XS.strip("{}"))  # the prefix stands in values too
    return xmlschema.XMLSchema(ET.tostring(tree, encoding="unicode"))


def cases(data: bytes) -> Iterator[ET.Element]:
    return ET.fromstring(data).iter("testcase")


def said(case: ET.Element) -> str:
    return case.findtext("system-out") or ""


def every_record() -> list[TestRecord]:
    return [*of_every_verdict(), hostile(), record("test_l1_odd", seconds=float("nan"))]


def test_xunit1_is_what_its_schema_says(xunit1: xmlschema.XMLSchema, tmp_path: Path) -> None:
    records = every_record()
    folder = write_run(tmp_path / "run", records)
    data = junit.build(
        records, {**PROPERTIES, HOSTILE: HOSTILE}, started="2026-01-02T03:04:05+0000", folder=folder
    )
    xunit1.validate(data.decode())
    suite = ET.fromstring(data).find("testsuite")
    assert suite is not None
    assert suite.get("timestamp") == "2026-01-02T03:04:05+00:00"
    first = next(cases(data))
    assert first.get("classname") == "testcases.test_l_layout"
    assert first.get("file") == "testcases/test_l_layout.py"
    assert first.get("name") == "test_l1_operation_waits_for_the_pin[pass-ext4]"
    summed = [record(f"test_l1_{n}", seconds=n / 10) for n in (1, 2)]
    for element in ET.fromstring(junit.build(summed, {})).iter():
        # pytest's copy of the schema has three digits at most behind the point.
        assert re.fullmatch(r"\d+\.\d{1,3}", element.get("time", "0.0"))
    broken = data.replace(b"classname=", b"class=")
    assert not xunit1.is_valid(broken.decode())


def test_xunit2_is_what_jenkins_xunit_plugin_takes(
    xunit2: xmlschema.XMLSchema, tmp_path: Path
) -> None:
    records = every_record()
    folder = write_run(tmp_path / "run", records)
    data = junit.build(records, PROPERTIES, folder=folder, family=Family.XUNIT2)
    xunit2.validate(data.decode())
    assert "status: PASS" in said(next(cases(data)))
    assert "fact.refs_before: 1" in said(next(cases(data)))
    assert not xunit2.is_valid(junit.build(records, PROPERTIES).decode())  # it has properties


def test_a_merged_one_is_what_its_schema_says(xunit1: xmlschema.XMLSchema, tmp_path: Path) -> None:
    whole = junit.write(tmp_path / "whole.xml", every_record(), PROPERTIES)
    cut = tmp_path / "cut.xml"
    cut.write_bytes(whole.read_bytes()[:-40])
    parts = [
        junit.Part("6.1 on default", "6_1.default", whole, {"results": "a"}, ""),
        junit.Part("sid on default", "sid.default", cut, {"results": HOSTILE}, ""),
        junit.Part(HOSTILE, HOSTILE, None, {}, HOSTILE),
    ]
    data = junit.merge(parts)
    xunit1.validate(data.decode())
    problems = [str(error.get("message")) for error in ET.fromstring(data).iter("error")]
    assert any(problem.startswith("cut.xml cannot be read: ") for problem in problems)


def test_junitparser_reads_it_back(tmp_path: Path) -> None:
    records = every_record()
    file = junit.write(tmp_path / "junit.xml", records, PROPERTIES)
    (suite,) = JUnitXml.fromfile(str(file))
    found = {}
    for case in suite:
        properties = case.child(Properties)  # type: ignore[no-untyped-call]
        (status,) = [one.value for one in properties if one.name == "status"]
        found[case.name] = (status, [type(result).__name__ for result in case.result])
    assert len(found) == len(records) == suite.tests
    assert (suite.failures, suite.errors, suite.skipped) == (2, 2, 2)
    ends = {
        "PASS": [],
        "DONE": [],
        "FAIL": ["Failure"],
        "ERROR": ["Error"],
        "MISS": ["Error"],
        "SKIP": ["Skipped"],
    }
    for name, (status, kinds) in found.items():
        assert kinds == (["Skipped"] if "-known]" in name else ends[status])


def test_each_message_is_one_line_and_each_result_has_a_text() -> None:
    records = [*every_record(), record("test_l1_silent", Status.FAIL, message="", findings=())]
    for case in cases(junit.build(records, PROPERTIES)):
        for result in (*case.iter("failure"), *case.iter("error"), *case.iter("skipped")):
            message = str(result.get("message"))
            assert message
            assert "\n" not in message
            assert len(message) < 700
            assert (result.text or "").strip()  # GitLab shows nothing else


def test_files_of_what_did_not_pass_are_attached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = of_every_verdict()
    folder = write_run(tmp_path / "project" / "results" / "run", records)
    bad = next(one for one in records if one.status is Status.FAIL)
    (folder / bad.folder / "dmesg").write_text("a splat\n")
    (folder / bad.folder / "output.txt").write_text("")
    (folder / "bundles").mkdir()
    (folder / bad.bundle).write_bytes(b"x")
    monkeypatch.setenv("CI_PROJECT_DIR", str(tmp_path / "project"))
    found = {}
    for case in cases(junit.build(records, PROPERTIES, folder=folder)):
        assert len(case.findall("system-out")) == 1  # GitLab fails on two
        paths = [line[13:-2] for line in said(case).splitlines() if JENKINS.fullmatch(line)]
        found[str(case.get("name"))] = paths
    # The kernel's log comes first where something was found in it; what is empty is left out.
    assert found[bad.name] == [
        f"results/run/{bad.folder}/dmesg",
        f"results/run/{bad.folder}/console.log",
        f"results/run/{bad.bundle}",
    ]
    for path in found[bad.name]:
        assert (tmp_path / "project" / path).is_file()
    right = [one for one in records if one.status in (Status.PASS, Status.DONE, Status.SKIP)]
    assert all(not found[one.name] for one in right)
    # Elsewhere than below the workspace a path is whole.
    monkeypatch.delenv("CI_PROJECT_DIR")
    monkeypatch.setenv("WORKSPACE", str(tmp_path / "another"))
    text = junit.build([bad], PROPERTIES, folder=folder).decode()
    assert f"[[ATTACHMENT|{folder}/{bad.folder}/dmesg]]" in text


def test_a_guest_attaches_nothing(tmp_path: Path) -> None:
    evil = "[[ATTACHMENT|/etc/passwd]]\n[\x1b[m[ATTACHMENT|/etc/shadow]]\n[[[ATTACHMENT|/x]]"
    bad = record(
        f"test_l1_x[{evil}]",
        Status.FAIL,
        message=evil,
        facts={evil: evil},
        excerpts={"output": evil, "dmesg": evil, evil: evil},
        findings=({"kind": "warning", "title": evil, "trace": [evil]},),
    )
    for family in Family:
        for case in cases(junit.build([bad], PROPERTIES, folder=tmp_path, family=family)):
            assert not GITLAB.search(said(case))
            assert "passwd" in said(case)


def test_a_folder_that_would_end_a_path_is_not_attached(tmp_path: Path) -> None:
    bad = of_every_verdict()[-1]
    folder = write_run(tmp_path / "odd ]] | name", [bad])
    assert "ATTACHMENT" not in junit.build([bad], PROPERTIES, folder=folder).decode()


def test_long_names_stay_apart() -> None:
    records = [record(f"test_l1_x[{'a' * 5000}{end}]") for end in "xy"]
    names = [str(case.get("name")) for case in cases(junit.build(records, PROPERTIES))]
    assert len(set(names)) == 2
    assert all(len(name) <= 200 for name in names)


def test_a_large_run_is_no_larger_than_gitlab_takes() -> None:
    said = {"output": "a line of the guest\n" * 5000, "dmesg": "another\n" * 5000}
    facts = {f"fact{number}": "x" * 100 for number in range(100)}
    bad = record("test_l1_x", Status.FAIL, message="m" * 10_000, excerpts=said, facts=facts)
    records = [bad] * 1000 + [record("test_l1_y", excerpts=said)] * 1000
    assert len(junit.build(records, PROPERTIES)) < 30_000_000


def test_a_run_that_grows_says_of_each_test_what_is_known_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(junit, "_BUDGET", 3 * 4096)  # the more tests, the less each of them may say
    output = "a line\n" * 1000
    records = [replace(one, excerpts={"output": output}) for one in every_record()]
    folder = write_run(tmp_path / "run", records)
    later = replace(records[0], message="its guest died after the test")
    runs = [records[: n + 1] for n in range(len(records))] + [[later, *records[1:]]]
    cases: Made[Any] = Made()
    entries: Made[Any] = Made()
    for so_far in runs:
        grown = junit.build(so_far, PROPERTIES, folder=folder, made=cases)
        assert grown == junit.build(so_far, PROPERTIES, folder=folder)
        told = summary.build(so_far, {}, made=entries)
        assert json.dumps(told) == json.dumps(summary.build(so_far, {}))  # one has NaN


def test_of_each_record_a_thing_is_made_once() -> None:
    made: Made[str] = Made()
    seen: list[str] = []

    def make(one: TestRecord) -> str:
        seen.append(one.message)
        return one.message

    first, later = record("test_l1_x", message="a"), record("test_l1_x", message="b")
    told = [made.of(one, make) for one in (first, first, later, later)]
    assert (told, seen) == (["a", "a", "b", "b"], ["a", "b"])
    assert made.of(later, make, given=2) == made.of(later, make, given=2) == "b"
    assert seen == ["a", "b", "b"]
