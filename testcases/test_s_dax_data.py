"""What DAX files hold: through mappings, read() and write(), after a sync and after a remount."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from harness.guest import Guest
from harness.guest.filesystem import MKFS, Mount
from harness.verdict.expectation import Case
from testcases.filesystems import (
    ALIGNED,
    NAMES,
    NAMESPACE,
    dax_mount,
    huge_mount,
    no_periodic_writeback,
    reflinking_mount,
    remounted,
    unmounted_state,
)

every_fs = pytest.mark.parametrize("fs", NAMES)
#: Where threads crowd: what they wait for is the same code for both file systems and sizes.
_CROWD = ("xfs", "2M")

#: Where a write ends early: ext4 keeps no blocks beyond the end in reserve, as xfs does.
_APPENDED = ("ext4", "2M")

every_size = pytest.mark.parametrize("size", ["4K", "2M"])


@every_fs
@every_size
def test_s12_content(guest: Guest, case: Case, fs: str, size: str) -> None:
    """Every way to change a file is seen by every way to look at it, and after a remount."""
    small = ("--small",) if size == "4K" else ()
    with dax_mount(guest, case, fs, mkfs=ALIGNED[fs]) as mount:
        directory = f"{mount.path}/d"
        hint = f"xfs_io -c 'extsize 2m' {directory}" if fs == "xfs" else "true"
        guest.run(f"mkdir {directory} && {hint}")
        facts = guest.workload("dax_data", "--directory", directory, *small).facts
        case.prove("the files are DAX", facts.pop("dax"))
        for name, seen in facts.items():
            case.expect(name, seen)
        if (fs, size) == _APPENDED:
            facts = guest.workload("short_write", "--file", f"{directory}/short").facts
            case.prove("less was written than asked for", facts["written"] > 0)
            for key in ("missing_in_size", "bytes_beyond", "short_data"):
                case.expect(key, facts[key])
        with case.gathered():
            if (fs, size) == _CROWD and not _no_thread_is_left_asleep(guest, case, directory):
                return  # nor is a file that such a one holds ever unmounted
            sums = f"cd {directory} && cksum *"
            before = guest.run(sums).stdout.splitlines()
            case.expect("file system", remounted(guest, mount), right="clean")
            case.expect("files after a remount", guest.run(sums).stdout.splitlines(), right=before)


def _no_thread_is_left_asleep(guest: Guest, case: Case, directory: str) -> bool:
    """Expect that who waits for an entry of the page cache is woken, whoever is there with it."""
    facts = guest.workload("crowd", "--directory", directory).facts
    checks = (
        "stores_to_one_page", "stores_and_writes", "stores_to_one_hole", "stores_while_synced",
    )  # fmt: skip
    # Behind one that does not end there is none.
    for name in checks:
        if name in facts:
            case.expect(name, facts[name])
    if "probe_missing" in facts:
        case.fact("nobody says that threads met", facts["probe_missing"])
    elif not facts["hung"]:
        for name in checks:
            woken = facts[f"{name}_woken"]
            case.prove(f"{name}: threads waited for one another", woken > 0, seen=woken)
    return not facts["hung"]


@every_fs
@every_size
def test_s13_what_is_written_back(guest: Guest, case: Case, fs: str, size: str) -> None:
    """A sync writes back what was stored since the last one: all of it, and nothing else."""
    small = ("--small",) if size == "4K" else ()
    no_periodic_writeback(guest)
    with huge_mount(guest, case, fs) as mount:
        options = ("--file", f"{mount.path}/a", "--device", mount.namespace.device, *small)
        facts = guest.workload("writeback", *options).facts
    case.prove("the file is DAX", facts["dax"])
    if "trace_missing" in facts:
        case.skip(f"no tracepoints: {facts['trace_missing']}", enable="set CONFIG_FTRACE=y")
    huge = facts["huge"]
    case.prove(f"what was read is mapped by {size}", (huge > 0) == (size == "2M"), seen=huge)
    case.prove("MAP_SYNC had its block made durable", facts["sync_faults"] > 0)
    stored = {
        "stored": (3, 4, 700),
        "nothing": (),
        "again": (4,),
        "elsewhere": (700,),
        "read": (),
        "read_before": (5,),
        "direct_read": (5,),
        "part": (20,),
        "part_again": (20,),
        "range": (8,),
        "rest": (800,),
        "protected": (10,),
        "unmapped": (9,),
        "map_sync": (6,),
    }
    with case.gathered():
        for what, pages in stored.items():
            right = [[page, 1] for page in pages]
            if size == "2M":  # an entry is written back whole
                right = [[first, 512] for first in sorted({page // 512 * 512 for page in pages})]
            seen = facts[what]
            case.expect(what, [seen[i : i + 2] for i in range(0, len(seen), 2)], right=right)
            flushed = facts[f"{what}_flushed"]
            if flushed >= 0:
                whole = 4096 * sum(count for _, count in right)
                case.expect(f"{what}: bytes flushed", flushed, right=whole)
        case.expect("store_to_read_only", facts["store_to_read_only"])
        if facts["zeroed_flushed"] >= 0:
            case.fact("bytes flushed of what was zeroed", facts["zeroed_flushed"])
            case.expect("zeroed_flushed", facts["zeroed_flushed"] >= 200)


@every_fs
def test_s13_sync_beside_a_sync(guest: Guest, case: Case, fs: str) -> None:
    """Of two syncs of a file at once neither is done before what was stored is written back."""
    with huge_mount(guest, case, fs) as mount:
        facts = guest.workload("syncs", "--file", f"{mount.path}/a").facts
    case.prove("the file is DAX", facts["dax"])
    if "trace_missing" in facts:
        case.skip(f"no tracepoints: {facts['trace_missing']}", enable="set CONFIG_FTRACE=y")
    case.fact("rounds", facts["rounds"])
    with case.gathered():
        for key in ("passed_over_alone", "passed_over"):
            case.expect(key, facts[key])


def test_s13_write_passes_the_caches(guest: Guest, case: Case) -> None:
    """What write() brings is dirty in no entry: it must be durable without a sync's help."""
    with dax_mount(guest, case, "ext4", mkfs=ALIGNED["ext4"]) as mount:
        facts = guest.workload("writeback", "--file", f"{mount.path}/a").facts
    case.prove("the file is DAX", facts["dax"])
    missing = facts.get("trace_missing") or (facts["uncached"] < 0 and facts["probe_missing"])
    if missing:
        case.skip(
            f"the kernel does not tell what passes the caches: {missing}",
            enable="nvh kernel build debian-source:6.12",
        )
    case.fact("bytes past the caches", facts["uncached"])
    case.expect("written_uncached", facts["uncached"] >= 4096)


@pytest.mark.parametrize("copied", ["128K", "2M"])
def test_s5_reflinked_files_copy_on_write(guest: Guest, case: Case, copied: str) -> None:
    """xfs has DAX and shared blocks at once: a store to one file is not seen in the other.

    So much is to be copied at once; for 2 MiB it takes one entry of the page table.
    """
    with reflinking_mount(guest, case) as mount:
        directory = f"{mount.path}/d"
        guest.run(f"mkdir {directory} && xfs_io -c 'cowextsize {copied.lower()}' {directory}")
        options = ("--directory", directory, "--device", mount.namespace.device)
        facts = guest.workload("reflink", *options).facts
        case.prove("the file is DAX", facts["dax"])
        for key in ("clone", "clone_dax", "shared_pages"):
            case.expect(key, facts[key])
        case.prove("a page was punched", facts["hole"])
        case.prove("its new block had data", facts["hole_gets_the_old_block"])
        with case.gathered():
            for key in (
                "cloned", "stored_to_clone", "stored_to_original", "written_to_clone",
                "written_to_original", "punched", "mapped", "written_in_the_middle",
                "zeroed_in_the_middle", "written_into_a_hole", "unshared",
            ):  # fmt: skip
                case.expect(f"{key}: the file", facts[f"{key}_changed"], right="OK")
                case.expect(f"{key}: the other file", facts[f"{key}_other"], right="OK")
            for key in (
                "rest_of_a_page", "zero_range", "unshare_pages", "unshare_part",
                "shared_by_and_by", "punch", "punch_a_page",
            ):  # fmt: skip
                case.expect(key, facts[key])
            _expect_kept(guest, case, mount)
    if copied == "128K":
        _expect_nothing_shared_with_the_page_cache(guest, case)


def _expect_nothing_shared_with_the_page_cache(guest: Guest, case: Case) -> None:
    """Expect that a DAX file shares no blocks with a file that is not DAX."""
    with guest.mounted(guest.namespace(NAMESPACE["xfs"]), "xfs", dax="inode", mkfs=None) as mount:
        path, files = mount.path, {"dax": "dax/a", "another": "dax/b", "cached": "a"}
        guest.run(f"mkdir {path}/dax")
        guest.workload("dax_state", "--path", f"{path}/dax", "--flag", "on")
        for file in files.values():
            guest.workload("dax_state", "--path", f"{path}/{file}", "--create", "64K", "--fill")
        seen = {
            second: guest.workload(
                "share", "--first", f"{path}/dax/a", "--second", f"{path}/{files[second]}"
            ).facts
            for second in ("another", "cached")
        }
    for second, facts in seen.items():
        dax = {"first": facts["first_dax"], "second": facts["second_dax"]}
        right = {"first": True, "second": second == "another"}
        case.prove(f"the files are as they should be, {second}", dax == right, seen=dax)
        for key in (
            "dedupe_onto_second", "dedupe_onto_first", "clone_onto_second", "clone_onto_first",
        ):  # fmt: skip
            right_word = {"another": "shared_by_dax", "cached": "shared_with_cached"}[second]
            case.expect(f"{key}, {second}", facts[key], right=case.row.expected(right_word))


@pytest.mark.parametrize(
    ("operation", "fs", "size"),
    [
        *((operation, fs, "2M") for operation in ("none", "punch", "truncate") for fs in NAMES),
        ("collapse", "ext4", "2M"),
        ("collapse", "xfs", "2M"),  # xfs has one way to prepare both, xfs_prepare_shift()
        ("insert", "ext4", "2M"),
        *((operation, "xfs", size) for operation in ("clone", "dedupe") for size in ("2M", "4K")),
    ],
)
def test_s14_one_page_among_unsynced_stores(
    guest: Guest, case: Case, operation: str, fs: str, size: str
) -> None:
    """What happens to one page of 2 MiB loses no other's store: neither here nor for the sync."""
    mounted = reflinking_mount(guest, case) if fs == "xfs" else None
    with mounted or dax_mount(guest, case, fs, mkfs=ALIGNED[fs]) as mount:
        directory = f"{mount.path}/d"
        hint = f"xfs_io -c 'extsize 2m' {directory}" if fs == "xfs" else "true"
        guest.run(f"mkdir {directory} && {hint}")
        small = ("--small",) if size == "4K" else ()
        options = ("--directory", directory, "--operation", operation, *small)
        facts = guest.workload("partial", *options).facts
        case.prove("the file is DAX", facts["dax"])
        if "trace_missing" in facts:
            case.skip(f"no tracepoints: {facts['trace_missing']}", enable="set CONFIG_FTRACE=y")
        seen = {"4K": facts["small"], "2M": facts["huge"]}
        entries = f"the stores made entries of {size}"
        case.prove(entries, seen == {"4K": 0, "2M": 0, size: 2}, seen=seen)
        case.expect("operation", facts["operation"])
        if operation == "dedupe":
            for key in (
                "dedupe_different", "dedupe_second_different", "dedupe_onto_second_different",
                "dedupe_first_different", "dedupe_onto_a_hole", "dedupe_a_hole",
            ):  # fmt: skip
                case.expect(key, facts[key])
        with case.gathered():
            for key in ("unsynced_before", "unsynced_after"):
                case.expect(key, facts[key])
            for key in ("file", "other", "file_after", "other_after"):
                case.expect(key, facts[key])
            if "copied" in facts:
                for key in (
                    "unsynced_copied", "unsynced_copied_again", "file_copied", "other_copied",
                    "file_shared", "other_shared", "unshare", "file_unshared", "file_stored",
                    "other_unshared", "unsynced_unshared", "unsynced_unshared_again",
                ):  # fmt: skip
                    case.expect(key, facts[key])
                case.prove("a page that nobody shares was copied", facts["copied"])
                case.prove("a page got a block of its own", facts["unshared"])
            _expect_kept(guest, case, mount)


#: From xfsprogs 5.19 on xfs is made as small as the copy had better be when this is said.
_SMALL = "--unsupported"
_COPY = "/dev/shm/nvh-copy"


def test_s15_partition_holds_what_was_synced(guest: Guest, case: Case) -> None:
    """A copy of the partition, as a power cut would leave it, has what was synced, and mounts.

    The copy is read past the page cache, and mounted without DAX.
    """
    guest.run(
        "echo 60000 > /proc/sys/fs/xfs/xfssyncd_centisecs; modprobe -q loop; mkdir -p /mnt/copy",
        check=False,
    )
    for fs in NAMES:
        whole = guest.namespace(NAMESPACE[fs])
        # A page's border, and none of 2 MiB; 64 MiB.
        made = guest.run(f"addpart {whole.device} 1 {2048 + 24} {64 << 11}", check=False)
        if made.status:
            case.skip(f"no partition: {made.stderr.strip()}", enable="install util-linux")
        space = dataclasses.replace(whole, device=f"{whole.device}p1", filesystem="")
        small = fs == "xfs" and guest.run(f"mkfs.xfs {_SMALL} -V", check=False).status == 0
        mkfs = (*([_SMALL] if small else []), *MKFS[fs])
        with guest.mounted(space, fs, mkfs=mkfs) as mount:
            case.prove(f"{fs} on a partition is DAX", mount.is_dax, enable="set CONFIG_FS_DAX=y")
            if fs == "ext4":
                guest.run(f"mount -o remount,commit=600 {mount.path}")
            # Last what has to see to its metadata itself: a later sync would do it.
            for how in ("fsync", "dsync"):
                guest.workload("persist", "--file", f"{mount.path}/{how}", "--store", how)
            guest.run(f"dd if={space.device} of={_COPY} bs=1M iflag=direct conv=sparse 2>/dev/null")
        case.expect("file system", unmounted_state(guest, mount), right="clean")
        guest.run(f"mount -t {fs} -o loop {_COPY} /mnt/copy")
        for how in ("fsync", "dsync"):
            facts = guest.workload("persist", "--file", f"/mnt/copy/{how}").facts
            case.expect(how, facts["content"])
        guest.run(f"umount /mnt/copy; rm {_COPY}")
        _expect_no_dax_of_partition(guest, case, fs, whole.device, mkfs)


def _expect_no_dax_of_partition(
    guest: Guest, case: Case, fs: str, device: str, mkfs: tuple[str, ...]
) -> None:
    """Expect no DAX where a partition has a part of a page at its end or its beginning.

    The partition that is there keeps its file system and gets a sector more; another one begins a
    sector late.  xfs has no DAX on any where it could share blocks.
    """
    path = "/mnt/partition"
    where = ("--type", fs, "--path", path, "--options", "dax=always")

    def tried(number: int) -> str:
        mount = guest.workload("try_mount", *where, "--device", f"{device}p{number}").facts["mount"]
        if mount == "OK":
            file = guest.workload("dax_state", "--path", f"{path}/a", "--create", "64K").facts
            guest.run(f"umount {path}")
            return "DAX" if file["dax"] else "no DAX"
        # Without the option nothing is wrong with it.
        guest.run(f"mount -t {fs} {device}p{number} {path} && umount {path}")
        return str(mount)

    make = f"mkfs.{fs} {'-qf' if fs == 'xfs' else '-qF'} {shlex.join(mkfs)}"
    guest.run(
        f"mkdir -p {path}; delpart {device} 1; addpart {device} 1 {2048 + 24} {(64 << 11) + 1}"
    )
    case.expect(f"odd_partition_{fs}", tried(1))
    if fs == "ext4":
        guest.run(f"addpart {device} 2 {(80 << 11) + 1} {16 << 11}; {make} {device}p2")
        case.expect("odd_partition_ext4", tried(2))
    else:
        # A whole number of pages again.
        guest.run(
            f"delpart {device} 1; addpart {device} 1 {2048 + 24} {64 << 11};"
            f"{make.replace('reflink=0', 'reflink=1')} {device}p1"
        )
        case.expect("reflink_on_partition", tried(1))


def _expect_kept(guest: Guest, case: Case, mount: Mount) -> None:
    """Expect a clean unmount, and the same files when it is mounted again."""
    sums = f"cd {mount.path}/d && cksum *"
    before = guest.run(sums).stdout.splitlines()
    # Evicting the inodes may kill it.
    done = guest.run(f"umount {mount.path}", check=False)
    case.expect("umount", done.status, right=0)
    if done.status:
        return
    case.expect("file system", unmounted_state(guest, mount), right="clean")
    guest.run(f"mount -t {mount.fstype} -o dax={mount.dax} {mount.namespace.device} {mount.path}")
    case.expect("files after a remount", guest.run(sums).stdout.splitlines(), right=before)
