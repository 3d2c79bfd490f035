"""What a report shows of a log: the lines around what was found in it, with that marked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from harness.report.escape import printable, tail

#: Lines shown before the first that is marked.
_BEFORE = 12
#: How much of a log is looked through at all.
_LOOKED_AT = 1 << 21
_LINE = 400

_COMMAND = re.compile(r"^\$ (.*)$")
_FACTS = re.compile(r"^# facts (\{.*\})\s*$")


@dataclass(frozen=True)
class Piece:
    """Lines of a log that are marked, or that are not."""

    marked: bool
    text: str


@dataclass(frozen=True)
class WorkloadRun:
    """A workload as the output of its test shows it."""

    command: str
    facts: Mapping[str, Any]


def pieces(text: str, findings: Sequence[Mapping[str, Any]], limit: int) -> list[Piece]:
    """Return at most some ``limit`` characters of a log, printable, with its findings marked.

    Without a finding in it the end is shown.
    """
    lines = text[:_LOOKED_AT].splitlines()
    marks: set[int] = set()
    for finding in findings:
        marks.update(_lines_of(finding, lines))
    if not marks:
        shown = tail(text, limit).rstrip()
        return [Piece(False, shown)] if shown else []
    begin = max(0, min(marks) - _BEFORE)
    end, room = begin, limit
    while end < len(lines) and room > 0:
        room -= min(len(lines[end]), _LINE) + 1
        end += 1
    found = [Piece(False, f"[... {begin} lines]\n")] if begin else []
    for marked, numbers in groupby(range(begin, end), marks.__contains__):
        part = "".join(f"{printable(lines[number], _LINE)}\n" for number in numbers)
        found.append(Piece(marked, part))
    if end < len(lines):
        found.append(Piece(False, f"[... {len(lines) - end} lines]\n"))
    return found


def _lines_of(finding: Mapping[str, Any], lines: Sequence[str]) -> Iterable[int]:
    """Return the numbers of a finding's lines.

    Its own count is that of the log that was judged, from which lines of programs were left out;
    so its first line is looked for, nearest to where it should be.
    """
    trace = [str(line) for line in finding.get("trace") or () if str(line).strip()]
    about = finding.get("line")
    near = about - 1 if isinstance(about, int) else 0
    wanted = trace[0] if trace else str(finding.get("title") or "")
    if not wanted:
        return ()
    places = [number for number, line in enumerate(lines) if line.rstrip().endswith(wanted)]
    if not places and not trace:
        places = [number for number, line in enumerate(lines) if wanted in line]
    if not places:
        return ()
    first = min(places, key=lambda number: abs(number - near))
    return range(first, min(len(lines), first + max(1, len(trace))))


def workload_runs(output: str) -> Iterator[WorkloadRun]:
    """Yield the workloads of a test with the facts that they printed."""
    command = ""
    for line in output.splitlines():
        if match := _COMMAND.match(line):
            command = match[1]
        elif command and (match := _FACTS.match(line)):
            try:
                facts = json.loads(match[1])
            except ValueError:
                continue
            if isinstance(facts, dict):
                yield WorkloadRun(command, facts)


def commands(output: str, limit: int = 40) -> list[str]:
    """Return the workloads' command lines of a test."""
    found = [match[1] for line in output.splitlines() if (match := _COMMAND.match(line))]
    return found[:limit]
