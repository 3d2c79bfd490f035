"""A kernel's first line in the middle of a stream: a reset, or a program printing the log."""

from __future__ import annotations

from harness.verdict.finding import Finding
from harness.verdict.logline import Line, clean, parse
from harness.verdict.patterns import Kind


class Boot:
    """A second boot in a stream, or a program that prints the log of the first."""

    def __init__(self, number: int, line: Line, until: float, first_boot: bytes) -> None:
        self.number = number
        self.line = line
        self.seen = 0
        self._until = until  # the last time stamp before, in seconds
        self._times: list[float] = []
        self._texts: list[str] = []
        self._first_boot = first_boot

    def add(self, line: Line) -> None:
        """Take the next line."""
        self.seen += 1
        if line.time:
            self._times.append(line.time)
            self._texts.append(f"{line.time} {line.text}")

    @property
    def complete(self) -> bool:
        """Whether enough was seen to decide."""
        return self.seen >= 120

    def is_a_copy(self) -> bool:
        """Tell whether the lines are those of the first boot, or time goes on where it was."""
        lines = (parse(clean(raw.strip(b"\r"))) for raw in self._first_boot.split(b"\n"))
        known = {f"{line.time} {line.text}" for line in lines}
        copied = sum(text in known for text in self._texts)
        if len(self._texts) >= 3 and copied * 2 > len(self._texts):
            return True
        # A kernel that boots needs hundreds of lines to get to where the last one was.
        return self._until > 1.0 and any(time >= self._until for time in self._times)

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
