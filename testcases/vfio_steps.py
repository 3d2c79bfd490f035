"""What the V rows have in common: run a VFIO workload with edu and prove that it could speak."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from harness.guest import Guest
from harness.verdict.expectation import Case
from harness.verdict.known import holds

#: References that pages of the page cache and of anonymous memory carry in passing: the batches of
#: the LRU lists hold one each.
_PASSING = 2

#: VFIO's pins on device-dax are those that V9 and V19 are about.
LEAK = "^pins_left: "

#: vfio_fault's options for the memory that comes after 64 KiB of it: as much again, or a huge page,
#: which replaces the IOMMU's table of small ones (6491d4d02893, v3.8).
OTHER_MEMORY: tuple[tuple[str, ...], ...] = (
    ("--case", "remap"),
    ("--case", "remap", "--source", "hugetlb", "--size", "2M"),
)

#: vfio_map's options for memory shared by processes; of huge pages also such that starts in one.
SHARED_MEMORY: dict[str, list[tuple[str, ...]]] = {
    "memfd": [("--source", "memfd")],
    "hugetlb": [
        ("--source", "hugetlb"),
        ("--source", "hugetlb", "--size", "4M", "--skip", "1036K", "--touch", "write"),
    ],
}

#: Where a 2 MiB page may lie for the device: the IOMMU holds it as one page, or as 512.
IN_ONE_PIECE = {0x4000000: "one-entry", 0x4001000: "many-entries"}


def after_unmap_in_one_piece(iova: int) -> tuple[str, ...]:
    """Return vfio_fault's options for a 2 MiB page at this IOVA that is used after its unmap."""
    return ("--case", "after-unmap", "--source", "hugetlb", "--size", "2M", "--iova", hex(iova))


def observe(
    guest: Guest, case: Case, program: str, *options: str, device: str = "edu"
) -> dict[str, Any]:
    """Run a workload with a device on vfio-pci and return its facts.

    Proven for every row: the device sits behind the vIOMMU, and each step of the workload (a
    mapping made, a touch, a copy on write) was really taken.
    """
    if any(option.startswith("dax:") for option in options):
        case.allow(LEAK)
    done = guest.workload(program, "--device", guest.vfio(device).address, *options, timeout=90.0)
    case.fact(done.command, done.facts)
    case.prove(
        f"{device} is behind an IOMMU", done.facts["iommu"] != "none", seen=done.facts["iommu"]
    )
    case.prove("the workload took all its steps", done.ok, seen=done.failed)
    return done.facts


@contextlib.contextmanager
def huge_pages(guest: Guest, case: Case) -> Iterator[int]:
    """Have 2 MiB pages to map, and yield how many."""
    file, count = "/proc/sys/vm/nr_hugepages", 4
    seen = guest.run(f"echo {count} > {file}; cat {file}").stdout.strip()
    case.prove("2 MiB pages are reserved", seen == str(count), seen=seen)
    try:
        yield count
    finally:
        guest.run(f"echo 0 > {file}")


def free_huge_pages(guest: Guest) -> int:
    """Return how many of the reserved pages are mapped nowhere."""
    return int(guest.run("grep HugePages_Free /proc/meminfo").stdout.split()[-1])


def expect_mapped(case: Case, facts: dict[str, Any]) -> None:
    """Expect that the process could map the memory that it gives to the device."""
    case.expect("mmap", facts.get("mmap", "OK"), right="OK")


def prove_oracle(case: Case, facts: dict[str, Any]) -> None:
    """Prove that the reference counts of the pages could be read."""
    case.prove(
        "reference counts can be read",
        "refs_before" in facts,
        seen=facts.get("refcount_missing", ""),
        enable="set CONFIG_KPROBE_EVENTS=y CONFIG_PERF_EVENTS=y",
    )


def expect_pinned(case: Case, facts: dict[str, Any]) -> None:
    """Expect that the pages were pinned while they were mapped: each count was higher.

    Call it where prove_oracle() has passed, or for rows that have a verdict without it.
    """
    if "refs_before" in facts and "refs_mapped" in facts:
        pairs = zip(facts["refs_before"], facts["refs_mapped"], strict=True)
        case.expect("pages pinned", all(now > then for then, now in pairs), right=True)


def references_left(facts: dict[str, Any]) -> int:
    """Return how many references the most affected page has more than before it was mapped.

    Negative where a page has fewer, which is one let go of too often; pages other than device-dax
    may carry a few less than before, on their way to the LRU lists.
    """
    pairs = zip(facts["refs_before"], facts["refs_after"], strict=True)
    left = [int(after) - int(before) for before, after in pairs]
    passing = 0 if str(facts["source"]).startswith("dax:") else _PASSING
    if max(left) > 0 or min(left) >= -passing:
        return max(0, *left)
    return min(left)


def expect_refused(case: Case, facts: dict[str, Any]) -> None:
    """Expect of a refused mapping that it left nothing: no IOVA, no locked memory, no pin."""
    for what in ("left_mapped", "reuse"):
        case.expect(what, facts[what])
    case.expect("locked memory (KiB)", facts["locked_after"], right=facts["locked_before"])
    if "refs_before" in facts:
        case.expect("references left behind", references_left(facts), right=0)


def by_kernel(guest: Guest, case: Case, key: str) -> Any:
    """Return what is right on this kernel, of a table in the row whose keys are conditions."""
    release = str(guest.facts["release"])
    conditions: dict[str, Any] = case.row.expected(key)
    right = [value for condition, value in conditions.items() if holds(condition, release)]
    case.prove(f"{key}: one expectation is for {release}", len(right) == 1, seen=right)
    return right[0]


def expect_all(case: Case, facts: dict[str, Any], *tables: str) -> None:
    """Compare every fact that these tables of the row name, "table" or "table.table"."""
    with case.gathered():
        for name in tables:
            key, _, inner = name.partition(".")
            table = case.row.expected(key)
            for what, right in (table[inner] if inner else table).items():
                case.expect(what, facts.get(what), right=right)


def expect_accounted(case: Case, facts: dict[str, Any]) -> None:
    """Expect that all of the mapping was locked while it lasted, and nothing is afterwards."""
    locked = facts["locked_mapped"] - facts["locked_before"]
    case.expect("memory accounted (KiB)", locked, right=facts["size"] // 1024)
    case.expect("memory given back (KiB)", facts["locked_after"], right=facts["locked_before"])


@contextlib.contextmanager
def aligned(guest: Guest, name: str, align: str) -> Iterator[str]:
    """Give a devdax namespace another alignment while the block lasts; yield its device."""
    namespace = guest.namespace(name)
    make = f"ndctl create-namespace -f -e {namespace.dev} -m devdax -a"
    made = json.loads(guest.run(f"{make} {align}", timeout=60.0).stdout)
    try:
        yield f"/dev/{made['daxregion']['devices'][0]['chardev']}"
    finally:
        guest.run(f"{make} {namespace.align}", timeout=60.0)


def disable_and_enable(guest: Guest, name: str) -> str:
    """Disable a namespace and enable it again; return "ended", or how disabling failed."""
    dev = guest.namespace(name).dev
    done = guest.run(f"ndctl disable-namespace {dev}", timeout=20.0, check=False)
    guest.run(f"ndctl enable-namespace {dev}", timeout=60.0)
    return "ended" if done.status == 0 else done.stderr.strip()


def expect_write_only(guest: Guest, case: Case, seen: dict[str, Any]) -> None:
    """Expect that a mapping for a device's writes alone takes them, and no read where it can."""
    for what in ("map_write_only", "device_write", "unmap"):
        case.expect(what, seen[what])
    read = by_kernel(guest, case, "read_write_only")
    case.fact("a read", seen["read"])
    if read != "either":
        case.expect("read", seen["read"], right=read)
        case.expect("fault", seen["read_fault"] != "none")
        case.expect("fault address", seen["read_fault_address"], right=0x4000000)


def expect_blocked(case: Case, seen: dict[str, Any], iova: int = 0x4000000) -> None:
    """Expect that vfio_fault's accesses did not arrive, and that the IOMMU told of them."""
    case.expect("memory", seen["memory"])
    # That nothing arrived says little unless the mapping was live: what it allows was done.
    case.expect("live", seen.get("device_read", seen.get("device_write")))
    case.expect("fault", seen["write_fault"] != "none")
    case.expect("fault address", seen["write_fault_address"], right=iova)
    if "read" in seen:
        case.expect("read", seen["read"])
        case.expect("fault", seen["read_fault"] != "none")


def expect_access_blocked(guest: Guest, case: Case, how: str, seen: dict[str, Any]) -> None:
    """Expect of vfio_fault's case ``how`` that what its mapping does not allow did not happen."""
    if how == "write-only":
        expect_write_only(guest, case, seen)
    else:
        expect_blocked(case, seen)
