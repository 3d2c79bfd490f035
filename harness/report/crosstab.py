"""The tables of a report: what meets what, each cell leading to its tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.report.page import WORDS, RunView, TestView
from harness.report.views import View, Views
from harness.verdict.status import Status

#: Squares of one cell: more tests than that are one link to their row.
_MOST_SQUARES = 16


@dataclass(frozen=True)
class Cell:
    """The tests of one kernel where a row and a column meet."""

    label: str  # the kernel's, "" of the only one
    word: str  # the worst
    told: str  # what was seen
    of: str  # of what
    anchor: str  # of the worst one
    count: str  # "12", "2/12", "" of one
    tests: tuple[TestView, ...]

    @property
    def squares(self) -> tuple[TestView, ...]:
        """The tests that have a link of their own."""
        return self.tests[:_MOST_SQUARES] if len(self.tests) > 1 else ()

    @property
    def more(self) -> int:
        """How many have none."""
        return max(0, len(self.tests) - _MOST_SQUARES)


@dataclass(frozen=True)
class CrossTable:
    """A table: its heads, and for each row its cells; a cell is a list, one for each kernel."""

    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[tuple[Cell, ...], ...]], ...]  # name, note, cells


@dataclass(frozen=True)
class RowOf:
    """A row of the catalogue with its tests of all runs."""

    id: str
    title: str
    tests: tuple[TestView, ...]
    source: tuple[str, ...]
    needs: tuple[str, ...]
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Group:
    """Rows that belong together."""

    letter: str
    title: str
    rows: tuple[RowOf, ...]


def cross_tables(runs: Sequence[RunView], views: Views) -> list[CrossTable]:
    """Return the tables that have a cell."""
    found = [_cross(runs, view) for view in views.tables]
    return [table for table in found if table.rows]


def _cross(runs: Sequence[RunView], view: View) -> CrossTable:
    placed: dict[tuple[str, str], dict[str, list[TestView]]] = {}
    for run in runs:
        for test in run.tests:
            place = view.place(test.record.name)
            if place is not None:
                placed.setdefault(place, {}).setdefault(run.info.label, []).append(test)
    columns = [name for name in view.columns.patterns if any(name == at for _, at in placed)]
    rows = [name for name in view.rows.patterns if any(name == at for at, _ in placed)]
    return CrossTable(
        view.title,
        view.corner,
        tuple(columns),
        tuple(
            (
                row,
                "",
                tuple(
                    _alike_as_one(
                        [
                            cell(label, tests, view.tell)
                            for label, tests in placed.get((row, column), {}).items()
                        ],
                        several=sum(bool(run.tests) for run in runs),
                    )
                    for column in columns
                ),
            )
            for row in rows
        ),
    )


def _alike_as_one(cells: Sequence[Cell], *, several: int) -> tuple[Cell, ...]:
    """Return the cells of several kernels, those of which the same is to be told as one."""
    alike: dict[tuple[str, str, str], list[Cell]] = {}
    for one in cells:
        whole = all(test.word == one.word for test in one.tests)
        alike.setdefault((one.word, one.told, one.of if whole else one.label), []).append(one)
    found = []
    for group in alike.values():
        tests = tuple(test for one in group for test in one.tests)
        label = "all" if len(group) == several else ", ".join(one.label for one in group)
        count = group[0].count if len(group) == 1 else str(len(tests))
        found.append(replace(group[0], label=label, count=count, tests=tests))
    return tuple(found)


def cell(label: str, tests: Sequence[TestView], tell: Sequence[str] = ()) -> Cell:
    """Return the cell of some tests."""
    ordered = sorted(tests, key=lambda test: WORDS.index(test.word))
    worst = ordered[0]
    alike = sum(test.word == worst.word for test in ordered)
    count = "" if len(ordered) == 1 else str(alike)
    if alike != len(ordered):
        count = f"{alike}/{len(ordered)}"
    told = Counter(test.tell(tell) for test in ordered if test.word == worst.word)
    seen, of = told.most_common(1)[0][0]
    return Cell(label, worst.word, seen, of, worst.anchor, count, tuple(ordered))


def kernel_table(runs: Sequence[RunView], groups: Sequence[Group]) -> CrossTable | None:
    """Return the rows on each kernel, None where there is one kernel."""
    if len(runs) < 2:
        return None
    return CrossTable(
        "Rows on each kernel",
        "row",
        tuple(run.info.label for run in runs),
        tuple(
            (row.id, row.title, tuple(_on(run, row) for run in runs))
            for group in groups
            for row in group.rows
        ),
    )


def _on(run: RunView, row: RowOf) -> tuple[Cell, ...]:
    tests = [test for test in row.tests if test.run is run.info]
    if not tests and not run.tests and run.info.problem:
        # A kernel that did not boot passed none of them.
        return (Cell("", Status.MISS.value, "", "", "", "", ()),)
    return (cell("", tests),) if tests else ()


def groups_of(
    runs: Sequence[RunView],
    views: Views,
    catalogue: Mapping[str, tuple[Sequence[str], Sequence[str]]],
) -> list[Group]:
    """Return all tests by group and row; ``catalogue`` has each row's sources and needs."""
    rows: dict[str, list[TestView]] = {}
    for run in runs:
        for test in run.tests:
            rows.setdefault(test.row, []).append(test)
    order = [run.info for run in runs]
    made: dict[str, list[RowOf]] = {}
    for name in sorted(rows, key=_place):
        tests = sorted(rows[name], key=lambda test: (test.name, order.index(test.run)))
        source, needs = catalogue.get(name, ((), ()))
        counted = Counter(test.word for test in tests)
        made.setdefault(name[:1] if name[1:].isdigit() else "", []).append(
            RowOf(
                name,
                next((test.title for test in tests if test.title), ""),
                tuple(tests),
                tuple(source) or _sources(tests),
                tuple(needs),
                {word: counted[word] for word in WORDS if counted[word]},
            )
        )
    letters = [letter for letter in views.order if letter in made]
    letters += sorted(set(made) - set(letters), key=lambda letter: (letter == "", letter))
    return [
        Group(letter, views.groups.get(letter, letter or "reports as mails"), tuple(made[letter]))
        for letter in letters
    ]


def _sources(tests: Sequence[TestView]) -> tuple[str, ...]:
    """Return the sources that a row's tests name, as they joined them."""
    found = dict.fromkeys(source for test in tests for source in test.sources)
    return tuple(found)[:8]


def _place(name: str) -> tuple[str, int, str]:
    return (name[:1], int(name[1:]), name) if name[1:].isdigit() else ("~", 0, name)
