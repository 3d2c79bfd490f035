"""The six words a test can end with, after KCIDB, and the exit code of a run that used them."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from harness.errors import EXIT_FAILED, EXIT_OK, EXIT_UNTESTABLE


class Status(StrEnum):
    """How a test ended (the words of KCIDB's schema, ``tests[].status``)."""

    PASS = "PASS"  # noqa: S105 - a verdict, no password
    FAIL = "FAIL"
    SKIP = "SKIP"
    ERROR = "ERROR"
    MISS = "MISS"
    DONE = "DONE"

    @property
    def meaning(self) -> str:
        """Return what the word says, in one line."""
        return _MEANINGS[self]

    @property
    def tested(self) -> bool:
        """Tell whether the kernel was really put to the test."""
        return self in (Status.PASS, Status.FAIL, Status.DONE)

    @property
    def good(self) -> bool:
        """Tell whether there is nothing to look into."""
        return self in (Status.PASS, Status.DONE)


_MEANINGS = {
    Status.PASS: "the kernel did what is right",
    Status.FAIL: "the kernel did something else, or its log shows a fault",
    Status.SKIP: "this kernel, machine or host lacks what the test needs",
    Status.ERROR: "the test itself is at fault; nothing is known about the kernel",
    Status.MISS: "the harness or the host could not run the test",
    Status.DONE: "ran to its end; there is no right or wrong to it",
}


def exit_code(statuses: Iterable[Status]) -> int:
    """Return the exit code of a run whose tests ended with ``statuses``.

    1 when a test found a fault of the kernel; otherwise 125 when a test could not be run, or none
    put the kernel to the test (what ``git bisect run`` takes as "cannot be tested"); otherwise 0.
    """
    seen = set(statuses)
    if Status.FAIL in seen:
        return EXIT_FAILED
    if seen & {Status.ERROR, Status.MISS} or not any(status.tested for status in seen):
        return EXIT_UNTESTABLE
    return EXIT_OK
