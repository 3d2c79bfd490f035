"""One tree of errors: what went wrong, what to do about it, and with which exit code it ends.

The kernel failed, the test failed and the harness failed are three different things.  A failed
expectation is an ``AssertionError`` of the test and is not in this tree; everything here says
that something could not be tested, or that a guest died while it was tested.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
#: What ``git bisect run`` reads as "this revision cannot be tested".
EXIT_UNTESTABLE = 125
EXIT_INTERRUPTED = 130


class HarnessError(Exception):
    """Something could not be tested; ``hint`` says in one line what the user can do."""

    exit_code = EXIT_UNTESTABLE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return message and hint as the one line that a user sees."""
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(HarnessError):
    """The user asked for something that does not exist or contradicts itself."""

    exit_code = EXIT_USAGE


class SpecError(UsageError):
    """A machine file is malformed or contradictory; the message names file, line, table and key."""


class KernelError(UsageError):
    """A kernel that was asked for is not there or is no kernel."""


class UnfitKernel(KernelError):
    """A kernel lacks drivers that a guest needs: the next one of a bisection may have them."""

    exit_code = EXIT_UNTESTABLE


class HostError(HarnessError):
    """The host lacks a program, a permission, memory or disk space."""


class OutOfTime(HostError):
    """What a run allows a test, or all of it, has been used up."""


class ImageError(HarnessError):
    """A guest image could not be built, fetched or verified."""


class BuildError(HarnessError):
    """A kernel does not compile: the next revision of a bisection may."""


class NoTurn(HarnessError):
    """A bisection's good is not good, or its bad is not bad: nothing lies between them."""

    exit_code = EXIT_FAILED


class LaunchError(HarnessError):
    """QEMU refused to start; the message carries QEMU's own words."""


class GuestLost(HarnessError):
    """The guest does not answer any more and nothing on its console says why."""


class GuestHung(GuestLost):
    """Something in the guest, or the whole guest, makes no progress."""


class GuestLockup(GuestHung):
    """A processor of the guest no longer leaves the kernel."""


class GuestUnreachable(GuestLost):
    """The guest lives, and its network or its SSH server does not."""


class GuestOutOfMemory(GuestLost):
    """The guest's kernel killed what the test needs, for lack of memory."""


class GuestClock(GuestLost):
    """The guest's clock does not go as the host's does."""


class HostStall(GuestLost):
    """The host keeps QEMU from running."""


class HostFull(GuestLost):
    """A disk of the host has no room for what a guest writes to its memory."""


class GuestReset(GuestLost):
    """The guest reset or powered off without having been asked to."""


class GuestPanic(GuestLost):
    """The guest's kernel panicked; ``trace`` holds the console text around it."""

    def __init__(self, message: str, *, trace: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.trace = trace


class WorkloadError(HarnessError):
    """A workload was started wrongly or did not speak KTAP to its end."""
