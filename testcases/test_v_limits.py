"""V15-V18: what a DMA mapping is limited to: IOVA ranges, locked memory, access rights."""

from __future__ import annotations

import pytest

from harness.guest import Guest
from harness.verdict.expectation import Case
from testcases.vfio_steps import (
    IN_ONE_PIECE,
    OTHER_MEMORY,
    after_unmap_in_one_piece,
    by_kernel,
    expect_access_blocked,
    expect_all,
    expect_blocked,
    expect_refused,
    huge_pages,
    observe,
)

#: How many mappings a container is to take in V15: the device's own window is one of them.
_ENTRIES = 8
_ENTRY_LIMIT = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit"


@pytest.mark.parametrize("container", ["type1", "type1v2"])
def test_v15_ranges(guest: Guest, case: Case, container: str) -> None:
    """IOVA ranges in use, split, reserved, out of reach or misaligned; unmaps of parts and many."""
    case.allow("^DMAR: DMA Read fault")  # the device looks whether it still reaches the range
    seen = observe(guest, case, "vfio_ranges", "--type", container)
    expect_all(case, seen, "ranges", container)
    case.expect("locked memory (KiB)", seen["locked_after"], right=seen["locked_before"])
    if container == "type1v2":
        seen = observe(guest, case, "vfio_vaddr")
        expect_all(case, seen, "child")
        if not seen["update"]:
            case.skip("mappings keep their address", enable="run v5.12 or later, without an mdev")
        expect_all(case, seen, "vaddr")


@pytest.mark.parametrize("container", ["type1", "type1v2"])
def test_v15_container(guest: Guest, case: Case, container: str) -> None:
    """What a container tells of its ranges and entries, and how it tracks dirty pages."""
    guest.run(f"modprobe -q vfio_iommu_type1; echo {_ENTRIES} > {_ENTRY_LIMIT}")
    seen = observe(guest, case, "vfio_container", "--type", container)
    expect_all(case, seen, "container", f"dirty_pages.{container}")


def test_v16_wrap(guest: Guest, case: Case) -> None:
    """A range whose end lies before its start."""
    right = by_kernel(guest, case, "wrap")
    seen = observe(guest, case, "vfio_ranges")
    for what in ("wrap", "address_wrap", "unmap_wrap"):
        case.expect(what, seen[what], right=right)


@pytest.mark.parametrize(
    ("size", "container"),
    [("16M", "type1v2"), ("60K", "type1v2"), ("56K", "type1v2"), ("16M", "type1")],
    ids=["above", "page-above", "all", "above-type1"],
)
def test_v17_memlock(guest: Guest, case: Case, size: str, container: str) -> None:
    """64 KiB may be locked, of which the device's own window takes 8: 56 are there to be had."""
    case.allow("RLIMIT_MEMLOCK")
    token = guest.mark("V17")
    options = ("--memlock", "64K", "--size", size, "--touch", "write", "--type", container)
    seen = observe(guest, case, "vfio_map", *options)
    said = "RLIMIT_MEMLOCK (65536) exceeded" in guest.dmesg(token)
    case.prove("8 KiB are in use", seen["locked_before"] == 8, seen=seen["locked_before"])
    if size == "56K":
        case.expect("within", seen["map"])
        case.expect("map_again", seen["map_again"])
    else:
        case.expect("anonymous", seen["map"])
        case.expect("says", said)
        # Its pages were pinned many at a time, some of them beyond the limit.
        expect_refused(case, seen)
    case.expect("locked_left", seen["locked_after"] - seen["locked_before"])


def test_v17_memlock_devdax(guest: Guest, case: Case) -> None:
    """Device memory is not accounted as locked."""
    source = f"dax:{guest.namespace('devdax2m').device}"
    options = ("--memlock", "64K", "--size", "16M", "--source", source)
    seen = observe(guest, case, "vfio_map", *options)
    case.expect("devdax", seen["map"])
    case.expect("locked_left", seen["locked_mapped"] - seen["locked_before"])


@pytest.mark.parametrize(
    ("how", "container"),
    [
        ("read-only", "type1v2"),
        ("write-only", "type1v2"),
        ("downgrade", "type1v2"),
        ("after-unmap", "type1v2"),
        ("after-unmap", "type1"),
    ],
    ids=["read-only", "write-only", "downgrade", "after-unmap", "after-unmap-type1"],
)
def test_v18_blocked_access(guest: Guest, case: Case, how: str, container: str) -> None:
    """What the mapping does not allow does not happen, and the IOMMU says so."""
    case.allow("^DMAR: DMA (Read|Write) fault")
    seen = observe(guest, case, "vfio_fault", "--case", how, "--type", container)
    expect_access_blocked(guest, case, how, seen)


@pytest.mark.parametrize("iova", IN_ONE_PIECE, ids=IN_ONE_PIECE.get)
def test_v18_after_unmap_in_one_piece(guest: Guest, case: Case, iova: int) -> None:
    """Memory in one piece goes from the IOMMU at once: no later piece covers for its flush."""
    case.allow("^DMAR: DMA (Read|Write) fault")
    options = after_unmap_in_one_piece(iova)
    with huge_pages(guest, case):
        seen = observe(guest, case, "vfio_fault", *options)
    expect_blocked(case, seen, iova)


def test_v18_other_memory(guest: Guest, case: Case) -> None:
    """Other memory at an IOVA that was just in use: the device reaches that, and not the old."""
    with huge_pages(guest, case):
        for options in OTHER_MEMORY:
            seen = observe(guest, case, "vfio_fault", *options)
            for what in ("device_read", "device_write", "memory"):
                case.expect(what, seen[what])
