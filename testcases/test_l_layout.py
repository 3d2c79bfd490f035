"""Layout changes of DAX files while a page is pinned for I/O.

A truncate that waits while the page is pinned is right; one that still waits when the pin is gone
is hung.  Most tests pin two pages, neither of them the first, and let go of them one by one.
"""

from __future__ import annotations

import pytest

from harness.guest import Guest
from harness.verdict.expectation import Case
from testcases.filesystems import (
    NAMES,
    checked,
    dax_mount,
    give_up_reserves,
    huge_mount,
    reflinking_mount,
    remounted,
    unmounted_state,
)
from testcases.layout_steps import deadlines, disabled, judge, layout, prove_reuse
from testcases.nvdimm_file import page_of, places
from testcases.slow_device import null_blk, slow_device

#: How often the clone gets its chance to overlook a pin: on a kernel that does, each time nearly
#: is enough (39 of 40 under TCG).
_ATTEMPTS = 4

OPERATIONS = ("truncate", "punch", "collapse", "insert", "zero")

#: Where the namespace goes after the test: once for small entries and once for a huge one.
_DISABLED = ("xfs", "punch")

every_fs = pytest.mark.parametrize("fs", NAMES)


@every_fs
@pytest.mark.parametrize("operation", OPERATIONS)
def test_l1_operation_waits_for_the_pin(guest: Guest, case: Case, fs: str, operation: str) -> None:
    """It waits in the layout break for both pins, touches nothing meanwhile, then does its work."""
    with dax_mount(guest, case, fs) as mount:
        facts = layout(guest, f"{mount.path}/a", "--op", operation, "--pin-page", "3,9")
    judge(
        case, facts, "returned_while_pinned", "seen_waiting", "state", "blocks_pinned", "hung_in",
        "op", "content", "content_mapped", "pipe_kept", blocks_pinned=facts["blocks_before"],
    )  # fmt: skip
    if (fs, operation) == _DISABLED:
        case.expect("namespace", disabled(guest, fs))


@every_fs
@pytest.mark.parametrize("operation", ["truncate", "punch", "collapse"])
def test_l1_operation_waits_for_a_page_of_a_huge_entry(
    guest: Guest, case: Case, fs: str, operation: str
) -> None:
    """The file is one entry of 2 MiB, and the pinned pages are neither its first nor its last."""
    with huge_mount(guest, case, fs) as mount:
        options = ("--pages", "512", "--pin-page", "3,300")
        facts = layout(guest, f"{mount.path}/a", "--op", operation, *options)
    huge = facts.get("huge", "no tracepoints")
    case.prove("the entry is huge", huge is True, seen=huge)
    judge(
        case, facts, "returned_while_pinned", "seen_waiting", "state", "blocks_pinned", "hung_in",
        "op", "content", "content_mapped", "pipe_kept", blocks_pinned=facts["blocks_before"],
    )  # fmt: skip
    if (fs, operation) == _DISABLED:
        case.expect("namespace", disabled(guest, fs))


@pytest.mark.parametrize("pinned", ["older", "newer"])
def test_l1_clone_onto_a_pinned_file(guest: Guest, case: Case, pinned: str) -> None:
    """Another file's blocks are to take the place of the pinned ones.

    Both files are locked, in the order of their inode numbers.
    """
    with reflinking_mount(guest, case) as mount:
        file, source = f"{mount.path}/a", f"{mount.path}/a-source"
        if pinned == "newer":
            guest.run(f"touch {source}")
        # Of several pins in the newer one some may be overlooked, or not: the next test.
        pages = "3" if pinned == "newer" else "3,9"
        facts = layout(guest, file, "--op", "clone", "--pin-page", pages)
        inodes = [int(word) for word in guest.run(f"stat -c %i {file} {source}").stdout.split()]
    case.prove(
        f"the pinned file is the {pinned} one",
        (inodes[0] > inodes[1]) == (pinned == "newer"),
        seen=inodes,
    )
    judge(
        case, facts, "returned_while_pinned", "seen_waiting", "state", "hung_in", "op", "content",
        "content_mapped", "pipe_kept",
    )  # fmt: skip


@every_fs
def test_l1_punch_beside_a_sync(guest: Guest, case: Case, fs: str) -> None:
    """A sync has the pinned page's entry locked just then: the page is busy all the same."""
    with huge_mount(guest, case, fs) as mount:
        facts = guest.workload("beside", "--file", f"{mount.path}/a").facts
    case.prove("the file is DAX", facts["dax"])
    case.fact("rounds", facts["rounds"])
    with case.gathered():
        for key in ("returned_while_pinned_alone", "returned_while_pinned"):
            case.expect(key, facts[key])


def test_l1_clone_waits_for_the_last_of_many_pins(guest: Guest, case: Case) -> None:
    """They end one after the other; who looks at only one of them is caught out sooner or later."""
    options = ("--pages", "64", "--pin-page", "0-63", "--observe", "0.1", "--between", "0.01")
    with reflinking_mount(guest, case) as mount:
        for number in range(_ATTEMPTS):
            file = f"{mount.path}/{number}"
            guest.run(f"touch {file}-source")
            facts = layout(guest, file, "--op", "clone", *options)
            if facts["returned_while_pinned"]:
                break
    case.fact("attempts", number + 1)
    judge(
        case, facts, "returned_while_pinned", "hung_in", "op", "content", "content_mapped",
        "pipe_kept",
    )  # fmt: skip


@every_fs
@pytest.mark.parametrize("operation", OPERATIONS)
def test_l1_nothing_pinned_nothing_waits(guest: Guest, case: Case, fs: str, operation: str) -> None:
    """Without a pin, or with one in another file, it is done at once."""
    with dax_mount(guest, case, fs) as mount:
        pins: list[tuple[str, str]] = [("--pin", "none"), ("--pin-file", f"{mount.path}/b")]
        for pin in pins:
            facts = layout(guest, f"{mount.path}/a", "--op", operation, *pin)
            if pin[0] == "--pin-file":
                held = facts["pinned"]
                case.prove("the other file's page is pinned", held, seen=facts["pin_proof"])
                returned = facts["returned_while_pinned"]
                case.expect("returns while another file is pinned", returned, right=True)
            case.expect(f"waits with {pin[0]}", facts["seen_waiting"], right=False)
            case.expect(f"hung with {pin[0]}", facts["hung_in"], right="none")
            case.expect("op", facts["op"])
            case.expect("content", facts["content"])


@every_fs
@pytest.mark.parametrize("operation", OPERATIONS)
def test_l2_signal_ends_the_wait(guest: Guest, case: Case, fs: str, operation: str) -> None:
    """A handler makes it EINTR, SIGKILL ends it; either way the file is untouched."""
    with dax_mount(guest, case, fs) as mount:
        # All of them wait in one function: what SIGKILL does to it, two can tell.
        for how in ("handler", "kill") if operation in ("truncate", "punch") else ("handler",):
            facts = layout(guest, f"{mount.path}/a", "--op", operation, "--signal", how)
            # Nothing was done: the workload compares with the untouched file.
            judge(
                case, facts, "seen_waiting", "signal_ended", "pinned_after_signal", "op",
                "blocks_pinned", "content", "content_mapped", "pipe_kept",
                op="EINTR" if how == "handler" else "KILLED",
                blocks_pinned=facts["blocks_before"],
            )  # fmt: skip


@every_fs
@pytest.mark.parametrize("operation", ["truncate", "punch"])
def test_l3_operation_on_the_tail_waits(guest: Guest, case: Case, fs: str, operation: str) -> None:
    """The pinned page stays in the file, and yet the operation waits."""
    with dax_mount(guest, case, fs) as mount:
        facts = layout(
            guest, f"{mount.path}/a", "--op", operation, "--pin-page", "0", "--op-page", "12"
        )
    judge(
        case, facts, "returned_while_pinned", "seen_waiting", "hung_in", "op", "content",
        "content_mapped", "pipe_kept",
    )  # fmt: skip


@every_fs
@pytest.mark.parametrize("operation", ["read", "write", "fsync"])
def test_l4_other_work_does_not_wait(guest: Guest, case: Case, fs: str, operation: str) -> None:
    """What leaves the layout alone does not care for pins."""
    with dax_mount(guest, case, fs) as mount:
        facts = layout(guest, f"{mount.path}/a", "--op", operation)
    judge(
        case, facts, "seen_waiting", "returned_while_pinned", "op", "content", "content_mapped",
        "pipe_kept",
    )  # fmt: skip


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
        facts = layout(
            guest, f"{mount.path}/a", "--op", operation,
            "--pin", pin, "--slow", slow.path, "--pin-page", "3,9",
        )  # fmt: skip
    judge(
        case, facts, "returned_while_pinned", "seen_waiting", "state", "blocks_pinned", "hung_in",
        "op", "content", "content_mapped", blocks_pinned=facts["blocks_before"],
    )  # fmt: skip


@pytest.mark.long
def test_l5_operations_end_with_the_io_of_null_blk(guest: Guest, case: Case) -> None:
    """As above, for I/O that ends in an interrupt."""
    slow = null_blk(guest, case)
    with case.gathered():
        for fs, operation in zip(NAMES, ("truncate", "punch"), strict=True):
            with dax_mount(guest, case, fs) as mount:
                facts = layout(
                    guest, f"{mount.path}/a", "--op", operation,
                    "--pin", "odirect-read", "--slow", slow.path, "--pin-page", "3,9",
                )  # fmt: skip
            judge(
                case, facts, "returned_while_pinned", "seen_waiting", "state", "blocks_pinned",
                "hung_in", "op", "content", "content_mapped", blocks_pinned=facts["blocks_before"],
            )  # fmt: skip


@every_fs
@pytest.mark.parametrize("operation", OPERATIONS)
def test_l6_unmapped_page_keeps_its_block(
    guest: Guest, case: Case, fs: str, operation: str
) -> None:
    """A pin without a mapping holds the block as one with a mapping does."""
    with dax_mount(guest, case, fs) as mount:
        facts = layout(guest, f"{mount.path}/a", "--op", operation, "--munmap")
    judge(
        case, facts, "returned_while_pinned", "seen_waiting", "blocks_pinned", "hung_in", "op",
        "content", "content_mapped", "pipe_kept", blocks_pinned=facts["blocks_before"],
    )  # fmt: skip


@every_fs
def test_l7_pinned_data_survives_a_full_file_system(guest: Guest, case: Case, fs: str) -> None:
    """Another file takes every free block; the pipe still gives the old data."""
    with dax_mount(guest, case, fs) as mount:
        give_up_reserves(guest, mount)
        steps = ("--pages", "256", "--munmap", "--refill", f"{mount.path}/b")
        prove_reuse(case, layout(guest, f"{mount.path}/a", *steps, "--pin", "none"))
        facts = layout(guest, f"{mount.path}/a", *steps)
        with case.gathered():
            judge(
                case, facts, "returned_while_pinned", "blocks_pinned", "pipe", "refill_reuses",
                "refill_content", "hung_in", "op", "content", blocks_pinned=facts["blocks_before"],
            )  # fmt: skip
            case.expect("file system afterwards", checked(guest, mount), right="clean")


@every_fs
@pytest.mark.usefixtures("power_cycle")  # NVDIMMs in files of its own
def test_l8_late_io_reaches_no_other_file(guest: Guest, case: Case, fs: str) -> None:
    """Data that arrives late is found in no page of the file that took the blocks.

    Nor is it anywhere else on the device than where it was asked for.
    """
    slow = slow_device(guest, case, with_data=True)
    assert slow.backing is not None
    with dax_mount(guest, case, fs) as mount:
        give_up_reserves(guest, mount)
        steps = ("--pages", "256", "--munmap", "--refill", f"{mount.path}/b")
        prove_reuse(case, layout(guest, f"{mount.path}/a", *steps, "--pin", "none"))
        facts = layout(
            guest, f"{mount.path}/a", *steps,
            "--pin", "odirect-read", "--slow", slow.path, "--slow-backing", slow.backing,
        )  # fmt: skip
        late = places(guest, mount.namespace, page_of(guest, slow.backing))
        with case.gathered():
            judge(
                case, facts, "returned_while_pinned", "blocks_pinned", "refill_reuses",
                "refill_content", "hung_in", "op", "content", blocks_pinned=facts["blocks_before"],
            )  # fmt: skip
            case.expect("late data on the device at", late, right=[facts["page_at"]])
            case.expect("file system afterwards", checked(guest, mount), right="clean")


@every_fs
def test_l9_blocks_of_an_unlinked_file_are_not_reused(guest: Guest, case: Case, fs: str) -> None:
    """As L7, with the last name and descriptor of the file gone."""
    with dax_mount(guest, case, fs) as mount:
        give_up_reserves(guest, mount)
        steps = (
            "--pages", "256", "--op", "unlink", "--munmap", "--close", "--refill", f"{mount.path}/b"
        )  # fmt: skip
        prove_reuse(case, layout(guest, f"{mount.path}/a", *steps, "--pin", "none"))
        facts = layout(guest, f"{mount.path}/a", *steps)
        with case.gathered():
            judge(
                case, facts, "returned_while_pinned", "seen_waiting", "pipe", "refill_reuses",
                "refill_content", "hung_in", "op",
            )  # fmt: skip
            if facts["seen_waiting"]:
                case.expect("state", facts["state"])
            case.expect("file system afterwards", checked(guest, mount), right="clean")


@every_fs
@pytest.mark.parametrize("file", ["kept", "unlinked"])
def test_l10_unmount_waits_for_the_pin(guest: Guest, case: Case, fs: str, file: str) -> None:
    """A file that nobody has open, or that is on its way out, keeps its file system mounted."""
    unlink = ("--unlink",) if file == "unlinked" else ()
    with dax_mount(guest, case, fs) as mount:
        options = ("--file", f"{mount.path}/a", "--mount", mount.path, *unlink)
        facts = guest.workload("unmount", *options, *deadlines(guest)).facts
        left = unmounted_state(guest, mount)
    for key in ("pin_proof", "end_seconds", "umount_waits_in", "umount_states", "umount_stack"):
        if key in facts:
            case.fact(key, facts[key])
    case.prove("the page is pinned", facts["pinned"], seen=facts["pin_proof"])
    with case.gathered():
        case.expect("unmounted_while_pinned", facts["unmounted_while_pinned"])
        if unlink:
            case.expect("unlink_while_pinned", facts["unlink_while_pinned"])
            case.expect("umount_while_pinned", facts["umount_while_pinned"], right="EBUSY")
            case.expect("unlink", facts["unlink"])
        else:
            case.expect("umount_while_pinned", facts["umount_while_pinned"])
        waits = "unlink" if unlink else "umount"
        if facts[f"{waits}_while_pinned"] == "WAITS":
            case.expect("state", facts[f"{waits}_state"])
        for key in ("pipe_kept", "hung_in", "umount"):
            case.expect(key, facts[key])
        case.expect("file system afterwards", left, right="clean")


@every_fs
@pytest.mark.parametrize("operation", ["truncate", "punch", "insert"])
def test_l11_touching_the_page_again_delays_nothing(
    guest: Guest, case: Case, fs: str, operation: str
) -> None:
    """A new fault on the pinned page must not keep the operation from ending."""
    with dax_mount(guest, case, fs) as mount:
        facts = layout(guest, f"{mount.path}/a", "--op", operation, "--touch-while-waiting")
    judge(
        case, facts, "returned_while_pinned", "seen_waiting", "touched_while_waiting",
        "blocks_pinned", "hung_in", "op", "content", "content_mapped", "pipe_kept",
        blocks_pinned=facts["blocks_before"],
    )  # fmt: skip


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
        with case.gathered():
            # Threads that are hung keep the file: its content is not compared then.
            for key in ("error", "mismatch", "hung_in", "content", "content_mapped"):
                if key in facts:
                    case.expect(key, facts[key])
        # Not before: where nothing waits for a pin, the above may be what shows it.
        case.prove("operations met pins and waited", facts["seen_waiting"] > 0)
        before = guest.run(f"sha256sum {file}").stdout
        left = remounted(guest, mount)
        after = guest.run(f"sha256sum {file}").stdout
    case.expect("file system afterwards", left, right="clean")
    case.expect("file when mounted again", after, right=before)
