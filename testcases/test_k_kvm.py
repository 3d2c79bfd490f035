"""A virtual machine inside the guest whose memory is DAX: run, and mapped with huge pages."""

from __future__ import annotations

from typing import Any

import pytest

from harness.guest import Guest
from harness.verdict.expectation import Case
from testcases.filesystems import ALIGNED, NAMES, dax_mount, huge_mount, no_periodic_writeback
from testcases.vfio_steps import LEAK

#: The VM's memory is of 4 KiB pages; the one of its output is the sixth.
_UNTOUCHED = ("--untouched", "--size", "64K")

_LEVELS = {"4k": "pages_4k", "2m": "pages_2m", "1g": "pages_1g"}


def run_vm(guest: Guest, case: Case, *options: str) -> dict[str, Any]:
    """Run the small VM and prove that it ran; SKIP where the guest has no KVM."""
    guest.run("[ -e /dev/kvm ] || modprobe -q kvm_amd || modprobe -q kvm_intel; true")
    facts = guest.workload("kvm_guest", *options).facts
    if "missing" in facts:
        case.skip(
            f"no {facts['missing']} in the guest", enable="boot with -cpu max, CONFIG_KVM_AMD=m"
        )
    for key in ("hva_alignment", "largepages", *_LEVELS.values()):
        if key in facts:
            case.fact(key, facts[key])
    return facts


def expect_pages(case: Case, facts: dict[str, Any], size: str) -> None:
    """Compare how KVM maps the VM's memory: with pages of this size and with no other."""
    if "pages_2m" not in facts:  # up to 5.13 there is one counter for all huge pages
        case.expect("huge pages", facts["largepages"], right=0 if size == "4k" else 1)
        return
    if size == "4k":
        # Code, input and output lie in a page each; KVM may map others ahead of their use.
        case.expect("small_pages", facts["pages_4k"] >= 3)
    else:
        case.expect("huge_pages", facts[_LEVELS[size]])
    for other, key in _LEVELS.items():
        if other != size:
            case.expect(f"pages of {other}", facts[key], right=0)


@pytest.mark.parametrize(
    ("name", "page", "size"), [("devdax2m", "2m", "2M"), ("devdax1g", "1g", "1G")]
)
def test_k1_device_dax(guest: Guest, case: Case, name: str, page: str, size: str) -> None:
    """The VM runs and its memory is one page of the size that the device has."""
    namespace = guest.namespace(name)
    facts = run_vm(guest, case, "--source", f"dax:{namespace.device}", "--size", size)
    for key in ("run", "exit", "said_right", "memory"):
        case.expect(key, facts[key])
    expect_pages(case, facts, page)


def test_k1_writes_are_logged(guest: Guest, case: Case) -> None:
    """A migration that is called off, and then the VM is given other memory in the same place."""
    source = f"dax:{guest.namespace('devdax2m').device}"
    facts = run_vm(guest, case, "--source", source, "--log", "--move")
    case.prove("the VM ran", facts["exit"] == "hlt" and facts["memory"] == "OK")
    for key in ("log_exit", "dirty", "dirty_idle", "log_again_exit", "dirty_again", "log_end_exit"):
        case.expect(key, facts[key])
    if "pages_2m" in facts:  # not up to 5.13
        case.expect("pages of 2m while logged", facts["log_pages_2m"], right=0)
        case.expect("pages of 2m again", facts["log_end_pages_2m"], right=1)
        case.expect("pages of 4k again", facts["log_end_pages_4k"], right=0)
    for key in ("moved_exit", "moved_output", "old_memory"):
        case.expect(key, facts[key])
    case.expect("without_exit", facts["without_exit"] != "hlt")


def test_k1_read_only_slot(guest: Guest, case: Case) -> None:
    """The VM may read its memory and not write it, although this process may."""
    source = f"dax:{guest.namespace('devdax2m').device}"
    facts = run_vm(guest, case, "--source", source, "--readonly")
    case.prove("the VM ran", facts["exit"] == "hlt" and facts["memory"] == "OK")
    for key in ("readonly_exit", "readonly_store", "readonly_goes_on", "readonly_memory"):
        case.expect(key, facts.get(key, "no exit"))
    case.expect("writable_exit", facts["writable_exit"])
    case.expect("writable_memory", facts["writable_memory"])


@pytest.mark.parametrize("memory", ["anonymous", "device-dax", "slot-ends"])
def test_k1_small_pages(guest: Guest, case: Case, memory: str) -> None:
    """4 KiB memory, two halves of different 2 MiB pages, and one half of one."""
    options: tuple[str, ...] = ("--source", "anon")
    if memory != "anonymous":
        options = ("--source", f"dax:{guest.namespace('devdax2m').device}")
        # The other half is not the VM's, which could reach it through a huge page.
        half = ("--size", "2M", "--slot", "1M")
        options += ("--size", "4M", "--shift", "1M") if memory == "device-dax" else half
    facts = run_vm(guest, case, *options)
    for key in ("run", "exit", "memory"):
        case.expect(key, facts[key])
    expect_pages(case, facts, "4k")


@pytest.mark.parametrize("offset", ["2M", "1M"])
@pytest.mark.parametrize("fs", NAMES)
def test_k2_dax_file(guest: Guest, case: Case, fs: str, offset: str) -> None:
    """An aligned file gives one 2 MiB page, a misaligned one none."""
    with huge_mount(guest, case, fs) as mount:
        guest.workload("dax_state", "--path", f"{mount.path}/a", "--create", "8M")
        facts = run_vm(guest, case, "--source", f"file:{mount.path}/a", "--offset", offset)
    for key in ("run", "exit", "memory"):
        case.expect(key, facts[key])
    case.prove("the file is DAX", facts["dax"])
    expect_pages(case, facts, "2m" if offset == "2M" else "4k")


@pytest.mark.parametrize("memory", ["anonymous", "private-xfs", "shared-ext4", "shared-xfs"])
def test_k2_first_store(guest: Guest, case: Case, memory: str) -> None:
    """The VM stores to a page that was only read so far, which is a store of this process."""
    kind, _, fs = memory.partition("-")
    if kind == "anonymous":
        facts = run_vm(guest, case, *_UNTOUCHED, "--source", "anon-private")
    else:
        no_periodic_writeback(guest)
        with dax_mount(guest, case, fs) as mount:
            source = f"file:{mount.path}/a" + (":private" if kind == "private" else "")
            facts = run_vm(guest, case, *_UNTOUCHED, "--source", source)
        case.prove("the file is DAX", facts["dax"])
    for run in ("first", "again"):
        for key in ("exit", "memory", "fresh"):
            case.expect(f"{run}: {key}", facts[f"{run}_{key}"], right=case.row.expected(key))
        if fs:
            right = case.row.expected(f"{kind}_file")
            case.expect(f"{run}: file", facts[f"{run}_file"], right=right)
        # 6.1 writes back what was only read as well, see S13.
        if kind == "shared" and "trace_missing" not in facts:
            right = case.row.expected("written_back")
            case.expect(f"{run}: written_back", facts[f"{run}_written_back"], right=right)


@pytest.mark.parametrize("how", ["stopped", "running"])
@pytest.mark.parametrize("fs", NAMES)
def test_k3_memory_is_truncated(guest: Guest, case: Case, fs: str, how: str) -> None:
    """The VM's file is cut to nothing: its next access fails, and new memory is used as such."""
    with dax_mount(guest, case, fs, mkfs=ALIGNED[fs]) as mount:
        # Misaligned memory is of 4 KiB pages, each of which has to be taken from the VM.
        for offset in ("2M", "1M") if how == "stopped" else ("2M",):
            source = f"file:{mount.path}/{offset}"
            facts = run_vm(guest, case, "--source", source, "--offset", offset, "--truncate", how)
            if offset == "1M":
                small = facts.get("pages_2m", facts.get("largepages")) == 0
                case.prove("KVM mapped it with 4 KiB pages", small)
            expect_taken_away(case, facts)


def expect_taken_away(case: Case, facts: dict[str, Any]) -> None:
    """Expect that a VM lost its truncated memory, and went on with what then came there."""
    case.prove("the file is DAX", facts["dax"])
    case.prove("the VM ran on it", facts["exit"] == "hlt" and facts["memory"] == "OK")
    if "ran" in facts:
        case.prove("the VM ran until then", facts["ran"])
    for key in ("truncate", "access", "touch", "again"):
        case.expect(key, facts[key])
    if "refs_before" in facts:
        # Fewer are right: from 6.15 on a page that is mapped nowhere counts 0.
        left = max(0, facts["refs_after"] - facts["refs_before"])
        case.expect("references left", left, right=0)


def expect_no_reference(case: Case, facts: dict[str, Any]) -> None:
    """Expect that KVM took no reference, neither while the VM was there nor after it."""
    case.expect("exit", facts["exit"])
    case.prove(
        "the reference count can be read", "refs_before" in facts,
        seen=facts.get("refcount_missing", ""), enable="set CONFIG_KPROBE_EVENTS=y",
    )  # fmt: skip
    case.expect("references of a VM", facts["refs_running"], right=facts["refs_before"])
    case.expect("references after", facts["refs_after"], right=facts["refs_before"])


def test_k4_device_dax_references_come_back(guest: Guest, case: Case) -> None:
    """KVM leaves no reference behind."""
    source = f"dax:{guest.namespace('devdax2m').device}"
    expect_no_reference(case, run_vm(guest, case, "--source", source))


@pytest.mark.parametrize("fs", NAMES)
def test_k4_fsdax_references_come_back(guest: Guest, case: Case, fs: str) -> None:
    """A DAX file may be a VM's memory, for KVM does not pin it, and is free when the VM ends."""
    with dax_mount(guest, case, fs) as mount:
        facts = run_vm(guest, case, "--source", f"file:{mount.path}/a")
        case.prove("the file is DAX", facts["dax"])
        expect_no_reference(case, facts)
        done = guest.run(f"truncate -s 0 {mount.path}/a", timeout=10.0, check=False)
        case.expect("truncate", "OK" if done.status == 0 else done.stderr.strip())


@pytest.mark.parametrize(
    ("name", "page", "size"), [("devdax2m", "2m", "16M"), ("devdax1g", "1g", "1G")]
)
def test_k5_kvm_and_device(guest: Guest, case: Case, name: str, page: str, size: str) -> None:
    """The VM and a device behind VFIO work on the same huge page; each sees the other's data."""
    options = ("--source", f"dax:{guest.namespace(name).device}", "--size", size)
    case.allow(LEAK)
    facts = run_vm(guest, case, *options, "--device", guest.vfio("edu").address)
    case.prove("edu is behind an IOMMU", facts["iommu"] != "none", seen=facts["iommu"])
    for key in ("map", "exit", "memory", "device_output", "device_read", "device_write"):
        case.expect(key, facts[key])
    expect_pages(case, facts, page)
    for key in ("unmap", "whole_unmapped"):
        case.expect(key, facts[key])
