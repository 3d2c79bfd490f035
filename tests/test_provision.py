"""What a guest that is not as asked for is told to change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from harness.errors import GuestLost
from harness.guest import filesystem, provision
from harness.guest.ssh import Result
from harness.qemu.vm import Vm
from harness.spec import Machine

DEVICE = '[machine]\niommu = "{iommu}"\n[[pci]]\nname = "edu"\ndevice = "edu"\nvfio = true\n'
OPTIONS = {"intel": "INTEL_IOMMU", "amd": "AMD_IOMMU", "virtio": "VIRTIO_IOMMU"}


class _Monitor:
    """The monitor of a guest with one device."""

    qmp: _Monitor

    def __init__(self) -> None:
        self.qmp = self

    def execute(self, _: str) -> list[Any]:
        device = {"bus": 0, "slot": 3, "function": 0, "qdev_id": "edu"}
        return [{"devices": [device]}]


def says(stdout: str, status: int = 0) -> provision.Runner:
    def run(command: str, *, timeout: float = 0, check: bool = True) -> Result:
        return Result(command, status, stdout, "", timeout + check)

    return run


@pytest.mark.parametrize("iommu", OPTIONS)
@pytest.mark.parametrize(
    ("said", "status"), [("", 1), ("driver vfio-pci\nid 1234:11e8\n", 0)], ids=["unbound", "bare"]
)
def test_a_device_that_does_not_bind_names_the_machines_own_iommu(
    machine_of: Callable[[str], Machine], iommu: str, said: str, status: int
) -> None:
    machine = machine_of(DEVICE.format(iommu=iommu))
    with pytest.raises(GuestLost) as caught:
        provision.bind_vfio(machine, cast(Vm, _Monitor()), says(said, status))
    names_only(caught.value.hint, iommu)


@pytest.mark.parametrize("iommu", OPTIONS)
def test_an_iommu_that_is_not_used_names_its_option(
    machine_of: Callable[[str], Machine], iommu: str
) -> None:
    with pytest.raises(GuestLost, match=f"does not use its {iommu} IOMMU") as caught:
        provision.iommu_facts(machine_of(DEVICE.format(iommu=iommu)), says(""))
    names_only(caught.value.hint, iommu)


def names_only(hint: str | None, iommu: str) -> None:
    assert hint is not None
    assert [name for name, option in OPTIONS.items() if f"CONFIG_{option}=y" in hint] == [iommu]
    assert ("intel_iommu=on" in hint) == (iommu == "intel")


@pytest.mark.parametrize(
    ("namespaces", "words"),
    [
        ("", "0 namespaces"),
        ('{"dev": "namespace0.0", "mode": "raw", "size": 9, "blockdev": "pmem0"}', "carries raw"),
    ],
    ids=["none", "another"],
)
def test_a_namespace_that_did_not_come_back_is_told(
    machine_of: Callable[[str], Machine], namespaces: str, words: str
) -> None:
    machine = machine_of(
        '[[nvdimm]]\nname = "a"\nsize = "66M"\n[nvdimm.namespace]\nmode = "fsdax"\n'
    )
    listed = (
        '{"dimms": [{"dev": "nmem0", "handle": 1}], "regions": [{"dev": "region0", "size": 9,'
        f'"mappings": [{{"dimm": "nmem0"}}], "namespaces": [{namespaces}]}}]}}'
    )
    with pytest.raises(GuestLost, match=words):
        provision.create_namespaces(machine, says(listed), existing=True)


@pytest.mark.parametrize(
    ("words", "made"),
    [
        (("-b", "4096"), "mkfs.ext4 -qF -b 4096 /dev/pmem0"),
        (("-E", "a=1", "-N", "9"), "mkfs.ext4 -qF -N 9 -E a=1 /dev/pmem0"),
        (("-E", "a=1", "-N", "9", "-E", "b"), "mkfs.ext4 -qF -N 9 -E a=1,b /dev/pmem0"),
    ],
)
def test_mkfs_is_told_all_extended_options_at_once(words: tuple[str, ...], made: str) -> None:
    assert filesystem.make_command("ext4", "/dev/pmem0", words) == made


def test_the_machines_options_for_mkfs_are_for_its_own_file_system(
    machine_of: Callable[[str], Machine],
) -> None:
    machine = machine_of(
        '[[nvdimm]]\nname = "p0"\nsize = "66M"\n[nvdimm.namespace]\nmode = "fsdax"\n'
        'filesystem = "xfs"\nmkfs = ["-K"]\n'
    )
    assert filesystem.options(machine, "p0", "xfs") == (*filesystem.MKFS["xfs"], "-K")
    assert filesystem.options(machine, "p0", "ext4") == filesystem.MKFS["ext4"]
