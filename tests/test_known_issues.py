"""The list of known issues: each explains its own fault and nothing near it."""

from pathlib import Path

import pytest

from harness.verdict.known import KnownIssues

KNOWN = KnownIssues.load(Path(__file__).parent.parent / "testcases" / "known-issues.toml")

WARNING = "WARNING in dax_disassociate_entry (fs/dax.c:390)"
FAULT = "page fault in dax_disassociate_entry"
RETURNED = "returned_while_pinned: expected false, seen true"
UMOUNT = "umount: expected 0, seen 137"
MOUNT = "test_n2_driver_unbound_under_a_mount[ext4]"
HUNG = "outcome: expected safe, seen 'the holder is hung'"


def hung(words: str) -> str:
    return f"hung_in: expected none, seen '{words}'"


@pytest.mark.parametrize(
    ("test", "release", "symptoms", "issue"),
    [
        ("test_l6_x[zero-xfs]", "6.12.117", [WARNING, RETURNED], "dax-unmapped-pins"),
        ("test_l6_x[zero-xfs]", "6.12.117", [WARNING], None),
        ("test_l6_x[zero-xfs]", "7.2.13", [WARNING, RETURNED], None),
        (
            "test_l6_x[zero-xfs]",
            "6.12.117",
            [WARNING, RETURNED, "content: expected OK, seen 'page 3 is second 3, not zero 0'"],
            None,
        ),
        ("test_l6_x[zero-xfs]", "6.12.117", [RETURNED, "pipe_kept: expected true, seen x"], None),
        (
            "test_l8_x[xfs]",
            "6.1.192",
            [RETURNED, "refill_content: expected OK, seen 'page 52 is device 0, not second 52'"],
            "dax-unmapped-pins-corrupt",
        ),
        (
            "test_l8_x[xfs]",
            "6.1.192",
            [RETURNED, "refill_content: expected OK, seen 'page 52 is zero, not second 52'"],
            None,
        ),
        (
            "test_l5_x[punch-odirect-write-ext4]",
            "6.1.192",
            [hung("punch: S in ext4_break_layouts, no pin held")],
            "dax-lost-wake-up",
        ),
        ("test_l5_x", "6.1.192", [hung("punch: S in ext4_break_layouts, page 3 is pinned")], None),
        ("test_l5_x", "6.1.192", [hung("punch: D in ext4_break_layouts, no pin held")], None),
        ("test_l5_x", "6.1.192", [hung("punch: S in jbd2_log_wait_commit, no pin held")], None),
        (
            "test_l11_x",
            "7.2.13",
            [hung("zero: S in dax_break_layout, no pin held")],
            "dax-touched-while-waiting",
        ),
        ("test_l11_x", "6.12.117", [hung("zero: S in dax_break_layout, no pin held")], None),
        (MOUNT, "6.12.117", [FAULT, UMOUNT], "dax-unbind-under-mount"),
        (MOUNT, "6.12.117", [UMOUNT], None),
        (MOUNT, "7.2.13", ["page fault in vm_normal_folio_pmd", HUNG], "dax-unbind-under-mapping"),
        (MOUNT, "7.2.13", [HUNG, "rcu_preempt stall in __schedule"], None),
    ],
)
def test_a_fault_and_its_neighbours(
    test: str, release: str, symptoms: list[str], issue: str | None
) -> None:
    found = KNOWN.explain(test, release, symptoms)
    assert (found.id if found else None) == issue


@pytest.mark.parametrize(
    "symptom",
    [
        "hung: expected false, seen true",
        "no end after 180 s: /opt/nvh/layout --file /mnt/fsdax0/a",
        "the guest's kernel panicked: sysrq triggered crash",
        "BUG: KASAN: use-after-free in dax_layout_busy_page_range",
        "WARNING in memunmap_pages (mm/memremap.c:150)",
    ],
)
def test_no_issue_takes_what_could_be_anything(symptom: str) -> None:
    for issue in KNOWN:
        assert not issue.explains([symptom]), issue.id
