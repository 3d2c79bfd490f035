"""What a person sees of long work: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape

from harness.errors import HarnessError
from harness.report.escape import one_line

#: For progress and complaints; results go to standard output.
terminal = Console(stderr=True, highlight=False, soft_wrap=True)


class Progress:
    """Says what is being done."""

    def __init__(self) -> None:
        self._status = terminal.status("") if terminal.is_terminal else None
        self._begun = time.monotonic()

    def say(self, line: str) -> None:
        """Show a step: it replaces the one before on a terminal, and is a line elsewhere."""
        line = one_line(line, 1000)
        if self._status is not None:
            self._status.update(escape(line))
        else:
            print(f"[{time.monotonic() - self._begun:6.1f} s] {line}", file=sys.stderr, flush=True)

    def start(self) -> None:
        """Show the live line."""
        if self._status is not None:
            self._status.start()

    def stop(self) -> None:
        """Remove the live line."""
        if self._status is not None:
            self._status.stop()


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Show progress for as long as the block lasts."""
    shown = Progress()
    shown.start()
    try:
        yield shown
    finally:
        shown.stop()


def complain(error: HarnessError) -> int:
    """Show an error as one line and return the exit code that it asks for."""
    terminal.print(f"[bold red]nvh:[/] {escape(one_line(str(error), 2000))}")
    return error.exit_code
