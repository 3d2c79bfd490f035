"""A signal ends what runs as Ctrl-C does: every context manager is left, every guest ended."""

from __future__ import annotations

import _thread
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: How long an interrupt waits for a better moment, in seconds.
MOMENT = 0.01
#: How many moments it waits for what is not to be left, and then once more for what holds a lock:
#: nothing keeps it for much longer than two seconds.
MOMENTS = 100

#: Modules that an exception should not come into, however deep it is in them.  Python up to 3.12
#: takes logging's locks by a call and not by ``with``: between the call and the block that gives
#: the lock back, the next thread that logs would hang.  A tree's writer that is left in its making
#: is closed before what it writes through is detached, of which Python prints a traceback.  And one
#: signal is dealt with at a time.
_WHOLE = {"logging", "xml.etree.ElementTree", __name__}
#: Functions of which the same is true: who starts a thread notes it afterwards, and see put_off().
_WHOLE_FUNCTIONS = {threading.Thread.start.__code__}

#: Packages into whose own lines an exception should not come, if it may into what they call: there
#: a lock has been taken, a context entered, a child started or a file made, and nobody knows of it
#: yet.
_OWN_LINES = {
    *("concurrent", "contextlib", "importlib", "paramiko"),
    *("queue", "subprocess", "tempfile", "threading"),
}
#: But these wait for long: for each, whether it may come now, by the function's variables.
_WAITS: dict[CodeType, Callable[[Mapping[str, Any]], bool]] = {
    # "gotit" is set in front of its try (cpython's Lib/threading.py, 3.11 to 3.14).  Before that
    # its lock is given back, and an error of its own would take our place.
    threading.Condition.wait.__code__: lambda its: "gotit" in its,
    # Who has to know a thread's end waits for an event of its: up to 3.12 one whose join is broken
    # off counts as dead.
    threading.Thread.join.__code__: lambda _: True,
    subprocess.Popen.communicate.__code__: lambda _: True,
    # It sleeps between two looks, if it has a deadline; for each look a lock is taken, which nobody
    # gives back when an error comes before its try.
    subprocess.Popen._wait.__code__: (  # type: ignore[attr-defined]
        lambda its: not its["self"]._waitpid_lock.locked()
    ),
    # One that only looks is soon over, and its child's status would be lost with it.
    subprocess.Popen._try_wait.__code__: (  # type: ignore[attr-defined]
        lambda its: not its["wait_flags"]
    ),
}
if hasattr(threading.Thread, "_wait_for_tstate_lock"):  # up to 3.12
    _WAITS[threading.Thread._wait_for_tstate_lock.__code__] = lambda _: True


@dataclass
class _Interrupts:
    raised: int = 0
    forgotten: int = 0  # of those
    moments: int = MOMENTS  # how many the next one may still wait


_interrupts = _Interrupts()


def interruptible() -> None:
    """Let SIGTERM and SIGINT raise KeyboardInterrupt; what is ignored stays so."""
    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, a signal handler's; a moment later where a lock would be lost."""
    if not postponed(number, frame):
        end()


def end() -> NoReturn:
    """Raise KeyboardInterrupt, and remember it."""
    _interrupts.raised += 1
    _interrupts.moments = MOMENTS
    raise KeyboardInterrupt


def came() -> bool:
    """Whether this process was interrupted: an error of the cleaning may have taken its place."""
    return _interrupts.raised > _interrupts.forgotten


def forget() -> None:
    """Take what came for dealt with: by a debugger, by a guest, or in a session that is over."""
    _interrupts.forgotten = _interrupts.raised


def postponed(number: int, frame: FrameType | None) -> bool:
    """Whether a signal is sent again in a moment: no error may come where the main thread is."""
    if may_raise(frame, _interrupts.moments):
        return False
    _interrupts.moments -= 1
    try:
        # A Thread would be waited for, until it has started.
        _thread.start_new_thread(_send_again, (number, _interrupts.raised))
    except RuntimeError:  # there can be no more threads
        return False
    return True


def _send_again(number: int, raised: int) -> None:
    time.sleep(MOMENT)
    if _interrupts.raised == raised:  # else another one has ended what this one was to end
        os.kill(os.getpid(), number)


def may_raise(frame: FrameType | None, left: int = MOMENTS) -> bool:
    """Whether a signal's handler may raise an error into a frame, and into those that called it.

    ``left`` is how many moments it can still wait, counted down from MOMENTS to -MOMENTS: at 0 it
    may raise but where a lock would be lost at once, at the end anywhere.
    """
    if left <= -MOMENTS:
        return True
    inner = frame
    while frame is not None and left > 0:
        if _module(frame) in _WHOLE or frame.f_code in _WHOLE_FUNCTIONS:
            return False
        frame = frame.f_back
    if inner is None or _module(inner).partition(".")[0] not in _OWN_LINES:
        return True
    waits = _WAITS.get(inner.f_code)
    return waits is not None and waits(inner.f_locals)


def put_off(function: Callable[P, T]) -> Callable[P, T]:
    """Let an interrupt wait for a function's end, for the second that one can wait at most."""
    _WHOLE_FUNCTIONS.add(function.__code__)
    return function


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
