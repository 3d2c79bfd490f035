"""Which of the six words an exception that ended a test stands for."""

from __future__ import annotations

import pytest

from harness.errors import (
    GuestLockup,
    GuestLost,
    GuestOutOfMemory,
    GuestPanic,
    GuestReset,
    HarnessError,
    HostError,
    HostFull,
    HostStall,
    ImageError,
    LaunchError,
    OutOfTime,
)
from harness.guest import CommandTimeout
from harness.verdict.expectation import Mismatch, NotProven
from harness.verdict.status import Status

#: What the message of a Splat begins with.
SPLAT = "the kernel's log shows a fault"
#: What the kernel under test is answerable for; the other ends of a guest are not its.
_KERNELS_FAULT = GuestPanic | GuestReset | GuestLockup | GuestOutOfMemory | CommandTimeout
#: What no kernel under test is answerable for; one that hangs is OutOfTime.
_HOSTS_FAULT = HostError | HostFull | HostStall | ImageError | LaunchError


class Splat(AssertionError):
    """The kernel's log shows a fault that the test did not declare."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ComparedNothing(Exception):
    """A test ended well without a word about the kernel."""

    hint = "every way through a test takes it to a case.expect()"


def judge(when: str, error: BaseException) -> tuple[Status, str, str]:
    """Return status, message and hint of an exception that ended a test."""
    hint = getattr(error, "hint", None) or ""
    message = error.message if isinstance(error, HarnessError) else str(error)
    first = (message.strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, NotProven):
        return error.status, first, hint
    if isinstance(error, pytest.skip.Exception):
        return Status.SKIP, first, hint
    if isinstance(error, Mismatch | Splat) or (
        when == "call" and isinstance(error, AssertionError | pytest.fail.Exception)
    ):
        return Status.FAIL, first, hint
    if when == "call" and isinstance(error, _KERNELS_FAULT):
        return Status.FAIL, first, hint
    if isinstance(error, HarnessError):
        return Status.MISS, first, hint
    named = "" if isinstance(error, ComparedNothing) else f"{type(error).__name__}: "
    return Status.ERROR, f"{named}{first}", hint


def says_all(when: str, error: BaseException) -> bool:
    """Return whether an exception's own words say it all: a traceback would add nothing."""
    if isinstance(error, HarnessError | Mismatch | Splat | ComparedNothing):
        return True
    return judge(when, error)[0] is Status.SKIP


def of_the_host(error: BaseException) -> bool:
    """Return whether it is the host that kept a test from running, whatever the kernel."""
    return isinstance(error, _HOSTS_FAULT) and not isinstance(error, OutOfTime)


def yields_to_splat(error: BaseException) -> bool:
    """Return whether a splat says more of a test than the exception that ended it.

    An oops kills the umount or the workload that hit it, and that alone would be a MISS.  Where the
    guest was lost or the host failed, the splat may come of that.
    """
    if isinstance(error, GuestLost | HostError):
        return False
    return judge("call", error)[0] is not Status.FAIL
