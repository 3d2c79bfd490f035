"""V20: the memory of V1-V8 and V11 mapped through iommufd instead of a type1 container."""

from __future__ import annotations

from typing import Any

import pytest

from harness.guest import Guest
from harness.pool import GuestPool, Wish
from harness.verdict.expectation import Case, NotProven
from harness.verdict.status import Status
from testcases.filesystems import NAMES, dax_mount, page_cache_mount
from testcases.vfio_steps import (
    IN_ONE_PIECE,
    OTHER_MEMORY,
    SHARED_MEMORY,
    after_unmap_in_one_piece,
    aligned,
    disable_and_enable,
    expect_access_blocked,
    expect_all,
    expect_blocked,
    expect_pinned,
    expect_refused,
    free_huge_pages,
    huge_pages,
    observe,
    references_left,
)

#: /dev/iommu with the device's own node, and /dev/iommu where a container is expected.
MODES = ("iommufd", "compat")
both = pytest.mark.parametrize("mode", MODES)
every_fs = pytest.mark.parametrize("fs", NAMES)


@pytest.fixture(scope="session")
def lacking(guests: GuestPool) -> dict[str, str]:
    """The option that the kernel was built without, for each way that it lacks.

    One guest is asked for all these tests, so that most of the time of a run on a kernel without
    iommufd does not go into guests that say the same.
    """
    with guests.guest(Wish()) as guest:
        guest.run("modprobe -q iommufd; true")
        asked = ("--device", guest.vfio("edu").address, "--type")
        facts = {mode: guest.workload("vfio_map", *asked, mode).facts for mode in MODES}
    return {mode: str(seen["missing"]) for mode, seen in facts.items() if "missing" in seen}


@pytest.fixture(autouse=True)
def has_iommufd(mode: str, lacking: dict[str, str]) -> None:
    """Skip a test whose way the kernel lacks."""
    if mode in lacking:
        needed = "CONFIG_IOMMUFD=y" + " CONFIG_VFIO_DEVICE_CDEV=y" * (mode == "iommufd")
        reason = f"the kernel was built without {lacking[mode]}"
        raise NotProven(reason, status=Status.SKIP, hint=f"set {needed}")


def through(
    guest: Guest, case: Case, mode: str, *options: str, program: str = "vfio_map"
) -> dict[str, Any]:
    """Run a VFIO workload through iommufd and return its facts."""
    guest.run("modprobe -q iommufd; true")
    return observe(guest, case, program, "--type", mode, *options)


@both
def test_v20_anonymous_memory(guest: Guest, case: Case, mode: str) -> None:
    """The device reads and writes; pins and accounting return to what they were."""
    again = ("--reattach",) if mode == "iommufd" else ()
    seen = through(guest, case, mode, "--size", "4M", "--touch", "write", "--dma-test", *again)
    for what in ("map", "device_read", "device_write", "unmap"):
        case.expect(what, seen[what])
    case.expect("bytes unmapped", seen["unmapped"], right=seen["size"])
    # Who has CAP_IPC_LOCK is not held to RLIMIT_MEMLOCK, so the pages count as pinned only.
    size = seen["size"] // 1024
    case.expect("memory pinned (KiB)", seen["pinned_mapped"] - seen["pinned_before"], right=size)
    case.expect("pins given back (KiB)", seen["pinned_after"], right=seen["pinned_before"])
    case.expect("locked given back (KiB)", seen["locked_after"], right=seen["locked_before"])
    if again:
        # No page table is left that pages would be pinned for, be it those of the device's window.
        case.expect("memory pinned, detached (KiB)", seen["pinned_detached"], right=0)
    if "refs_before" in seen:
        expect_pinned(case, seen)
        for when in ("refs_detached", "refs_after"):
            if when in seen:
                left = references_left(seen | {"refs_after": seen[when]})
                case.expect("references_left", left)
    # Pinned for reading while it is the zero page: the device sees what is written later.
    private = ("--source", "anon-private", "--touch", "read", "--dma", "r", "--dma-test")
    case.expect("device_read", through(guest, case, mode, *private)["device_read"])


@both
@pytest.mark.parametrize(
    "options",
    [("--prot", "r"), ("--prot", "none"), ("--unmapped",)],
    ids=["read-only", "no-access", "unmapped"],
)
def test_v20_forbidden_memory(
    guest: Guest, case: Case, mode: str, options: tuple[str, ...]
) -> None:
    """Memory that the process may not write, not reach, or that is not there."""
    seen = through(guest, case, mode, *options)
    case.expect("forbidden", seen["map"])
    expect_refused(case, seen)


@both
@every_fs
@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("", ("--touch", "write")),
        ("", ("--touch", "write", "--dma", "r")),
        ("", ()),
        (":private", ()),
    ],
    ids=["shared", "read-dma", "untouched", "private"],
)
def test_v20_fsdax_is_refused(
    guest: Guest, case: Case, fs: str, mode: str, how: str, options: tuple[str, ...]
) -> None:
    """No long-term pin on a file's DAX pages, and the file can be truncated right away."""
    with dax_mount(guest, case, fs) as mount:
        source = f"file:{mount.path}/file{how}"
        seen = through(guest, case, mode, "--source", source, "--truncate", *options)
        case.prove("the file is DAX", seen["dax"] == 1, seen=seen["dax"])
        case.expect("fsdax", seen["map"])
        expect_refused(case, seen)
        case.expect("truncate", seen["truncate"])


@both
@every_fs
def test_v20_private_copy(guest: Guest, case: Case, fs: str, mode: str) -> None:
    """Private pages after copy-on-write are not the file's: the file is left alone."""
    with dax_mount(guest, case, fs) as mount:
        source = f"file:{mount.path}/file:private"
        options = ("--source", source, "--touch", "write", "--dma-test", "--truncate")
        seen = through(guest, case, mode, *options)
        case.prove("the file is DAX", seen["dax"] == 1, seen=seen["dax"])
        case.prove("the private pages are copies", seen["private_written"])
        case.expect("private_copy", seen["map"])
        for what in ("device_read", "device_write", "file_read", "truncate", "unmap"):
            case.expect(what, seen[what])
        case.expect("pins given back (KiB)", seen["pinned_after"], right=seen["pinned_before"])


@both
def test_v20_fsdax_behind_anonymous_memory(guest: Guest, case: Case, mode: str) -> None:
    """One mapping of anonymous memory and then a file: what was pinned first is let go."""
    case.allow("^DMAR: DMA Read fault")  # the device is told to read from the refused range
    for fs in NAMES:
        with dax_mount(guest, case, fs) as mount:
            options = ("--source", f"file:{mount.path}/file", "--offset", "1M", "--lead", "1M")
            seen = through(guest, case, mode, *options, "--touch", "write", "--truncate")
            case.prove("the file is DAX", seen["dax"] == 1, seen=seen["dax"])
            case.expect("fsdax", seen["map"])
            for what in ("refused_read", "truncate"):
                case.expect(what, seen[what])
            expect_refused(case, seen)


@both
def test_v20_fsdax_read_only(guest: Guest, case: Case, mode: str) -> None:
    """A mapping that the process may only read, and DMA that writes."""
    for fs in NAMES:
        with dax_mount(guest, case, fs) as mount:
            options = ("--source", f"file:{mount.path}/file", "--prot", "r", "--touch", "read")
            seen = through(guest, case, mode, *options, "--truncate")
            case.expect("fsdax", seen["map"])
            expect_refused(case, seen)
            case.expect("truncate", seen["truncate"])


@both
def test_v20_page_cache_shared_writable(guest: Guest, case: Case, mode: str) -> None:
    """Refused where io_uring refuses it by the same check, taken where there is none."""
    with page_cache_mount(guest, "ext4") as mount:
        case.prove("the file is not DAX", not mount.is_dax, seen=hex(mount.attributes))
        seen = through(guest, case, mode, "--source", f"file:{mount.path}/file", "--uring")
        uring = seen["uring"]
        case.prove(
            "io_uring is there", uring not in ("ENOSYS", "EPERM"), enable="set CONFIG_IO_URING=y"
        )
        case.expect("map", seen["map"], right=case.row.expected("where").get(uring, "refused"))
        if seen["map"] != "OK":
            expect_refused(case, seen)


@both
@pytest.mark.parametrize(
    ("source", "dma"),
    [("file:{}/file", "r"), ("file:{}/file:private", "rw")],
    ids=["shared-read-dma", "private"],
)
def test_v20_page_cache(guest: Guest, case: Case, mode: str, source: str, dma: str) -> None:
    """A file of ext4 without DAX, which the device only reads or has a private copy of."""
    with page_cache_mount(guest, "ext4") as mount:
        case.prove("the file is not DAX", not mount.is_dax, seen=hex(mount.attributes))
        options = ("--source", source.format(mount.path), "--dma", dma, "--dma-test")
        seen = through(guest, case, mode, *options)
        for what in ("map", "device_read", "unmap", "file_read"):
            case.expect(what, seen[what])


def _expect_gone_with_process(case: Case, seen: dict[str, Any]) -> None:
    """Expect that a killed process's pins went with it, and its mappings."""
    case.prove("the device reached the memory", seen["device_write"] == "equal")
    if "refs_before" in seen:
        expect_pinned(case, seen)
        case.expect("references_left", references_left(seen))
    for what in ("memory", "read"):
        case.expect(what, seen[what])


@both
@pytest.mark.parametrize("source", SHARED_MEMORY)
def test_v20_shared_memory(guest: Guest, case: Case, mode: str, source: str) -> None:
    """Shared memory without a file system's writeback is fit for long-term pins."""
    case.allow("^DMAR: DMA (Read|Write) fault")  # once the process is dead
    with huge_pages(guest, case) as pages:
        for options in SHARED_MEMORY[source]:
            seen = through(guest, case, mode, *options, "--dma-test")
            free = free_huge_pages(guest)
            for what in ("map", "device_read", "device_write"):
                case.expect(what, seen[what])
            case.expect("huge pages free at the end", free, right=pages)
    if source == "memfd":
        _expect_gone_with_process(case, through(guest, case, mode, program="vfio_death"))


@both
def test_v20_secret_memory(guest: Guest, case: Case, mode: str) -> None:
    """Pages of memfd_secret are out of the kernel's own reach and must not be pinned."""
    seen = through(guest, case, mode, "--source", "secret")
    if seen["mmap"] == "ENOSYS":
        case.skip(
            "the kernel has no memfd_secret",
            enable="set CONFIG_SECRETMEM=y (v5.14), boot with secretmem.enable=1",
        )
    case.expect("secret", seen["map"])
    expect_refused(case, seen)


@both
@pytest.mark.parametrize("touch", ["none", "write"], ids=["untouched", "touched"])
@pytest.mark.parametrize(
    ("nvdimm", "size"), [("devdax2m", "4M"), ("devdax1g", "1G")], ids=["2M", "1G"]
)
def test_v20_devdax(
    guest: Guest, case: Case, mode: str, nvdimm: str, size: str, touch: str
) -> None:
    """The device reads and writes devdax; another process sees what it wrote; no pin is left."""
    source = f"dax:{guest.namespace(nvdimm).device}"
    options = ("--source", source, "--size", size, "--touch", touch, "--dma-test")
    seen = through(guest, case, mode, *options)
    for what in ("map", "device_read", "device_write", "other_process", "unmap"):
        case.expect(what, seen[what])
    case.expect("bytes unmapped", seen["unmapped"], right=seen["size"])
    case.expect("disable", disable_and_enable(guest, nvdimm))
    if "refs_before" in seen and touch == "write":
        expect_pinned(case, seen)
        case.expect("references_left", references_left(seen))


@both
def test_v20_devdax_read_only(guest: Guest, case: Case, mode: str) -> None:
    """A read-only mapping, for DMA that reads and for DMA that writes."""
    source = f"dax:{guest.namespace('devdax2m').device}"
    options = ("--source", source, "--size", "4M", "--prot", "r", "--touch", "read")
    seen = through(guest, case, mode, *options, "--dma", "r", "--dma-test")
    for what in ("map", "device_read", "other_process", "unmap"):
        case.expect(what, seen[what])
    if "refs_before" in seen:
        expect_pinned(case, seen)
        case.expect("references_left", references_left(seen))
    seen = through(guest, case, mode, *options)
    case.expect("forbidden", seen["map"])
    expect_refused(case, seen)


@both
def test_v20_devdax_small_pages(guest: Guest, case: Case, mode: str) -> None:
    """A namespace of 4 KiB pages, mapped from an offset that is no multiple of 2 MiB."""
    with aligned(guest, "devdax2m", "4K") as device:
        options = ("--size", "2052K", "--offset", "12K", "--touch", "write", "--dma-test")
        seen = through(guest, case, mode, "--source", f"dax:{device}", *options)
        for what in ("map", "device_read", "device_write", "other_process", "unmap"):
            case.expect(what, seen[what])


@both
@pytest.mark.parametrize("touch", ["none", "read"], ids=["untouched", "touched"])
def test_v20_bar_is_refused(guest: Guest, case: Case, mode: str, touch: str) -> None:
    """A BAR is no memory with pages, and iommufd pins pages."""
    seen = through(guest, case, mode, "--touch", touch, program="vfio_bar")
    case.expect("bar", seen["map"])
    case.expect("left_mapped", seen["left_mapped"])


@both
def test_v20_ranges(guest: Guest, case: Case, mode: str) -> None:
    """IOVA ranges in use, split, reserved, out of reach or misaligned; unmaps of parts and many."""
    case.allow("^DMAR: DMA Read fault")  # the device looks whether it still reaches the range
    seen = through(guest, case, mode, program="vfio_ranges")
    expect_all(case, seen, "ranges", mode)
    case.expect("memory accounted (KiB)", seen["locked_after"], right=seen["locked_before"])
    if mode == "iommufd":
        case.allow("^DMAR: DMA Write fault")  # it is told to write to a copy that is read only
        _expect_copies(case, through(guest, case, mode, program="iommufd_copy"))
    if mode == "compat":
        # In the place of a type1 container of old it splits a mapping of which a part is unmapped.
        seen = observe(guest, case, "vfio_ranges", "--type", "compat-type1")
        expect_all(case, seen, "split")
        case.expect("memory accounted (KiB)", seen["locked_after"], right=seen["locked_before"])


def _expect_copies(case: Case, seen: dict[str, Any]) -> None:
    """Expect that pages stay pinned as long as one IOVA leads to them, and are pinned once."""
    expect_all(case, seen, "copy")
    size = 256
    for when, right in (
        ("mapped", size),
        ("copy", size),
        ("after", 0),
        ("elsewhere", 0),
        ("end", 0),
        ("to_move", size),
        ("moved", size // 2),
        ("back", size),
        ("last", 0),
    ):
        pinned = seen[f"pinned_{when}"] - seen["pinned_before"]
        case.expect(f"memory pinned, {when} (KiB)", pinned, right=right)
    if "refs_before" not in seen:
        return
    for when in ("mapped", "copy"):
        now = seen[f"refs_{when}"]
        expect_pinned(case, seen | {"refs_mapped": now})
        # GUP_PIN_COUNTING_BIAS: what a small page's count grows by with each pin.
        more = [after - before for before, after in zip(seen["refs_before"], now, strict=True)]
        case.expect("pages pinned twice", max(more) >= 2 * 1024, right=False)
    for when in ("after", "elsewhere", "end", "last"):
        left = references_left(seen | {"source": "memfd", "refs_after": seen[f"refs_{when}"]})
        case.expect("references_left", left)
    # Mapped where the device is: the first half, whose last page is the "middle" one of the whole.
    for when, pages in (("to_move", [True] * 3), ("moved", [True, True, False])):
        pairs = zip(seen["refs_before"], seen[f"refs_{when}"], strict=True)
        pinned = [now - then >= 1024 for then, now in pairs]
        case.expect(f"pages pinned, {when}", pinned, right=pages)


@both
def test_v20_memlock(guest: Guest, case: Case, mode: str) -> None:
    """Of 64 KiB that may be locked all are to be had: the device's own window was mapped before."""
    for size in ("64K", "68K", "16M"):
        seen = through(guest, case, mode, "--memlock", "64K", "--size", size, "--touch", "write")
        if size == "64K":
            case.expect("map", seen["map"])
            case.expect("map_again", seen["map_again"])
        else:
            case.expect("beyond", seen["map"])
            expect_refused(case, seen)
        case.expect("pins given back (KiB)", seen["pinned_after"], right=seen["pinned_before"])


@both
def test_v20_other_memory(guest: Guest, case: Case, mode: str) -> None:
    """Other memory at an IOVA that was just in use: the device reaches that, and not the old."""
    with huge_pages(guest, case):
        for options in OTHER_MEMORY:
            seen = through(guest, case, mode, *options, program="vfio_fault")
            for what in ("device_read", "device_write", "memory"):
                case.expect(what, seen[what])


@both
@pytest.mark.parametrize("how", ["read-only", "write-only", "downgrade", "after-unmap"])
def test_v20_blocked_access(guest: Guest, case: Case, mode: str, how: str) -> None:
    """What the mapping does not allow does not happen, and the IOMMU says so."""
    case.allow("^DMAR: DMA (Read|Write) fault")
    seen = through(guest, case, mode, "--case", how, program="vfio_fault")
    expect_access_blocked(guest, case, how, seen)


@both
@pytest.mark.parametrize("iova", IN_ONE_PIECE, ids=IN_ONE_PIECE.get)
def test_v20_after_unmap_in_one_piece(guest: Guest, case: Case, mode: str, iova: int) -> None:
    """Memory in one piece goes from the IOMMU at once: no later piece covers for its flush."""
    case.allow("^DMAR: DMA (Read|Write) fault")
    options = after_unmap_in_one_piece(iova)
    with huge_pages(guest, case):
        seen = through(guest, case, mode, *options, program="vfio_fault")
    expect_blocked(case, seen, iova)
