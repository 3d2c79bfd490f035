"""What each process of a run is at, for whoever shows the run: a small file for each.

The files lie in the results directory, so that a worker needs no connection for it: one is written
in place, and read a few times a second.  What is missed in between is not missed by anybody.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.images.advance import Advance
from harness.report.escape import one_line

FOLDER = "doing"
#: Bytes of a file, and characters of each word in it.
_SIZE = 4096
_LONG = 300


@dataclass(frozen=True)
class Doing:
    """What a process is at; the times are seconds since the epoch."""

    worker: str
    test: str = ""  # pytest's id, "" between tests
    begun: float = 0.0  # the test
    what: str = ""  # a command in its guest, or what is built for it
    since: float = 0.0
    done: int = 0
    total: int = 0
    unit: str = ""  # "" where there is nothing to count
    building: bool = False  # the harness makes something; otherwise the test is at work


class Told:
    """What one process is at, told to a file, which is made when there is something to tell."""

    def __init__(self, results: Path, worker: str) -> None:
        self._file = results / FOLDER / worker
        self._test, self._begun = "", 0.0
        self._what, self._since = "", 0.0
        self._fd: int | None = None

    def test(self, nodeid: str) -> None:
        """Tell that a test begins."""
        self._test, self._begun = nodeid, time.time()
        self.say("waits for its guest")

    def build(self, what: str) -> None:
        """Tell what is made or fetched before the test can go on."""
        self.say(what, building=True)

    def say(self, what: str, *, building: bool = False) -> None:
        """Tell what the test does now; "" is nothing that has a name."""
        name = what.what if isinstance(what, Advance) else what
        if name != self._what:
            self._what, self._since = name, time.time()
        values = {
            "test": self._test[-_LONG:],
            "begun": self._begun,
            "what": one_line(name, _LONG),
            "since": self._since,
            "building": building,
        }
        if isinstance(what, Advance):
            values |= {"done": what.done, "total": what.total, "unit": what.unit}
        data = json.dumps(values).encode()
        if len(data) <= _SIZE:
            with contextlib.suppress(OSError):  # a full disk is told by what cannot do without it
                if self._fd is None:
                    self._fd = self._open()
                os.pwrite(self._fd, data.ljust(_SIZE), 0)

    def _open(self) -> int:
        self._file.parent.mkdir(exist_ok=True)
        return os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)


def told(results: Path) -> Iterator[Doing]:
    """Walk over what the processes of a run are at, in the order of their names."""
    with contextlib.suppress(OSError):
        for file in sorted((results / FOLDER).iterdir(), key=lambda one: _place(one.name)):
            with contextlib.suppress(OSError, ValueError, TypeError):  # half written
                yield Doing(worker=file.name, **json.loads(file.read_bytes()))


def forget(results: Path) -> None:
    """Remove the files of a run that is over."""
    shutil.rmtree(results / FOLDER, ignore_errors=True)


def _place(worker: str) -> tuple[int, str]:
    return (len(worker), worker)  # gw10 behind gw9
