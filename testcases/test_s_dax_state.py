"""Which files and mappings are DAX, and which are not."""

from __future__ import annotations

import pytest

from harness.guest import Guest
from harness.verdict.expectation import Case
from testcases.filesystems import NAMES, dax_mount, inode_mount, page_cache_mount

every_fs = pytest.mark.parametrize("fs", NAMES)


@every_fs
def test_s1_dax_always_covers_files_not_directories(guest: Guest, case: Case, fs: str) -> None:
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
    with page_cache_mount(guest, fs) as mount:
        file = guest.workload("dax_state", "--path", f"{mount.path}/a", "--create", "64K").facts
        flagged = guest.workload(
            "dax_state", "--path", f"{mount.path}/b", "--create", "64K", "--flag", "on"
        ).facts
    case.expect("without", file["dax"])
    case.expect("a flagged file with dax=never", flagged["dax"], right=False)


@every_fs
def test_s2_dax_inode_follows_the_directory_flag(guest: Guest, case: Case, fs: str) -> None:
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
def test_s6_map_sync_on_dax(guest: Guest, case: Case, fs: str) -> None:
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
    with page_cache_mount(guest, fs) as mount:
        facts = guest.workload(
            "dax_state", "--path", f"{mount.path}/a", "--create", "64K", "--map"
        ).facts
    case.prove("the file is not DAX", not facts["dax"], seen=hex(facts["attributes"]))
    case.expect("sync_without", facts["sync"])
    for key in ("shared", "validate", "unknown"):
        case.expect(key, facts[key])


def test_s6_map_sync_on_the_root_file_system(guest: Guest, case: Case) -> None:
    facts = guest.workload("dax_state", "--path", "/root/nvh-s6", "--create", "64K", "--map").facts
    guest.run("rm /root/nvh-s6")
    case.prove("the file is not DAX", not facts["dax"], seen=hex(facts["attributes"]))
    case.expect("sync_without", facts["sync"])


@pytest.mark.parametrize("place", ["aligned", "misaligned"])
@pytest.mark.parametrize("fs", NAMES)
def test_s11_huge_faults(guest: Guest, case: Case, fs: str, place: str) -> None:
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
