"""The DAX file systems that testcases make, and on which NVDIMM."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from harness import dax
from harness.guest import Guest
from harness.guest.filesystem import MKFS, Mount, unmount_command
from harness.verdict.expectation import Case

NAMES = ("ext4", "xfs")

NAMESPACE = {"ext4": "fsdax0", "xfs": "fsdax1"}

#: What puts large files on 2 MiB borders, for mkfs.
ALIGNED = {"ext4": ("-E", "stride=512,stripe-width=512"), "xfs": ("-d", "su=2m,sw=1")}

#: A status that no file system's checker has.
_STILL_MOUNTED = 99
# In the shell alone: under TCG a program costs what the whole of a small check does.
_CHECK = f"""
while read -r _ path _; do [ "$path" != {{path}} ] || exit {_STILL_MOUNTED}; done </proc/mounts
{{program}} {{device}} 2>&1
"""


@contextlib.contextmanager
def dax_mount(
    guest: Guest, case: Case, fs: str, *, mkfs: tuple[str, ...] = (), nvdimm: str | None = None
) -> Iterator[Mount]:
    """Make ``fs``, mount it with dax=always and prove that its files are DAX.

    It lies on ``nvdimm``, or on the file system's own of the default machine.  SKIP where the
    kernel has DAX for no file system.
    """
    namespace = guest.namespace(nvdimm or NAMESPACE[fs])
    words = (*MKFS[fs], *mkfs) if mkfs else ()
    with dax.mounted(guest, namespace, fs, mkfs=words) as mount:
        case.prove("files of the mount are DAX", mount.is_dax, seen=hex(mount.attributes))
        yield mount


@contextlib.contextmanager
def huge_mount(guest: Guest, case: Case, fs: str) -> Iterator[Mount]:
    """As dax_mount(); new files lie on 2 MiB boundaries of the device, for huge pages to map."""
    with dax_mount(guest, case, fs, mkfs=ALIGNED[fs]) as mount:
        if fs == "xfs":
            guest.run(f"xfs_io -c 'extsize 2m' {mount.path}")
        yield mount


@contextlib.contextmanager
def reflinking_mount(guest: Guest, case: Case) -> Iterator[Mount]:
    """Mount xfs with DAX and reflink, which v6.0 was the first to have at once."""
    mkfs = ("-m", "reflink=1", *ALIGNED["xfs"])
    with guest.mounted(guest.namespace(NAMESPACE["xfs"]), "xfs", mkfs=mkfs) as mount:
        enable = "set CONFIG_FS_DAX=y, from 6.0 on"
        case.prove("files of the mount are DAX", mount.is_dax, enable=enable)
        yield mount


@contextlib.contextmanager
def mounted_again(guest: Guest, fs: str) -> Iterator[Mount]:
    """Mount with dax=always what an earlier boot made with dax_mount()."""
    with guest.mounted(guest.namespace(NAMESPACE[fs]), fs, dax="always", mkfs=None) as mount:
        yield mount


@contextlib.contextmanager
def page_cache_mount(guest: Guest, fs: str) -> Iterator[Mount]:
    """As dax_mount(), but with dax=never: the same device through the page cache."""
    with guest.mounted(guest.namespace(NAMESPACE[fs]), fs, dax="never") as mount:
        yield mount


@contextlib.contextmanager
def inode_mount(guest: Guest, fs: str) -> Iterator[Mount]:
    """As dax_mount(), but with dax=inode: each file's flag decides."""
    with guest.mounted(guest.namespace(NAMESPACE[fs]), fs, dax="inode") as mount:
        yield mount


@contextlib.contextmanager
def undaxable_device(guest: Guest, fs: str, lacks: str) -> Iterator[str]:
    """Make ``fs`` of 1 KiB blocks ("page-sized blocks") or on a loop device ("a DAX device")."""
    image = "/dev/shm/nvh-undaxable"
    guest.run(f"mkdir -p /mnt/undaxable; modprobe -q {fs}; modprobe -q loop; true")
    force = {"ext4": "-qF", "xfs": "-qf -m reflink=0"}[fs]
    device = guest.namespace(NAMESPACE[fs]).device
    if lacks == "page-sized blocks":
        guest.run(f"mkfs.{fs} {force} {'-b 1024' if fs == 'ext4' else '-b size=1024'} {device}")
    else:
        made = guest.run(
            f"truncate -s 400M {image} && mkfs.{fs} {force} {image} && losetup -f --show {image}"
        )
        device = made.stdout.split()[-1]
    try:
        yield device
    finally:
        guest.run(f"umount /mnt/undaxable 2>/dev/null; losetup -D; rm -f {image}", check=False)


def no_periodic_writeback(guest: Guest) -> None:
    """Keep the kernel from writing back between a store and its sync what the sync is to."""
    guest.run("echo 0 > /proc/sys/vm/dirty_writeback_centisecs")


def extent_of(guest: Guest, mount: Mount, file: str, offset: int) -> tuple[int, int]:
    """Return where a file's byte lies in memory, a physical address, and how much lies with it."""
    block = f"/sys/block/{mount.namespace.device.removeprefix('/dev/')}/device/resource"
    said = guest.run(f"xfs_io -r -c 'fiemap' {file}; cat {block}").stdout.splitlines()
    for line in said[1:-1]:
        # "0: [0..16383]: 8192..24575", in units of 512 bytes; a hole has no numbers.
        found = re.fullmatch(r"\s*\d+: \[(\d+)\.\.(\d+)\]: (\d+)\.\.\d+", line)
        if found and int(found[1]) * 512 <= offset <= int(found[2]) * 512:
            into = offset - int(found[1]) * 512
            start = int(said[-1], 0) + int(found[3]) * 512 + into
            return start, (int(found[2]) + 1) * 512 - offset
    return 0, 0


@contextlib.contextmanager
def ext2_mount(guest: Guest) -> Iterator[tuple[str, str]]:
    """Mount ext2 with -o dax; gives the path and what the kernel said of it."""
    path, device = "/mnt/ext2", guest.namespace("fsdax0").device
    guest.run(f"mkdir -p {path}; modprobe -q ext4; mkfs.ext2 -qF -b 4096 {device}")
    guest.run(f"mount -t ext2 -o dax {device} {path}")
    words = guest.run("dmesg | grep 'EXT.-fs (pmem' | tail -n 4").stdout
    try:
        yield path, words
    finally:
        guest.run(f"umount {path}", check=False)


def remounted(guest: Guest, mount: Mount) -> str:
    """Unmount, check and mount again; return the checker's words as unmounted_state() does."""
    guest.run(unmount_command(mount.path))
    state = unmounted_state(guest, mount)
    device = mount.namespace.device
    guest.run(f"mount -t {mount.fstype} -o dax={mount.dax} {device} {mount.path}")
    return state


def checked(guest: Guest, mount: Mount) -> str:
    """Unmount and check; return the checker's words as unmounted_state() does."""
    guest.run(unmount_command(mount.path), check=False)
    return unmounted_state(guest, mount)


def unmounted_state(guest: Guest, mount: Mount) -> str:
    """Return "clean", "mounted" or the checker's last words, which changes nothing."""
    program = {"ext4": "e2fsck -fn", "xfs": "xfs_repair -n"}[mount.fstype]
    check = _CHECK.format(path=mount.path, program=program, device=mount.namespace.device)
    done = guest.run(check, timeout=60.0, check=False)
    if done.status == _STILL_MOUNTED:
        return "mounted"
    return "clean" if done.status == 0 else (done.stdout.strip().splitlines() or ["silent"])[-1]


def give_up_reserves(guest: Guest, mount: Mount) -> None:
    """Let a file have every block: both file systems keep some back for themselves.

    Without it blocks that an operation frees are not needed when the file system is full.
    """
    if mount.fstype == "ext4":
        device = mount.namespace.device.removeprefix("/dev/")
        guest.run(f"echo 0 > /sys/fs/ext4/{device}/reserved_clusters")
    else:
        guest.run(f"xfs_io -x -c 'resblks 0' {mount.path}")
