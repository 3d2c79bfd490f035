"""How far a download or a build is, told as it goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

#: Seconds between two words on the same thing.
PERIOD = 0.5


class Advance(str):
    """A line of progress that also says how much of a thing is done.

    It is a line for whoever shows lines, so every receiver of progress takes it; who can draw finds
    the figures in it.  ``total`` is 0 where nobody knows it.
    """

    __slots__ = ("done", "total", "unit", "what")

    what: str
    done: int
    total: int
    unit: str

    def __new__(cls, what: str, done: int, total: int = 0, unit: str = "B") -> Advance:
        """Make the line of the figures."""
        line = super().__new__(cls, f"{what}: {measured(done, total, unit)}")
        line.what, line.done, line.total, line.unit = what, done, total, unit
        return line


def measured(done: int, total: int, unit: str) -> str:
    """Return "3.4 of 98.2 MB", "120 files"."""
    if unit == "B":
        return f"{done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB"
    return f"{done} of {total} {unit}" if total else f"{done} {unit}"


@contextlib.contextmanager
def watched(say: Callable[[str], None], look: Callable[[], str]) -> Iterator[None]:
    """Say what a look shows, as often as that changes, while the block lasts; "" is nothing."""
    over = threading.Event()

    def watch() -> None:
        last = ""
        while not over.wait(PERIOD):
            with contextlib.suppress(OSError):  # files come and go
                seen = look()
                if seen not in {"", last}:
                    last = seen
                    say(seen)

    watcher = threading.Thread(target=watch, name="advance", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def bytes_in(*folders: Path) -> int:
    """Return how much the files of some folders hold; those below them are not counted."""
    total = 0
    for folder in folders:
        with contextlib.suppress(OSError):
            for file in folder.iterdir():
                with contextlib.suppress(OSError):
                    if file.is_file():
                        total += file.stat().st_size
    return total
