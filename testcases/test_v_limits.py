"""V15-V18: what a DMA mapping is limited to: IOVA ranges, locked memory, access rights."""

from __future__ import annotations

import pytest

from harness.guest import Guest
from harness.verdict.expectation import Case
from testcases.vfio_steps import observe


def test_v15_ranges(guest: Guest, case: Case) -> None:
    """IOVA ranges in use, split, reserved, out of reach or misaligned."""
    seen = observe(guest, case, "vfio_ranges")
    for what in case.row.right:
        case.expect(what, seen[what])
    case.expect("locked memory (KiB)", seen["locked_after"], right=seen["locked_before"])


def test_v16_wrap(guest: Guest, case: Case) -> None:
    """A range whose end lies before its start."""
    seen = observe(guest, case, "vfio_ranges")["wrap"]
    case.fact("wrap", seen)
    case.expect("refused", seen in ("EINVAL", "EOVERFLOW"))


@pytest.mark.parametrize("size", ["16M", "60K", "56K"], ids=["above", "page-above", "all"])
def test_v17_memlock(guest: Guest, case: Case, size: str) -> None:
    """64 KiB may be locked, of which the device's own window takes 8: 56 are there to be had."""
    case.allow("RLIMIT_MEMLOCK")
    token = guest.mark("V17")
    seen = observe(guest, case, "vfio_map", "--memlock", "64K", "--size", size)
    said = "RLIMIT_MEMLOCK (65536) exceeded" in guest.dmesg(token)
    case.prove("8 KiB are in use", seen["locked_before"] == 8, seen=seen["locked_before"])
    if size == "56K":
        case.expect("within", seen["map"])
    else:
        case.expect("anonymous", seen["map"])
        case.expect("says", said)
        case.expect("bytes left mapped", seen["left_mapped"], right=0)
    case.expect("locked_left", seen["locked_after"] - seen["locked_before"])


def test_v17_memlock_devdax(guest: Guest, case: Case) -> None:
    """Device memory is not accounted as locked."""
    source = f"dax:{guest.namespace('devdax2m').device}"
    options = ("--memlock", "64K", "--size", "16M", "--source", source)
    seen = observe(guest, case, "vfio_map", *options)
    case.expect("devdax", seen["map"])
    case.expect("locked_left", seen["locked_mapped"] - seen["locked_before"])


@pytest.mark.parametrize("how", ["read-only", "downgrade", "after-unmap"])
def test_v18_blocked_access(guest: Guest, case: Case, how: str) -> None:
    """What the mapping does not allow does not happen, and the IOMMU says so."""
    case.allow("^DMAR: DMA (Read|Write) fault")
    seen = observe(guest, case, "vfio_fault", "--case", how)
    case.expect("memory", seen["memory"])
    # That nothing arrived says little unless the mapping was live: what it allows was done.
    case.expect("live", seen.get("device_read", seen.get("device_write")))
    case.expect("fault", seen["write_fault"] != "none")
    case.expect("fault address", seen["write_fault_address"], right=0x4000000)
    if how == "after-unmap":
        case.expect("read", seen["read"])
        case.expect("fault", seen["read_fault"] != "none")
