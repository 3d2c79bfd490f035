"""Which files and mappings are DAX, and which are not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from harness import dax
from harness.guest import Guest
from harness.guest.filesystem import unmount_command
from harness.images import kconfig
from harness.lab import Lab
from harness.verdict.expectation import Case
from testcases.filesystems import (
    NAMES,
    NAMESPACE,
    dax_mount,
    ext2_mount,
    extent_of,
    huge_mount,
    inode_mount,
    mounted_again,
    no_periodic_writeback,
    page_cache_mount,
    remounted,
    undaxable_device,
    unmounted_state,
)
from testcases.kprobes import calls
from testcases.nvdimm_image import Layout, file_digest, layout, read_blocks, strays

every_fs = pytest.mark.parametrize("fs", NAMES)

_ACKED = "virtio_pmem_host_ack"


@every_fs
def test_s1_dax_always_covers_files_not_directories(guest: Guest, case: Case, fs: str) -> None:
    """Files old and new are DAX, in the root and in a directory."""
    with dax_mount(guest, case, fs) as mount:
        guest.run(f"mkdir {mount.path}/d")
        file = guest.workload("dax_state", "--path", f"{mount.path}/a", "--create", "64K").facts
        directory = guest.workload("dax_state", "--path", f"{mount.path}/d").facts
        child = guest.workload("dax_state", "--path", f"{mount.path}/d/a", "--create", "64K").facts
    case.fact("file attributes", hex(file["attributes"]))
    case.fact("directory attributes", hex(directory["attributes"]))
    case.prove(
        "one is a file, one a directory", [file["type"], directory["type"]] == ["file", "directory"]
    )
    case.expect("file", file["dax"])
    case.expect("directory", directory["dax"])
    case.expect("new_child", child["dax"])
    for facts in (file, directory, child):
        case.expect("in_mask", facts["dax_in_mask"])
    where = ("--type", fs, "--device", mount.namespace.device, "--path", mount.path)
    plain = guest.workload("try_mount", *where, "--options", "dax").facts
    case.expect("plain_mount", plain["mount"])
    again = guest.workload("dax_state", "--path", f"{mount.path}/a").facts
    guest.run(unmount_command(mount.path))
    case.expect("plain", again["dax"])


@every_fs
def test_s1_dax_never_covers_nothing(guest: Guest, case: Case, fs: str) -> None:
    """dax=never wins over the flag."""
    with page_cache_mount(guest, fs) as mount:
        file = guest.workload("dax_state", "--path", f"{mount.path}/a", "--create", "64K").facts
        flagged = guest.workload(
            "dax_state", "--path", f"{mount.path}/b", "--create", "64K", "--flag", "on"
        ).facts
    case.expect("without", file["dax"])
    case.expect("a flagged file with dax=never", flagged["dax"], right=False)
    # A "no" counts only where the kernel says that it can tell.
    for facts in (file, flagged):
        case.expect("in_mask", facts["dax_in_mask"])


@every_fs
def test_s2_dax_inode_follows_the_directory_flag(guest: Guest, case: Case, fs: str) -> None:
    """What is made in a flagged directory inherits the flag, for good; nothing else does."""

    def state(path: str, *options: str) -> dict[str, Any]:
        return guest.workload("dax_state", "--path", f"{mount.path}/{path}", *options).facts

    with inode_mount(guest, fs) as mount:
        guest.run(f"mkdir {mount.path}/d; cd {mount.path}; echo a > d/earlier; echo a > moved")
        seen = {"directory": state("d", "--flag", "on")}
        guest.run(f"cd {mount.path}; mkdir d/e; mv moved d/moved")
        seen["subdirectory"] = state("d/e")
        for name, path in (("child", "d/a"), ("grandchild", "d/e/a"), ("outside", "a")):
            seen[name] = state(path, "--create", "64K")
        for name in ("earlier", "moved"):
            seen[name] = state(f"d/{name}")
        case.expect("clear_flag", state("d", "--flag", "off")["set_flag"])
        seen["later"] = state("d/later", "--create", "64K")
        seen["kept"] = state("d/a")
        if fs == "ext4":
            seen["grandchild"] = state("d/e/a", "--journal", "--donor", f"{mount.path}/d/a")
            seen["outside"] = state("a", "--journal", "--flag", "on")
        mapped = state("d/a", "--map")
    case.expect("set_flag", seen["directory"]["set_flag"])
    dax = {"child", "grandchild", "kept"}
    for name, facts in seen.items():
        case.expect(f"{name} is DAX", facts["dax"], right=name in dax)
        flagged = dax | {"directory", "subdirectory"}
        case.expect(f"{name} has the flag", facts["flag"], right=name in flagged)
    case.expect("child_map_sync", mapped["sync"])
    if fs == "ext4":
        case.expect("journal_of_dax", seen["grandchild"]["journal"])
        case.expect("move_extent", seen["grandchild"]["move_extent"])
        case.expect("journal", seen["outside"]["journal"])
        case.expect("dax_of_journal", seen["outside"]["set_flag"])


@every_fs
def test_s3_flag_counts_from_the_next_open(guest: Guest, case: Case, fs: str) -> None:
    """An open file does not change under its users; the next open gets what the flag says.

    Nothing is evicted by hand: the last close does it.
    """
    with inode_mount(guest, fs) as mount:
        file = ("--path", f"{mount.path}/a")
        # What was written through the page cache, and is not on the device yet, is to outlive it.
        on = guest.workload(
            "dax_state", *file, "--create", "64K", "--fill", "--flag", "on", "--held"
        ).facts
        anew = guest.workload("dax_state", *file, "--check", "--map").facts
        off = guest.workload("dax_state", *file, "--fill", "--flag", "off", "--held").facts
        back = guest.workload("dax_state", *file, "--check", "--map").facts
    case.prove("it was not DAX before", not on["held_before"])
    for name, facts, then in (("on", on, False), ("off", off, True)):
        case.expect("set_flag", facts["set_flag"])
        for key in ("held_dax", "second_dax", "held_dax_after_a_close"):
            case.expect(f"{key}, flag {name}", facts[key], right=then)
        sync = "held_map_sync_on_dax" if then else "held_map_sync_without"
        case.expect(sync, facts["held_map_sync"])
        case.expect(f"flag set {name}", facts["flag"], right=not then)
    case.expect("opened_anew", anew["dax"])
    case.expect("map_sync_anew", anew["sync"])
    case.expect("taken_back", back["dax"])
    case.expect("map_sync_back", back["sync"])
    for facts in (anew, back):
        for key in ("content", "content_mapped"):
            case.expect(key, facts[key])


@every_fs
def test_s3_flag_counts_after_eviction(guest: Guest, case: Case, fs: str) -> None:
    """Whatever the last close does, an inode that is read anew, or mounted anew, has its state."""
    evict = "sync; echo 2 > /proc/sys/vm/drop_caches"
    with inode_mount(guest, fs) as mount:
        file = ("--path", f"{mount.path}/a")
        flagged = guest.workload(
            "dax_state", *file, "--create", "64K", "--fill", "--flag", "on"
        ).facts
        guest.run(evict)
        seen = {"evicted": guest.workload("dax_state", *file, "--check").facts}
        case.expect("file system", remounted(guest, mount), right="clean")
        seen["mounted anew"] = guest.workload("dax_state", *file, "--check").facts
        guest.workload("dax_state", *file, "--flag", "off")
        guest.run(evict)
        back = guest.workload("dax_state", *file, "--check").facts
    case.expect("set_flag", flagged["set_flag"])
    for name, facts in seen.items():
        case.expect(f"DAX, {name}", facts["dax"], right=True)
        case.expect(f"flag, {name}", facts["flag"], right=True)
    case.expect("taken_back", back["dax"])
    for facts in (*seen.values(), back):
        case.expect("content", facts["content"])


@every_fs
def test_s4_dax_never_keeps_the_flag(guest: Guest, case: Case, fs: str) -> None:
    """The flag is stored although it has no effect."""
    with page_cache_mount(guest, fs) as mount:
        flagged = guest.workload(
            "dax_state", "--path", f"{mount.path}/a", "--create", "64K", "--flag", "on"
        ).facts
        again = guest.workload("dax_state", "--path", f"{mount.path}/a").facts
    case.expect("dax", flagged["dax"])
    case.expect("dax", again["dax"])
    case.expect("flag", again["flag"])


@every_fs
def test_s4_remount_changes_nothing(guest: Guest, case: Case, fs: str) -> None:
    """ext4 refuses another mode, xfs says yes and goes on as before; the same mode is no change."""
    modes = ("always", "never", "inode")
    for mode in modes:
        make = () if mode == modes[0] else None
        with guest.mounted(guest.namespace(NAMESPACE[fs]), fs, dax=mode, mkfs=make) as mount:
            case.prove(f"the mount is dax={mode}", mount.is_dax == (mode == "always"))
            again = ("--path", mount.path, "--remount")
            for other in modes:
                tried = guest.workload("try_mount", *again, "--options", f"dax={other}").facts
                case.fact(f"from {mode} to {other}", tried["mount"])
                case.expect("remount_same" if other == mode else f"remount_{fs}", tried["mount"])
                case.expect("options afterwards", tried["options"], right=mount.options)
            readonly = guest.workload("try_mount", *again, "--readonly").facts
            case.expect("remount_same", readonly["mount"])
            case.expect("remount_same", guest.workload("try_mount", *again).facts["mount"])
            after = guest.workload("dax_state", "--path", f"{mount.path}/b", "--create", "64K")
            case.expect(f"a new file is DAX, {mode}", after.facts["dax"], right=mode == "always")
    words = _count(guest, "can't change dax mount option")
    case.expect("kernel's words", words, right=6 if fs == "ext4" else 0)


def _count(guest: Guest, words: str) -> int:
    """Return how many lines of the kernel's log have these words."""
    return int(guest.run(f'dmesg | grep -cF "{words}"', check=False).stdout)


@every_fs
@pytest.mark.parametrize("lacks", ["page-sized blocks", "a DAX device"])
def test_s5_no_dax_where_it_cannot_be(guest: Guest, case: Case, fs: str, lacks: str) -> None:
    """ext4 refuses; xfs mounts, and says by statx that it is not DAX."""
    with undaxable_device(guest, fs, lacks) as device:
        where = ("--type", fs, "--device", device, "--path", "/mnt/undaxable")
        # Without the option nothing is wrong with it.
        control = guest.workload("try_mount", *where).facts
        case.expect("control", control["mount"])
        guest.run("umount /mnt/undaxable")
        tried = guest.workload("try_mount", *where, "--options", "dax=always").facts
        case.fact("options", tried["options"])
        case.expect(f"mount_{fs}", tried["mount"])
        key = f"words_{fs}_{'blocks' if lacks == 'page-sized blocks' else 'device'}"
        words = case.row.expected(key)
        case.expect(key, words if _count(guest, words) else guest.run("dmesg | tail -n 3").stdout)
        if fs == "ext4" and lacks == "a DAX device":
            _expect_no_dax_of_journal(guest, case)
        if fs == "xfs":
            file = guest.workload("dax_state", "--path", "/mnt/undaxable/a", "--create", "64K")
            case.expect("dax", file.facts["dax"])
            guest.run("umount /mnt/undaxable")


def _expect_no_dax_of_journal(guest: Guest, case: Case) -> None:
    """Expect that ext4, where DAX can be had, has it or data in the journal or in inodes."""
    path = "/mnt/journal"
    guest.run(f"mkdir -p {path}")
    where = ("--type", "ext4", "--device", guest.namespace(NAMESPACE["ext4"]).device)
    for key, options in (("mount_journal", ""), ("mount_journal_dax", ",dax=always")):
        words = ("--path", path, "--options", f"data=journal{options}")
        case.expect(key, guest.workload("try_mount", *where, *words).facts["mount"])
        guest.run(f"umount {path}", check=False)
    words_right = case.row.expected("words_ext4_journal")
    seen = words_right if _count(guest, words_right) else guest.run("dmesg | tail -n 3").stdout
    case.expect("words_ext4_journal", seen)
    # Nor where a file may have its data in its inode.
    guest.run(f"debugfs -w -R 'feature inline_data' {where[-1]}")
    for key, options in (("mount_inline", ""), ("mount_inline_dax", "dax=always")):
        words = ("--path", path, "--options", options)
        case.expect(key, guest.workload("try_mount", *where, *words).facts["mount"])
        guest.run(f"umount {path}", check=False)
    words_right = case.row.expected("words_ext4_inline")
    seen = words_right if _count(guest, words_right) else guest.run("dmesg | tail -n 3").stdout
    case.expect("words_ext4_inline", seen)


@every_fs
def test_s6_map_sync_on_dax(guest: Guest, case: Case, fs: str) -> None:
    """MAP_SYNC is accepted, is in force, and what is stored is there."""
    with dax_mount(guest, case, fs) as mount:
        facts = guest.workload(
            "dax_state", "--path", f"{mount.path}/a", "--create", "64K", "--map"
        ).facts
    case.prove("the file is DAX", facts["dax"], seen=hex(facts["attributes"]))
    case.expect("sync_on_dax", facts["sync"])
    case.expect("vm_sync_on_dax", facts["sync_vm_sync"])
    case.expect("data_on_dax", facts["sync_data"])
    case.expect("vm_sync_unasked", facts["validate_vm_sync"])
    for key in ("shared", "validate", "unknown"):
        case.expect(key, facts[key])


@every_fs
def test_s6_map_sync_without_dax(guest: Guest, case: Case, fs: str) -> None:
    """The same device and file system through the page cache refuse it."""
    with page_cache_mount(guest, fs) as mount:
        facts = guest.workload(
            "dax_state", "--path", f"{mount.path}/a", "--create", "64K", "--map"
        ).facts
    case.prove("the file is not DAX", not facts["dax"], seen=hex(facts["attributes"]))
    case.expect("sync_without", facts["sync"])
    for key in ("shared", "validate", "unknown"):
        case.expect(key, facts[key])


def test_s6_map_sync_on_the_root_file_system(guest: Guest, case: Case) -> None:
    """So does a file system without a DAX device."""
    facts = guest.workload("dax_state", "--path", "/root/nvh-s6", "--create", "64K", "--map").facts
    guest.run("rm /root/nvh-s6")
    case.prove("the file is not DAX", not facts["dax"], seen=hex(facts["attributes"]))
    case.expect("sync_without", facts["sync"])


@pytest.mark.long
def test_s7_what_is_synced_outlives_a_power_cut(
    guest: Guest, case: Case, power_cycle: Callable[[], Guest]
) -> None:
    """What was stored is there, by MAP_SYNC without msync(), and nothing else has changed.

    The host compares the NVDIMMs whole: what lies outside, and other files, are as they were.
    """
    boots = [guest.run("cat /proc/sys/kernel/random/boot_id").stdout.strip()]
    no_periodic_writeback(guest)
    # MAP_SYNC comes after the syncs, which would save its blocks as well.
    stores = ("fsync", "msync", "sync")
    with dax_mount(guest, case, "ext4") as ext4, dax_mount(guest, case, "xfs") as xfs:
        # The journals' own commits would save what nobody has synced.
        guest.run(f"mount -o remount,commit=600 {ext4.path}")
        guest.run("echo 60000 > /proc/sys/fs/xfs/xfssyncd_centisecs")
        for mount in (ext4, xfs):
            guest.run(f"head -c 2M /dev/urandom > {mount.path}/bystander; sync -f {mount.path}")
        before = {name: read_blocks(file) for name, file in guest.nvdimms.items()}
        for mount, how in itertools.product((ext4, xfs), stores):
            stored = guest.workload("persist", "--file", f"{mount.path}/{how}", "--store", how)
            case.prove(f"the file on {mount.fstype} is DAX", stored.facts["dax"])
            case.expect("map", stored.facts["map"])
        again = power_cycle()
    boots.append(again.run("cat /proc/sys/kernel/random/boot_id").stdout.strip())
    case.prove("it is another boot", boots[0] != boots[1], seen=boots)
    wheres: dict[str, Layout] = {}
    sums: dict[str, str] = {}
    for fs in NAMES:
        with mounted_again(again, fs) as mount:
            words = again.run(f"dmesg | grep -i '{fs}.*recovery'", check=False).stdout.strip()
            found = {
                how: again.workload("persist", "--file", f"{mount.path}/{how}").facts
                for how in stores
            }
            for how, facts in found.items():
                case.fact(f"{fs}, {how}", facts["content"])
                for key in ("open", "content", "content_mapped"):
                    case.expect(key, facts[key])
            wheres[fs] = layout(again, mount, *stores, "bystander")
            sums[fs] = again.run(f"sha256sum < {mount.path}/sync").stdout.split()[0]
        case.prove(f"{fs} was in use when the power went", bool(words), seen=words)
        case.expect(f"{fs} afterwards", unmounted_state(again, mount), right="clean")
    for name, file in guest.nvdimms.items():
        if name not in NAMESPACE.values():
            case.expect(f"{name} is as it was", read_blocks(file) == before[name], right=True)
            continue
        fs = next(fs for fs in NAMES if NAMESPACE[fs] == name)
        where = wheres[fs]
        case.prove(f"free blocks of {fs} are known", len(where.free) > 0, seen=len(where.free))
        told = strays(file, before[name], where, stores)
        # Free blocks are told only: a file system may have used and given back what it keeps there.
        case.fact(f"free blocks of {fs} that changed", [at for at in told if at.endswith("free")])
        case.expect("strays", [at for at in told if not at.endswith("free")])
        case.expect("host's data", file_digest(file, where.files["sync"]), right=sums[fs])


def test_s8_ext2_is_served_by_ext4(guest: Guest, case: Case) -> None:
    """The mount is an ext4 one and its files are DAX."""
    with ext2_mount(guest) as (path, words):
        case.fact("kernel's words", words)
        case.prove("the mount is served by ext4", "using the ext4 subsystem" in words, seen=words,
                   enable="set CONFIG_EXT4_USE_FOR_EXT2=y CONFIG_EXT2_FS=n")  # fmt: skip
        facts = guest.workload("dax_state", "--path", f"{path}/a", "--create", "64K", "--map").facts
    case.expect("dax", facts["dax"])
    case.expect("map_sync", facts["sync"])


@pytest.mark.machine("virtio-pmem")
@pytest.mark.isolation("shared")
@every_fs
def test_s9_virtio_pmem_has_dax_without_map_sync(guest: Guest, case: Case, fs: str) -> None:
    """Its data is safe only after a request to the host, and that takes an fsync()."""
    region = guest.namespace("virtio0").region
    device = guest.run(f"readlink -f /sys/bus/nd/devices/{region}").stdout.strip()
    case.prove("the namespace is on virtio-pmem", "/virtio" in device, seen=device)
    device = guest.namespace("virtio0").device
    raw = f"dd if=/dev/zero of={device} bs=4096 seek=9000 count=1 oflag=direct conv=fsync"
    # Each of them is a request to flush that the host has answered.
    acked = {"raw_write_flushed": calls(guest, _ACKED, f"{raw} 2>/dev/null")}
    # REQ_FUA, and then the flush of the sync that O_DSYNC is.
    forced = raw.replace("oflag=direct conv=fsync", "oflag=direct,dsync")
    acked["forced_write_requests"] = calls(guest, _ACKED, f"{forced} 2>/dev/null")
    with dax_mount(guest, case, fs, nvdimm="virtio0") as mount:
        facts = guest.workload(
            "dax_state", "--path", f"{mount.path}/a", "--create", "64K", "--map"
        ).facts
        # What has its block, and makes none: the sync has nothing but the data to see to.
        guest.run(f"sync {mount.path}/a")
        store = f"xfs_io -c 'mmap -w 0 4k' -c 'mwrite 0 4k' -c fdatasync {mount.path}/a"
        acked["store_flushed"] = calls(guest, _ACKED, store)
    for key in ("dax", "shared", "shared_data", "validate", "validate_data", "sync"):
        case.expect(key, facts[key])
    for key, number in acked.items():
        if number is None:
            case.skip(f"no kprobe on {_ACKED}()", enable="set CONFIG_KPROBE_EVENTS=y")
        case.fact(f"{key}, requests", number)
        case.expect(key, number if key == "forced_write_requests" else number > 0)


@pytest.mark.parametrize("name", ["devdax2m", "devdax1g"])
def test_s10_devdax_without_fs_dax(guest: Guest, case: Case, lab: Lab, name: str) -> None:
    """Device DAX does not need what file systems need."""
    options = kconfig.read(lab.kernel)
    built = dax.is_built_in(guest) if options is None else options.get("CONFIG_FS_DAX") == "y"
    if built:
        case.skip(
            "the kernel has DAX for file systems",
            enable="build one with '# CONFIG_FS_DAX is not set' and CONFIG_DEV_DAX=y "
            "CONFIG_DEV_DAX_PMEM=y CONFIG_NVDIMM_DAX=y CONFIG_KALLSYMS=y",
        )
    case.prove("the kernel has no code of fs/dax.c", not dax.is_built_in(guest))
    space = guest.namespace(name)
    facts = guest.workload("devdax", "--device", space.device, "--size", str(space.align)).facts
    case.fact("mmap", facts["map"])
    if facts["map"] != "OK":
        # Refused: then for a reason that names the lack, and not with what a bug gives.
        case.expect("refusal", facts["map"])
        return
    for key in ("signal", "map_again", "data"):
        case.expect(key, facts[key])


@pytest.mark.parametrize("place", ["aligned", "misaligned", "shifted"])
@every_fs
def test_s11_huge_faults(guest: Guest, case: Case, fs: str, place: str) -> None:
    """One fault for 2 MiB, or one for each of its 512 pages.

    The address may be misaligned, or the blocks shifted: where they lie 4 KiB off on the device.
    """
    with huge_mount(guest, case, fs) as mount:
        file = f"{mount.path}/a"
        guest.workload("dax_state", "--path", file, "--create", "10M")
        if (
            place == "shifted"
        ):  # what follows moves one page down in the file, and not on the device
            guest.run(f"fallocate -c -o 0 -l 4096 {file}")
        facts = guest.workload(
            "dax_state", "--path", file, "--fault", "--offset", "2M",
            *(["--misaligned"] if place == "misaligned" else []),
        ).facts  # fmt: skip
        start, length = extent_of(guest, mount, file, 2 << 20)
    case.prove("2 MiB of the file lie in one piece", length >= 2 << 20, seen=length)
    off = start % (2 << 20)
    case.prove("the piece is where it should be", (off == 4096) == (place == "shifted"), seen=off)
    case.prove("an aligned piece is", place == "shifted" or off == 0, seen=off)
    case.expect(place, facts["faults"])
    case.expect("mapped_data", facts["mapped_data"])
    if "trace_missing" in facts:
        case.fact("no tracepoints", facts["trace_missing"])
        return
    huge = place == "aligned"
    case.expect("2 MiB entries made", facts["pmd_mapped"], right=1 if huge else 0)
    case.expect("4 KiB faults", facts["pte_faults"], right=0 if huge else 512)
    case.expect("a 2 MiB entry was tried", facts["pmd_fallbacks"] > 0, right=not huge)
