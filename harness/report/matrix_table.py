"""What a matrix of runs shows at its end: each row of the catalogue on each kernel and machine."""

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
from harness.report.matrix import Combination, Matrix, State, summary_of
from harness.report.summary import Entry, Summary
from harness.report.table import STYLES

#: From the worst on: what a cell says of several tests.
_WORST = ("FAIL", "ERROR", "MISS", "KNOWN", "SKIP", "DONE", "PASS")
_ABSENT = "-"


@dataclass(frozen=True)
class Cell:
    """A row of the catalogue on one kernel and machine."""

    word: str  # the worst of its tests' verdicts
    count: int  # how many of them ended so
    of: int

    def __str__(self) -> str:
        """Return the verdict, with counts where the row has several tests."""
        if self.of < 2:
            return self.word
        return f"{self.word} {self.of if self.count == self.of else f'{self.count}/{self.of}'}"


@dataclass(frozen=True)
class Row:
    """A line of the table; a cell is None where the row was not run."""

    id: str
    title: str
    cells: tuple[Cell | None, ...]


def rows_of(runs: Sequence[Summary | None]) -> list[Row]:
    """Return the rows of several runs in the catalogue's order."""
    found: dict[str, list[list[Entry]]] = {}
    titles: dict[str, str] = {}
    for index, run in enumerate(runs):
        for entry in run.tests if run else ():
            name = entry.row or entry.name
            found.setdefault(name, [[] for _ in runs])[index].append(entry)
            titles.setdefault(name, entry.title)
    return [
        Row(name, titles[name], tuple(_cell(tests) for tests in found[name]))
        for name in sorted(found, key=_place)
    ]


def _cell(tests: Sequence[Entry]) -> Cell | None:
    if not tests:
        return None
    counted = Counter(entry.word for entry in tests)
    worst = min(counted, key=_WORST.index)
    return Cell(worst, counted[worst], len(tests))


def _place(name: str) -> tuple[str, int, str]:
    return (name[:1], int(name[1:]), name) if name[1:].isdigit() else ("~", 0, name)


def show(matrix: Matrix, folder: Path, *, file: TextIO | None = None) -> None:
    """Print the table, then a line for each combination and what did not pass in it."""
    out = file or sys.stdout
    runs = [summary_of(folder, one) for one in matrix.combinations]
    rows = rows_of(runs)
    heads = _heads(matrix.combinations)
    print(file=out)
    if out.isatty():
        _show_table(rows, heads, Console(file=out, highlight=False))
    else:
        for line in plain_lines(rows, heads):
            print(line, file=out)
    print(file=out)
    for one, run in zip(matrix.combinations, runs, strict=True):
        for line in _about(one, run, folder):
            print(line, file=out)
    print(f"\nresults in {_shown(folder)}", file=out, flush=True)


def _heads(combinations: Sequence[Combination]) -> list[str]:
    """Return the columns' names: the machine only where there are several."""
    several = len({one.machine for one in combinations}) > 1
    names = [one.folder.partition(",") for one in combinations]
    return [f"{kernel} {machine}" if several else kernel for kernel, _, machine in names]


def plain_lines(rows: Sequence[Row], heads: Sequence[str]) -> list[str]:
    """Return the table's lines in columns, the titles last: they need the most room."""
    if not rows:
        return []
    lines = [["id", *heads, ""]]
    lines += [
        [one_line(row.id, 60), *(str(cell or _ABSENT) for cell in row.cells), row.title]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads) + 1)]
    return [
        "  ".join(
            [*(f"{word:<{width}}" for word, width in zip(line, widths, strict=False)), title]
        ).rstrip()
        for line in lines
        for title in [one_line(line[-1], 70)]
    ]


def _show_table(rows: Sequence[Row], heads: Sequence[str], console: Console) -> None:
    if not rows:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("id", overflow="fold")
    for head in heads:
        table.add_column(Text(head), overflow="fold")
    table.add_column("row", no_wrap=True, overflow="ellipsis")
    for row in rows:
        # Text, never str: what a run wrote is no markup.
        cells = [
            Text(str(cell), style=STYLES[cell.word]) if cell else Text(_ABSENT)
            for cell in row.cells
        ]
        table.add_row(Text(one_line(row.id, 60)), *cells, Text(one_line(row.title, 70)))
    console.print(table)


def _about(one: Combination, run: Summary | None, folder: Path) -> list[str]:
    """Return what is to be said of a combination: kernel, counts, what did not pass."""
    if one.state is State.WAITING:
        return [f"{one}: not run yet"]
    lines = []
    if run is not None:
        counted = Counter(entry.word for entry in run.tests)
        total = ", ".join(f"{counted[word]} {word}" for word in STYLES if counted[word])
        kernel, accel = (run.properties.get(name, "unknown") for name in ("kernel", "accel"))
        seconds = "" if one.seconds is None else f" in {one.seconds:.0f} s"
        lines.append(
            f"{one}: {total or 'no test ran'}{seconds}; kernel {one_line(kernel, 80)}, {accel}; "
            f"{_shown(folder / one.results)}"
        )
    if one.why or one.state is not State.DONE:
        how = "could not be tested" if one.state is State.DONE else f"{one.state.value}, not done"
        lines.append(f"{one}: {how}: {one.why or 'its owner was killed'}")
    for entry in run.tests if run else ():
        if entry.word in ("FAIL", "ERROR", "MISS"):
            name, why = one_line(entry.name, 120), one_line(entry.message or entry.seen)
            lines.append(f"  {entry.word} {name}: {why}")
            lines.append(f"    again: {one_line(entry.again, 1000)}")
    return lines


def _shown(path: Path) -> str:
    """Return a path relative to the working directory where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
