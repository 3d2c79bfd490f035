"""A kernel's first line in the middle of a stream: a reset, or a program printing the log."""

from __future__ import annotations

import re

from harness.verdict.finding import Finding
from harness.verdict.kinds import Kind
from harness.verdict.logline import Line
from harness.verdict.splat import Splat

_LINES = 120
#: Time stamp and the message behind it, as they stand.
_STAMPED = re.compile(rb"\[ *(\d{1,9}\.\d{1,6})\][^\r\n]{0,200}")
_SAMPLE = 24


class Boot:
    """A second boot in a stream, or a program that prints the log of the first."""

    def __init__(self, number: int, line: Line, until: float, first_boot: bytes) -> None:
        self.number = number
        self.line = line
        self.seen = 0
        self.words: list[Splat] = []  # of a panic, right before it, which nothing has proven
        self._until = until  # the last time stamp before, in seconds
        self._found: list[tuple[float, bytes]] = []
        self._first_boot = first_boot

    def add(self, line: Line) -> None:
        """Take the next line."""
        self.seen += 1
        if line.time:
            text = f"[{line.time:12.6f}] {line.text}"
            self._found.append((line.time, text.encode()[:200]))

    def take(self, lines: bytes, count: int) -> None:
        """Take many lines at once."""
        self.seen += count
        self._found += [(float(match[1]), match[0]) for match in _STAMPED.finditer(lines)]

    @property
    def room(self) -> int:
        """How many more lines it wants."""
        return max(1, _LINES - self.seen)

    @property
    def complete(self) -> bool:
        """Whether enough was seen to decide."""
        return self.seen >= _LINES

    def is_a_copy(self) -> bool:
        """Tell whether the lines are those of the first boot, or time goes on where it was."""
        found = [(time, text) for time, text in self._found if time > 0]
        sample = found[:: 1 + len(found) // _SAMPLE]
        copied = sum(text in self._first_boot for _, text in sample)
        if len(sample) >= 3 and copied * 2 > len(sample):
            return True
        # A kernel that boots needs hundreds of lines to get to where the last one was.
        return self._until > 1.0 and any(time >= self._until for time, _ in found)

    def finding(self) -> Finding:
        """Return the reset that it is."""
        return Finding(
            kind=Kind.RESET,
            title="unexpected reset: the kernel boots again",
            severity=Kind.RESET.severity,
            first_line=self.number,
            last_line=self.number,
            taint="",
            trace=(self.line.text,),
            corrupted=False,
        )
