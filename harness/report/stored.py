"""Results as they lie in a folder, read for a page: of a run, or of every run of a matrix."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.errors import HarnessError, UsageError
from harness.report import matrix
from harness.report.escape import one_line
from harness.report.page import RunInfo
from harness.report.record import TestRecord, finite

SUMMARY = "summary.json"


@dataclass(frozen=True)
class StoredRun:
    """A run with all that is left of its tests."""

    info: RunInfo
    records: tuple[TestRecord, ...]
    again: Mapping[str, str]  # the command for each test, as the run wrote it
    classes: str = ""  # of a matrix: what its classes' names in junit.xml begin with


def load(folder: Path) -> list[StoredRun]:
    """Return the runs of a results folder; UsageError where there is none."""
    if (folder / matrix.FILE).is_file():
        return _of_matrix(folder)
    if (folder / SUMMARY).is_file() or (folder / "tests").is_dir():
        return [load_run(folder)]
    raise UsageError(
        f"{folder} holds no results",
        hint="a directory with a summary.json or a matrix.json, such as results/latest",
    )


def load_run(
    folder: Path,
    *,
    label: str = "",
    kernel: str = "",
    href: str = "",
    problem: str = "",
    read_records: bool = True,
) -> StoredRun:
    """Return a run; what is damaged or missing is left out, or taken from the summary."""
    summary = _summary(folder / SUMMARY)
    properties = {str(key): str(value) for key, value in _mapping(summary, "properties").items()}
    records: dict[str, TestRecord] = {}
    for file in sorted(folder.glob("tests/*/result.json")) if read_records else ():
        try:
            record = TestRecord.load(file)
        except HarnessError:
            continue
        records[record.nodeid] = record
    again: dict[str, str] = {}
    told = summary.get("tests")
    for entry in told if isinstance(told, list) else ():
        try:
            record = _of_entry(entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        again[record.nodeid] = one_line(str(entry.get("again", "")), 1000)
        records.setdefault(record.nodeid, record)
    if not summary.get("finished"):
        cut = "The run was cut short." if summary.get("exit_code") else "The run did not end."
        problem = problem or cut
    seconds = None
    with contextlib.suppress(ValueError, TypeError):
        seconds = finite(summary.get("seconds"))
    info = RunInfo(
        label=label,
        kernel=one_line(properties.get("kernel", "") or kernel or "unknown kernel", 120),
        properties=properties,
        started=str(summary.get("started") or ""),
        seconds=seconds,
        finished=bool(summary.get("finished")),
        folder=folder,
        href=href,
        problem=one_line(problem, 500),
    )
    return StoredRun(info, tuple(records.values()), again)


def _of_matrix(folder: Path) -> list[StoredRun]:
    found: list[StoredRun] = []
    machines = {one.machine for one in matrix.load(folder).combinations}
    for one in matrix.load(folder).combinations:
        kernel, _, machine = one.folder.partition(",")
        label = kernel.removeprefix("debian-")
        if len(machines) > 1:
            label = f"{label}, {machine}"
        if any(run.info.label == label for run in found):
            label = one.folder
        state = one.why or ("" if one.state is matrix.State.DONE else f"It is {one.state.value}.")
        path = folder / one.results
        below = ".." not in path.parts and not Path(one.results).is_absolute()
        if one.results and below and path.is_dir():
            href = f"{quote(one.results.strip('/'))}/"
            run = load_run(path, label=label, kernel=one.kernel, href=href, problem=state)
            run = replace(run, classes=one.label)
        else:
            why = state or "It left no results."
            info = RunInfo(label, one_line(one.kernel, 120), problem=why)
            run = StoredRun(info, (), {}, one.label)
        found.append(run)
    return found


def _summary(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _of_entry(entry: Mapping[str, Any]) -> TestRecord:
    """Return what a summary tells of a test whose own record is gone."""
    values = {"format": 1, "nodeid": entry["test"], "row": entry.get("id"), "excerpts": {}}
    kept = {"status", "seconds", "title", "message", "hint", "known", "fixed"}
    kept |= {"expectations", "findings"}
    return TestRecord.from_json({**values, **{key: entry[key] for key in kept & entry.keys()}})
