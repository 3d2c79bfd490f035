"""The end of a run: what each group of rows did, what was found, what to type next."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from harness.report import table
from harness.report.escape import one_line
from harness.report.record import PAGE, TestRecord, boot_findings, program
from harness.report.table import STYLES, cell, counted, cut, cut_name
from harness.verdict.status import Status

#: pytest's own words, in the run's directory, where a view was shown in their place.
WORDS = "pytest.log"
#: Failures that are told in full; the page has all.
_IN_FULL = 10
#: Tests that are named as the slowest, and from how many on any is.
_SLOWEST, _ENOUGH = 5, 8
#: Cells of a line where nobody is there to see a width.
_WIDTH = 120


@dataclass(frozen=True)
class Run:
    """What the end of a run is told from."""

    records: Sequence[TestRecord]
    results: Path  # the run's directory
    seconds: float
    options: Sequence[str] = ()  # those that the run was started with
    titles: Mapping[str, str] = field(default_factory=dict, hash=False)  # of known issues
    groups: Mapping[str, str] = field(default_factory=dict, hash=False)  # of rows, by letter

    @property
    def failed(self) -> list[TestRecord]:
        """What failed or could not be judged, and is no known issue."""
        wrong = (Status.FAIL, Status.ERROR, Status.MISS)
        return [
            one
            for one in sorted(self.records, key=table.place)
            if one.status in wrong and not one.known
        ]


def show(
    run: Run,
    out: TextIO,
    *,
    console: Console | None = None,
    clean: Callable[[str], str] = str,
) -> None:
    """Print the end of a run: with a console in its colours and width, else plain lines.

    ``clean`` makes a plain line harmless for whoever reads it.
    """
    for line in lines(run, console.width if console else _WIDTH):
        if console:
            console.print(line)
        else:
            print(clean(line.plain), file=out)
    out.flush()


def lines(run: Run, width: int) -> list[Text]:
    """Return the lines; commands and paths are whole whatever the width, the rest fits it."""
    parts = [
        list(_tests(run, width)),
        list(_groups(run, width)),
        *(list(part) for part in _failures(run, width)),
        list(_others(run, width)),
        list(_slowest(run, width)),
        [_total(run), *_next(run)],
    ]
    shown: list[Text] = []
    for part in parts:
        if part:
            shown += [Text(), *part] if shown else part
    return [Text(line.plain.rstrip()) if not line.spans else line for line in shown]


def _tests(run: Run, width: int) -> Iterator[Text]:
    """Walk over a line for each test, where they are few."""
    if len(run.records) > table.FEW:
        return
    shown = [table.Line.of(record) for record in sorted(run.records, key=table.place)]
    name = min(max((cell_len(one.what) for one in shown), default=0), max(16, width // 2))
    row = max((len(one.row) for one in shown), default=0)
    for one in shown:
        line = Text(f"{one.row:<{row}} {cell(cut_name(one.what, name), name)} ")
        line.append(f"{one.word:<5}", STYLES[one.word]).append(f" {one.seconds:6.1f} s  ")
        yield line.append(cut(one.seen, max(0, width - cell_len(line.plain))))


def _groups(run: Run, width: int) -> Iterator[Text]:
    """Walk over the table of groups and verdicts."""
    counts: dict[str, Counter[str]] = {}
    seconds: dict[str, float] = {}
    for record in run.records:
        group = _group(record, run.groups)
        counts.setdefault(group, Counter())[record.word] += 1
        seconds[group] = seconds.get(group, 0.0) + record.seconds
    if len(counts) < 2:
        return
    order = [letter for letter in run.groups if letter in counts]
    order += sorted(counts.keys() - set(order))
    words = [word for word in STYLES if any(count[word] for count in counts.values())]
    titles = {group: run.groups.get(group, "") for group in order}
    letters = max(len(group) for group in order)
    numbers = sum(len(word) + 2 for word in words) + len("  seconds")
    room = max(0, min(width - letters - numbers - 1, max(map(cell_len, titles.values()))))
    head = Text(" " * (letters + 1 + room))
    for word in words:
        head.append("  ").append(word, STYLES[word])
    yield head.append("  seconds")
    for group in order:
        line = Text(f"{group:<{letters}} {cell(titles[group], room)}")
        for word in words:
            number = counts[group][word]
            style = STYLES[word] if number else "dim"
            line.append("  ").append(f"{number or '-':>{len(word)}}", style)
        yield line.append(f"  {seconds[group]:7.1f}")


def _group(record: TestRecord, groups: Mapping[str, str]) -> str:
    row = record.row or "-"
    return row[:1] if row[:1] in groups or row[1:].isdigit() else "mail" if record.row else "-"


def _failures(run: Run, width: int) -> Iterator[Iterator[Text]]:
    """Walk over what failed, a block for each."""
    for record in run.failed[:_IN_FULL]:
        yield _failure(record, run, width)
    rest = len(run.failed) - _IN_FULL
    if rest > 0:
        yield iter([Text(f"and {rest} more: {_short(run.results / PAGE)} has them all")])


def _failure(record: TestRecord, run: Run, width: int) -> Iterator[Text]:
    line = Text.assemble((record.word, STYLES[record.word]))  # a style of that word alone
    line.append(f" {one_line(record.name, 120)}", "bold")
    yield line.append(f": {record.seen}")
    for finding in record.findings:
        kind, title = finding.get("kind"), finding.get("title")
        yield Text(f"  kernel: {cut(one_line(f'{kind}: {title}'), max(20, width - 10))}")
    if record.hint:
        yield Text(f"  hint:   {one_line(record.hint)}")
    yield Text(f"  again:  {record.again(run.options)}")
    yield Text(f"  folder: {_short(run.results / record.folder)}")
    if record.status is Status.ERROR and (run.results / WORDS).is_file():
        yield Text(f"  trace:  {_short(run.results / WORDS)}")
    if (run.results / record.bundle).is_file():
        yield Text(f"  bundle: {_short(run.results / record.bundle)} (nvh repro)")


def _others(run: Run, width: int) -> Iterator[Text]:
    """Walk over known issues, those that are gone, and what the kernel said while it booted."""
    known = Counter(record.known for record in run.records if record.known)
    for issue, count in sorted(known.items()):
        rows = sorted({one.row or one.name for one in run.records if one.known == issue}, key=_id)
        line = Text.assemble(("KNOWN", STYLES["KNOWN"]), (f" {issue}", "bold"))
        yield line.append(f": {counted(count)}, {', '.join(rows)}")
        if title := run.titles.get(issue):
            yield Text(f"      {cut(one_line(title), width - 6)}")
    for issue in sorted({issue for record in run.records for issue in record.fixed}):
        tests = [record.name for record in run.records if issue in record.fixed]
        names = cut(one_line(", ".join(tests), 500), max(40, width - 40))
        yield Text(f"known issue {issue} no longer shows: {names}")
    for title in boot_findings(run.records):
        yield Text(f"kernel, while booting: {title}")


def _id(row: str) -> tuple[str, int, str]:
    return (row[:1], int(row[1:]) if row[1:].isdigit() else 0, row)


def _slowest(run: Run, width: int) -> Iterator[Text]:
    """Walk over the tests that took longest, where there are so many that one asks."""
    if len(run.records) < _ENOUGH:
        return
    yield Text("slowest", "bold")
    for one in sorted(run.records, key=lambda one: -one.seconds)[:_SLOWEST]:
        yield Text(f"{one.seconds:7.1f} s  {cut_name(one_line(one.name, 200), width - 11)}")


def _total(run: Run) -> Text:
    counts = Counter(record.word for record in run.records)
    line = Text()
    for word, style in STYLES.items():
        if counts[word]:
            line.append(", " if line else "").append(f"{counts[word]} {word}", style)
    if not line:
        line.append("no test ran")
    return line.append(f" in {run.seconds:.1f} s; results in {_short(run.results)}")


def _next(run: Run) -> Iterator[Text]:
    """Walk over the commands that come next."""
    commands = {}
    if (run.results / PAGE).is_file():
        commands[_words("report", _short(run.results), "--open")] = "the page of this run"
        yield Text(f"report: {_short(run.results / PAGE)}")
    if run.failed:
        again = _words("test", "--failed", _short(run.results), *run.options)
        commands[again] = f"{counted(len(run.failed))} again"
        commands[f"{again} --with-kernel"] = "with bundles that hold the kernel, for elsewhere"
    bundles = [one for one in run.failed if (run.results / one.bundle).is_file()]
    if bundles:
        path = _short(run.results / bundles[0].bundle)
        commands[_words("repro", path)] = "the first failure, from its bundle"
    for command, what in commands.items():
        yield Text(f"next:   {command}").append(f"  # {what}", "dim")


def _words(*words: str) -> str:
    return shlex.join([program(), *words])


def _short(path: Path) -> str:
    """Return a path relative to the working directory where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
