"""summary.json: the run on one page for programs, rewritten after each test, and read again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.report.record import Made, TestRecord
from harness.report.results import reading, write_json
from harness.verdict import status as verdicts
from harness.verdict.expectation import plain
from harness.verdict.status import Status

FORMAT = 1
#: The name of summary.schema.json, which says what is in it.
SCHEMA = f"urn:nvdimm-harness:summary:{FORMAT}"


def counts(records: Sequence[TestRecord]) -> dict[str, int]:
    """Return how many tests ended with each status, all six of them."""
    found = Counter(record.status for record in records)
    return {status.value: found[status] for status in Status}


def verdict(records: Sequence[TestRecord], *, strict: bool = False) -> int:
    """Return the run's exit code: a known failure is none, a known issue that is gone is one.

    The latter only with ``strict``: then the list of known issues is to be put right.
    """
    statuses = [Status.DONE if record.known else record.status for record in records]
    if strict and any(record.fixed for record in records):
        statuses.append(Status.FAIL)
    return verdicts.exit_code(statuses)


def build(
    records: Sequence[TestRecord],
    properties: Mapping[str, Any],
    *,
    started: str = "",
    seconds: float | None = None,
    exit_code: int | None = None,
    finished: bool = False,
    options: Sequence[str] = (),
    made: Made[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the summary.

    ``seconds`` and ``exit_code`` are None while the run goes on.  A summary with ``"finished":
    false`` is of a run that was killed, or, with an exit code, of one that was cut short.  ``made``
    has what the summary before this one said of its tests.
    """
    made = Made() if made is None else made
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "started": started,
        "finished": finished,
        "seconds": None if seconds is None else round(seconds, 3),
        "exit_code": exit_code,
        "properties": plain(properties),
        "counts": counts(records),
        "tests": [made.of(record, lambda one: _entry(one, options)) for record in records],
    }


def write(
    path: Path,
    records: Sequence[TestRecord],
    properties: Mapping[str, Any],
    *,
    started: str = "",
    seconds: float | None = None,
    exit_code: int | None = None,
    finished: bool = False,
    options: Sequence[str] = (),
    made: Made[dict[str, Any]] | None = None,
) -> Path:
    """Write summary.json, whole or not at all; indented only when the run is over."""
    return write_json(
        path,
        build(
            records,
            properties,
            started=started,
            seconds=seconds,
            exit_code=exit_code,
            finished=finished,
            options=options,
            made=made,
        ),
        indented=exit_code is not None,
    )


def _entry(record: TestRecord, options: Sequence[str]) -> dict[str, Any]:
    return {
        "id": record.row,
        "test": record.nodeid,
        "title": record.title,
        "status": record.status.value,
        "seconds": round(record.seconds, 3),
        "seen": record.seen,
        "known": record.known,
        "fixed": list(record.fixed),
        "message": record.message,
        "hint": record.hint,
        "expectations": plain(record.expectations),
        "findings": [
            {key: finding.get(key) for key in ("kind", "title", "severity")}
            for finding in record.findings
        ],
        "folder": record.folder,
        "again": record.again(options),
    }


@dataclass(frozen=True)
class Entry:
    """What a summary says of one test."""

    test: str  # pytest's id
    status: Status
    row: str = ""
    title: str = ""
    known: str = ""
    seen: str = ""
    message: str = ""
    findings: tuple[str, ...] = ()  # the titles of undeclared splats
    again: str = ""

    @property
    def word(self) -> str:
        """The verdict as a person reads it: a known failure is told apart from a new one."""
        return "KNOWN" if self.known else self.status.value

    @property
    def name(self) -> str:
        """The test's function with its parameters."""
        path, bracket, parameters = self.test.partition("[")
        return path.rpartition("::")[2] + bracket + parameters


@dataclass(frozen=True)
class Summary:
    """A run as its summary tells it; ``seconds`` and ``exit_code`` are None of a killed one."""

    started: str
    finished: bool
    seconds: float | None
    exit_code: int | None
    properties: Mapping[str, str]
    tests: tuple[Entry, ...]


def load(file: Path) -> Summary:
    """Read a summary.json; HostError when it is none."""
    with reading(file, FORMAT, "summary of a run") as values:
        return Summary(
            started=str(values["started"]),
            finished=bool(values["finished"]),
            seconds=None if values["seconds"] is None else float(values["seconds"]),
            exit_code=None if values["exit_code"] is None else int(values["exit_code"]),
            properties={key: str(value) for key, value in values["properties"].items()},
            tests=tuple(_read(entry) for entry in values["tests"]),
        )


def _read(values: Mapping[str, Any]) -> Entry:
    return Entry(
        test=str(values["test"]),
        status=Status(values["status"]),
        row=str(values["id"] or ""),
        title=str(values["title"]),
        known=str(values["known"]),
        seen=str(values["seen"]),
        message=str(values["message"]),
        findings=tuple(str(finding["title"]) for finding in values["findings"]),
        again=str(values["again"]),
    )
