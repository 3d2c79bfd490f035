"""QEMU takes what argv makes of every kind of machine; nothing is booted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.guest.boot import Recipe, prepare_nvdimms
from harness.qemu.vm import launched
from harness.spec import MIB, Machine, Nvdimm

pytestmark = pytest.mark.guest

Load = Callable[[str], Machine]

DIMM = '[[nvdimm]]\nname = "p0"\nsize = "66M"\n'


@pytest.mark.parametrize(
    "text",
    [
        "",
        '[machine]\niommu = "amd"\n' + DIMM,
        '[machine]\niommu = "virtio"\n' + DIMM,
        '[machine]\niommu = "none"\n' + DIMM,
        '[machine]\nmemory = "256M"\ncpus = 1\n',
        '[machine]\nmemory = "1152M"\n' + DIMM,
        '[machine]\nqemu_args = ["-device", "virtio-balloon"]\n',
        '[[nvdimm]]\nname = "v0"\nkind = "virtio-pmem"\nsize = "64M"\n' + DIMM,
        DIMM + 'label = "128K"\nalign = "4K"\n'.replace("128K", "2M"),
        "".join(
            f'[[nvdimm]]\nname = "p{n}"\nsize = "{size}"\nalign = "{align}"\n'
            for n, (size, align) in enumerate(
                [("66M", "2M"), ("2050M", "1G"), ("66M", "2M"), ("2050M", "1G"), ("770M", "2M")]
            )
        ),
        '[[pci]]\nname = "n0"\ndevice = "nvme"\noptions = { serial = "s" }\n',
        "".join(f'[[pci]]\nname = "d{n}"\ndevice = "edu"\n' for n in range(14)),
    ],
    ids=lambda text: " ".join(text.split())[:60] or "empty",
)
def test_qemu_takes_it(machine_of: Load, recipe: Recipe, tmp_path: Path, text: str) -> None:
    machine = machine_of(text)
    files = prepare_nvdimms(machine, tmp_path)
    made = dataclasses.replace(recipe, machine=machine)
    with launched(
        lambda wiring: [
            *made.argv(initramfs=recipe.images.initramfs, nvdimms=files, wiring=wiring),
            "-S",  # its devices are made, its processors stand still
        ],
        folder=tmp_path,
        grace=0,
    ) as vm:
        vm.qmp.execute("query-status", timeout=30)
        dimms = vm.qmp.execute("query-memory-devices")
        assert len(dimms) == len(machine.nvdimms)
        placed = {dimm["data"]["id"]: dimm["data"] for dimm in dimms}
        for dimm in machine.nvdimms:
            assert placed[dimm.name]["size"] == dimm.usable + _label(dimm)
            assert placed[dimm.name].get("addr", placed[dimm.name].get("memaddr")) % dimm.align == 0


def _label(dimm: Nvdimm) -> int:
    """The region that QEMU shows has its label area cut off."""
    return 0 if dimm.kind == "nvdimm" else dimm.label


@pytest.mark.parametrize("name", ["with,comma", "with space", "with'quote", "id=x,size=1"])
def test_qemu_opens_a_file_of_any_name(
    machine_of: Load, recipe: Recipe, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    machine = machine_of(DIMM)
    files = prepare_nvdimms(machine, folder)
    made = dataclasses.replace(recipe, machine=machine)
    with launched(
        lambda wiring: [
            *made.argv(initramfs=recipe.images.initramfs, nvdimms=files, wiring=wiring),
            "-S",
        ],
        folder=tmp_path,
        grace=0,
    ) as vm:
        path = vm.qmp.execute("qom-get", {"path": "/objects/mem-p0", "property": "mem-path"})
        assert path == str(folder / "p0.nvdimm")
    assert files["p0"].stat().st_size == 66 * MIB
