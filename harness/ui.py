"""What a person sees of long work: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import TextIO

from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

from harness.errors import EXIT_INTERRUPTED, HarnessError
from harness.images.advance import Advance
from harness.report.escape import one_line
from harness.scene import Gauge, activity, spent
from harness.signals import came

#: For progress and complaints; results go to standard output.
terminal = Console(stderr=True, highlight=False, soft_wrap=True)

#: How often a live view is painted, in a second: often enough for a clock, a percent of a core.
PAINTS = 2
#: Seconds between two plain lines on how far the same thing is.
_SELDOM = 10.0


class How(Enum):
    """How work is shown."""

    LIVE = "a view that is painted again and again"
    LINES = "plain lines"
    GITHUB = "plain lines in groups that fold, and annotations"


def how(stream: TextIO, env: Mapping[str, str] = os.environ) -> How:
    """Return how to show work on a stream."""
    if env.get("GITHUB_ACTIONS") == "true":
        return How.GITHUB
    dumb = env.get("TERM", "dumb") in {"", "dumb", "unknown"}
    return How.LIVE if stream.isatty() and not dumb else How.LINES


class Screen(Console):
    """A terminal by its descriptor, whatever the standard streams are at the moment.

    Its cursor is never hidden: there is nothing to put right after a SIGKILL or a Ctrl-Z.
    """

    def __init__(self, file: TextIO) -> None:
        super().__init__(file=file, highlight=False, markup=False, emoji=False, soft_wrap=True)

    @property
    def size(self) -> ConsoleDimensions:
        """The terminal's size now."""
        columns = lines = 0
        with contextlib.suppress(OSError, ValueError):
            columns, lines = os.get_terminal_size(self.file.fileno())
        return ConsoleDimensions(columns or 80, lines or 24)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        raise NotImplementedError("a terminal has the size that it has")

    def show_cursor(self, show: bool = True) -> bool:
        """Leave the cursor as it is."""
        return False

    @property
    def ascii_only(self) -> bool:
        """Whether it cannot show the line-drawing characters."""
        return not self.encoding.lower().startswith("utf")


def painted(screen: Screen, draw: Callable[[], RenderableType]) -> Live:
    """Return a view that is drawn anew PAINTS times a second and gone when it is stopped."""
    return Live(
        console=screen,
        get_renderable=draw,
        refresh_per_second=PAINTS,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        vertical_overflow="crop",
    )


def plain(line: str, env: Mapping[str, str] = os.environ) -> str:
    """Return a line without what GitHub's runner would take for a command.

    It looks for ``::`` at a line's start and for ``##[`` anywhere (actions/runner,
    ActionCommand.cs).
    """
    if env.get("GITHUB_ACTIONS") != "true":
        return line
    line = line.replace("##[", "# #[")
    return f".{line}" if line.lstrip().startswith("::") else line


class Progress:
    """Says what is being done."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._begun = self._since = time.monotonic()
        self._what, self._told = "", 0.0
        self._gauge = Gauge()
        self._grouped = False
        self._how = how(self._stream)
        self._live: Live | None = None
        self._spinner = Spinner("dots")
        if self._how is How.LIVE:
            self._screen = Screen(self._stream)
            if self._screen.ascii_only:
                self._spinner = Spinner("line")
            self._live = painted(self._screen, self._draw)

    def say(self, line: str) -> None:
        """Show a step: it replaces the one before on a terminal, and is a line elsewhere."""
        now = time.monotonic()
        what = one_line(line.what if isinstance(line, Advance) else line, 1000)
        fresh = what != self._what
        if fresh:
            self._what, self._since, self._gauge = what, now, Gauge()
        if isinstance(line, Advance):
            self._gauge.note(what, line.done, line.total, line.unit, now)
            if not fresh and now - self._told < _SELDOM:
                return
        if self._live is None:
            self._told = now
            self._print(line, now)

    def _print(self, line: str, now: float) -> None:
        if self._how is How.GITHUB and not self._grouped:
            self._grouped = True
            print("::group::kernel, images, template", file=self._stream)
        text = one_line(line, 1000)
        if isinstance(line, Advance):
            text = f"{self._what}: {self._gauge}"
        print(plain(f"[{now - self._begun:6.1f} s] {text}"), file=self._stream, flush=True)

    def _draw(self) -> RenderableType:
        if not self._what:
            return Group()
        width = self._screen.width
        seconds = time.monotonic() - self._since
        clock = f"  {spent(seconds)}" if seconds >= 2 else ""
        room = max(10, width - 3 - len(clock))
        line = activity(self._what, self._gauge, room, ascii_only=self._screen.ascii_only)
        grid = Table.grid(padding=(0, 1))
        grid.add_row(self._spinner, line.append(clock, "dim"))
        return grid

    def start(self) -> None:
        """Show the live line."""
        if self._live is not None:
            self._live.start()

    def stop(self) -> None:
        """Remove the live line."""
        if self._live is not None:
            self._live.stop()
        if self._grouped:
            self._grouped = False
            print("::endgroup::", file=self._stream, flush=True)


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
    """Show an error as one line and return the exit code that it asks for.

    One of the cleaning after an interrupt has none of its own.
    """
    terminal.print(f"[bold red]nvh:[/] {escape(one_line(str(error), 2000))}")
    return EXIT_INTERRUPTED if came() else error.exit_code
