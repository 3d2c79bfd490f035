"""junit.xml and summary.json."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from harness.report import junit, summary
from harness.report.record import EXCERPT_LIMIT
from harness.verdict.status import Status
from tests.made_up_results import judged, of_every_verdict, write_run

pytestmark = pytest.mark.usefixtures("nvh_on_path")

PROPERTIES = {"kernel": "6.12.1", "qemu": "7.2", "accel": "tcg", "machine": "default"}


def parse(data: bytes) -> ET.Element:
    suite = ET.fromstring(data).find("testsuite")
    assert suite is not None
    return suite


def test_junit_says_each_status_its_way() -> None:
    records = [judged(status, f"test_v{n}_x") for n, status in enumerate(Status, 1)]
    suite = parse(junit.build(records, PROPERTIES, started="2024-01-01T00:00:00"))
    assert suite.attrib["tests"] == "6"
    assert suite.attrib["failures"] == "1"
    assert suite.attrib["errors"] == "2"
    assert suite.attrib["skipped"] == "1"
    found = {item.attrib["name"]: item.attrib["value"] for item in suite.findall("properties/*")}
    assert found == PROPERTIES
    children = {}
    for case in suite.findall("testcase"):
        status = next(p.attrib["value"] for p in case.iter("property") if p.get("name") == "status")
        children[status] = [(c.tag, c.get("type")) for c in case if c.tag != "properties"]
    assert children == {
        "PASS": [],
        "DONE": [],
        "FAIL": [("failure", "FAIL")],
        "SKIP": [("skipped", "pytest.skip")],
        "ERROR": [("error", "ERROR")],
        "MISS": [("error", "MISS")],
    }


def test_junit_survives_a_hostile_guest() -> None:
    evil = '\x1b[2J\x00]]><&"\ud800\ufffe' + "A" * (1 << 20)
    hostile = judged(
        Status.FAIL,
        f"test_v3_x[{evil}]",
        message=evil,
        facts={evil: evil},
        findings=({"kind": "panic", "title": evil, "trace": [evil] * 3},),
        excerpts={"console": evil, "dmesg": evil},
    )
    data = junit.build([hostile], {evil: evil})
    assert len(data) < 64 << 10
    case = parse(data).find("testcase")
    assert case is not None
    text = case.findtext("system-out")
    assert text
    assert len(text) <= EXCERPT_LIMIT
    assert "\x1b" not in text


def test_summary_is_complete_at_any_moment(tmp_path: Path) -> None:
    records = [judged(Status.PASS), judged(Status.FAIL)]
    file = summary.write(tmp_path / "summary.json", records, PROPERTIES, options=["--accel", "tcg"])
    assert file.read_text().count("\n") == 1  # a run writes it after each test
    found = json.loads(file.read_text())
    assert found["finished"] is False
    assert found["exit_code"] is None
    assert found["counts"]["FAIL"] == 1
    assert sum(found["counts"].values()) == 2
    assert found["properties"] == PROPERTIES
    assert found["tests"][1]["again"] == "nvh test -k 'test_v3_x[ext4]' --accel tcg"
    summary.write(file, records, PROPERTIES, seconds=2.0, exit_code=1, finished=True)
    assert file.read_text().count("\n") > 20  # and people read it when it is over
    found = json.loads(file.read_text())
    assert found["finished"] is True
    assert found["exit_code"] == 1


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    """Return summary.json's own schema, as it is installed with the package."""
    text = resources.files("harness.report").joinpath("summary.schema.json").read_text()
    values = json.loads(text)
    Draft202012Validator.check_schema(values)
    assert values["$id"] == summary.SCHEMA
    return Draft202012Validator(values)


def test_a_summary_is_what_its_schema_says(schema: Draft202012Validator, tmp_path: Path) -> None:
    records = of_every_verdict()
    records.append(replace(records[0], nodeid="test_x.py::test_x", row=None, fixed=("an-issue",)))
    folder = write_run(tmp_path / "ended", records)
    schema.validate(json.loads((folder / "summary.json").read_text()))
    folder = write_run(tmp_path / "killed", records, finished=False)
    found = json.loads((folder / "summary.json").read_text())
    schema.validate(found)
    schema.validate(summary.build([], {}, exit_code=130, seconds=0.1))
    broken = [
        {**found, "format": 2},
        {**found, "counts": {"PASS": 1}},
        {**found, "tests": [{**found["tests"][0], "status": "KNOWN"}]},
        {**found, "tests": [{**found["tests"][0], "folder": "../elsewhere"}]},
        {key: value for key, value in found.items() if key != "exit_code"},
    ]
    for values in broken:
        assert not schema.is_valid(values)


def test_every_key_of_a_summary_is_in_its_schema(schema: Draft202012Validator) -> None:
    found = summary.build(of_every_verdict(), {})
    values = schema.schema
    assert isinstance(values, dict)
    assert set(values["properties"]) == set(found)
    assert set(values["$defs"]["test"]["properties"]) == set(found["tests"][0])
