"""Layout changes of DAX files while a page is pinned for I/O.

A truncate that waits while the page is pinned is right; one that still waits when the pin is gone
is hung.  Every test pins two pages, neither of them the first, and lets go of them one by one.
"""

from __future__ import annotations

from typing import Any

import pytest

from harness.guest import Guest
from harness.verdict.expectation import Case
from testcases.filesystems import NAMES, dax_mount, give_up_reserves, remounted, unmounted_state
from testcases.slow_device import slow_device

OPERATIONS = ("truncate", "punch", "collapse", "insert", "zero")

every_fs = pytest.mark.parametrize("fs", NAMES)


def judge(case: Case, facts: dict[str, Any], *keys: str) -> None:
    """Compare facts with the row, in this order, once the pin is proven; record the others."""
    for key in ("pin_proof", "waits_in", "states", "stack", "refs_before", "refs_pinned"):
        if key in facts:
            case.fact(key, facts[key])
    for key in ("refs_waiting", "refs_after", "end_seconds", "hung_stack", "refcount_missing"):
        if key in facts:
            case.fact(key, facts[key])
    case.prove("the page is pinned", facts["pinned"], seen=facts["pin_proof"])
    case.prove("the pin outlasted the observation", facts["pinned_while_watched"])
    for key in keys:
        case.expect(key, facts[key])


@every_fs
@pytest.mark.parametrize("operation", OPERATIONS)
def test_l1_operation_waits_for_the_pin(guest: Guest, case: Case, fs: str, operation: str) -> None:
    """It waits in the layout break for both pins, touches nothing meanwhile, then does its work."""
    with dax_mount(guest, case, fs) as mount:
        done = guest.workload(
            "layout", "--file", f"{mount.path}/a", "--op", operation, "--pin-page", "3,9"
        )
    judge(case, done.facts, "returned_while_pinned", "seen_waiting", "state")
    case.expect(
        "blocks while pinned", done.facts["blocks_pinned"], right=done.facts["blocks_before"]
    )
    for key in ("hung", "op", "content", "content_mapped", "pipe_kept"):
        case.expect(key, done.facts[key])


@every_fs
@pytest.mark.parametrize("operation", OPERATIONS)
def test_l1_nothing_pinned_nothing_waits(guest: Guest, case: Case, fs: str, operation: str) -> None:
    """Without a pin, or with one in another file, it is done at once."""
    with dax_mount(guest, case, fs) as mount:
        pins: list[tuple[str, str]] = [("--pin", "none"), ("--pin-file", f"{mount.path}/b")]
        for pin in pins:
            facts = guest.workload(
                "layout", "--file", f"{mount.path}/a", "--op", operation, *pin
            ).facts
            if pin[0] == "--pin-file":
                held = facts["pinned"]
                case.prove("the other file's page is pinned", held, seen=facts["pin_proof"])
                returned = facts["returned_while_pinned"]
                case.expect("returns while another file is pinned", returned, right=True)
            case.expect(f"waits with {pin[0]}", facts["seen_waiting"], right=False)
            case.expect(f"hung with {pin[0]}", facts["hung"], right=False)
            case.expect("op", facts["op"])
            case.expect("content", facts["content"])


@every_fs
@pytest.mark.parametrize("how", ["handler", "kill"])
@pytest.mark.parametrize("operation", ["truncate", "punch"])
def test_l2_signal_ends_the_wait(
    guest: Guest, case: Case, fs: str, operation: str, how: str
) -> None:
    """A handler makes it EINTR, SIGKILL ends it; either way the file is untouched."""
    with dax_mount(guest, case, fs) as mount:
        facts = guest.workload(
            "layout", "--file", f"{mount.path}/a", "--op", operation, "--signal", how
        ).facts
    judge(case, facts, "seen_waiting", "signal_ended", "pinned_after_signal")
    case.expect("op", facts["op"], right="EINTR" if how == "handler" else "KILLED")
    # Nothing was done: the workload compares with the untouched file after a failed operation.
    for key in ("content", "content_mapped", "pipe_kept"):
        case.expect(key, facts[key])


@every_fs
def test_l3_truncate_of_the_tail_waits(guest: Guest, case: Case, fs: str) -> None:
    """The pinned page stays in the file, and yet the truncate waits."""
    with dax_mount(guest, case, fs) as mount:
        facts = guest.workload(
            "layout", "--file", f"{mount.path}/a", "--pin-page", "0", "--op-page", "12"
        ).facts
    keys = ("returned_while_pinned", "seen_waiting", "hung", "op", "content", "content_mapped")
    judge(case, facts, *keys)


@every_fs
@pytest.mark.parametrize("operation", ["read", "write", "fsync"])
def test_l4_other_work_does_not_wait(guest: Guest, case: Case, fs: str, operation: str) -> None:
    """What leaves the layout alone does not care for pins."""
    with dax_mount(guest, case, fs) as mount:
        facts = guest.workload("layout", "--file", f"{mount.path}/a", "--op", operation).facts
    judge(case, facts, "seen_waiting", "returned_while_pinned", "op", "content", "pipe_kept")


@every_fs
@pytest.mark.parametrize(
    ("operation", "pin"),
    [(operation, "odirect-read") for operation in OPERATIONS]
    + [("truncate", "odirect-write"), ("punch", "odirect-write")],
)
def test_l5_operation_ends_with_the_io(
    guest: Guest, case: Case, fs: str, operation: str, pin: str
) -> None:
    """It waits while the I/O lasts and wakes up when it ends."""
    slow = slow_device(guest, case)
    with dax_mount(guest, case, fs) as mount:
        facts = guest.workload(
            "layout", "--file", f"{mount.path}/a", "--op", operation,
            "--pin", pin, "--slow", slow.path, "--pin-page", "3,9",
        ).facts  # fmt: skip
    judge(case, facts, "returned_while_pinned", "seen_waiting", "state")
    for key in ("hung", "op", "content", "content_mapped"):
        case.expect(key, facts[key])


@every_fs
@pytest.mark.parametrize("operation", ["truncate", "punch"])
def test_l6_unmapped_page_keeps_its_block(
    guest: Guest, case: Case, fs: str, operation: str
) -> None:
    """A pin without a mapping holds the block as one with a mapping does."""
    with dax_mount(guest, case, fs) as mount:
        facts = guest.workload(
            "layout", "--file", f"{mount.path}/a", "--op", operation, "--munmap"
        ).facts
    judge(case, facts, "returned_while_pinned")
    case.expect("blocks while pinned", facts["blocks_pinned"], right=facts["blocks_before"])
    for key in ("hung", "op", "content", "content_mapped"):
        case.expect(key, facts[key])


@every_fs
def test_l7_pinned_data_survives_a_full_file_system(guest: Guest, case: Case, fs: str) -> None:
    """Another file takes every free block; the pipe still gives the old data."""
    with dax_mount(guest, case, fs) as mount:
        give_up_reserves(guest, mount)
        facts = guest.workload(
            "layout", "--file", f"{mount.path}/a", "--pages", "256",
            "--munmap", "--refill", f"{mount.path}/b",
        ).facts  # fmt: skip
    case.fact("pipe", facts.get("pipe"))
    judge(case, facts, "pipe_kept", "refill_reuses", "refill_content", "hung", "op", "content")


@every_fs
def test_l8_late_io_reaches_no_other_file(guest: Guest, case: Case, fs: str) -> None:
    """Data that arrives late is found in no page of the file that took the blocks."""
    slow = slow_device(guest, case, with_data=True)
    assert slow.backing is not None
    with dax_mount(guest, case, fs) as mount:
        give_up_reserves(guest, mount)
        facts = guest.workload(
            "layout", "--file", f"{mount.path}/a", "--pages", "256",
            "--munmap", "--refill", f"{mount.path}/b",
            "--pin", "odirect-read", "--slow", slow.path, "--slow-backing", slow.backing,
        ).facts  # fmt: skip
    judge(case, facts, "refill_content", "refill_reuses", "hung", "op", "content")


@every_fs
def test_l9_blocks_of_an_unlinked_file_are_not_reused(guest: Guest, case: Case, fs: str) -> None:
    """As L7, with the last name and descriptor of the file gone."""
    with dax_mount(guest, case, fs) as mount:
        give_up_reserves(guest, mount)
        facts = guest.workload(
            "layout", "--file", f"{mount.path}/a", "--pages", "256", "--op", "unlink",
            "--munmap", "--close", "--refill", f"{mount.path}/b",
        ).facts  # fmt: skip
    case.fact("pipe", facts.get("pipe"))
    judge(case, facts, "pipe_kept", "refill_reuses", "refill_content", "hung", "op")


@every_fs
@pytest.mark.parametrize("file", ["kept", "unlinked"])
def test_l10_unmount_waits_for_the_pin(guest: Guest, case: Case, fs: str, file: str) -> None:
    """A file that nobody has open, or that is on its way out, keeps its file system mounted."""
    with dax_mount(guest, case, fs) as mount:
        facts = guest.workload(
            "unmount", "--file", f"{mount.path}/a", "--mount", mount.path,
            *(["--unlink"] if file == "unlinked" else []),
        ).facts  # fmt: skip
        left = unmounted_state(guest, mount)
    for key in ("pin_proof", "refs_before", "refs_pinned", "unlink_while_pinned", "end_seconds"):
        if key in facts:
            case.fact(key, facts[key])
    for key in ("umount_while_pinned", "umount_waits_in", "umount_states", "umount_stack"):
        case.fact(key, facts[key])
    case.prove("the page is pinned", facts["pinned"], seen=facts["pin_proof"])
    for key in ("unmounted_while_pinned", "pipe_kept", "hung", "umount"):
        case.expect(key, facts[key])
    case.expect("file system afterwards", left, right="clean")


@every_fs
def test_l11_touching_the_page_again_delays_nothing(guest: Guest, case: Case, fs: str) -> None:
    """A new fault on the pinned page must not keep the operation from ending."""
    with dax_mount(guest, case, fs) as mount:
        facts = guest.workload(
            "layout", "--file", f"{mount.path}/a", "--op", "punch", "--touch-while-waiting"
        ).facts
    judge(case, facts, "returned_while_pinned", "seen_waiting", "touched_while_waiting")
    for key in ("hung", "op", "content", "content_mapped"):
        case.expect(key, facts[key])


@every_fs
@pytest.mark.parametrize("pins", ["vmsplice", "odirect", "touched"])
def test_l12_storm(guest: Guest, case: Case, fs: str, pins: str) -> None:
    """Whatever meets, nobody waits for ever and every page holds what it should.

    "touched" keeps the mappings and touches pages while they are pinned; the others unmap them.
    """
    # Nobody holds a pin for as long as a hundredth of that.
    options = ["--rounds", "16", "--stall", str(int(2 + 2 * guest.scale))]
    if pins == "odirect":
        slow = slow_device(guest, case, with_data=True, milliseconds=20)
        options += ["--pins", "odirect", "--slow", slow.path]
    with dax_mount(guest, case, fs) as mount:
        file = f"{mount.path}/a"
        facts = guest.workload(
            "storm", "--file", file, *options, *(["--keep"] if pins == "touched" else [])
        ).facts
        for key, value in facts.items():
            case.fact(key, value)
        case.prove("operations met pins and waited", facts["seen_waiting"] > 0)
        for key in ("error", "mismatch", "hung_in", "hung", "content", "content_mapped"):
            case.expect(key, facts[key])
        before = guest.run(f"sha256sum {file}").stdout
        left = remounted(guest, mount)
        after = guest.run(f"sha256sum {file}").stdout
    case.expect("file system afterwards", left, right="clean")
    case.expect("file when mounted again", after, right=before)
