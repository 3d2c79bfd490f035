"""Poison in persistent memory: who is told, what can be read, what is listed.

QEMU's NVDIMM has no ARS (7.2), so `ndctl inject-error` has nothing to inject into.  What is left
are madvise(MADV_HWPOISON), which the memory failure code takes for real, and a machine check that
mce-inject puts into the kernel's log, from where the NFIT driver lists the bad block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from harness import dax
from harness.guest import Guest
from harness.guest.filesystem import Mount
from harness.guest.ssh import Result
from harness.verdict.expectation import Case
from testcases.filesystems import ALIGNED, NAMESPACE, dax_mount, extent_of
from testcases.namespaces import file_in_other_group
from testcases.vfio_steps import aligned

MIB = 1 << 20
_SHIFT = {"4K": 12, "2M": 21, "1G": 30}
#: What puts large files on 2 MiB borders, and xfs's map from blocks to files.
_MKFS = {**ALIGNED, "xfs-rmapbt": (*ALIGNED["xfs"], "-m", "rmapbt=1")}
#: A page near the end of the 2 MiB around it: counted from there and not from the start, a page's
#: place in its file is in other 2 MiB.
_AT = 509 * 4096

every_fs = pytest.mark.parametrize("fs", list(_MKFS))


def poison(guest: Guest, case: Case, *options: str) -> dict[str, Any]:
    """Run the workload; SKIP where the kernel cannot poison."""
    facts = guest.workload("poison", "--at", str(_AT), *options).facts
    case.fact(" ".join(options), facts)
    if "missing" in facts:
        case.skip(f"no {facts['missing']}", enable="set CONFIG_MEMORY_FAILURE=y")
    return facts


def judge(case: Case, facts: dict[str, Any], page: str, how: str) -> None:
    """Compare what madvise(MADV_HWPOISON) did with what is right for a mapping of such pages."""
    case.expect("poison", facts["poison"])
    for key in ("signal", "code"):
        case.expect(key, facts.get(key))
    case.expect("si_addr_lsb", facts["lsb"], right=_SHIFT[page])
    for key in ("extent_holds", "mapped"):
        case.expect(key, facts[key])
    # Of a process that did not ask for it, nothing is said before it reads the page.
    case.expect("other's signal", facts["other_signal"], right="BUS" if how == "early" else "none")
    if how == "early":
        case.expect("other_code", facts["other_code"])
        case.expect("other's si_addr_lsb", facts["other_lsb"], right=_SHIFT[page])
    case.expect("other_mapped", facts["other_mapped"])
    for key in ("faulted", "rest"):
        case.expect(key, facts[key])


def bad_blocks(guest: Guest, where: str) -> str:
    """Return a list of bad blocks: first sector and number of sectors, on a line each."""
    return guest.run(f"cat {where}/badblocks").stdout.strip()


@pytest.mark.parametrize("how", ["late", "early"])
@pytest.mark.parametrize("page", ["4K", "2M", "1G"])
def test_n3_devdax_page(guest: Guest, case: Case, page: str, how: str) -> None:
    """Who poisons a page gets SIGBUS, others where they want it; it is gone from page tables."""
    namespace = guest.namespace("devdax1g" if page == "1G" else "devdax2m")
    size = "1G" if page == "1G" else "4M"
    with contextlib.ExitStack() as stack:
        device = namespace.device
        if page == "4K":
            device = stack.enter_context(aligned(guest, "devdax2m", "4K"))
        options = ("--source", f"dax:{device}", "--size", size, "--poison", "--other", how)
        judge(case, poison(guest, case, *options), page, how)


@contextlib.contextmanager
def _mounted(guest: Guest, case: Case, fs: str) -> Iterator[Mount]:
    """Mount with DAX, and xfs with clones as well where it can tell all files of a block."""
    if fs != "xfs-rmapbt":
        with dax_mount(guest, case, fs, mkfs=_MKFS[fs]) as mount:
            yield mount
        return
    mkfs = (*_MKFS[fs], "-m", "reflink=1")
    with dax.mounted(guest, guest.namespace(NAMESPACE["xfs"]), "xfs", mkfs=mkfs) as mount:
        case.prove("files of the mount are DAX", mount.is_dax, seen=hex(mount.attributes))
        yield mount


@pytest.mark.parametrize("page", ["4K", "2M"])
@every_fs
def test_n3_fsdax_page(guest: Guest, case: Case, fs: str, page: str) -> None:
    """The same through a file, whether its file system looks the file up or the page knows it."""
    with _mounted(guest, case, fs) as mount:
        file = f"{mount.path}/a"
        if fs != "ext4":
            guest.run(f"xfs_io -c 'extsize 2m' {mount.path}")
        if fs == "xfs-rmapbt":
            file = file_in_other_group(guest, case, mount, "6m")
        # Two MiB from an odd one on hold no 2 MiB of the file whole.
        where = ("--offset", "2M") if page == "2M" else ("--offset", "1M", "--size", "2M")
        early = ("--poison", "--other", "early")
        facts = poison(guest, case, "--source", f"file:{file}", *where, *early)
        case.prove("the file is DAX", facts["dax"])
        judge(case, facts, page, "early")
        case.expect("unreadable", facts["unreadable"])
        if fs == "xfs-rmapbt" and page == "4K":
            # A block of two files: who has either of them mapped is told.
            clones = ("--source", f"file:{file}1", "--clone", f"{file}2", *where)
            facts = poison(guest, case, *clones, *early)
            case.prove("the other file is a clone", facts["clone"] == "OK", seen=facts["clone"])
            case.prove("both had the same page mapped", facts["same_frame"])
            judge(case, facts, page, "early")
            # Pages that files shared are one file's again: the kernel warns where they are not.
            was, _ = extent_of(guest, mount, f"{file}1", MIB)
            guest.run(
                f"for f in {file}1 {file}2; do xfs_io -c 'truncate 0' $f; done; sync; "
                f"xfs_io -f -c 'falloc 0 3m' -c 'mmap -rw 1m 64k' -c 'mwrite 1m 64k' {file}3"
            )
            now, _ = extent_of(guest, mount, f"{file}3", MIB)
            case.prove("a third file has their blocks", was == now != 0, seen=(hex(was), hex(now)))
        block = mount.namespace.device.removeprefix("/dev/")
        case.expect("badblocks_simulated", bad_blocks(guest, f"/sys/block/{block}"))
        guest.run(f"echo alive > {mount.path}/b && sync")
        case.expect("file system", guest.run(f"cat {mount.path}/b").stdout.strip(), right="alive")


def machine_check(guest: Guest, case: Case, address: int) -> None:
    """Log an uncorrected memory error at a physical address; SKIP without mce-inject."""
    # Not modprobe's word: a kernel without modules may have it built in.
    probe = "modprobe -q mce-inject; test -d /sys/kernel/debug/mce-inject"
    if guest.run(probe, check=False).status:
        case.skip("no mce-inject in the guest", enable="set CONFIG_X86_MCE_INJECT=m")
    if not guest.run("grep -m1 vendor_id /proc/cpuinfo").stdout.strip().endswith("AuthenticAMD"):
        case.skip("the error is spelled as an AMD CPU does", enable="boot with -cpu max under TCG")
    # VAL UC EN MISCV ADDRV, extended code 8 in bank 4: amd_mce_is_memory_error().  MISC: 4 KiB.
    # "sw" logs it as if it had happened; the write to bank sets it off.
    guest.run(
        "cd /sys/kernel/debug/mce-inject && echo sw > flags && "
        f"echo 0xbc00000000080000 > status && echo {address:#x} > addr && echo 0x8c > misc && "
        "echo 0 > cpu && echo 4 > bank"
    )


def await_bad_blocks(guest: Guest, where: str) -> None:
    """Wait until some are listed: the log is worked through by a kernel thread."""
    guest.run(f'for i in $(seq 50); do [ -n "$(cat {where}/badblocks)" ] && break; sleep 0.1; done')


@every_fs
def test_n3_fsdax_machine_check(guest: Guest, case: Case, fs: str) -> None:
    """The bad block is listed; its page cannot be read or written, mapped or not, and others can.

    QEMU's NVDIMM cannot clear errors, so write() ends before the page and the list stays.
    """
    with dax_mount(guest, case, fs.partition("-")[0], mkfs=_MKFS[fs]) as mount:
        source = ("--source", f"file:{mount.path}/a", "--offset", "2M")
        before = poison(guest, case, *source)
        case.prove("the frame is known", before["pfn"] != 0, seen=before["pfn"])
        case.prove("all could be read before", before["rest"] == "equal")
        sysfs = f"/sys/block/{mount.namespace.device.removeprefix('/dev/')}"
        case.prove("no bad block before", bad_blocks(guest, sysfs) == "")
        machine_check(guest, case, before["pfn"] * 4096)
        await_bad_blocks(guest, sysfs)
        start = int(guest.run(f"cat {sysfs}/device/resource").stdout, 0)
        sector = (before["pfn"] * 4096 - start) // 512
        case.expect("bad blocks", bad_blocks(guest, sysfs), right=f"{sector} 8")
        after = poison(guest, case, *source, "--keep", "--overwrite")
        for key in ("faulted", "unreadable"):
            case.expect(f"{key} with a bad block", after[key], right=[_AT // 4096])
        case.expect("read_error", after["read_error"])
        case.expect("rest", after["rest"])
        case.expect("si_addr", after["fault_at"], right=_AT)
        case.expect("fault_code", after["fault_code"])
        for key in ("written", "written_around", "page_before", "page_behind"):
            case.expect(key, after[key])
        case.expect("bad blocks after it", bad_blocks(guest, sysfs), right=f"{sector} 8")


def test_n3_devdax_machine_check(guest: Guest, case: Case) -> None:
    """The bad block is listed with the region and with the namespace."""
    namespace = guest.namespace("devdax2m")
    source = ("--source", f"dax:{namespace.device}")
    before = poison(guest, case, *source)
    case.prove("the frame is known", before["pfn"] != 0, seen=before["pfn"])
    region = f"/sys/bus/nd/devices/{namespace.region}"
    machine_check(guest, case, before["pfn"] * 4096)
    await_bad_blocks(guest, region)
    start = int(guest.run(f"cat {region}/resource").stdout, 0)
    sector = (before["pfn"] * 4096 - start) // 512
    case.expect("bad blocks", bad_blocks(guest, region), right=f"{sector} 8")
    listed = guest.run(f"ndctl list -N -M -n {namespace.dev}").stdout
    case.expect("ndctl lists", '"badblock_count":8' in listed, right=True)


def test_n3_block_device_machine_check(guest: Guest, case: Case) -> None:
    """The device gives an error for the bad block, not data, and forgets nothing when enabled anew.

    QEMU's NVDIMM cannot clear errors, so a write to the block is refused and the list stays.
    """
    namespace, other = guest.namespace("fsdax0"), guest.namespace("fsdax1")
    device, page = namespace.device, 300
    sysfs = f"/sys/block/{device.removeprefix('/dev/')}"
    elsewhere = f"/sys/block/{other.device.removeprefix('/dev/')}"
    near = f"dd if={device} bs=4096 skip={page - 1} iflag=direct count="
    guest.run(
        "cd /tmp; dd if=/dev/urandom of=near bs=4096 count=3 2>/dev/null; "
        f"dd if=near of={device} bs=4096 seek={page - 1} oflag=direct 2>/dev/null; "
        f"{near}3 2>/dev/null | cmp near -"
    )
    case.prove("no bad block before", bad_blocks(guest, sysfs) == "")
    case.prove("nor in another namespace", bad_blocks(guest, elsewhere) == "")
    # The other's comes first in the list that the bus has of them all.
    for where, bad in ((elsewhere, page + 1), (sysfs, page)):
        start = int(guest.run(f"cat {where}/device/resource").stdout, 0)
        machine_check(guest, case, start + bad * 4096)
        await_bad_blocks(guest, where)
    for when in ("at once", "enabled anew"):
        if when == "enabled anew":
            guest.run(f"ndctl disable-namespace {namespace.dev}", timeout=20.0)
            guest.run(f"ndctl enable-namespace {namespace.dev}", timeout=60.0)
        case.expect(f"bad blocks, {when}", bad_blocks(guest, sysfs), right=f"{page * 8} 8")
        others = bad_blocks(guest, elsewhere)
        case.expect(f"bad blocks elsewhere, {when}", others, right=f"{(page + 1) * 8} 8")
        got = guest.run(f"{near}3 of=/tmp/got", check=False)
        case.expect(f"read of three pages, {when}", _error(got), right="EIO")
        around = guest.run(
            f"{near}1 2>/dev/null > /tmp/a; dd if={device} bs=4096 skip={page + 1} iflag=direct "
            "count=1 2>/dev/null >> /tmp/a; (head -c 4096 /tmp/near; tail -c 4096 /tmp/near) "
            "| cmp - /tmp/a",
            check=False,
        )
        case.expect(f"the pages around it, {when}", around.status, right=0)
        wrote = guest.run(
            f"dd if=/dev/zero of={device} bs=4096 seek={page} count=1 oflag=direct", check=False
        )
        case.expect(f"write, {when}", _error(wrote), right="EIO")
        case.expect(f"bad blocks after it, {when}", bad_blocks(guest, sysfs), right=f"{page * 8} 8")


def _error(done: Result) -> str:
    """Return EIO where that is why dd failed, else what it said."""
    failed = done.status != 0 and "Input/output error" in done.stderr
    return "EIO" if failed else f"status {done.status}: {done.stderr.strip()}"
