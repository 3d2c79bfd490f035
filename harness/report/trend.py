"""trend.html: verdicts and durations over nights, and which rows changed from one to the next."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

from harness.errors import HarnessError, UsageError
from harness.report import html, matrix, summary
from harness.report.escape import one_line
from harness.report.page import WORDS
from harness.report.record import PAGE
from harness.report.results import write_atomic
from harness.report.summary import Entry, Summary

FILE = "trend.html"
#: The drawing, in its own units.
WIDTH, _HEIGHT = 900, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 52, 10, 34
_WIDEST = 46
#: Changes that are listed of one night.
_MOST = 60


@dataclass(frozen=True)
class Night:
    """One run of a series."""

    folder: Path
    run: Summary

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many tests ended with which word."""
        found = Counter(entry.word for entry in self.run.tests)
        return {word: found[word] for word in WORDS if found[word]}

    @property
    def kernel(self) -> str:
        """The kernel's release."""
        return one_line(self.run.properties.get("kernel", "unknown kernel"), 80)

    @property
    def day(self) -> str:
        """When it was started, short."""
        return one_line(self.run.started.replace("T", " ")[:16], 20)


@dataclass(frozen=True)
class Change:
    """Tests of a row that ended otherwise than in the night before."""

    row: str
    title: str
    before: str
    after: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """A night as it is drawn."""

    x: float
    width: float
    parts: tuple[tuple[str, float, float], ...]  # word, y, height
    at: tuple[float, float] | None  # of the duration's dot
    words: str
    href: str
    label: str


@dataclass(frozen=True)
class Series:
    """The nights of one kernel on one machine."""

    name: str
    nights: tuple[Night, ...]
    columns: tuple[Column, ...]
    line: str  # the durations, as points
    left: tuple[tuple[float, str], ...]  # y, how many tests
    right: tuple[tuple[float, str], ...]  # y, how long
    changes: tuple[tuple[Night, tuple[Change, ...], int], ...]  # and how many tests in all


def where(folders: Sequence[Path]) -> Path:
    """Return where the page goes: into the one folder that was named, else here."""
    return (folders[0] if len(folders) == 1 else Path()) / FILE


def write(target: Path, folders: Sequence[Path]) -> Path:
    """Write the page; UsageError where there is no result at all."""
    series = load(folders, target.parent)
    if not series:
        raise UsageError(
            f"no results in {', '.join(map(str, folders))}", hint="such as nvh trend results"
        )
    words = [word for word in WORDS if any(word in night.counts for _, night in _all(series))]
    total = sum(len(one.nights) for one in series)
    return write_atomic(target, html.page("trend.html.j2", series=series, words=words, total=total))


def _all(series: Sequence[Series]) -> Iterator[tuple[Series, Night]]:
    return ((one, night) for one in series for night in one.nights)


def load(folders: Sequence[Path], home: Path) -> list[Series]:
    """Return the series of all results in some folders, oldest night first."""
    found: dict[str, dict[Path, Night]] = {}
    for folder in folders:
        for name, night in _nights(folder):
            found.setdefault(name, {})[night.folder.resolve()] = night
    series = []
    for name in sorted(found):
        nights = sorted(found[name].values(), key=lambda night: night.run.started)
        series.append(_series(name, nights, home))
    return series


def _nights(folder: Path) -> Iterator[tuple[str, Night]]:
    """Yield the results of a folder, or of those in it, with the name of their series."""
    if (folder / matrix.FILE).is_file():
        with contextlib.suppress(HarnessError):
            for one in matrix.load(folder).combinations:
                run = matrix.summary_of(folder, one)
                if run is not None:
                    yield str(one), Night(folder / one.results, run)
    elif (folder / "summary.json").is_file():
        with contextlib.suppress(HarnessError):
            run = summary.load(folder / "summary.json")
            yield f"runs on {run.properties.get('machine', 'default')}", Night(folder, run)
    elif folder.is_dir():
        for child in sorted(folder.iterdir()):
            held = (child / matrix.FILE).is_file() or (child / "summary.json").is_file()
            if held and not child.is_symlink():
                yield from _nights(child)
    else:
        raise UsageError(f"{folder} is no directory", hint="such as results")


def _series(name: str, nights: Sequence[Night], home: Path) -> Series:
    most = max([1, *(sum(night.counts.values()) for night in nights)])
    longest = max([1.0, *(night.run.seconds or 0.0 for night in nights)])
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(nights))
    room = _HEIGHT - _TOP - _BOTTOM
    every = max(1, len(nights) * 64 // (WIDTH - _LEFT - _RIGHT))
    columns = []
    for index, night in enumerate(nights):
        width = min(_WIDEST, step * 0.8)
        x = _LEFT + step * index + (step - width) / 2
        y, parts = float(_HEIGHT - _BOTTOM), []
        for word in reversed(WORDS):  # what passed is the ground that the rest stands on
            height = night.counts.get(word, 0) / most * room
            if height:
                y -= height
                parts.append((word, round(y, 1), round(height, 1)))
        took = night.run.seconds
        at = None
        if took is not None:
            at = (round(x + width / 2, 1), round(_HEIGHT - _BOTTOM - took / longest * room, 1))
        counts = ", ".join(f"{count} {word}" for word, count in night.counts.items())
        words = f"{night.day}, {night.kernel}: {counts or 'no test ran'}"
        if took is not None:
            words += f" in {took:.0f} s"
        label = night.day[5:10] if index % every == 0 else ""
        columns.append(
            Column(round(x, 1), round(width, 1), tuple(parts), at, words, _href(night, home), label)
        )
    return Series(
        name=one_line(name, 120),
        nights=tuple(nights),
        columns=tuple(columns),
        line=" ".join(f"{one.at[0]},{one.at[1]}" for one in columns if one.at),
        left=((float(_TOP), str(most)), (float(_HEIGHT - _BOTTOM), "0")),
        right=((float(_TOP), f"{longest:.0f} s"), (float(_HEIGHT - _BOTTOM), "0 s")),
        changes=tuple(_changes(nights)),
    )


def _href(night: Night, home: Path) -> str:
    """Return the way to a night's own page from where this one lies, "" where there is none."""
    if not (night.folder / PAGE).is_file():
        return ""
    path = (night.folder / PAGE).resolve()
    with contextlib.suppress(ValueError):
        return quote(str(path.relative_to(home.resolve())))
    return path.as_uri()


def _changes(nights: Sequence[Night]) -> Iterator[tuple[Night, tuple[Change, ...], int]]:
    """Yield each night, the newest first, with what changed since the one before."""
    for before, after in reversed(list(pairwise(nights))):
        old = {entry.test: entry for entry in before.run.tests}
        found: dict[tuple[str, str, str], list[Entry]] = {}
        for entry in after.run.tests:
            was = old[entry.test].word if entry.test in old else ""
            if was and was != entry.word:
                found.setdefault((entry.row or "other", was, entry.word), []).append(entry)
        if found:
            ordered = sorted(found, key=lambda key: (WORDS.index(key[2]), key))
            changes = tuple(
                Change(
                    one_line(key[0], 80),
                    one_line(found[key][0].title, 120),
                    key[1],
                    key[2],
                    tuple(one_line(entry.name, 120) for entry in found[key][:8]),
                )
                for key in ordered[:_MOST]
            )
            yield after, changes, sum(map(len, found.values()))
