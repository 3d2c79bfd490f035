"""V21: the reported case whole, a QEMU in the guest that gives edu to a machine of its own."""

from __future__ import annotations

import re
from typing import Any

import pytest

from harness.guest import Guest
from harness.verdict.expectation import Case
from testcases.filesystems import NAMES, dax_mount
from testcases.vfio_steps import observe

pytestmark = pytest.mark.machine("nested")


def expect_started(case: Case, seen: dict[str, Any]) -> None:
    """Expect an inner machine that runs, and whose device copied data inside the NVDIMM."""
    case.expect("starts", seen["started"])
    case.prove("the inner machine has the NVDIMM", seen["nvdimm_address"] > 0)
    case.prove("the inner machine has edu", seen["listed"])
    if "refs_started" in seen:
        pairs = zip(seen["refs_before"], seen["refs_started"], strict=True)
        case.expect("pages pinned", all(now > then for then, now in pairs), right=True)
    case.expect("dma", seen["dma"])
    case.expect("state", seen["state"])


@pytest.mark.parametrize("how", ["", ":private"], ids=["shared", "private"])
@pytest.mark.parametrize("fs", NAMES)
def test_v21_fsdax_is_refused(guest: Guest, case: Case, fs: str, how: str) -> None:
    """QEMU names the call and the error, and the file can be truncated right away."""
    with dax_mount(guest, case, fs) as mount:
        path = f"{mount.path}/nvdimm"
        seen = observe(guest, case, "inner_qemu", "--source", f"file:{path}{how}")
        case.prove("the file is DAX", seen["dax"] == 1, seen=seen["dax"])
        case.expect("starts_on_fsdax", seen["started"])
        said = re.search(r"VFIO_MAP_DMA failed: .*", seen["words"])
        case.expect("says", said[0] if said else seen["words"])
        done = guest.run(f"truncate -s 0 {path}", timeout=10.0, check=False)
        case.expect("truncate", "OK" if done.status == 0 else done.stderr.strip())


def test_v21_devdax_starts(guest: Guest, case: Case) -> None:
    """The way that remains: device-dax behind the NVDIMM."""
    source = f"dax:{guest.namespace('devdax2m').device}"
    seen = observe(guest, case, "inner_qemu", "--source", source, "--align", "2M")
    expect_started(case, seen)


def test_v21_shared_memory_starts(guest: Guest, case: Case) -> None:
    """The control: what refuses above is the memory, not this QEMU, its machine or its device."""
    seen = observe(guest, case, "inner_qemu", "--source", "file:/dev/shm/nvdimm")
    case.prove("the file is not DAX", seen["dax"] == 0, seen=seen["dax"])
    expect_started(case, seen)
