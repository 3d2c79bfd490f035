"""junit.xml in the layout of pytest's xunit1, with properties on the suite and on each test."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from junitparser import (
    Error,
    Failure,
    JUnitXml,
    JUnitXmlError,
    Properties,
    Property,
    Skipped,
    TestCase,
    TestSuite,
)

from harness.report.escape import one_line, xml_safe
from harness.report.record import EXCERPT_LIMIT, TestRecord
from harness.report.results import write_atomic
from harness.verdict.status import Status

_SUITE = "nvdimm-harness"


def build(
    records: Iterable[TestRecord], properties: Mapping[str, Any], *, started: str = ""
) -> bytes:
    """Return junit.xml; ``properties`` describe the run, ``started`` is in ISO 8601."""
    suite = TestSuite(_SUITE)
    if started:
        suite.timestamp = started
    for name, value in properties.items():
        suite.add_property(xml_safe(name, 80), xml_safe(_text(value), 1024))
    for record in records:
        suite.add_testcase(_testcase(record))
    document = JUnitXml()
    document.add_testsuite(suite)
    return _render(document)


def write(
    path: Path,
    records: Iterable[TestRecord],
    properties: Mapping[str, Any],
    *,
    started: str = "",
) -> Path:
    """Write junit.xml, whole or not at all; called after each test."""
    return write_atomic(path, build(records, properties, started=started))


@dataclass(frozen=True)
class Part:
    """One run of several that share a junit.xml."""

    name: str
    label: str  # what its classes' names begin with
    file: Path | None  # its own junit.xml
    properties: Mapping[str, str]
    problem: str  # why it has no tests, or not all of them; "" of a whole one


def merge(parts: Iterable[Part]) -> bytes:
    """Return the junit.xml of several runs: a suite each, with the names of its classes told apart.

    A run without tests is a test that could not be run: a kernel that did not boot is no pass.
    """
    document = JUnitXml()
    for part in parts:
        suites, problem = _suites(part)
        for suite in suites:
            suite.name = xml_safe(f"{suite.name or _SUITE}: {part.name}", 200)
            for name, value in part.properties.items():
                suite.add_property(xml_safe(name, 80), xml_safe(value, 1024))
            for case in suite:
                case.classname = f"{xml_safe(part.label, 200)}.{case.classname}"
        if problem:
            missed = TestCase("the run itself", classname=xml_safe(part.label, 200), time=0.0)
            missed.result = [Error(xml_safe(one_line(problem, 500)), Status.MISS.value)]
            suites[0].add_testcase(missed)
        for suite in suites:
            document.add_testsuite(suite)
    return _render(document)


def write_merged(path: Path, parts: Iterable[Part]) -> Path:
    """Write the junit.xml of several runs, whole or not at all."""
    return write_atomic(path, merge(parts))


def _suites(part: Part) -> tuple[list[TestSuite], str]:
    """Return a run's suites, at least one, and what is wrong with it."""
    problem = part.problem
    if part.file is not None:
        try:
            found = JUnitXml.fromfile(str(part.file))
            suites = [found] if isinstance(found, TestSuite) else list(found)
            if suites:
                return suites, problem
        except (OSError, ParseError, JUnitXmlError) as error:
            problem = problem or f"{part.file.name} cannot be read: {error}"
    return [TestSuite(_SUITE)], problem or "it left no junit.xml"


def _testcase(record: TestRecord) -> TestCase:
    path = record.nodeid.partition("[")[0].partition("::")[0]
    case = TestCase(
        xml_safe(record.name, 200),
        classname=xml_safe(path.removesuffix(".py").replace("/", "."), 200),
        time=round(record.seconds, 3),
    )
    properties = Properties()  # type: ignore[no-untyped-call]
    for name, value in _properties(record).items():
        properties.add_property(Property(xml_safe(name, 80), xml_safe(_text(value), 1024)))
    case.append(properties)  # type: ignore[no-untyped-call]
    result = _result(record)
    if result is not None:
        case.result = [result]
    excerpt = record.excerpt()
    if excerpt:
        case.system_out = xml_safe(excerpt, EXCERPT_LIMIT)
    return case


def _properties(record: TestRecord) -> dict[str, Any]:
    found: dict[str, Any] = {"status": record.status.value, "folder": record.folder}
    if record.known:
        found["known"] = record.known
    if record.row:
        found["row"] = record.row
    if record.title:
        found["title"] = record.title
    sources = {str(item["source"]): None for item in record.expectations if item.get("source")}
    if sources:
        found["source"] = "; ".join(sources)
    found.update({f"fact.{key}": value for key, value in record.facts.items()})
    return found


def _result(record: TestRecord) -> Failure | Error | Skipped | None:
    message = xml_safe(one_line(record.message or record.status.meaning, 500))
    if record.known:
        return Skipped(f"known issue {xml_safe(record.known, 80)}: {message}", "known-issue")
    if record.status is Status.FAIL:
        found = Failure(message, record.status.value)
        details = [record.message, *(_finding(item) for item in record.findings)]
        found.text = xml_safe("\n\n".join(details), EXCERPT_LIMIT)
        return found
    if record.status in (Status.ERROR, Status.MISS):
        error = Error(message, record.status.value)
        error.text = xml_safe(f"{record.message}\n{record.hint}", EXCERPT_LIMIT)
        return error
    if record.status is Status.SKIP:
        hint = f" (to enable: {record.hint})" if record.hint else ""
        return Skipped(xml_safe(one_line(record.message + hint, 500)), "pytest.skip")
    return None


def _finding(finding: Mapping[str, Any]) -> str:
    trace = "\n".join(str(line) for line in finding.get("trace", ()))
    return f"{finding.get('kind')}: {finding.get('title')}\n{trace}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _render(document: JUnitXml) -> bytes:
    document.update_statistics()  # type: ignore[no-untyped-call]
    buffer = io.BytesIO()
    document.write(buffer, pretty=False)
    return buffer.getvalue()
