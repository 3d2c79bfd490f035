"""Fixtures for what a test's guest has: its machine, its pmem, its VFIO device, its programs.

They are small on purpose: each is what ``guest`` offers, proven and under a name of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pytest

from harness import dax
from harness.errors import UsageError
from harness.guest import Guest
from harness.guest.filesystem import MKFS, Mount
from harness.guest.ktap import WorkloadResult
from harness.guest.provision import NamespaceInfo, VfioInfo
from harness.images import workloads
from harness.run_state import run_state
from harness.spec import Machine
from harness.verdict.expectation import NotProven
from harness.verdict.status import Status


class Workload(Protocol):
    """Runs a program in the guest."""

    def __call__(self, name: str, *options: str, timeout: float = 60.0) -> WorkloadResult:
        """Run it to its end; ``timeout`` is in seconds, stretched under TCG."""


@pytest.fixture
def machine(guest: Guest) -> Machine:
    """The guest's hardware as its machine file describes it: memory, NVDIMMs, IOMMU, devices.

    Another than the run's (--nvh-machine) by the marker ``machine("NAME or FILE.toml")``.
    """
    return guest.machine


@pytest.fixture
def fsdax(request: pytest.FixtureRequest, guest: Guest) -> Iterator[Mount]:
    """A DAX file system of the test's own, mounted at ``fsdax.path``; that it is DAX is proven.

    It is ext4 with dax=always on a namespace in fsdax mode (``fsdax.namespace``).  Others by
    ``@pytest.mark.parametrize("fsdax", ["ext4", "xfs"], indirect=True)``.  The test is skipped
    where the kernel has no DAX for file systems.
    """
    fs = str(getattr(request, "param", "ext4"))
    if fs not in MKFS:
        raise UsageError(f"fsdax: no file system is called {fs!r} ({', '.join(MKFS)})")
    spaces = of_mode(guest, "fsdax")
    # What provisioning made need not be made again.
    space = next((space for space in spaces if space.filesystem == fs), spaces[0])
    with dax.mounted(guest, space, fs) as mount:
        if not mount.is_dax:
            raise NotProven(f"not proven: files of {mount.path} are DAX", status=Status.MISS)
        yield mount


@pytest.fixture
def devdax(request: pytest.FixtureRequest, guest: Guest) -> NamespaceInfo:
    """A namespace in devdax mode: ``devdax.device`` is /dev/dax1.0, ``align`` and ``size`` bytes.

    It is the machine's first; another by the name of its NVDIMM:
    ``@pytest.mark.parametrize("devdax", ["devdax1g"], indirect=True)``.
    """
    name = getattr(request, "param", None)
    return guest.namespace(str(name)) if name else of_mode(guest, "devdax")[0]


@pytest.fixture
def vfio_device(request: pytest.FixtureRequest, guest: Guest) -> VfioInfo:
    """A PCI device bound to vfio-pci and proven to be behind an IOMMU: ``vfio_device.address``.

    It is the machine's first, on the default machine QEMU's edu, which does DMA; another by its
    name: ``@pytest.mark.parametrize("vfio_device", ["NAME"], indirect=True)``.
    """
    name = getattr(request, "param", None)
    if not name and not guest.vfio_devices:
        raise missing(guest, "device on vfio-pci", "a [[pci]] table with vfio = true")
    device = guest.vfio(str(name)) if name else next(iter(guest.vfio_devices.values()))
    if device.iommu == "none":
        raise NotProven(f"not proven: {device.name} is behind an IOMMU", status=Status.MISS)
    return device


@pytest.fixture
def workload(request: pytest.FixtureRequest, guest: Guest) -> Workload:
    """Run a program in the guest: ``seen = workload("vfio_map", "--device", ...)``.

    Its name is that of one of the harness's workloads, or of a C file beside the test, "mine.c",
    which is compiled statically, with nvh.h at hand.  ``seen.facts`` is what it observed,
    ``seen.ok`` says whether all its steps were taken, ``seen.failed`` which were not.
    """

    def run(name: str, *options: str, timeout: float = 60.0) -> WorkloadResult:
        if not name.endswith(".c"):
            return guest.workload(name, *options, timeout=timeout)
        lab = run_state(request.config).lab
        source = request.path.parent / name
        binary = workloads.compiled(source, lab.workloads, lab.store)
        return guest.workload(binary.name, *options, timeout=timeout, binary=binary)

    return run


def of_mode(guest: Guest, mode: str) -> list[NamespaceInfo]:
    """Return the guest's namespaces of a mode; a machine without one skips the test."""
    found = [space for space in guest.namespaces.values() if space.mode == mode]
    if not found:
        raise missing(
            guest, f"namespace in {mode} mode", f'an [[nvdimm]] table with mode = "{mode}"'
        )
    return found


def missing(guest: Guest, what: str, how: str) -> NotProven:
    """Return what skips a test whose machine lacks something."""
    name = guest.machine.name
    return NotProven(
        f"machine {name} has no {what}", status=Status.SKIP, hint=f"--nvh-machine with {how}"
    )
