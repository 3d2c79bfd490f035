"""Steps that the L rows have in common: start the workload, prove its pin, compare what it saw."""

from __future__ import annotations

from typing import Any

from harness.guest import Guest
from harness.verdict.expectation import Case
from testcases.filesystems import NAMESPACE

#: What the report of a test carries whether or not it is judged.
_TOLD = (
    "pin_proof", "waits_in", "states", "stack", "refs_before", "refs_pinned", "refs_waiting",
    "refs_after", "end_seconds", "pipe", "refill_pages", "hung_state", "hung_stack", "dies_of_kill",
    "refcount_missing",
)  # fmt: skip


def deadlines(guest: Guest) -> tuple[str, ...]:
    """Return a workload's options for how long it watches and how long what it waits for has.

    Nothing of it is waited for on a kernel that does right.
    """
    seconds = {
        "observe": 1 * guest.scale,
        "end-deadline": 2 + 4 * guest.scale,
        # All of the above for each pin, and for an operation that does not die.
        "deadline": 50 * guest.scale,
    }
    return tuple(word for name, n in seconds.items() for word in (f"--{name}", str(int(n))))


def layout(guest: Guest, file: str, *options: str) -> dict[str, Any]:
    """Run the workload "layout" on a file of its own and return its facts."""
    done = guest.workload("layout", "--file", file, *deadlines(guest), *options)
    return dict(done.facts)


def judge(case: Case, facts: dict[str, Any], *keys: str, **right: Any) -> None:
    """Compare facts with the row, or with ``right``, once the pin is proven; record the others.

    All are compared: what some kernel is known to fail must not hide another failure.
    """
    for key in _TOLD:
        if key in facts:
            case.fact(key, facts[key])
    case.prove("the page is pinned", facts["pinned"], seen=facts["pin_proof"])
    case.prove("the pin outlasted the observation", facts["pinned_while_watched"])
    with case.gathered():
        for key in keys:
            # An operation that is hung has no result: "hung_in" has said so.
            if key != "op" or facts.get("hung_in", "none") == "none":
                case.expect(key, facts[key], **({"right": right[key]} if key in right else {}))


def prove_reuse(case: Case, facts: dict[str, Any]) -> None:
    """Prove with a run that pins nothing that the refill gets the blocks that come free.

    Otherwise data that stays whole says nothing of whether blocks were kept back.
    """
    case.prove(
        "without a pin the block is given to the other file",
        facts["refill_reuses"] and facts["op"] == "OK",
        seen=f"{facts['refill_pages']} pages",
    )
    case.expect("refill_content without a pin", facts["refill_content"], right="OK")


def disabled(guest: Guest, fs: str) -> str:
    """Disable the file system's namespace; return "ended", or how that failed.

    It waits until nobody refers to the namespace's pages any more, and for ever where a pin has
    left a reference behind.  Nothing of it is needed afterwards.
    """
    device = guest.namespace(NAMESPACE[fs]).device.removeprefix("/dev/")
    # By hand, for what ndctl costs under TCG.
    device = f"/sys/block/{device}/device"
    unbind = f"cd $(readlink -f {device}) && basename $PWD > driver/unbind"
    done = guest.run(f"{unbind} && ! test -e {device}", timeout=20.0, check=False)
    return "ended" if done.status == 0 else done.stderr.strip()
