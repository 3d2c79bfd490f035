"""What a matrix of runs shows at its end: each row of the catalogue on each kernel and machine."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

from harness.errors import EXIT_FAILED, EXIT_OK
from harness.process import shell_line
from harness.report.escape import one_line
from harness.report.matrix import Combination, Matrix, State, summary_of
from harness.report.record import program
from harness.report.summary import Entry, Summary
from harness.report.table import STYLES
from harness.verdict.status import Status

#: From the worst on: what a cell says of several tests.
_WORST = ("FAIL", "ERROR", "MISS", "KNOWN", "SKIP", "DONE", "PASS")
_ABSENT = "-"
#: How much of a row's title is shown at least, before a table is divided.
_TITLE = 12
_ID = 60
_GAP = 2


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


def rows_of(runs: Sequence[Summary | None], untested: Collection[int] = ()) -> list[Row]:
    """Return the rows of several runs in the catalogue's order.

    In the columns ``untested`` every row is a miss: a kernel that did not boot passed none of them.
    """
    found: dict[str, list[list[Entry]]] = {}
    titles: dict[str, str] = {}
    for index, run in enumerate(runs):
        for entry in run.tests if run else ():
            name = entry.row or entry.name
            found.setdefault(name, [[] for _ in runs])[index].append(entry)
            titles.setdefault(name, entry.title)
    return [
        Row(
            name,
            titles[name],
            tuple(
                Cell(Status.MISS.value, 1, 1) if column in untested else _cell(tests)
                for column, tests in enumerate(found[name])
            ),
        )
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
    untested = [index for index, one in enumerate(matrix.combinations) if one.untested]
    rows = rows_of(runs, untested)
    heads = _heads(matrix.combinations)
    print(file=out)
    console = Console(file=out, highlight=False, soft_wrap=True)
    for shown in lines_of(rows, heads, width=console.width if out.isatty() else 0):
        console.print(shown)
    print(file=out)
    for one, run in zip(matrix.combinations, runs, strict=True):
        for line in _about(one, run, folder):
            print(line, file=out)
    print(f"\n{_totals(matrix)}; results in {_shown(folder)}", file=out, flush=True)
    if not matrix.finished:
        go_on = shell_line([program(), "matrix", "--resume", _shown(folder)])
        print(f"go on with: {go_on}", file=out, flush=True)


def _totals(matrix: Matrix) -> str:
    """Return how many combinations ended how."""
    words = {EXIT_OK: "passed", EXIT_FAILED: "failed"}
    counted = Counter(
        words.get(one.exit_code or EXIT_OK, "could not be tested")
        if one.state is State.DONE
        else "not done"
        for one in matrix.combinations
    )
    many = len(matrix.combinations)
    return f"{'1 combination' if many == 1 else f'{many} combinations'}: " + ", ".join(
        f"{count} {word}" for word, count in counted.items()
    )


def _heads(combinations: Sequence[Combination]) -> list[str]:
    """Return the columns' names, short, the machine on a line below where there are several."""
    several = len({one.machine for one in combinations}) > 1
    names = [one.folder.partition(",") for one in combinations]
    kernels = {kernel: kernel.removeprefix("debian-") for kernel, _, _ in names}
    if len(set(kernels.values())) < len(kernels):  # debian:6.1 and a tree called 6.1
        kernels = {kernel: kernel for kernel in kernels}
    return [
        f"{kernels[kernel]}\n{machine}" if several else kernels[kernel]
        for kernel, _, machine in names
    ]


def lines_of(rows: Sequence[Row], heads: Sequence[str], *, width: int = 0) -> list[Text]:
    """Return the table's lines, the titles last: they need the most room.

    Where that is too wide for ``width``, tables of some of the columns follow each other; 0 is any.
    """
    if not rows:
        return []
    first = max(len("id"), *(len(one_line(row.id, _ID)) for row in rows)) + _GAP
    widths = [
        max(map(len, [*head.splitlines(), *(_word(row, column) for row in rows)])) + _GAP
        for column, head in enumerate(heads)
    ]
    found = []
    for columns in _fitting(widths, width - first - _TITLE if width else sum(widths)):
        taken = [first, *(widths[column] for column in columns)]
        found += [_line(words, taken) for words in _headings([heads[one] for one in columns])]
        for row in rows:
            # Text, never str: what a run wrote is no markup.
            cells = [Text(one_line(row.id, _ID)), *(_styled(row, column) for column in columns)]
            title = one_line(row.title, max(_TITLE, width - sum(taken)) if width else 70)
            found.append(_line([*cells, Text(title)], taken))
    return found


def _word(row: Row, column: int) -> str:
    return str(row.cells[column] or _ABSENT)


def _styled(row: Row, column: int) -> Text:
    cell = row.cells[column]
    return Text(_word(row, column), style=STYLES[cell.word] if cell else "")


def _headings(heads: Sequence[str]) -> list[list[Text]]:
    lines = [
        ["", *words] for words in itertools.zip_longest(*map(str.splitlines, heads), fillvalue="")
    ]
    lines[-1][0] = "id"
    return [[Text(word, style="bold") for word in line] for line in lines]


def _line(words: Sequence[Text], widths: Sequence[int]) -> Text:
    line = Text()
    for word, width in itertools.zip_longest(words, widths, fillvalue=0):
        if isinstance(word, Text):
            line.append_text(word)
            line.append(" " * (width - len(word)))
    line.rstrip()
    return line


def _fitting(widths: Sequence[int], room: int) -> list[list[int]]:
    """Return the columns in groups that are no wider than ``room``, at least one in each."""
    groups: list[list[int]] = []
    left = 0
    for column, width in enumerate(widths):
        if not groups or width > left:
            groups.append([])
            left = room
        groups[-1].append(column)
        left -= width
    return groups


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
        how = "MISS, not tested" if one.state is State.DONE else f"{one.state.value}, not done"
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
