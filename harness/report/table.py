"""What the tables of a run share: the verdicts' colours, the tests' order, a line for a test."""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

from harness.report.escape import one_line
from harness.report.record import TestRecord

#: The words of a verdict as a person reads them, and their colours.
STYLES = {
    "PASS": "green",
    "FAIL": "bold red",
    "KNOWN": "yellow",
    "SKIP": "yellow",
    "ERROR": "bold magenta",
    "MISS": "bold magenta",
    "DONE": "cyan",
}
#: Up to this many tests each has a line of its own at the end of a run.
FEW = 24


@dataclass(frozen=True)
class Line:
    """What a line tells of a test."""

    row: str
    what: str
    word: str
    seconds: float
    seen: str

    @classmethod
    def of(cls, record: TestRecord) -> Line:
        """Return the line of a test."""
        name = one_line(record.name, 120)
        return cls(record.row or "-", name, record.word, record.seconds, record.seen)


def place(record: TestRecord) -> tuple[str, int, str]:
    """Return where a test stands in the catalogue's order."""
    row = record.row or ""
    return (row[:1], int(row[1:]) if row[1:].isdigit() else 0, record.nodeid)


def counted(count: int, noun: str = "test") -> str:
    """Return "1 test", "2 tests"."""
    return f"{count} {noun}" + "s" * (count != 1)


def cut(text: str, width: int) -> str:
    """Return text in at most ``width`` cells of a terminal; what was cut is marked."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(0, width - 1)).rstrip() + "…"[: max(0, width)]


def cut_name(name: str, width: int) -> str:
    """Return a test's name in at most ``width`` cells; its parameters are the last to be cut."""
    function, bracket, parameters = name.partition("[")
    room = width - cell_len(bracket + parameters)
    if cell_len(name) <= width or not bracket or room < 8:
        return cut(name, width)
    return cut(function, room) + bracket + parameters


def cell(text: str, width: int) -> str:
    """Return text in exactly ``width`` cells."""
    return set_cell_size(cut(text, width), max(0, width))
