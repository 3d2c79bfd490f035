"""Whether this process's guests leave the host's cores anything to spare."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

#: How long the guests are looked at, in seconds.
SAMPLE = 0.1
#: How long one of them has to be still to count as idle, in seconds.
_SPELL = 0.5


def share() -> float:
    """Return how many cores are this process's: under xdist the workers share them evenly."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return len(os.sched_getaffinity(0)) / max(1, workers)


def demand() -> float:
    """Return for how long this process's children have computed or waited to, in seconds.

    A kernel that does not tell (CONFIG_PROC_CHILDREN) seems to have cores to spare.
    """
    seconds = 0.0
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            seconds += sum(wanted(int(child)) for child in children.read_text().split())
    return seconds


def wanted(pid: int) -> float:
    """Return for how long a process's threads have computed or waited to, in seconds.

    What waits for a core counts: on a host that is full a guest would else seem idle.  Nothing
    where the kernel does not tell (CONFIG_SCHED_INFO) or the process is gone.
    """
    nanoseconds = 0
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            computed, waited, _ = thread.read_text().split()
            nanoseconds += int(computed) + int(waited)
    return nanoseconds / 1e9


def wait_until_idle(pid: int, within: float) -> bool:
    """Wait until a process wants less than a tenth of a core for half a second.

    Returns False when it has not come to that ``within`` so many seconds.
    """
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        begun, before = time.monotonic(), wanted(pid)
        time.sleep(_SPELL)
        if wanted(pid) - before < (time.monotonic() - begun) / 10:
            return True
    return False


def wait_for_room(until: Callable[[float], bool]) -> None:
    """Wait until half a core, or half of a smaller share, is free of this process's guests.

    ``until`` waits for some seconds and returns whether there is nothing more to wait for.
    """
    most = max(share() - 0.5, share() / 2)
    begun, before = time.monotonic(), demand()
    while not until(SAMPLE):
        now, so_far = time.monotonic(), demand()
        if so_far - before <= most * (now - begun):
            return
        begun, before = now, so_far
