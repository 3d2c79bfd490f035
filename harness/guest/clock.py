"""Whether a guest's clock goes as the host's does."""

from __future__ import annotations

import time
from dataclasses import dataclass

from harness.errors import GuestClock
from harness.guest.guest import Guest

#: How much faster or slower than the host's a guest's clock may be.
TOLERANCE = 1.2


@dataclass(frozen=True)
class Reading:
    """What a guest's clock showed at some time between two of the host's, all in seconds."""

    after: float
    before: float
    guest: float


def read(guest: Guest) -> Reading:
    """Read a guest's clock."""
    after = time.monotonic()
    uptime = guest.run("read -r up idle < /proc/uptime; echo $up").stdout
    return Reading(after=after, before=time.monotonic(), guest=float(uptime))


def compare(first: Reading, last: Reading) -> None:
    """Raise GuestClock when the guest's clock cannot have gone right between two readings.

    A kernel counts the TSC's ticks against the PIT's while it boots
    (native_calibrate_cpu() in arch/x86/kernel/tsc.c), and where the host lets a TCG processor wait
    in between, it counts too many or too few: every deadline in such a guest comes at a wrong
    time.  The host's clock is looked at on either side of a reading, so a slow answer is no
    difference.
    """
    passed = last.guest - first.guest
    longest, shortest = last.before - first.after, last.after - first.before
    if shortest / TOLERANCE <= passed <= longest * TOLERANCE:
        return
    raise GuestClock(
        f"the guest's clock went {passed:.1f} s in the host's {shortest:.1f} to {longest:.1f} s",
        hint="on a busy host a kernel may take its clock's measure wrong; run it again",
    )
