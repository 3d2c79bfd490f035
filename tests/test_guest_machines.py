"""Machines of other kinds than the default one, booted and provisioned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.guest.boot import booted
from harness.lab import Lab
from harness.spec import MIB, Machine

pytestmark = pytest.mark.guest

Load = Callable[[str], Machine]

EDU = '[[pci]]\nname = "edu"\ndevice = "edu"\nid = "1234:11e8"\nvfio = true\n'


@pytest.mark.parametrize(("kind", "unit"), [("amd", "ivhd"), ("virtio", "0000:")])
def test_another_iommu_stands_before_edu(
    machine_of: Load, tcg_lab: Lab, tmp_path: Path, kind: str, unit: str
) -> None:
    machine = machine_of(f'[machine]\niommu = "{kind}"\n' + EDU)
    with booted(tcg_lab.recipe(machine), tmp_path) as guest:
        edu = guest.vfio("edu")
        assert (edu.driver, edu.id) == ("vfio-pci", "1234:11e8")
        assert edu.iommu.startswith(unit)
        assert edu.iommu in guest.facts["iommu"].split()
        assert guest.run(f"ls /sys/kernel/iommu_groups/{edu.group}/devices").stdout.split() == [
            edu.address
        ]


def dimm(name: str, mode: str, size: int, *, kind: str = "nvdimm", align: str = "2M") -> str:
    label = 2 if kind == "nvdimm" else 0
    aligned = f'align = "{align}"\n' if mode in {"fsdax", "devdax"} else ""
    return (
        f'[[nvdimm]]\nname = "{name}"\nkind = "{kind}"\nsize = "{size + label}M"\n'
        f'[nvdimm.namespace]\nmode = "{mode}"\n{aligned}'
    )


def test_every_mode_and_virtio_pmem(machine_of: Load, tcg_lab: Lab, tmp_path: Path) -> None:
    machine = machine_of(
        '[machine]\niommu = "none"\n'
        + dimm("v0", "fsdax", 64, kind="virtio-pmem")
        + dimm("small", "devdax", 64, align="4K")
        + dimm("sectors", "sector", 80)
        + dimm("plain", "raw", 96)
    )
    with booted(tcg_lab.recipe(machine), tmp_path) as guest:
        assert guest.facts["iommu"] == "none"
        assert {name: made.mode for name, made in guest.namespaces.items()} == {
            "v0": "fsdax",
            "small": "devdax",
            "sectors": "sector",
            "plain": "raw",
        }
        assert guest.namespace("small").align == 4096
        assert guest.namespace("plain").size == 96 * MIB
        for made in guest.namespaces.values():
            assert guest.run(f"test -e {made.device}", check=False).status == 0
        region = guest.namespace("v0").region
        provider = guest.run(f"readlink -f /sys/bus/nd/devices/{region}").stdout
        assert "virtio" in provider
