"""A booted guest made ready: namespaces with ndctl, devices on vfio-pci, each proven."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from harness.errors import GuestLost
from harness.guest.ssh import Result
from harness.qemu import argv
from harness.qemu.vm import Vm
from harness.spec import Machine, Nvdimm, PciDevice

#: ndctl's time for one namespace under TCG is 1 to 3 s; this is for a loaded host.
NDCTL_TIMEOUT = 120.0


class Runner(Protocol):
    """Runs a command in the guest; with ``check`` a status other than 0 raises GuestLost."""

    def __call__(self, command: str, *, timeout: float = ..., check: bool = ...) -> Result:
        """Run it."""
        ...


@dataclass(frozen=True)
class NamespaceInfo:
    """A namespace as the guest has it."""

    name: str  # of the NVDIMM in the machine file
    dev: str  # namespace0.0
    region: str
    mode: str
    device: str  # /dev/pmem0, /dev/dax1.0
    align: int  # bytes; 0 where the mode has none
    size: int  # usable, in bytes
    filesystem: str = ""  # what was made on it, and not mounted yet


@dataclass(frozen=True)
class VfioInfo:
    """A PCI device bound to vfio-pci."""

    name: str
    address: str
    id: str  # vendor:device
    group: int
    iommu: str  # dmar0, ivhd0 ...: the IOMMU that translates for it
    driver: str


def create_namespaces(
    machine: Machine, run: Runner, *, existing: bool = False
) -> dict[str, NamespaceInfo]:
    """Make the machine's namespaces with ndctl and return them by NVDIMM name.

    ``existing``: another boot has made them, and they are only looked up.  Raises GuestLost, with
    ndctl's words, when one cannot be made or is not as it was asked for.
    """
    if not any(dimm.namespace for dimm in machine.nvdimms):
        return {}
    regions = _regions(machine, run)
    made = {}
    for dimm in machine.nvdimms:
        if dimm.namespace is None:
            continue
        region = regions.get(dimm.name)
        if region is None:
            raise GuestLost(
                f"the guest has no region for NVDIMM {dimm.name}",
                hint="set CONFIG_VIRTIO_PMEM=y CONFIG_BLK_DEV_PMEM=y"
                if dimm.kind == "virtio-pmem"
                else "set CONFIG_ACPI_NFIT=y CONFIG_LIBNVDIMM=y CONFIG_BLK_DEV_PMEM=y",
            )
        made[dimm.name] = _find(dimm, region) if existing else _create(dimm, region, run)
    return made


def _regions(machine: Machine, run: Runner) -> dict[str, dict[str, Any]]:
    """Find each NVDIMM's region: by the NFIT handle, which counts NVDIMMs from 1 (QEMU 7.2,
    nvdimm_slot_to_handle); a virtio-pmem region has no DIMM and is found by its size.
    """
    # It prints nothing when there is nothing, and a bare list where there is no DIMM.
    listed = _json(run("ndctl list -R -D -N -X -i").stdout.strip() or "{}")
    handles = {dimm["dev"]: int(dimm["handle"]) for dimm in listed.get("dimms", [])}
    regions: dict[str, dict[str, Any]] = {}
    plain = []
    by_handle = {}
    for region in listed.get("regions", listed.get("list", [])):
        mapped = [
            handles[entry["dimm"]]
            for entry in region.get("mappings", [])
            if entry["dimm"] in handles
        ]
        if mapped:
            by_handle[mapped[0]] = region
        else:
            plain.append(region)
    number = 0
    for dimm in machine.nvdimms:
        if dimm.kind == "nvdimm":
            number += 1
            if number in by_handle:
                regions[dimm.name] = by_handle[number]
        else:
            match = next((region for region in plain if region["size"] == dimm.usable), None)
            if match is not None:
                plain.remove(match)
                regions[dimm.name] = match
    return regions


def _create(dimm: Nvdimm, region: dict[str, Any], run: Runner) -> NamespaceInfo:
    wanted = dimm.namespace
    assert wanted is not None
    existing = [entry["dev"] for entry in region.get("namespaces", []) if entry.get("size", 0) > 0]
    command = f"ndctl create-namespace -f -m {wanted.mode}"
    # A DIMM fresh from QEMU carries one raw namespace over the whole region: it is converted.
    command += f" -e {existing[0]}" if existing else f" -r {region['dev']}"
    if wanted.mode in ("fsdax", "devdax"):
        command += f" -a {wanted.align} -M {wanted.map}"
    done = run(command, timeout=NDCTL_TIMEOUT, check=False)
    if done.status != 0:
        words = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise GuestLost(f"ndctl could not make the namespace of {dimm.name}: {words[0].strip()}")
    return _described(dimm, region, _json(done.stdout))


def _find(dimm: Nvdimm, region: dict[str, Any]) -> NamespaceInfo:
    """Return the namespace that the region's labels tell of."""
    there = [entry for entry in region.get("namespaces", []) if entry.get("size", 0) > 0]
    if len(there) != 1:
        raise GuestLost(f"{dimm.name} came back with {len(there)} namespaces instead of one")
    return _described(dimm, region, there[0])


def _described(dimm: Nvdimm, region: dict[str, Any], info: dict[str, Any]) -> NamespaceInfo:
    wanted = dimm.namespace
    assert wanted is not None
    chardev = info.get("daxregion", {}).get("devices", [{}])[0].get("chardev")
    device = info.get("blockdev") or chardev
    if not device or info.get("mode") != wanted.mode:
        raise GuestLost(f"{dimm.name} carries {info.get('mode')} instead of {wanted.mode}")
    return NamespaceInfo(
        name=dimm.name,
        dev=str(info["dev"]),
        region=str(region["dev"]),
        mode=wanted.mode,
        device=f"/dev/{device}",
        align=int(info.get("align", 0)),
        size=int(info.get("daxregion", info).get("size", info.get("size", 0))),
    )


def _json(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise GuestLost(f"ndctl did not answer in JSON: {text[:200].strip()}") from error
    return data if isinstance(data, dict) else {"list": data}


def pci_addresses(vm: Vm) -> dict[str, str]:
    """Return the guest's PCI address of each named device, as the firmware has set it."""
    found = {}

    def walk(devices: Sequence[dict[str, Any]]) -> None:
        for device in devices:
            address = f"0000:{device['bus']:02x}:{device['slot']:02x}.{device['function']}"
            if device.get("qdev_id"):
                found[str(device["qdev_id"])] = address
            walk(device.get("pci_bridge", {}).get("devices", []))

    for bus in vm.qmp.execute("query-pci"):
        walk(bus["devices"])
    return found


def plug_in(vm: Vm, devices: Sequence[PciDevice]) -> list[str]:
    """Plug devices in and return their addresses."""
    for device in devices:
        vm.qmp.execute("device_add", argv.plug(device))
    addresses = pci_addresses(vm) if devices else {}
    return [addresses[device.name] for device in devices]


def await_device(run: Runner, address: str) -> None:
    """Wait until the guest's kernel has found a device that was plugged in."""
    done = run(
        f"for try in $(seq 500); do [ ! -e /sys/bus/pci/devices/{address} ] || exit 0; "
        "sleep 0.02; done; exit 1",
        check=False,
    )
    if done.status != 0:
        raise GuestLost(
            f"the guest did not find the device at {address} that was plugged in",
            hint="set CONFIG_HOTPLUG_PCI_ACPI=y or CONFIG_HOTPLUG_PCI_PCIE=y",
        )


def load_modules(machine: Machine, run: Runner) -> None:
    """Load what many tests use, once for all clones: kvm_amd costs a second under TCG.

    One that cannot be loaded is no fault: who needs it finds that out.
    """
    if machine.modules:
        run(f"for m in {' '.join(machine.modules)}; do modprobe -q $m; done; true", timeout=60.0)


#: What makes a kernel use the machine's IOMMU.
_IOMMU_HINT = {
    "intel": "set CONFIG_INTEL_IOMMU=y and boot with intel_iommu=on",
    "amd": "set CONFIG_AMD_IOMMU=y",
    "virtio": "set CONFIG_VIRTIO_IOMMU=y",
}

_BIND = """
set -e
d=/sys/bus/pci/devices/{address}
[ -e $d ] || {{ echo "no PCI device {address}" >&2; exit 1; }}
modprobe -q vfio-pci || :  # it may be built in; what counts is the driver below
echo vfio-pci > $d/driver_override
[ ! -e $d/driver ] || echo {address} > $d/driver/unbind
echo {address} > /sys/bus/pci/drivers_probe
echo "driver $(basename $(readlink $d/driver))"
echo "id $(sed s/0x// $d/vendor):$(sed s/0x// $d/device)"
echo "group $(basename $(readlink $d/iommu_group))"
echo "iommu $(basename $(readlink $d/iommu))"
ls -l /dev/vfio/$(basename $(readlink $d/iommu_group)) >/dev/null
echo "members $(ls $d/iommu_group/devices | wc -l)"
"""


def bind_vfio(
    machine: Machine, vm: Vm, run: Runner, *, plugged: bool = True
) -> dict[str, VfioInfo]:
    """Bind the machine's vfio devices to vfio-pci and prove that an IOMMU stands before them.

    ``plugged`` False leaves out those behind a root port, which are not there yet.
    """
    wanted = [device for device in machine.pci if device.vfio and (plugged or not device.port)]
    if not wanted:
        return {}
    addresses = pci_addresses(vm)
    bound = {}
    for device in wanted:
        address = addresses[device.name]
        done = run(_BIND.format(address=address), timeout=60.0, check=False)
        seen = dict(re.findall(r"^(\w+) (\S+)$", done.stdout, re.MULTILINE))
        if done.status != 0 or seen.get("driver") != "vfio-pci":
            words = done.stderr.strip().splitlines() or ["its driver is not vfio-pci"]
            raise GuestLost(
                f"{device.name} ({address}) cannot be bound to vfio-pci: {words[-1]}",
                hint="set CONFIG_VFIO_PCI=m CONFIG_VFIO_IOMMU_TYPE1=m; "
                + _IOMMU_HINT[machine.iommu],
            )
        if device.id is not None and seen["id"] != device.id:
            raise GuestLost(f"{device.name} is {seen['id']} in the guest and not {device.id}")
        if not seen.get("group", "").isdigit() or "iommu" not in seen:
            raise GuestLost(
                f"{device.name} ({address}) does not sit behind an IOMMU",
                hint=_IOMMU_HINT[machine.iommu],
            )
        bound[device.name] = VfioInfo(
            device.name, address, seen["id"], int(seen["group"]), seen["iommu"], seen["driver"]
        )
    return bound


_IOMMU = {
    "intel": ("dmar", r"DMAR: Intel\(R\) Virtualization Technology for Directed I/O"),
    "amd": ("ivhd", r"AMD-Vi: "),
    "virtio": ("0000:", r"virtio_iommu"),  # named after its PCI device
}


def iommu_facts(machine: Machine, run: Runner) -> dict[str, str]:
    """Return the vIOMMU's state as facts; GuestLost when the kernel does not use it."""
    if machine.iommu == "none":
        return {"iommu": "none"}
    prefix, line = _IOMMU[machine.iommu]
    units = run("ls /sys/class/iommu 2>/dev/null || true").stdout.split()
    words = run(f"dmesg | grep -E -m1 '{line}' || true").stdout.strip()
    if not any(unit.startswith(prefix) for unit in units):
        raise GuestLost(
            f"the guest's kernel does not use its {machine.iommu} IOMMU",
            hint=_IOMMU_HINT[machine.iommu],
        )
    remap = run("dmesg | grep -m1 -o 'Enabled IRQ remapping in .* mode' || true").stdout.strip()
    return {"iommu": " ".join(units), "iommu_line": words, "irq_remapping": remap or "no"}
