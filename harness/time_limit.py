"""Limits on the time of a test and of a run: a guest may slow every step without missing one."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from harness import signals
from harness.errors import OutOfTime

#: Some ten times what the longest test takes under TCG on a loaded host, in seconds.
OF_TEST = 1800.0
OF_RUN = 6 * 3600.0
#: Between two alarms: the first may end in a clean-up that swallows it.
_AGAIN = 5.0


@dataclass(frozen=True)
class TimeLimit:
    """What a run allows: ``test`` seconds for each test, and all of it until ``end``."""

    test: float
    end: float  # as time.time() tells it

    @contextlib.contextmanager
    def applied(self, used: float = 0.0) -> Iterator[None]:
        """Raise OutOfTime in the block when a limit is reached; ``used`` is what the test had.

        Only the main thread can be interrupted; elsewhere the block is merely refused when it is
        late already.
        """
        left, error = self._left(used)
        if left <= 0:
            raise error
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        # There is one such timer in a process, and pytest-timeout's may be running.
        before = signal.getsignal(signal.SIGALRM)
        begun = time.monotonic()
        was = signal.setitimer(signal.ITIMER_REAL, 0)[0]
        ours, theirs = begun + left, begun + was if was else math.inf
        moments = signals.MOMENTS

        def alarm(number: int, frame: FrameType | None) -> None:
            nonlocal theirs, moments
            now = time.monotonic()
            ahead = [at - now for at in (ours, theirs) if at > now]
            signal.setitimer(signal.ITIMER_REAL, min([*ahead, _AGAIN]), _AGAIN)
            if callable(before) and now >= theirs:
                theirs = math.inf  # once
                before(number, frame)
            if now < ours:
                return
            if signals.may_raise(frame, moments):
                raise error
            moments -= 1
            signal.setitimer(signal.ITIMER_REAL, signals.MOMENT, _AGAIN)

        signal.signal(signal.SIGALRM, alarm)
        signal.setitimer(signal.ITIMER_REAL, min(left, was or left), _AGAIN)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            if theirs < math.inf:
                signal.setitimer(signal.ITIMER_REAL, max(theirs - time.monotonic(), 0.001))

    def _left(self, used: float) -> tuple[float, OutOfTime]:
        of_test, of_run = self.test - used, self.end - time.time()
        if of_run < of_test:
            return of_run, OutOfTime("the run's time is over", hint="raise --max-time")
        return of_test, OutOfTime(
            f"no end after {self.test:g} s", hint="raise --max-test-time, if it is right to be slow"
        )
