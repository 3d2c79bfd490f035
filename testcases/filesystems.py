"""The DAX file systems that testcases make, and on which NVDIMM."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from harness.guest import Guest
from harness.guest.guest import Mount
from harness.verdict.expectation import Case

NAMES = ("ext4", "xfs")

_NAMESPACE = {"ext4": "fsdax0", "xfs": "fsdax1"}

# xfs refuses DAX together with reflink before 6.0, and mkfs.xfs has turned reflink on since 5.1.
_MKFS = {"ext4": ("-b", "4096"), "xfs": ("-m", "reflink=0")}


@contextlib.contextmanager
def dax_mount(guest: Guest, case: Case, fs: str, *, mkfs: tuple[str, ...] = ()) -> Iterator[Mount]:
    """Make ``fs`` on its NVDIMM, mount it with dax=always and prove that its files are DAX."""
    namespace = guest.namespace(_NAMESPACE[fs])
    with guest.mounted(namespace, fs, dax="always", mkfs=(*_MKFS[fs], *mkfs)) as mount:
        case.prove("files of the mount are DAX", mount.is_dax, seen=hex(mount.attributes))
        yield mount


@contextlib.contextmanager
def page_cache_mount(guest: Guest, fs: str) -> Iterator[Mount]:
    """As dax_mount(), but with dax=never: the same device through the page cache."""
    with guest.mounted(guest.namespace(_NAMESPACE[fs]), fs, dax="never", mkfs=_MKFS[fs]) as mount:
        yield mount


@contextlib.contextmanager
def inode_mount(guest: Guest, fs: str) -> Iterator[Mount]:
    """As dax_mount(), but with dax=inode: each file's flag decides."""
    with guest.mounted(guest.namespace(_NAMESPACE[fs]), fs, dax="inode", mkfs=_MKFS[fs]) as mount:
        yield mount


def give_up_reserves(guest: Guest, mount: Mount) -> None:
    """Let a file have every block: both file systems keep some back for themselves.

    Without it blocks that an operation frees are not needed when the file system is full.
    """
    if mount.fstype == "ext4":
        device = mount.namespace.device.removeprefix("/dev/")
        guest.run(f"echo 0 > /sys/fs/ext4/{device}/reserved_clusters")
    else:
        guest.run(f"xfs_io -x -c 'resblks 0' {mount.path}")
