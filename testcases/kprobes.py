"""How often a function of the kernel is called."""

from __future__ import annotations

from harness.guest import Guest

_CALLS = """
cd /sys/kernel/tracing 2>/dev/null || cd /sys/kernel/debug/tracing || exit 0
echo 'p:nvh/called {function}' >> kprobe_events || exit 0
echo 1 > events/nvh/called/enable
{command} >&2
status=$?
echo 0 > events/nvh/called/enable
while read -r name hits _; do [ "$name" = called ] && echo $hits; done < kprobe_profile
echo '-:nvh/called' >> kprobe_events
exit $status
"""


def calls(guest: Guest, function: str, command: str) -> int | None:
    """Return how often a function is called while a command runs, None where no kprobe can be set.

    Raises WorkloadError when the command fails.
    """
    hits = guest.run(_CALLS.format(function=function, command=command)).stdout.strip()
    return int(hits) if hits.isdecimal() else None
