"""The table at the end of a run: colours and the terminal's width, or plain lines for a file."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.report.escape import one_line
from harness.report.record import PAGE, TestRecord, boot_findings
from harness.verdict.status import Status

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
#: From this many tests on, those of a row that ended alike share a line.
_MANY = 25
_ROW_WIDTH = 4


@dataclass(frozen=True)
class Line:
    """One line of the table: a test, or the tests of a row that ended alike."""

    row: str
    what: str
    word: str
    seconds: float
    seen: str


def show(
    records: Sequence[TestRecord],
    *,
    results: Path,
    seconds: float,
    options: Sequence[str] = (),
    file: TextIO | None = None,
) -> None:
    """Print the table, then for each test that did not pass how to see it again.

    ``results`` is the run's directory, ``options`` those that the run was started with.
    """
    out = file or sys.stdout
    shown = lines_of(records)
    if out.isatty():
        _show_table(shown, Console(file=out, highlight=False))
    else:
        for line in plain_lines(shown):
            print(line, file=out)
    for line in footer(records, results=results, seconds=seconds, options=options):
        print(line, file=out)
    out.flush()


def lines_of(records: Sequence[TestRecord]) -> list[Line]:
    """Return the table's lines in the catalogue's order: a test each, fewer where many."""
    ordered = sorted(records, key=_place)
    if len(ordered) < _MANY:
        return [
            Line(
                record.row or "-",
                one_line(record.name, 120),
                record.word,
                record.seconds,
                record.seen,
            )
            for record in ordered
        ]
    groups: dict[tuple[str, str], list[TestRecord]] = {}
    for record in ordered:
        groups.setdefault((record.row or "-", record.word), []).append(record)
    return [_group(row, word, group) for (row, word), group in groups.items()]


def _group(row: str, word: str, group: Sequence[TestRecord]) -> Line:
    count = f" ({counted(len(group))})" if len(group) > 1 else ""
    # What the most of them saw stands for all; each test's own line is in summary.json.
    seen = Counter(record.seen for record in group).most_common(1)[0][0]
    title = group[0].title or group[0].name
    if len(row) > _ROW_WIDTH:  # a report's name
        row, title = "mail", f"{row}: {title}"
    return Line(
        row, one_line(title, 70) + count, word, sum(record.seconds for record in group), seen
    )


def counted(count: int, noun: str = "test") -> str:
    """Return "1 test", "2 tests"."""
    return f"{count} {noun}" + "s" * (count != 1)


def _place(record: TestRecord) -> tuple[str, int, str]:
    row = record.row or ""
    return (row[:1], int(row[1:]) if row[1:].isdigit() else 0, record.nodeid)


def plain_lines(lines: Sequence[Line]) -> list[str]:
    """Return the table's lines in columns."""
    width = max((len(line.what) for line in lines), default=0)
    rows = max([_ROW_WIDTH, *(len(line.row) for line in lines)])
    return [
        f"{line.row:<{rows}} {line.what:<{width}} {line.word:<5} {line.seconds:6.1f} s  "
        f"{one_line(line.seen, 100)}".rstrip()
        for line in lines
    ]


def footer(
    records: Sequence[TestRecord], *, results: Path, seconds: float, options: Sequence[str] = ()
) -> list[str]:
    """Return the lines below the table: how to see each failure again, the counts, the folder."""
    lines = []
    for record in sorted(records, key=_place):
        if record.known:
            continue
        if record.status in (Status.FAIL, Status.ERROR, Status.MISS):
            lines += [
                "",
                f"{record.word} {one_line(record.name, 120)}: {record.seen}",
                *(f"  {one_line(_finding(item))}" for item in record.findings),
                *([f"  hint:   {one_line(record.hint)}"] if record.hint else []),
                f"  again:  {record.again(options)}",
                f"  folder: {_short(results / record.folder)}",
                *_bundle(results / record.bundle),
            ]
    for issue in sorted({record.known for record in records if record.known}):
        count = sum(record.known == issue for record in records)
        lines.append(f"known issue {issue}: {counted(count)} (testcases/known-issues.toml)")
    for issue in sorted({issue for record in records for issue in record.fixed}):
        tests = [record.name for record in records if issue in record.fixed]
        lines.append(f"known issue {issue} no longer shows: {', '.join(tests)}")
    lines += [f"kernel, while booting: {title}" for title in boot_findings(records)]
    total = ", ".join(f"{count} {word}" for word, count in _totals(records).items())
    lines += ["", f"{total or 'no test ran'} in {seconds:.1f} s; results in {_short(results)}"]
    if (results / PAGE).is_file():
        lines.append(f"report: {_short(results / PAGE)}")
    return lines


def _totals(records: Sequence[TestRecord]) -> dict[str, int]:
    found = Counter(record.word for record in records)
    return {word: found[word] for word in STYLES if found[word]}


def _show_table(lines: Sequence[Line], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("id", no_wrap=True)
    table.add_column("test", overflow="fold", ratio=3)
    table.add_column("status", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("what was seen", overflow="fold", ratio=4)
    for line in lines:
        # Text, never str: a guest's words are no markup.
        table.add_row(
            Text(line.row),
            Text(line.what),
            Text(line.word, style=STYLES[line.word]),
            Text(f"{line.seconds:.1f}"),
            Text(line.seen),
        )
    console.print(table)


def _finding(finding: object) -> str:
    values = finding if isinstance(finding, dict) else {}
    return f"kernel: {values.get('kind')}: {values.get('title')}"


def _bundle(archive: Path) -> list[str]:
    return [f"  bundle: {_short(archive)} (nvh repro)"] if archive.is_file() else []


def _short(path: Path) -> str:
    """Return a path relative to the working directory where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
