"""Two results held against each other: what is new, what is gone, what is as it was.

A test that vanished, or that is skipped now, is not a pass: it is told as gone missing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness.errors import EXIT_FAILED, EXIT_OK, HarnessError, UsageError
from harness.report import matrix, summary
from harness.report.escape import one_line
from harness.report.summary import Entry, Summary
from harness.verdict.status import Status

FORMAT = 1
_GOOD = (Status.PASS, Status.DONE)
#: What differs between two runs that fail alike: addresses, process ids, seconds.
_VOLATILE = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,16}\b|\d+(?:\.\d+)?")
#: How many of the commands that show a new failure again are printed.
_SHOWN_AGAIN = 10


class Change(StrEnum):
    """What became of a test, the most urgent first."""

    NEW_FAILURE = "new failure"
    MISSING = "gone missing"
    STILL_FAILING = "still failing"
    NOW_KNOWN = "now known"
    STILL_KNOWN = "still known"
    SKIPPED = "skipped now"  # it failed before without having been judged
    FIXED = "fixed"
    NEW = "new test"
    SAME = "as before"


@dataclass(frozen=True)
class Results:
    """One of the two: a run, or the runs of a matrix."""

    path: Path
    about: str  # kernel, machine, accelerator; the combinations of a matrix
    unfinished: str  # why there may be tests missing; "" of a whole one
    tests: Mapping[tuple[str, str], Entry]  # by (combination, test); "" of a run
    is_matrix: bool = False
    kernels: Mapping[str, str] = field(default_factory=dict)  # a combination's kernel release


@dataclass(frozen=True)
class Difference:
    """One test in both results."""

    change: Change
    where: str  # the combination of a matrix
    old: Entry | None
    new: Entry | None

    @property
    def entry(self) -> Entry:
        """What is known of it, the newest."""
        found = self.new or self.old
        assert found is not None
        return found

    @property
    def why(self) -> str:
        """Say why it is not a pass, in one line."""
        if self.new is None:
            return "it is not there any more"
        text = self.new.message or self.new.seen
        if self.new.findings and not all(title in text for title in self.new.findings):
            text = f"{text}; {'; '.join(self.new.findings)}"
        return one_line(f"{self.new.known}: {text}" if self.new.known else text)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "change": self.change.value,
            "combination": self.where,
            "id": self.entry.row,
            "test": self.entry.test,
            "old": self.old.word if self.old else None,
            "new": self.new.word if self.new else None,
            "known": self.entry.known,
            "why": self.why,
            "again": self.entry.again,
        }


def load(path: Path) -> Results:
    """Return a run's or a matrix's results from its directory or file; UsageError for no result."""
    folder = path.parent if path.name in ("summary.json", matrix.FILE) else path
    try:
        if (folder / matrix.FILE).exists() and path.name != "summary.json":
            return _of_matrix(path, folder)
        return _of_run(path, summary.load(folder / "summary.json"))
    except HarnessError as error:
        raise UsageError(
            f"{path} is no result: {error.message}",
            hint="a directory with a summary.json or a matrix.json, such as results/latest",
        ) from error


def _of_run(path: Path, run: Summary) -> Results:
    return Results(
        path, _about(run), _unfinished(run), {("", test.test): test for test in run.tests}
    )


def _of_matrix(path: Path, folder: Path) -> Results:
    found = matrix.load(folder)
    tests: dict[tuple[str, str], Entry] = {}
    unfinished = []
    kernels = {}
    for one in found.combinations:
        where = str(one)
        run = matrix.summary_of(folder, one)
        # A kernel that cannot be tested is told even where no test of it is known.
        whole = one.state is matrix.State.DONE and run is not None
        tests[where, ""] = Entry(
            test="the run itself",
            status=Status.PASS if whole else Status.MISS,
            message="" if whole else one.why or one.state.value,
        )
        if run is not None and "kernel" in run.properties:
            kernels[where] = run.properties["kernel"]
        if one.state is not matrix.State.DONE:
            unfinished.append(f"{where} is {one.state.value}")
        elif run is not None and not run.finished:
            unfinished.append(f"{where} was cut short")
        tests.update({(where, test.test): test for test in run.tests} if run else {})
    about = f"matrix of {'; '.join(str(one) for one in found.combinations)}"
    return Results(path, about, "; ".join(unfinished), tests, is_matrix=True, kernels=kernels)


def _about(run: Summary) -> str:
    words = [run.properties.get(name, f"unknown {name}") for name in ("kernel", "machine", "accel")]
    return ", ".join(words)


def _unfinished(run: Summary) -> str:
    if run.finished:
        return ""
    return (
        "it was killed, or goes on"
        if run.exit_code is None
        else f"it was cut short ({run.exit_code})"
    )


def differences(old: Results, new: Results) -> list[Difference]:
    """Return what became of each test, the most urgent first; UsageError for unlike results."""
    if old.is_matrix != new.is_matrix:
        raise UsageError(
            "a matrix cannot be compared with a run",
            hint="name the results directory of one of its combinations",
        )
    if not old.tests and not new.tests:
        raise UsageError(f"there is no test in {old.path} and none in {new.path}")
    found = []
    for key in {**old.tests, **new.tests}:
        before, now = old.tests.get(key), new.tests.get(key)
        found.append(Difference(_change(before, now), key[0], before, now))
    order = list(Change)
    return sorted(found, key=lambda one: (order.index(one.change), one.where, _place(one.entry)))


def _place(entry: Entry) -> tuple[str, int, str]:
    return (entry.row[:1], int(entry.row[1:]) if entry.row[1:].isdigit() else 0, entry.test)


def _change(old: Entry | None, new: Entry | None) -> Change:
    if new is None:
        return Change.MISSING
    if new.known:
        return _known_now(old, new)
    if new.status in _GOOD:
        return _good_now(old)
    if new.status is Status.SKIP:
        return _skipped_now(old)
    return Change.STILL_FAILING if old is not None and _alike(old, new) else Change.NEW_FAILURE


def _known_now(old: Entry | None, new: Entry) -> Change:
    if old is None:
        return Change.NEW
    return Change.STILL_KNOWN if old.known == new.known else Change.NOW_KNOWN


def _good_now(old: Entry | None) -> Change:
    if old is None or old.status is Status.SKIP:
        return Change.NEW
    return Change.SAME if old.status in _GOOD and not old.known else Change.FIXED


def _skipped_now(old: Entry | None) -> Change:
    if old is None:
        return Change.NEW
    if old.status is Status.SKIP:
        return Change.SAME
    return Change.MISSING if old.status.tested else Change.SKIPPED


def _alike(old: Entry, new: Entry) -> bool:
    """Whether a test that fails failed before in the same way."""
    if old.known or old.status is not new.status:
        return False
    # Why the harness could not test is not the kernel's doing and need not be worded alike.
    return new.status is not Status.FAIL or _symptom(old) == _symptom(new)


def _symptom(entry: Entry) -> tuple[str, ...]:
    return tuple(_VOLATILE.sub("N", text) for text in (entry.message, *sorted(entry.findings)))


def other_kernels(old: Results, new: Results) -> dict[str, tuple[str, str]]:
    """Return the combinations whose selector stands for another kernel now: from which to which."""
    return {
        where: (old.kernels[where], release)
        for where, release in new.kernels.items()
        if where in old.kernels and old.kernels[where] != release
    }


def exit_code(found: Iterable[Difference]) -> int:
    """Return 1 when something fails newly or is missing."""
    worse = any(one.change in (Change.NEW_FAILURE, Change.MISSING) for one in found)
    return EXIT_FAILED if worse else EXIT_OK


def as_dict(old: Results, new: Results, found: list[Difference]) -> dict[str, Any]:
    """Return the comparison as JSON can hold it; of tests that are as before only the count."""
    counted = Counter(one.change for one in found)
    return {
        "format": FORMAT,
        **{
            name: {
                "path": str(side.path),
                "about": one_line(side.about, 1000),
                "unfinished": side.unfinished,
            }
            for name, side in (("old", old), ("new", new))
        },
        "kernels": {
            where: {"old": before, "new": now}
            for where, (before, now) in other_kernels(old, new).items()
        },
        "exit_code": exit_code(found),
        "counts": {change.value: counted[change] for change in Change},
        "tests": [one.as_dict() for one in found if one.change is not Change.SAME],
    }


def lines(old: Results, new: Results, found: list[Difference]) -> list[str]:
    """Return the comparison for a person: a line for each test that is not as before."""
    shown = []
    for name, side in (("old", old), ("new", new)):
        shown.append(f"{name}: {side.path} ({one_line(side.about, 300)})")
        if side.unfinished:
            shown.append(f"     unfinished: {one_line(side.unfinished, 300)}")
    for where, kernels in other_kernels(old, new).items():
        before, now = (one_line(kernel, 80) for kernel in kernels)
        shown.append(f"another kernel: {one_line(where, 120)}: {before} -> {now}")
    told = [one for one in found if one.change is not Change.SAME]
    names = [_named(one) for one in told]
    width = max((len(name) for name in names), default=0)
    shown += [""] if told else []
    for one, name in zip(told, names, strict=True):
        words = f"{one.old.word if one.old else '-'} -> {one.new.word if one.new else '-'}"
        line = f"{one.change:<13}  {one.entry.row or '-':<4} {name:<{width}}  {words:<14}  "
        shown.append((line + one_line(one.why, 100)).rstrip())
    again = [one.entry.again for one in found if one.change is Change.NEW_FAILURE]
    again = [one_line(command, 1000) for command in again if command]
    shown += ["", *(f"again: {command}" for command in again[:_SHOWN_AGAIN])] if again else []
    if len(again) > _SHOWN_AGAIN:
        shown.append(
            f"again: {len(again) - _SHOWN_AGAIN} more commands are in the new summary.json"
        )
    counted = Counter(one.change for one in found)
    total = ", ".join(f"{counted[change]} {change}" for change in Change if counted[change])
    return [*shown, "", total]


def _named(one: Difference) -> str:
    name = one_line(one.entry.name, 120)
    return f"{one_line(one.where, 120)}: {name}" if one.where else name
