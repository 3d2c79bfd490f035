"""V1, V2, V5-V7: memory that is not DAX, mapped for DMA."""

from __future__ import annotations

import pytest

from harness.guest import Guest
from harness.verdict.expectation import Case
from testcases.filesystems import page_cache_mount
from testcases.pinners import IO_URING, Pins
from testcases.vfio_steps import (
    SHARED_MEMORY,
    by_kernel,
    expect_accounted,
    expect_pinned,
    expect_refused,
    free_huge_pages,
    huge_pages,
    observe,
    references_left,
)


@pytest.mark.parametrize("container", ["type1", "type1v2"])
def test_v1_anonymous_memory(guest: Guest, case: Case, container: str) -> None:
    """The device reads and writes anonymous memory, and the accounting returns to what it was."""
    options = ("--size", "4M", "--touch", "write", "--dma-test", "--type", container)
    seen = observe(guest, case, "vfio_map", *options)
    for what in ("map", "device_read", "device_write", "unmap"):
        case.expect(what, seen[what])
    case.expect("bytes unmapped", seen["unmapped"], right=seen["size"])
    expect_accounted(case, seen)
    if "iommu_pages_first" in seen:
        # Only the end of the container frees a table of which an unmap took parts at a time.
        taken = seen["iommu_pages_mapped"] - seen["iommu_pages_first"]
        left = seen["iommu_pages_last"] - seen["iommu_pages_first"]
        if taken > 0:  # an IOMMU may have its tables elsewhere
            # The count is the system's: what somebody else gives back meanwhile is not ours.
            case.expect("iommu_pages_left", max(left, 0))
    if "refs_before" in seen:
        expect_pinned(case, seen)
        case.expect("references_left", references_left(seen))


@pytest.mark.parametrize(
    "options",
    [("--dma", "r"), ("--dma", "r", "--touch", "read"), ("--touch", "write", "--fork")],
    ids=["untouched", "read", "forked"],
)
def test_v1_private_memory(guest: Guest, case: Case, options: tuple[str, ...]) -> None:
    """The process writes to private pages once they are pinned: the device sees those very pages.

    Before, each was none, or the zero page; or a child has come to share them.
    """
    seen = observe(guest, case, "vfio_map", "--source", "anon-private", "--dma-test", *options)
    with case.gathered():
        for what in ("map", "device_read", "unmap"):
            case.expect(what, seen.get(what))
        if "--fork" in options:
            case.expect("device_write", seen.get("device_write"))
        case.expect("memory given back (KiB)", seen["locked_after"], right=seen["locked_before"])


def test_v1_movable_memory(guest: Guest, case: Case) -> None:
    """Pages leave a zone from which all must be movable before they are pinned for long."""
    name = guest.namespace("devdax1g").device.removeprefix("/dev/")
    probe = "modprobe -q kmem; test -d /sys/bus/dax/drivers/kmem"
    if guest.run(probe, check=False).status:
        case.skip("the kernel has no kmem driver", enable="set CONFIG_DEV_DAX_KMEM=m")
    guest.run(
        "echo online_movable > /sys/devices/system/memory/auto_online_blocks; "
        f"cd /sys/bus/dax/drivers; echo {name} > device_dax/unbind; echo {name} > kmem/new_id",
        timeout=60.0,
    )
    options = ("--source", "anon-private", "--touch", "write", "--dma-test")
    seen = observe(guest, case, "vfio_map", *options)
    before = seen.get("movable_before", 0)
    case.prove("the pages lie in ZONE_MOVABLE", before > 0, seen=before)
    case.expect("map", seen["map"])
    left = seen["movable_mapped"] == 0
    case.expect("all left", left, right=by_kernel(guest, case, "all_leave_movable"))
    for what in ("device_read", "device_write", "unmap"):
        case.expect(what, seen[what])
    # VFIO looks at each mapping; pin_user_pages_fast() takes what it finds in the page table.
    seen = Pins(guest, case, IO_URING).observe("--source", "anon-private", "--size", "256K")
    before = seen.get("movable_before", 0)
    case.prove("the buffer's pages lie in ZONE_MOVABLE", before > 0, seen=before)
    case.expect("io_uring", seen["pin"], right="OK")
    left = seen["movable_pinned"] == 0
    case.expect("all left a buffer", left, right=by_kernel(guest, case, "all_leave_movable"))


@pytest.mark.parametrize(
    "options",
    [("--prot", "r"), ("--prot", "none"), ("--unmapped",)],
    ids=["read-only", "no-access", "unmapped"],
)
def test_v2_forbidden_memory(guest: Guest, case: Case, options: tuple[str, ...]) -> None:
    """Memory that the process may not write, not reach, or that is not there."""
    seen = observe(guest, case, "vfio_map", *options)
    case.expect("map", seen["map"])
    expect_refused(case, seen)


def test_v5_page_cache_shared_writable(guest: Guest, case: Case) -> None:
    """VFIO refuses what io_uring refuses by the same check, and takes it where there is none."""
    with page_cache_mount(guest, "ext4") as mount:
        case.prove("the file is not DAX", not mount.is_dax, seen=hex(mount.attributes))
        options = ("--source", f"file:{mount.path}/file", "--dma-test", "--uring")
        seen = observe(guest, case, "vfio_map", *options)
        uring = seen["uring"]
        case.prove(
            "io_uring is there", uring not in ("ENOSYS", "EPERM"), enable="CONFIG_IO_URING=y"
        )
        case.expect("map", seen["map"], right=case.row.expected("where").get(uring, "refused"))
        if seen["map"] == "OK":
            case.expect("device_write", seen["device_write"])
            case.expect("file_read", seen["file_read"])
        else:
            expect_refused(case, seen)


@pytest.mark.parametrize(
    ("source", "dma"),
    [("file:{}/file", "r"), ("file:{}/file:private", "rw")],
    ids=["shared-read-dma", "private"],
)
def test_v6_page_cache(guest: Guest, case: Case, source: str, dma: str) -> None:
    """A file of ext4 without DAX, which the device only reads or has a private copy of."""
    with page_cache_mount(guest, "ext4") as mount:
        case.prove("the file is not DAX", not mount.is_dax, seen=hex(mount.attributes))
        options = ("--source", source.format(mount.path), "--dma", dma, "--dma-test")
        seen = observe(guest, case, "vfio_map", *options)
        for what in ("map", "device_read", "unmap", "file_read"):
            case.expect(what, seen[what])
        expect_accounted(case, seen)


@pytest.mark.parametrize("source", SHARED_MEMORY)
def test_v7_shared_memory(guest: Guest, case: Case, source: str) -> None:
    """Shared memory without a file system's writeback is fit for long-term pins."""
    with huge_pages(guest, case) as pages:
        for options in SHARED_MEMORY[source]:
            seen = observe(guest, case, "vfio_map", *options, "--dma-test")
            free = free_huge_pages(guest)
            for what in ("map", "device_read", "device_write", "unmap"):
                case.expect(what, seen[what])
            expect_accounted(case, seen)
            case.expect("huge pages free at the end", free, right=pages)


def test_v7_secret_memory(guest: Guest, case: Case) -> None:
    """Pages of memfd_secret are out of the kernel's own reach and must not be pinned."""
    seen = observe(guest, case, "vfio_map", "--source", "secret")
    if seen["mmap"] == "ENOSYS":
        case.skip(
            "the kernel has no memfd_secret",
            enable="set CONFIG_SECRETMEM=y (v5.14), boot with secretmem.enable=1",
        )
    case.expect("secret", seen["map"])
    expect_refused(case, seen)
