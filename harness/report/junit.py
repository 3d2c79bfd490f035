"""junit.xml in the layout of pytest's xunit1, with properties on the suite and on each test.

xunit2 has neither properties nor a file on a test, so there a test's properties begin its
system-out; it is what the schema of Jenkins' xUnit plugin (junit-10.xsd) takes.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from junitparser import (
    Attr,
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

from harness.report import attachments
from harness.report.escape import one_line, xml_safe
from harness.report.record import EXCERPT_LIMIT, Made, TestRecord, zoned
from harness.report.results import write_atomic
from harness.verdict.status import Status

_SUITE = "nvdimm-harness"
#: Characters of one text of a test: GitLab refuses a file of more than 30 MB, and Jenkins shows the
#: first and last 500 characters of a test that passed.
_BUDGET = 8 << 20
_SHARE = (1024, EXCERPT_LIMIT)
_SHARE_OF_GOOD = 2048
_MOST_FACTS = 60
_NAME = 200

_Result = TypeVar("_Result", Failure, Error, Skipped)


class Family(StrEnum):
    """The layouts, as pytest names them (``junit_family``)."""

    XUNIT1 = "xunit1"
    XUNIT2 = "xunit2"


class _Case(TestCase):
    file = Attr()  # xunit1 only


def build(
    records: Sequence[TestRecord],
    properties: Mapping[str, Any],
    *,
    started: str = "",
    folder: Path | None = None,
    family: Family = Family.XUNIT1,
    made: Made[TestCase] | None = None,
) -> bytes:
    """Return junit.xml; ``properties`` describe the run, ``started`` is in ISO 8601.

    Files in the run's ``folder`` are attached to the tests that they are of.
    """
    document = JUnitXml()
    document.add_testsuite(suite_of(records, properties, started, folder, family, made))
    return _render(document)


def write(
    path: Path,
    records: Sequence[TestRecord],
    properties: Mapping[str, Any],
    *,
    started: str = "",
    made: Made[TestCase] | None = None,
) -> Path:
    """Write junit.xml into the run's folder, whole or not at all; called after each test."""
    whole = build(records, properties, started=started, folder=path.parent, made=made)
    return write_atomic(path, whole)


def suite_of(
    records: Sequence[TestRecord],
    properties: Mapping[str, Any],
    started: str,
    folder: Path | None,
    family: Family,
    made: Made[TestCase] | None = None,
) -> TestSuite:
    """Return the suite of a run; ``made`` has the tests of the suite before this one."""
    suite = TestSuite(_SUITE)
    if started := zoned(started):
        suite.timestamp = started
    for name, value in properties.items():
        suite.add_property(xml_safe(name, 80), xml_safe(_text(value), 1024))
    share = max(_SHARE[0], min(_SHARE[1], _BUDGET // max(1, len(records))))
    share = 1 << (share.bit_length() - 1)  # a run that grows changes it seldom
    made = Made() if made is None else made
    for record in records:
        case = made.of(record, lambda one: _testcase(one, folder, family, share), given=share)
        # Not add_testcase(), which counts all of them anew each time.
        suite.append(case)  # type: ignore[no-untyped-call]
    return suite


@dataclass(frozen=True)
class Part:
    """One run of several that share a junit.xml."""

    name: str
    label: str  # what its classes' names begin with
    suites: Path | TestSuite | None  # its own junit.xml, or what would be in it
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
    if isinstance(part.suites, TestSuite):
        return [part.suites], problem
    if part.suites is not None:
        try:
            found = JUnitXml.fromfile(str(part.suites))
            suites = [found] if isinstance(found, TestSuite) else list(found)
            if suites:
                return suites, problem
        # junitparser reads with lxml where that is installed: the parsers share this error only.
        except (OSError, SyntaxError, JUnitXmlError) as error:
            problem = problem or f"{part.suites.name} cannot be read: {error}"
    return [TestSuite(_SUITE)], problem or "it left no junit.xml"


def _testcase(record: TestRecord, folder: Path | None, family: Family, share: int) -> TestCase:
    path = record.nodeid.partition("[")[0].partition("::")[0]
    case = _Case(
        _name(record.name),
        classname=xml_safe(path.removesuffix(".py").replace("/", "."), _NAME),
        time=_seconds(record.seconds),
    )
    properties = {
        xml_safe(name, 80): xml_safe(_text(value), 1024)
        for name, value in _properties(record).items()
    }
    if family is Family.XUNIT1:
        case.file = xml_safe(path, _NAME)
        element = Properties()  # type: ignore[no-untyped-call]
        for name, value in properties.items():
            element.add_property(Property(name, value))
        case.append(element)  # type: ignore[no-untyped-call]
    result = _result(record, share)
    if result is not None:
        case.result = [result]
    # Attachments come first: Jenkins cuts what is too long in its middle.
    marks = attachments.lines(folder, record) if folder is not None else []
    said = []
    if family is Family.XUNIT2:
        said += [f"{name}: {one_line(value)}" for name, value in properties.items()]
    if excerpt := record.excerpt(min(share, _SHARE_OF_GOOD) if record.status.good else share):
        said.append(xml_safe(excerpt, share))
    if marks or said:
        case.system_out = "\n".join([*marks, attachments.defused("\n".join(said))])
    return case


def _name(name: str) -> str:
    """Return a test's name, which no other test of its class has, however long they are."""
    safe = xml_safe(name, len(name) + 4096)
    if len(safe) <= _NAME:
        return safe
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe[: _NAME - 9]}-{digest}"


def _seconds(value: float) -> float:
    return round(value, 3) if math.isfinite(value) and value > 0 else 0.0


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
    for key, value in list(record.facts.items())[:_MOST_FACTS]:
        found[f"fact.{key}"] = value
    return found


def _result(record: TestRecord, share: int) -> Failure | Error | Skipped | None:
    """Return what a test ended with; each has a text, which alone is what GitLab shows."""
    message = xml_safe(one_line(record.message or record.status.meaning, 500))
    if record.known:
        message = f"known issue {xml_safe(record.known, 80)}: {message}"
        return _told(Skipped(message, "known-issue"), message, share)
    if record.status is Status.FAIL:
        details = [record.message, *(_finding(item) for item in record.findings)]
        text = "\n\n".join(details)
        return _told(Failure(message, record.status.value), text.strip() or message, share)
    if record.status in (Status.ERROR, Status.MISS):
        text = f"{record.message}\n{record.hint}".strip() or message
        return _told(Error(message, record.status.value), text, share)
    if record.status is Status.SKIP:
        hint = f" (to enable: {record.hint})" if record.hint else ""
        message = xml_safe(one_line((record.message or record.status.meaning) + hint, 500))
        return _told(Skipped(message, "pytest.skip"), message, share)
    return None


def _told(result: _Result, text: str, share: int) -> _Result:
    result.text = xml_safe(text, share)
    return result


def _finding(finding: Mapping[str, Any]) -> str:
    trace = "\n".join(str(line) for line in finding.get("trace", ()))
    return f"{finding.get('kind')}: {finding.get('title')}\n{trace}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _render(document: JUnitXml) -> bytes:
    document.update_statistics()  # type: ignore[no-untyped-call]
    # In no schema: only suites count what was skipped.
    document._elem.attrib.pop("skipped", None)
    buffer = io.BytesIO()
    document.write(buffer, pretty=False)
    return buffer.getvalue()
