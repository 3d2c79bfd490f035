"""P1-P5: long-term pins by io_uring, RDMA, AF_XDP, V4L2 and gup_test."""

from __future__ import annotations

import pytest

from harness.guest import Guest
from harness.verdict.expectation import Case
from testcases.filesystems import NAMES, dax_mount, page_cache_mount
from testcases.pinners import (
    GUP_ONCE,
    IO_URING,
    RDMA,
    VIVID,
    XDP,
    Pins,
    checks_files,
    gup_ways,
    iouring_calls,
)
from testcases.vfio_steps import huge_pages

every_fs = pytest.mark.parametrize("fs", NAMES)
touched = pytest.mark.parametrize("touch", ["none", "write"], ids=["untouched", "touched"])


def _devdax(guest: Guest) -> tuple[str, ...]:
    return ("--source", f"dax:{guest.namespace('devdax2m').device}")


def test_p1_anonymous_memory(guest: Guest, case: Case) -> None:
    """A buffer is pinned while it is registered, and no longer; its ring's end is its own."""
    pins = Pins(guest, case, IO_URING)
    pins.expect_all_or_nothing("anonymous", "--source", "anon-private")
    pins.expect_all_or_nothing("shared", "--source", "anon", "--touch", "half")
    pins.expect_all_or_nothing("memfd", "--source", "memfd", "--end")
    # With no refusal before it: that goes the slow way, which marks the process by itself.
    shared = ("--source", "anon-private", "--size", "256K", "--fork-after")
    pins.expect_taken("before a fork", *shared, charged="pinned_kib_forked")
    # Some bytes of a first page and of a last one: a page more than the bytes would fill.
    options = ("--source", "memfd", "--inside", "2040", "--size", "2097151")
    pins.expect_limited(*options, "--partly")


def test_p1_buffers_change_hands(guest: Guest, case: Case) -> None:
    """What a slot gives up is let go of, and what two rings have when both have let go of it."""
    pins = Pins(guest, case, IO_URING)
    pins.expect_table("buffers", "update", "--case", "update")
    pins.expect_table("buffers", "clone", "--case", "clone")


def test_p1_shared_memory(guest: Guest, case: Case) -> None:
    """Of large folios io_uring keeps one entry each, and has to find the right page by it."""
    pins = Pins(guest, case, IO_URING)
    with huge_pages(guest, case):
        options = ("--source", "hugetlb", "--size", "4M", "--inside", "12K")
        pins.expect_taken("a part of huge pages", *options, charged="pinned_kib_huge")
    pins.expect_large_folios_taken()


@every_fs
def test_p1_fsdax_is_refused(guest: Guest, case: Case, fs: str) -> None:
    """No registered buffer on a file's DAX pages, and the file can be truncated right away."""
    pins = Pins(guest, case, IO_URING)
    pins.prove_working()
    with dax_mount(guest, case, fs) as mount:
        if fs == "ext4":  # xfs would have to be made anew to have 2 MiB pages
            pins.expect_huge_refused(mount.path, case.row.expected("fsdax"))
        pins.expect_fsdax_refused(f"{mount.path}/file", case.row.expected("fsdax"))


@every_fs
def test_p1_private_copy(guest: Guest, case: Case, fs: str) -> None:
    """Private pages after copy-on-write: what is pinned, if anything, is not the file's."""
    pins = Pins(guest, case, IO_URING)
    right = case.row.expected("private_copy")[iouring_calls(pins)]
    with dax_mount(guest, case, fs) as mount:
        seen = pins.observe_private_copy(f"{mount.path}/file")
        pins.judge("private_copy", seen, right)


@touched
def test_p1_devdax(guest: Guest, case: Case, touch: str) -> None:
    """Devdax pages are fit for long-term pins; the io_uring of old takes no files at all."""
    pins = Pins(guest, case, IO_URING)
    right = case.row.expected("devdax")[checks_files(pins)]
    pins.expect_taken("devdax", *_devdax(guest), "--touch", touch, right=right)


@touched
def test_p1_page_cache(guest: Guest, case: Case, touch: str) -> None:
    """A shared file of ext4 without DAX, which writeback would not see written to."""
    pins = Pins(guest, case, IO_URING)
    right = case.row.expected("page_cache")[checks_files(pins)]
    with page_cache_mount(guest, "ext4") as mount:
        case.prove("the file is not DAX", not mount.is_dax, seen=hex(mount.attributes))
        source = f"file:{mount.path}/file"
        seen = pins.observe("--source", source, "--touch", touch, "--truncate")
        pins.judge("page_cache", seen, right)


@every_fs
def test_p2_fsdax_is_refused(guest: Guest, case: Case, fs: str) -> None:
    """No memory region on a file's DAX pages, not even one that is only read."""
    pins = Pins(guest, case, RDMA)
    pins.prove_working()
    with dax_mount(guest, case, fs) as mount:
        if fs == "ext4":
            pins.expect_huge_refused(mount.path, case.row.expected("fsdax"))
        pins.expect_fsdax_refused(f"{mount.path}/file", case.row.expected("fsdax"))


@pytest.mark.parametrize("access", ["r", "rw"])
def test_p2_anonymous_memory(guest: Guest, case: Case, access: str) -> None:
    """A memory region is pinned from its registration to its end, or its device's."""
    pins = Pins(guest, case, RDMA)
    pins.expect_all_or_nothing("anonymous", "--access", access, "--end")
    pins.expect_limited("--access", access, "--inside", "2040", "--partly")
    if access == "r":
        pins.expect_kept_when_shared("--access", access)
        pins.expect_secret_refused()


@touched
def test_p2_devdax(guest: Guest, case: Case, touch: str) -> None:
    """A memory region on devdax, whose pages may be in the page table or not."""
    pins = Pins(guest, case, RDMA)
    right = case.row.expected("devdax")
    pins.expect_taken("devdax", *_devdax(guest), "--touch", touch, right=right)


@every_fs
def test_p3_fsdax_is_refused(guest: Guest, case: Case, fs: str) -> None:
    """No packets are received into a file's DAX pages."""
    pins = Pins(guest, case, XDP)
    pins.prove_working()
    with dax_mount(guest, case, fs) as mount:
        pins.expect_fsdax_refused(f"{mount.path}/file", case.row.expected("fsdax"))


def test_p3_anonymous_memory(guest: Guest, case: Case) -> None:
    """A umem is pinned until its socket is closed, and is one that makes sense."""
    pins = Pins(guest, case, XDP)
    pins.expect_all_or_nothing("anonymous")
    pins.expect_limited("--size", "2050K")  # it ends with half a page
    pins.expect_table("umem", "umem")


def test_p3_partly_mapped_memory(guest: Guest, case: Case) -> None:
    """Nothing stays charged of a umem of which a part only could be pinned."""
    Pins(guest, case, XDP).expect_limited("--partly")


@every_fs
def test_p4_fsdax_is_refused(guest: Guest, case: Case, fs: str) -> None:
    """Neither camera nor display is given a file's DAX pages."""
    pins = Pins(guest, case, VIVID)
    pins.prove_working()
    with dax_mount(guest, case, fs) as mount:
        if fs == "ext4":
            pins.expect_huge_refused(mount.path, case.row.expected("fsdax"))
        pins.expect_fsdax_refused(f"{mount.path}/file", case.row.expected("fsdax"))


@pytest.mark.parametrize("access", ["r", "rw"], ids=["display", "camera"])
def test_p4_anonymous_memory(guest: Guest, case: Case, access: str) -> None:
    """A queued buffer is pinned until the queue is given up."""
    pins = Pins(guest, case, VIVID)
    pins.expect_all_or_nothing("anonymous", "--access", access)


@every_fs
def test_p5_fsdax_is_refused(guest: Guest, case: Case, fs: str) -> None:
    """pin_user_pages() and pin_user_pages_fast() themselves."""
    ways = gup_ways(guest, case)
    with dax_mount(guest, case, fs) as mount:
        for pins in ways:
            key = "benchmark_fsdax" if pins.pinner is GUP_ONCE else "fsdax"
            if fs == "ext4":
                pins.expect_huge_refused(mount.path, case.row.expected(key))
            pins.expect_fsdax_refused(f"{mount.path}/file", case.row.expected(key))
            seen = pins.observe_private_copy(f"{mount.path}/file")
            right = case.row.expected("private_copy")[pins.pinner.name]
            pins.judge(f"{pins.pinner.name}, private copy", seen, right)


def test_p5_anonymous_memory(guest: Guest, case: Case) -> None:
    """What gup_test pins it gives back, be it private, shared, or a file of no file system's."""
    for pins in gup_ways(guest, case):
        for source in ("anon-private", "anon", "memfd"):
            pins.expect_all_or_nothing(source, "--source", source)


@touched
def test_p5_devdax(guest: Guest, case: Case, touch: str) -> None:
    """Devdax pages are fit for long-term pins."""
    right = case.row.expected("devdax")
    for pins in gup_ways(guest, case):
        pins.expect_taken("devdax", *_devdax(guest), "--touch", touch, right=right)
