"""Whether this process's guests leave the host's cores anything to spare."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from harness import process

#: How long the guests are looked at, in seconds.
SAMPLE = 0.1
_STAT = Path("/proc/stat")


def share() -> float:
    """Return how many cores are this process's: under xdist the workers share them evenly."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return len(os.sched_getaffinity(0)) / max(1, workers)


def demand() -> float:
    """Return for how long this process's children have computed or waited to, in seconds.

    A kernel that does not tell (CONFIG_SCHED_INFO, CONFIG_PROC_CHILDREN) seems to have cores to
    spare.
    """
    nanoseconds = 0
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            for child in children.read_text().split():
                nanoseconds += sum(process.demand_of(int(child)).values())
    return nanoseconds / 1e9


def idle() -> float:
    """Return for how long the host's cores had nothing to do, in seconds, those that are ours."""
    ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    lines = [line.split() for line in _STAT.read_text().splitlines()]
    # The fifth is waiting for a disk.
    ticks = sum(int(words[4]) + int(words[5]) for words in lines if words[0] in ours)
    return ticks / os.sysconf("SC_CLK_TCK")


def wait_for_room(until: Callable[[float], bool]) -> None:
    """Wait until half a core, or half of a smaller share, is free of this process's guests.

    Half a core that nobody uses will do as well: another worker's tests may be asleep.  ``until``
    waits for some seconds and returns whether there is nothing more to wait for.
    """
    most = max(share() - 0.5, share() / 2)
    begun, before, unused = time.monotonic(), demand(), idle()
    while not until(SAMPLE):
        now, wanted, free = time.monotonic(), demand(), idle()
        if wanted - before <= most * (now - begun) or free - unused >= 0.5 * (now - begun):
            return
        begun, before, unused = now, wanted, free
