"""Which files and mappings are DAX, and which are not."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from harness.guest import Guest
from harness.images import kconfig
from harness.lab import Lab
from harness.verdict.expectation import Case
from testcases.filesystems import (
    NAMES,
    dax_mount,
    ext2_mount,
    has_fs_dax,
    inode_mount,
    mounted_again,
    page_cache_mount,
    undaxable_mount,
    unmounted_state,
)

every_fs = pytest.mark.parametrize("fs", NAMES)


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


@every_fs
def test_s2_dax_inode_follows_the_directory_flag(guest: Guest, case: Case, fs: str) -> None:
    """Children inherit the flag, and files of flagged directories are DAX."""
    with inode_mount(guest, fs) as mount:
        guest.run(f"mkdir {mount.path}/d")
        state = {
            "directory": guest.workload(
                "dax_state", "--path", f"{mount.path}/d", "--flag", "on"
            ).facts
        }
        guest.run(f"mkdir {mount.path}/d/e")
        state["subdirectory"] = guest.workload("dax_state", "--path", f"{mount.path}/d/e").facts
        for name, path in (("child", "d/a"), ("outside", "a")):
            state[name] = guest.workload(
                "dax_state", "--path", f"{mount.path}/{path}", "--create", "64K"
            ).facts
    case.expect("set_flag", state["directory"]["set_flag"])
    for name in ("child", "directory", "outside"):
        case.expect(name, state[name]["dax"])
    case.expect("child_flag", state["child"]["flag"])
    case.expect("subdirectory_flag", state["subdirectory"]["flag"])


@every_fs
def test_s3_flag_counts_from_the_next_open(guest: Guest, case: Case, fs: str) -> None:
    """An open file does not change under its user."""
    evict = "sync; echo 2 > /proc/sys/vm/drop_caches"
    with inode_mount(guest, fs) as mount:
        file = f"{mount.path}/a"
        guest.workload("dax_state", "--path", file, "--create", "64K")
        holder = guest.run(f"exec sleep 300 < {file} > /dev/null 2>&1 & echo $!").stdout.strip()
        flagged = guest.workload("dax_state", "--path", file, "--flag", "on").facts
        # Releases differ in whether the last close evicts the inode; here it certainly goes.
        guest.run(f"kill {holder}; while [ -e /proc/{holder} ]; do sleep 0.1; done; {evict}")
        anew = guest.workload("dax_state", "--path", file).facts
        guest.workload("dax_state", "--path", file, "--flag", "off")
        guest.run(evict)
        back = guest.workload("dax_state", "--path", file).facts
    case.expect("set_flag", flagged["set_flag"])
    case.expect("flag", flagged["flag"])
    case.expect("while_open", flagged["dax"])
    case.expect("opened_anew", anew["dax"])
    case.expect("taken_back", back["dax"])


@every_fs
def test_s4_dax_never_keeps_the_flag(guest: Guest, case: Case, fs: str) -> None:
    """The flag is stored although it has no effect."""
    with page_cache_mount(guest, fs) as mount:
        flagged = guest.workload(
            "dax_state", "--path", f"{mount.path}/a", "--create", "64K", "--flag", "on"
        ).facts
        if fs == "ext4":
            remount = guest.run(f"mount -o remount,dax=always {mount.path}", check=False)
            case.fact("remount", remount.stderr.strip())
            case.expect("the remount is refused", remount.status != 0, right=True)
        after = guest.workload("dax_state", "--path", f"{mount.path}/b", "--create", "64K").facts
    case.expect("dax", flagged["dax"])
    case.expect("flag", flagged["flag"])
    case.expect("dax_after_remount", after["dax"])


@every_fs
@pytest.mark.parametrize("lacks", ["page-sized blocks", "a DAX device"])
def test_s5_no_dax_where_it_cannot_be(guest: Guest, case: Case, fs: str, lacks: str) -> None:
    """ext4 refuses; xfs mounts, and says by statx that it is not DAX."""
    with undaxable_mount(guest, fs, lacks) as mounted:
        case.fact("mounted", mounted.words)
        if fs == "ext4":
            case.expect("ext4 refuses the mount", mounted.path is None, right=True)
        if mounted.path is not None:
            file = f"{mounted.path}/a"
            case.expect(
                "dax", guest.workload("dax_state", "--path", file, "--create", "64K").facts["dax"]
            )


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


def test_s7_map_sync_outlives_a_power_cut(
    guest: Guest, case: Case, power_cycle: Callable[[], Guest]
) -> None:
    """What was stored, and the file around it, needs no msync()."""
    boots = [guest.run("cat /proc/sys/kernel/random/boot_id").stdout.strip()]
    # The periodic writeback would save what nobody has synced.
    guest.run("echo 0 > /proc/sys/vm/dirty_writeback_centisecs")
    with dax_mount(guest, case, "ext4") as ext4, dax_mount(guest, case, "xfs") as xfs:
        for mount, how in itertools.product((ext4, xfs), ("sync", "shared")):
            stored = guest.workload("persist", "--file", f"{mount.path}/{how}", "--store", how)
            case.prove(f"the file on {mount.fstype} is DAX", stored.facts["dax"])
            case.expect("map", stored.facts["map"])
        again = power_cycle()
    boots.append(again.run("cat /proc/sys/kernel/random/boot_id").stdout.strip())
    case.prove("it is another boot", boots[0] != boots[1], seen=boots)
    for fs in NAMES:
        with mounted_again(again, fs) as mount:
            words = again.run(f"dmesg | grep -i '{fs}.*recovery'", check=False).stdout.strip()
            found = again.workload("persist", "--file", f"{mount.path}/sync").facts
            unsynced = again.workload("persist", "--file", f"{mount.path}/shared").facts
        case.prove(f"{fs} was in use when the power went", bool(words), seen=words)
        case.fact(f"{fs} without MAP_SYNC", unsynced["content"])  # nobody has promised anything
        for key in ("open", "content", "content_mapped"):
            case.expect(key, found[key])
        case.expect(f"{fs} afterwards", unmounted_state(again, mount), right="clean")


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
    with dax_mount(guest, case, fs, nvdimm="virtio0") as mount:
        facts = guest.workload(
            "dax_state", "--path", f"{mount.path}/a", "--create", "64K", "--map"
        ).facts
    for key in ("dax", "shared", "shared_data", "validate", "validate_data", "sync"):
        case.expect(key, facts[key])


@pytest.mark.parametrize("name", ["devdax2m", "devdax1g"])
def test_s10_devdax_without_fs_dax(guest: Guest, case: Case, lab: Lab, name: str) -> None:
    """Device DAX does not need what file systems need."""
    options = kconfig.read(lab.kernel)
    built = has_fs_dax(guest) if options is None else options.get("CONFIG_FS_DAX") == "y"
    if built:
        case.skip(
            "the kernel has DAX for file systems",
            enable="build one with '# CONFIG_FS_DAX is not set' and CONFIG_DEV_DAX=y "
            "CONFIG_DEV_DAX_PMEM=y CONFIG_NVDIMM_DAX=y CONFIG_KALLSYMS=y",
        )
    case.prove("the kernel has no code of fs/dax.c", not has_fs_dax(guest))
    space = guest.namespace(name)
    facts = guest.workload("devdax", "--device", space.device, "--size", str(space.align)).facts
    case.fact("mmap", facts["map"])
    if facts["map"] != "OK":
        # Refused: then for a reason that names the lack, and not with what a bug gives.
        case.expect("refusal", facts["map"])
        return
    for key in ("signal", "map_again", "data"):
        case.expect(key, facts[key])


@pytest.mark.parametrize("place", ["aligned", "misaligned"])
@pytest.mark.parametrize("fs", NAMES)
def test_s11_huge_faults(guest: Guest, case: Case, fs: str, place: str) -> None:
    """One fault for 2 MiB, or one for each of its 512 pages."""
    # The file system is told to put extents on 2 MiB boundaries of the device.
    mkfs = {"ext4": ("-E", "stride=512,stripe-width=512"), "xfs": ("-d", "su=2m,sw=1")}[fs]
    with dax_mount(guest, case, fs, mkfs=mkfs) as mount:
        if fs == "xfs":
            guest.run(f"xfs_io -c 'extsize 2m' {mount.path}")
        facts = guest.workload(
            "dax_state", "--path", f"{mount.path}/a", "--create", "8M", "--fault", "--offset", "2M",
            *(["--misaligned"] if place == "misaligned" else []),
        ).facts  # fmt: skip
        extent = guest.run(f"xfs_io -r -c 'fiemap -v' {mount.path}/a").stdout
    case.fact("extents", extent)
    case.expect(place, facts["faults"])
