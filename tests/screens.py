"""A program on a terminal of a size, and what a person would see there."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pexpect
import pyte

#: A run that does not end is a failure of its test; a loaded machine takes a minute to begin.
_PATIENCE = 240.0


@dataclass
class Shown:
    """A program that runs on a terminal; ``raw`` is all that it wrote."""

    child: pexpect.spawn[str]
    screen: pyte.HistoryScreen
    raw: str = ""
    _stream: pyte.Stream = field(init=False)

    def __post_init__(self) -> None:
        self._stream = pyte.Stream(self.screen)

    @property
    def lines(self) -> list[str]:
        """What stands on the screen."""
        return [line.rstrip() for line in self.screen.display if line.strip()]

    @property
    def past(self) -> list[str]:
        """What has scrolled off it, and what stands there."""
        columns = range(self.screen.columns)
        gone = ["".join(line[x].data for x in columns).rstrip() for line in self.screen.history.top]
        return [line for line in gone if line] + self.lines

    def see(self) -> bool:
        """Take what was written; False when the program has ended."""
        try:
            text = self.child.read_nonblocking(1 << 16, timeout=0.2)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += text
        self._stream.feed(text)
        return True

    def until(self, condition: Callable[[], object]) -> None:
        """Watch until something shows."""
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            assert self.see(), f"it ended: {self.past}"
            assert time.monotonic() < deadline, f"it does not show: {self.lines}"

    def shows(self, pattern: str) -> None:
        """Watch until a line of the screen matches."""
        self.until(lambda: any(re.search(pattern, line) for line in self.lines))

    def end(self) -> int:
        """Watch until the program ends; return its status, -1 of a signal."""
        deadline = time.monotonic() + _PATIENCE
        while self.see():
            assert time.monotonic() < deadline, f"it does not end: {self.lines}"
        self.child.close()
        status = self.child.exitstatus
        return -1 if status is None else int(status)

    def resize(self, columns: int, lines: int) -> None:
        """Change the terminal's size, as a person does with a window."""
        self.screen.resize(lines, columns)
        self.child.setwinsize(lines, columns)


@contextlib.contextmanager
def on_terminal(
    argv: Sequence[str],
    *,
    columns: int = 100,
    lines: int = 30,
    env: Mapping[str, str | None] | None = None,
) -> Iterator[Shown]:
    """Run a program on a terminal; it ends with the block."""
    unset = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "GITHUB_ACTIONS", "CI")
    full = {key: value for key, value in os.environ.items() if key not in unset}
    for key, value in {
        "TERM": "xterm-256color",
        "PYTHONIOENCODING": "utf-8",
        **(env or {}),
    }.items():
        full.pop(key, None)
        if value is not None:
            full[key] = value
    child = pexpect.spawn(
        argv[0], list(argv[1:]), dimensions=(lines, columns), env=full, encoding="utf-8"
    )
    try:
        yield Shown(child, pyte.HistoryScreen(columns, lines, history=5000))
    finally:
        child.close(force=True)
