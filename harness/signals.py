"""A signal ends what runs as Ctrl-C does: every context manager is left, every guest ended."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
from types import FrameType

#: How long an interrupt waits for a better moment, in seconds, and how often at most.
_MOMENT = 0.01
_MOMENTS = 100

#: How a condition over a plain lock, an event's or a queue's, gives that back and takes it again.
_LOCKING = {
    getattr(threading.Condition, name).__code__ for name in ("_release_save", "_acquire_restore")
}

_postponed = itertools.count(1)


def interruptible() -> None:
    """Let SIGTERM and SIGINT raise KeyboardInterrupt; what is ignored stays so."""
    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, a signal handler's; a moment later where a lock would be lost."""
    if not postponed(number, frame):
        raise KeyboardInterrupt


def postponed(number: int, frame: FrameType | None) -> bool:
    """Whether a signal is sent again in a moment, as the main thread is where none may be raised.

    Python up to 3.12 takes logging's locks by a call and not by ``with``, so that an exception can
    come between the call and the block that gives the lock back: the next thread that logs hangs.
    """
    if not (_waits_soon(frame) or _logs(frame)) or next(_postponed) > _MOMENTS:
        return False
    again = threading.Timer(_MOMENT, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()
    return True


def _logs(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_globals is not vars(logging):
        frame = frame.f_back
    return frame is not None


def _waits_soon(frame: FrameType | None) -> bool:
    """Whether a condition has given its lock back and would not take it again: an error of its own
    would then take an interrupt's place (cpython's Lib/threading.py, 3.11 to 3.14).
    """
    if frame is None:
        return False
    if frame.f_code in _LOCKING:
        return True
    # "gotit" is set in front of its try.
    return frame.f_code is threading.Condition.wait.__code__ and "gotit" not in frame.f_locals
