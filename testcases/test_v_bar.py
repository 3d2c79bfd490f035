"""V11-V14: a BAR of a vfio device (PFNMAP) mapped for DMA; V22: what else the device gives."""

from __future__ import annotations

import pytest

from harness.guest import Guest
from harness.verdict.expectation import Case
from testcases.vfio_steps import expect_all, observe

TOUCHED = pytest.mark.parametrize("touch", ["none", "read"], ids=["untouched", "touched"])


@TOUCHED
def test_v11_bar(guest: Guest, case: Case, touch: str) -> None:
    """The device reaches its own registers through the IOMMU, whoever faulted the BAR in."""
    seen = observe(guest, case, "vfio_bar", "--touch", touch, "--dma-test")
    for what in ("map", "peer_read", "peer_second_page", "peer_write"):
        case.expect(what, seen[what])
    for what in ("pages_like_first", "part_page", "beyond_end", "private"):
        case.expect(what, seen[what])
    case.expect("whole_unmapped", seen["unmapped"] == seen["size"])
    case.expect("locked memory (KiB)", seen["locked_after"], right=seen["locked_before"])


@TOUCHED
def test_v12_bar_read_only(guest: Guest, case: Case, touch: str) -> None:
    """A BAR that the process may only read, and DMA that writes."""
    seen = observe(guest, case, "vfio_bar", "--prot", "r", "--touch", touch)
    case.expect("map", seen["map"])
    case.expect("left_mapped", seen["left_mapped"])


@TOUCHED
def test_v13_bar_disabled(guest: Guest, case: Case, touch: str) -> None:
    """Nothing answers behind the BAR, so nothing can be mapped; later it can again."""
    seen = observe(guest, case, "vfio_bar", "--memory", "off", "--touch", touch, "--dma-test")
    for what in ("map", "disabled_access", "left_mapped", "map_enabled", "peer_read"):
        case.expect(what, seen[what])
    case.expect("pages_like_first", seen["pages_like_first"])


def test_v13_all_bars_disabled(guest: Guest, case: Case) -> None:
    """Memory decoding goes off for all BARs of a device: its third one is gone as well."""
    seen = observe(guest, case, "vfio_bar", "--bar", "2", device="testdev")
    for what in ("enabled_access", "disabled_access", "again_access"):
        case.expect(what, seen[what])


@TOUCHED
@pytest.mark.parametrize("order", ["disable", "close"])
def test_v14_bar_goes_away(guest: Guest, case: Case, touch: str, order: str) -> None:
    """The BAR goes away under its DMA mapping; unmapping still takes all of it back."""
    seen = observe(guest, case, "vfio_bar", "--order", order, "--touch", touch)
    case.expect("map", seen["map"])
    case.expect("whole_unmapped", seen["unmapped"] == seen["size"])


def test_v22_registers_and_interrupts(guest: Guest, case: Case) -> None:
    """Registers by read() and write() end where the BAR does; interrupts arrive by eventfd.

    Whoever closes the device leaves it to the next as it was found, interrupts and all; an unbind
    of its driver asks for it and waits.
    """
    with case.gathered():
        seen = observe(guest, case, "vfio_device")
        expect_all(case, seen, "registers", "msi", "intx")
        seen = observe(guest, case, "vfio_close")
        expect_all(case, seen, "group", "close", "unbind")
