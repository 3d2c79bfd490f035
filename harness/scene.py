"""What a run looks like at a moment, as lines of a width: no terminal, no time of its own."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.text import Text

from harness.doing import Doing
from harness.images.advance import measured
from harness.report.escape import one_line
from harness.report.record import TestRecord
from harness.report.table import STYLES, cell, counted, cut, cut_name
from harness.verdict.status import Status

#: Lines of what runs at once, whatever the terminal's height.
_MOST = 8
#: From this width on there is room for what a test is doing.
_WIDE = 79  # a terminal of 80 columns, less the free one
#: Over how many seconds a rate is taken.
_LATELY = 10.0


def spent(seconds: float) -> str:
    """Return a time as a person reads it: 12 s, 2:31, 1:02:03."""
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Gauge:
    """How much of one thing is there, how fast it comes, and when it will be whole."""

    def __init__(self) -> None:
        self._what = ""
        self._seen: deque[tuple[float, int]] = deque()
        self._total, self._unit = 0, ""

    def note(self, what: str, done: int, total: int, unit: str, now: float) -> None:
        """Take a figure; of another thing it is the first."""
        if what != self._what or (self._seen and done < self._seen[-1][1]):
            self._seen.clear()
        self._what, self._total, self._unit = what, total, unit
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > _LATELY:
            self._seen.popleft()

    @property
    def share(self) -> float | None:
        """How much of it is there, from 0 to 1; None when nobody knows."""
        if not self._seen or not self._total:
            return None
        return min(1.0, self._seen[-1][1] / self._total)

    @property
    def rate(self) -> float:
        """How much comes in a second."""
        if len(self._seen) < 2:
            return 0.0
        (begun, first), (ended, last) = self._seen[0], self._seen[-1]
        return (last - first) / (ended - begun) if ended > begun else 0.0

    def __str__(self) -> str:
        """Return "34.1 of 98.2 MB, 4.1 MB/s, 16 s left"."""
        if not self._seen or not self._unit:
            return ""
        done, rate = self._seen[-1][1], self.rate
        parts = [measured(done, self._total, self._unit)]
        if rate > 0:
            parts += [f"{rate / 1e6:.1f} MB/s" if self._unit == "B" else f"{rate:.1f}/s"]
            if self._total > done:
                parts += [f"{spent((self._total - done) / rate)} left"]
        return ", ".join(parts)


def bar(share: float, width: int, *, ascii_only: bool = False) -> Text:
    """Return a bar of a width, the share of it filled."""
    full, empty = ("#", "-") if ascii_only else ("━", "─")
    filled = round(max(0.0, min(1.0, share)) * width)
    return Text.assemble((full * filled, "green"), (empty * (width - filled), "dim"))


def activity(what: str, gauge: Gauge, width: int, *, ascii_only: bool = False) -> Text:
    """Return the line of what is built or fetched, with a bar where its end is known."""
    figures = str(gauge)
    room = width - cell_len(figures) - 2 * bool(figures)
    line = Text(cut(what, max(room, width // 3)))
    if figures:
        line.append("  ")
        if gauge.share is not None and (free := room - cell_len(what) - 2) >= 8:
            line.append(bar(gauge.share, min(free, 30), ascii_only=ascii_only)).append("  ")
        line.append(figures, "cyan")
    line.truncate(width)
    return line


@dataclass
class Scene:
    """What is known of a run while it goes on."""

    begun: float = field(default_factory=time.time)
    total: int = 0  # tests
    workers: int = 1
    records: dict[str, TestRecord] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)  # workers that died
    ascii_only: bool = False
    _gauges: dict[str, Gauge] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)  # known issues

    def add(self, record: TestRecord) -> Text | None:
        """Take a verdict; return the line that tells it if it is one to tell at once.

        A known issue is told when it first shows.
        """
        before = self.records.get(record.nodeid)
        self.records[record.nodeid] = record
        if before is not None and before.word == record.word:
            return None
        if record.known:
            if record.known in self._told:
                return None
            self._told.add(record.known)
        elif record.status not in (Status.FAIL, Status.ERROR, Status.MISS):
            return None
        seen = f"{record.known}: {record.seen}" if record.known else record.seen
        return Text.assemble(
            (f"{record.word:<5} ", STYLES[record.word]),
            (one_line(record.name, 120), "bold"),
            f" {spent(record.seconds)}: {seen}",
        )

    def running(self, doing: Iterable[Doing]) -> list[Doing]:
        """Return the tests that run, of what the run's processes said they do."""
        # Copied at once, as the views ask from threads of their own while records are added.
        ended = {nodeid[-300:] for nodeid in list(self.records)}
        return [
            one
            for one in doing
            if one.test and one.test not in ended and one.worker not in self.gone
        ]

    def lines(self, doing: Iterable[Doing], width: int, height: int, now: float) -> list[Text]:
        """Return the view: a line for each test that runs, then how far the run is."""
        running = sorted(self.running(doing), key=lambda one: one.begun)
        room = max(1, min(_MOST, height - 4))
        shown = running if len(running) <= room else running[: room - 1]
        lines = [self._test(one, width, now) for one in shown]
        if len(shown) < len(running):
            lines.append(Text(f"and {len(running) - len(shown)} more", "dim"))
        return [*lines, self._bar(width), self._counts(now, width)]

    def _test(self, one: Doing, width: int, now: float) -> Text:
        gauge = self._gauges.setdefault(one.worker, Gauge())
        if one.unit:
            gauge.note(one.what, one.done, one.total, one.unit, now)
        time_spent = f"{spent(now - one.begun):>7}"
        name = one_line(_name(one.test), 200)
        room = width - len(time_spent) - 1
        if width < _WIDE:
            if one.building:  # that is what one waits for
                return activity(one_line(one.what), gauge, width, ascii_only=self.ascii_only)
            return Text.assemble(cell(cut_name(name, room), room), " ", (time_spent, "cyan"))
        left = max(30, width * 45 // 100)
        what = one_line(one.what)
        if one.unit:
            doing = activity(what, gauge, room - left - 2, ascii_only=self.ascii_only)
        else:
            doing = Text(cut(what, room - left - 2), "dim")
        return Text.assemble(
            cell(cut_name(name, left), left), " ", (time_spent, "cyan"), "  ", doing
        )

    def _bar(self, width: int) -> Text:
        if not self.total:
            return Text("starting" if self.workers == 1 else f"starting {self.workers} workers")
        figures = f" {len(self.records)}/{self.total}"
        share = len(self.records) / self.total
        filled = bar(share, max(1, width - len(figures)), ascii_only=self.ascii_only)
        return filled.append(figures)

    def _counts(self, now: float, width: int) -> Text:
        words = Counter(record.word for record in list(self.records.values()))
        line = Text(spent(now - self.begun))
        left = self.left(now)
        for word, style in STYLES.items():
            if words[word]:
                line.append("  ").append(f"{words[word]} {word}", style)
        if left is not None and width >= _WIDE:
            line.append(f"  about {spent(left)} left", "dim")
        if self.workers > 1 and width >= _WIDE:
            line.append(f"  {self.workers} at once", "dim")
        line.truncate(width, overflow="ellipsis")
        return line

    def left(self, now: float) -> float | None:
        """Return how many seconds the rest will take if it is as the tests until now; a guess."""
        done = len(self.records)
        if done < 5 or done * 20 < self.total or self.total <= done:
            return None
        return (now - self.begun) / done * (self.total - done)

    def told(self, doing: Sequence[Doing], now: float) -> str:
        """Return how far the run is, in a plain line."""
        words = Counter(record.word for record in list(self.records.values()))
        counts = ", ".join(f"{words[word]} {word}" for word in STYLES if words[word])
        done = f"{len(self.records)} of {counted(self.total)}"
        running = self.running(doing)
        line = f"{done} in {spent(now - self.begun)}" + (f": {counts}" if counts else "")
        if running:
            longest = min(running, key=lambda one: one.begun)
            name = one_line(_name(longest.test), 100)
            line += f"; {len(running)} running, {name} for {spent(now - longest.begun)}"
        return line


def _name(nodeid: str) -> str:
    """Return a test's function with its parameters, from pytest's id."""
    path, bracket, parameters = nodeid.partition("[")
    return path.rpartition("::")[2].removeprefix("test_") + bracket + parameters
