"""V3, V4, V8, V9, V10, V19: DAX memory mapped for DMA."""

from __future__ import annotations

import pytest

from harness.guest import Guest
from harness.verdict.expectation import Case
from testcases.filesystems import NAMES, dax_mount
from testcases.vfio_steps import (
    aligned,
    by_kernel,
    disable_and_enable,
    expect_mapped,
    expect_pinned,
    expect_refused,
    observe,
    prove_oracle,
    references_left,
)

#: Tables that the IOMMU may take for 1 GiB: pages of 2 MiB need one or two, small ones 512.
_FEW_TABLES = 8

every_fs = pytest.mark.parametrize("fs", NAMES)


@every_fs
@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("", ("--touch", "write")),
        ("", ("--touch", "write", "--dma", "r")),
        ("", ()),
        (":private", ()),
        (":private", ("--touch", "write")),
    ],
    ids=["shared", "read-dma", "untouched", "private", "private-copied"],
)
def test_v3_fsdax_is_refused(
    guest: Guest, case: Case, fs: str, how: str, options: tuple[str, ...]
) -> None:
    """No long-term pin on a file's DAX pages, and the file can be truncated right away."""
    with dax_mount(guest, case, fs) as mount:
        source = f"file:{mount.path}/file{how}"
        seen = observe(guest, case, "vfio_map", "--source", source, "--truncate", *options)
        case.prove("the file is DAX", seen["dax"] == 1, seen=seen["dax"])
        if how and options:
            copied = seen["private_written"] and seen["file_read"] == "equal"
            case.prove("the private pages are copies", copied, seen=seen["file_read"])
        case.expect("map", seen["map"])
        expect_refused(case, seen)
        case.expect("truncate", seen["truncate"])


def test_v3_fsdax_is_refused_by_type1(guest: Guest, case: Case) -> None:
    """The container of old looks at the same thing."""
    with dax_mount(guest, case, "ext4") as mount:
        options = ("--source", f"file:{mount.path}/file", "--touch", "write", "--type", "type1")
        seen = observe(guest, case, "vfio_map", *options, "--truncate")
        case.prove("the file is DAX", seen["dax"] == 1, seen=seen["dax"])
        case.expect("map", seen["map"])
        expect_refused(case, seen)
        case.expect("truncate", seen["truncate"])


@every_fs
def test_v3_fsdax_behind_anonymous_memory(guest: Guest, case: Case, fs: str) -> None:
    """One DMA mapping of anonymous memory and then a file: what was pinned first is let go."""
    case.allow("^DMAR: DMA Read fault")  # the device is told to read from the refused range
    with dax_mount(guest, case, fs) as mount:
        options = ("--source", f"file:{mount.path}/file", "--offset", "1M", "--lead", "1M")
        seen = observe(guest, case, "vfio_map", *options, "--touch", "write", "--truncate")
        case.prove("the file is DAX", seen["dax"] == 1, seen=seen["dax"])
        for what in ("map", "refused_read", "truncate"):
            case.expect(what, seen[what])
        expect_refused(case, seen)


@every_fs
def test_v4_fsdax_read_only(guest: Guest, case: Case, fs: str) -> None:
    """A mapping that the process may only read, and DMA that writes."""
    with dax_mount(guest, case, fs) as mount:
        options = ("--source", f"file:{mount.path}/file", "--prot", "r", "--touch", "read")
        seen = observe(guest, case, "vfio_map", *options, "--truncate")
        case.expect("map", seen["map"], right=by_kernel(guest, case, "map"))
        expect_refused(case, seen)
        case.expect("truncate", seen["truncate"])


def _expect_devdax_used(guest: Guest, case: Case, *options: str) -> None:
    """Expect that a device reads and writes all of it, and that each byte is unmapped."""
    seen = observe(guest, case, "vfio_map", *options, "--dma-test")
    expect_mapped(case, seen)
    for what in ("map", "device_read", "device_write", "other_process", "unmap"):
        case.expect(what, seen[what])
    case.expect("bytes unmapped", seen["unmapped"], right=seen["size"])
    if seen["size"] >= 1 << 30 and "iommu_pages_before" in seen:
        taken = seen["iommu_pages_mapped"] - seen["iommu_pages_before"]
        case.fact("pages of the IOMMU's tables", taken)
        case.expect("huge_pages", taken <= _FEW_TABLES)


@pytest.mark.parametrize("touch", ["none", "write"], ids=["untouched", "touched"])
@pytest.mark.parametrize(
    ("nvdimm", "size"), [("devdax2m", "4M"), ("devdax1g", "1G")], ids=["2M", "1G"]
)
def test_v8_devdax(guest: Guest, case: Case, nvdimm: str, size: str, touch: str) -> None:
    """The device reads and writes devdax; another process sees what it wrote."""
    source = f"dax:{guest.namespace(nvdimm).device}"
    options = ("--source", source, "--size", size, "--touch", touch)
    _expect_devdax_used(guest, case, *options)


def test_v8_devdax_by_type1(guest: Guest, case: Case) -> None:
    """The same through the container of old."""
    source = f"dax:{guest.namespace('devdax2m').device}"
    options = ("--source", source, "--size", "4M", "--touch", "write", "--type", "type1")
    _expect_devdax_used(guest, case, *options)


def test_v8_devdax_read_only(guest: Guest, case: Case) -> None:
    """A read-only mapping with read-only DMA."""
    source = f"dax:{guest.namespace('devdax2m').device}"
    options = ("--source", source, "--size", "4M", "--prot", "r", "--dma", "r", "--dma-test")
    seen = observe(guest, case, "vfio_map", *options)
    expect_mapped(case, seen)
    for what in ("map", "device_read", "other_process", "unmap"):
        case.expect(what, seen[what])


def test_v8_devdax_small_pages(guest: Guest, case: Case) -> None:
    """A namespace of 4 KiB pages, mapped from an offset that is no multiple of 2 MiB."""
    with aligned(guest, "devdax2m", "4K") as device:
        options = ("--size", "2052K", "--offset", "12K", "--touch", "write", "--dma-test")
        seen = observe(guest, case, "vfio_map", "--source", f"dax:{device}", *options)
        expect_mapped(case, seen)
        for what in ("map", "device_read", "device_write", "other_process", "unmap"):
            case.expect(what, seen[what])


@pytest.mark.parametrize("container", ["type1", "type1v2"])
def test_v9_devdax_pins_are_given_back(guest: Guest, case: Case, container: str) -> None:
    """Unmapping takes back every reference that mapping took, and the namespace is free."""
    source = f"dax:{guest.namespace('devdax2m').device}"
    options = ("--source", source, "--size", "4M", "--touch", "write", "--type", container)
    seen = observe(guest, case, "vfio_map", *options)
    expect_mapped(case, seen)
    prove_oracle(case, seen)
    with case.gathered():
        case.expect("map", seen["map"])
        expect_pinned(case, seen)
        case.expect("unmap", seen.get("unmap"))
        case.expect("references_left", references_left(seen))
        case.expect("disable", disable_and_enable(guest, "devdax2m"))


@pytest.mark.parametrize(
    ("how", "options"),
    [(":private", ()), ("", ("--size", "1M")), ("", ("--offset", "4K", "--size", "4M"))],
    ids=["private", "length", "offset"],
)
def test_v10_devdax_mmap(guest: Guest, case: Case, how: str, options: tuple[str, ...]) -> None:
    """What device-dax does not map at all.

    The offset: for a mapping with an aligned part dax_get_unmapped_area() picks an address that
    lies as the offset does.  For a shorter one it takes any, an aligned one as well (row N5).
    """
    source = f"dax:{guest.namespace('devdax2m').device}{how}"
    seen = observe(guest, case, "vfio_map", "--source", source, *options)
    case.expect("mmap", seen["mmap"])


@pytest.mark.parametrize(
    ("memory", "how"),
    [("devdax", "kill"), ("memfd", "kill"), ("memfd", "exec"), ("memfd", "heir")],
    ids=["devdax-kill", "memfd-kill", "memfd-exec", "memfd-inherited"],
)
def test_v19_ends_with_mappings(guest: Guest, case: Case, memory: str, how: str) -> None:
    """A process ends, or becomes another program: its pins go with it, and so do its mappings.

    Inherited: a child has the files of the killed process, so all stays pinned until it is killed.
    """
    case.allow("^DMAR: DMA (Read|Write) fault")
    source = f"dax:{guest.namespace('devdax2m').device}" if memory == "devdax" else memory
    seen = observe(guest, case, "vfio_death", "--source", source, "--how", how)
    prove_oracle(case, seen)
    case.prove("the device reached the memory", seen["device_write"] == "equal")
    with case.gathered():
        expect_pinned(case, seen)
        if how == "heir":
            expect_pinned(case, seen | {"refs_mapped": seen["refs_inherited"]})
        case.expect("references_left", references_left(seen))
        for what in ("memory", "read"):
            case.expect(what, seen[what])
        if memory == "devdax":
            case.expect("disable", disable_and_enable(guest, "devdax2m"))
