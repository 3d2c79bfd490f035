"""When a test told its guest to do what."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

#: Steps that are kept of one test, and characters of one: a test may run thousands.
_MOST = 200
_LONG = 300


class Steps:
    """The commands of one test with the seconds since its begin."""

    def __init__(self, begun: float, *, tell: Callable[[str], None] = lambda _: None) -> None:
        self._begun = begun  # as time.time() gave it
        self._tell = tell  # hears what begins at once, and "" when it has ended
        self._steps: list[dict[str, Any]] = []
        self._running: tuple[str, float] | None = None

    def waited(self, what: str) -> None:
        """Note what took all the time until now."""
        self._add(what, self._begun)
        self._tell("")

    def begin(self, command: str) -> None:
        """Note that a command begins."""
        self.end()
        self._running = (command, time.time())
        self._tell(command)

    def end(self) -> None:
        """Note that the command that runs has ended, however it did."""
        if self._running is not None:
            command, at = self._running
            self._running = None
            self._tell("")
            self._add(command, at)

    def _add(self, what: str, at: float) -> None:
        if len(self._steps) < _MOST:
            now = time.time()
            self._steps.append(
                {
                    "what": what.strip()[:_LONG],
                    "at": round(max(0.0, at - self._begun), 3),
                    "seconds": round(max(0.0, now - at), 3),
                }
            )

    def all(self) -> tuple[Mapping[str, Any], ...]:
        """Return them in their order."""
        self.end()
        return tuple(self._steps)
