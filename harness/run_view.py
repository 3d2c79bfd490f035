"""A run of testcases as it goes on: a view on a terminal, plain lines elsewhere, groups on GitHub.

It is a plugin of pytest on the controller.  What pytest and whatever runs below it print goes to a
file meanwhile, so that nothing of it disturbs the view.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from rich.console import Group
from rich.live import Live
from rich.text import Text

from harness import ui
from harness.doing import Doing, told
from harness.report.closing import WORDS
from harness.report.escape import one_line
from harness.report.record import TestRecord
from harness.report.table import counted
from harness.scene import Scene, spent
from harness.ui import How

#: Seconds between plain lines on how far a run is.
_SELDOM = 30.0
#: How often a plain view looks for what workers build, in seconds.
_LOOK = 1.0
#: What GitHub shows of one step's annotations; it drops the rest.
_ANNOTATIONS = 10


class RunView:
    """What shows a run; ``shown`` makes one, and the reporter tells it each verdict."""

    def __init__(self, out: TextIO, results: Path, *, workers: int) -> None:
        self.out = out
        self.results = results
        self.scene = Scene(workers=workers)

    def pytest_sessionstart(self) -> None:
        """Begin."""
        self.start()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note how many tests there are."""
        self.scene.total = len(session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Note how many tests there are, as a worker counts them."""
        self.scene.total = len(ids)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Note a worker that is gone: its file says what it did last."""
        if error:
            self.scene.gone.add(str(node.gateway.id))

    @classmethod
    def of(cls, config: pytest.Config) -> RunView | None:
        """Return the view of a run, None where pytest itself shows it."""
        plugins = config.pluginmanager.list_name_plugin()  # as a set they would need a hash
        return next((one for _, one in plugins if isinstance(one, RunView)), None)

    def add(self, record: TestRecord) -> None:
        """Show a verdict."""
        line = self.scene.add(record)
        if line is not None:
            self.tell(record, line)

    def tell(self, record: TestRecord, line: Text) -> None:
        """Show what did not pass, at once."""
        raise NotImplementedError

    def start(self) -> None:
        """Begin to show."""

    def stop(self) -> None:
        """Show nothing any more; may be called again."""


class _Painted(RunView):
    """A view that is painted anew at the bottom of a terminal."""

    def __init__(self, out: TextIO, results: Path, *, workers: int) -> None:
        super().__init__(out, results, workers=workers)
        self._screen = ui.Screen(out)
        self.scene.ascii_only = self._screen.ascii_only
        self._live: Live | None = None

    def start(self) -> None:
        self._live = ui.painted(self._screen, self._draw)
        self._live.start()

    def _draw(self) -> Group:
        width, height = self._screen.size
        # A column stays free: there a terminal would wrap, and a later width still has room.
        return Group(*self.scene.lines(told(self.results), width - 1, height, time.time()))

    def tell(self, record: TestRecord, line: Text) -> None:
        line.truncate(self._screen.width - 1, overflow="ellipsis")
        self._screen.print(line)

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class _Lines(RunView):
    """A line for what did not pass, for what is built, and now and then on how far the run is."""

    def __init__(self, out: TextIO, results: Path, *, workers: int) -> None:
        super().__init__(out, results, workers=workers)
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._watcher: threading.Thread | None = None
        self._built: dict[str, str] = {}  # by worker

    def start(self) -> None:
        self._watcher = threading.Thread(target=self._watch, name="view", daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        said = time.monotonic()
        while not self._over.wait(_LOOK):
            doing = list(told(self.results))
            for one in self.scene.running(doing):
                self._build(one)
            if time.monotonic() - said >= _SELDOM:
                said = time.monotonic()
                self.say(self.scene.told(doing, time.time()))

    def _build(self, one: Doing) -> None:
        """Tell once what is fetched or built for a test."""
        if one.building and self._built.get(one.worker) != one.what:
            self._built[one.worker] = one.what
            self.say(f"{one.worker}: {one_line(one.what)}")

    def say(self, line: str) -> None:
        """Print a line."""
        with self._lock, contextlib.suppress(ValueError):  # the stream is closed
            print(ui.plain(f"[{time.time() - self.scene.begun:6.1f} s] {line}"), file=self.out)
            self.out.flush()

    def tell(self, record: TestRecord, line: Text) -> None:
        self.say(line.plain)

    def stop(self) -> None:
        self._over.set()
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join()
            self._watcher = None


class _Folded(_Lines):
    """Plain lines in groups that GitHub folds; what did not pass stands outside, annotated."""

    def __init__(self, out: TextIO, results: Path, *, workers: int) -> None:
        super().__init__(out, results, workers=workers)
        self._open = False
        self._annotated = 0

    def add(self, record: TestRecord) -> None:
        super().add(record)
        self.say(f"{record.word:<5} {one_line(record.name, 120)} {spent(record.seconds)}")

    def say(self, line: str) -> None:
        if not self._open:
            self._open = True
            done = len(self.scene.records)
            self._command(f"::group::{counted(self.scene.total)}, {done} done")
        super().say(line)

    def tell(self, record: TestRecord, line: Text) -> None:
        self._close()
        if record.known or self._annotated >= _ANNOTATIONS:
            self._command(ui.plain(line.plain))
            return
        self._annotated += 1
        title = _escaped(f"{record.word} {one_line(record.name, 120)}")
        title = title.replace(":", "%3A").replace(",", "%2C")
        self._command(f"::error title={title}::{_escaped(record.seen)}")

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._command("::endgroup::")

    def _command(self, line: str) -> None:
        with self._lock:
            print(line, file=self.out, flush=True)

    def stop(self) -> None:
        super().stop()
        self._close()


def _escaped(text: str) -> str:
    """Return the data of a workflow command (actions/toolkit, command.ts)."""
    text = ui.plain(text)
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


_VIEWS = {How.LIVE: _Painted, How.LINES: _Lines, How.GITHUB: _Folded}


@contextlib.contextmanager
def shown(results: Path, *, workers: int) -> Iterator[RunView]:
    """Show a run while the block lasts; what else is printed goes to WORDS in its directory.

    The view's stream is standard output as it was before.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    words = os.open(results / WORDS, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    with open(kept[0], "w", encoding=encoding, errors="replace", closefd=False) as out:
        view = _VIEWS[ui.how(out)](out, results, workers=workers)
        try:
            os.dup2(words, 1)
            os.dup2(words, 2)
            yield view
        finally:
            view.stop()
            sys.stdout.flush()
            sys.stderr.flush()
            for number, fd in enumerate(kept, 1):
                os.dup2(fd, number)
            os.close(words)
    for fd in kept:
        os.close(fd)
