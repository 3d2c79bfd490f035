"""The machine: a guest's hardware as a frozen value, read from TOML and checked before use."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.toml_table import Table, format_size

MIB = 1 << 20
GIB = 1 << 30
#: What libnvdimm aligns namespaces to on x86-64 (MEMREMAP_COMPAT_ALIGN_MAX, kernel v5.7).
REGION_ALIGN = 16 * MIB
#: QEMU refuses a smaller label area (hw/mem/nvdimm.c, MIN_NAMESPACE_LABEL_SIZE).
MIN_LABEL = 128 << 10

#: Slots 0x10 to 0x1d of q35's root bus; its own devices follow.
MAX_PCI = 14

_NAME = re.compile(r"[a-z][a-z0-9_]{0,23}")
_PCI_ADDRESS = re.compile(r"(?:[0-9a-f]{4}:)?[0-9a-f]{2}:[0-1][0-9a-f]\.[0-7]")
#: Debian Policy 5.6.1; apt would take a "-" or "+" at the end for what to do with the package.
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*[a-z0-9]")
_MODULE = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_-]*")
_QEMU_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Namespace:
    """What ndctl makes of a region."""

    mode: str  # fsdax, devdax, sector or raw
    align: int  # bytes: 4 KiB, 2 MiB or 1 GiB
    map: str  # where struct pages live: "mem" or "dev"
    filesystem: str = ""  # made on it before the first test, not mounted
    mkfs: tuple[str, ...] = ()  # for mkfs, besides the harness's own options


@dataclass(frozen=True)
class Nvdimm:
    """One persistent memory device and the namespace that it carries."""

    name: str
    kind: str  # nvdimm or virtio-pmem
    size: int  # of the backend, label area included, in bytes
    label: int  # of the label area, in bytes; 0 for virtio-pmem
    align: int  # of the backend and of its guest address, in bytes
    path: Path | None  # a file or /dev/daxX.Y of the host; None: a sparse file of the run's own
    namespace: Namespace | None

    @property
    def usable(self) -> int:
        """Size of the guest's region in bytes (QEMU cuts it to a multiple of ``align``)."""
        return (self.size - self.label) // self.align * self.align


@dataclass(frozen=True)
class PciDevice:
    """A PCI device: one of QEMU's, or one of the host's by its address."""

    name: str
    device: str  # QEMU's name of it; vfio-pci for one of the host's
    host: str | None  # DDDD:BB:DD.F on the host
    vfio: bool  # whether the harness binds it to vfio-pci in the guest
    port: bool  # behind a PCIe root port of its own, plugged into a clone after its start
    on_demand: bool  # into a clone only when its test asks for it: Guest.plug()
    options: tuple[tuple[str, str], ...]
    id: str | None  # vendor:device as the guest sees it; found by address when None


@dataclass(frozen=True)
class Machine:
    """A guest's hardware, its kernel command line, QEMU's and the root image's extras."""

    name: str
    cpus: int
    memory: int  # bytes
    cpu: str
    iommu: str  # intel, amd, virtio or none
    nvdimms: tuple[Nvdimm, ...]
    pci: tuple[PciDevice, ...]
    kernel_args: tuple[str, ...]
    qemu_args: tuple[str, ...]
    packages: tuple[str, ...]  # in its root image besides those of every guest
    #: Loaded when it is made ready, where its kernel and processor have them.
    modules: tuple[str, ...]

    @property
    def has_host_device(self) -> bool:
        """Whether a PCI device of the host is part of it: such a guest cannot be cloned."""
        return any(device.host for device in self.pci)

    def nvdimm(self, name: str) -> Nvdimm:
        """Return an NVDIMM by name; UsageError names those that there are."""
        for dimm in self.nvdimms:
            if dimm.name == name:
                return dimm
        names = ", ".join(dimm.name for dimm in self.nvdimms) or "none"
        raise UsageError(f"machine {self.name} has no NVDIMM {name!r}", hint=f"it has {names}")

    def as_dict(self) -> dict[str, Any]:
        """Return the machine as plain data, sizes in bytes."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return plain

    @property
    def digest(self) -> str:
        """A hash of everything that the machine says."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()


def load_machine(file: Path) -> Machine:
    """Read a machine file; SpecError names file, line, table and key of whatever is wrong."""
    root = Table.load(file)
    table = root.table("machine") or Table(file, "machine", {})
    dimms, devices = root.tables("nvdimm"), root.tables("pci")
    machine = Machine(
        name=file.stem,
        cpus=table.integer("cpus", 2, high=64),
        memory=_memory(table),
        cpu=_word(table, "cpu", "max"),
        iommu=table.choice("iommu", ("intel", "amd", "virtio", "none"), "intel"),
        nvdimms=tuple(_nvdimm(entry) for entry in dimms),
        pci=tuple(_pci(entry) for entry in devices),
        kernel_args=table.strings("kernel_args"),
        qemu_args=table.strings("qemu_args"),
        packages=_names(table, "packages", _PACKAGE, "package"),
        modules=_names(table, "modules", _MODULE, "module"),
    )
    table.done()
    root.done()
    if len(machine.pci) > MAX_PCI:
        raise root.error("pci", f"{len(machine.pci)} devices are more than {MAX_PCI}")
    _check_names(machine, dimms, devices)
    if machine.iommu == "none":
        for entry, device in zip(devices, machine.pci, strict=True):
            if device.vfio:
                raise entry.error(
                    "vfio",
                    f"{device.name} cannot be bound to vfio-pci on a machine without an IOMMU",
                    hint='set [machine] iommu = "intel" or vfio = false',
                )
    return machine


def find_machine(selector: str, *, folder: Path) -> Machine:
    """Return a machine by name (a file of ``folder``) or by the path of a machine file."""
    return load_machine(machine_file(selector, folder=folder))


def machine_file(selector: str, *, folder: Path) -> Path:
    """Return the file that describes a machine; UsageError when no machine is called so."""
    if selector.endswith(".toml") or "/" in selector:
        return Path(selector)
    file = folder / f"{selector}.toml"
    if not _NAME.fullmatch(selector.replace("-", "_")) or not file.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.toml"))) or "none"
        raise UsageError(f"no machine {selector!r}", hint=f"known: {known}; or give a .toml file")
    return file


def _memory(table: Table) -> int:
    memory = table.size("memory", "1G")
    if not 256 * MIB <= memory <= 256 * GIB or memory % (128 * MIB):
        raise table.error("memory", f"{format_size(memory)} is not a multiple of 128M from 256M on")
    return memory


def _word(table: Table, key: str, default: Any = ...) -> str:
    """Take a word that is safe inside a comma-separated QEMU option."""
    word = table.string(key, default)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.,=+-]*", word):
        raise table.error(key, f"{word!r} is not a word that QEMU could take")
    return word


def _names(table: Table, key: str, pattern: re.Pattern[str], what: str) -> tuple[str, ...]:
    names = table.strings(key)
    for name in names:
        if not pattern.fullmatch(name):
            raise table.error(key, f"{name!r} is not the name of a {what}")
    return names


def _name(table: Table) -> str:
    name = table.string("name")
    if not _NAME.fullmatch(name):
        raise table.error("name", f"{name!r} is not a name (a-z, 0-9, _; at most 24)")
    return name


def _nvdimm(table: Table) -> Nvdimm:
    name = _name(table)
    kind = table.choice("kind", ("nvdimm", "virtio-pmem"), "nvdimm")
    label = table.size("label", "2M" if kind == "nvdimm" else 0)
    size = table.size("size")
    align = table.size("align", "2M")
    path = table.optional_string("path")
    described = table.table("namespace")
    namespace = None if described is None else _namespace(described)
    table.done()
    if kind == "virtio-pmem" and label:
        raise table.error("label", "virtio-pmem has no label area", hint="remove the key")
    if kind == "virtio-pmem" and namespace and namespace.mode != "fsdax":
        raise table.error("namespace", "virtio-pmem carries one fsdax namespace and no other")
    if kind == "nvdimm" and label < MIN_LABEL:
        raise table.error("label", f"{format_size(label)} is too small", hint="at least 128K")
    if align & (align - 1) or not 4096 <= align <= GIB:
        raise table.error("align", f"{format_size(align)} is not a power of two from 4K to 1G")
    if path is not None and ("\n" in path or not Path(path).is_absolute()):
        raise table.error("path", f"{path!r} is not an absolute path")
    dimm = Nvdimm(name, kind, size, label, align, Path(path) if path else None, namespace)
    _check_size(table, dimm)
    return dimm


def _namespace(table: Table) -> Namespace:
    mode = table.choice("mode", ("fsdax", "devdax", "sector", "raw"))
    for key in ("align", "map"):
        if mode in ("sector", "raw") and key in table:
            why = f"a {mode} namespace has no struct pages to align or to place"
            raise table.error(key, why, hint="remove the key")
    align = table.size("align", "2M")
    where = table.choice("map", ("mem", "dev"), "mem")
    filesystem = table.choice("filesystem", ("ext4", "xfs", ""), "")
    mkfs = table.strings("mkfs")
    table.done()
    if filesystem and mode != "fsdax":
        raise table.error("filesystem", f"a {mode} namespace is given none", hint="remove the key")
    if mkfs and not filesystem:
        raise table.error("mkfs", "there is no file system to make", hint="set filesystem")
    if align not in (4096, 2 * MIB, GIB):
        raise table.error("align", f"{format_size(align)} is not 4K, 2M or 1G")
    return Namespace(mode, align, where, filesystem, mkfs)


def _check_size(table: Table, dimm: Nvdimm) -> None:
    """Refuse what ndctl would refuse, with the size to use instead.

    The label area is taken out of the backend, and libnvdimm wants what is left to be a multiple
    of 16 MiB ("align setting is 0x1000000 size 0x3fe00000 is misaligned", ndctl 76).  A namespace
    with a struct page map starts its data at the first multiple of its alignment behind the info
    block (nd_pfn_init, drivers/nvdimm/pfn_devs.c), so it needs one alignment more than it offers.
    """
    unit = max(REGION_ALIGN, dimm.align)
    align = dimm.namespace.align if dimm.namespace else 0
    least = max(unit, 2 * align)
    have = dimm.size - dimm.label
    if have % unit == 0 and have >= least:
        return
    wanted = max(-(-max(have, 1) // unit) * unit, least) + dimm.label
    behind = f" behind the label of {format_size(dimm.label)}" if dimm.label else ""
    if have <= 0:
        why = f"leaves nothing{behind}"
    elif have % unit:
        why = f"leaves {format_size(have)}{behind}, which is no multiple of {format_size(unit)}"
    else:
        why = f"is too small for a namespace aligned to {format_size(align)}"
    raise table.error(
        "size", f"{format_size(dimm.size)} {why}", hint=f'use size = "{format_size(wanted)}"'
    )


def _pci(table: Table) -> PciDevice:
    name = _name(table)
    host = table.optional_string("host")
    if host is not None and not _PCI_ADDRESS.fullmatch(host):
        raise table.error("host", f"{host!r} is not a PCI address", hint="such as 0000:01:00.0")
    if host is not None and "device" in table:
        raise table.error("device", "a device is either QEMU's (device) or the host's (host)")
    device = "vfio-pci" if host is not None else table.string("device")
    if not _QEMU_WORD.fullmatch(device):
        raise table.error("device", f"{device!r} is not a QEMU device")
    options = []
    for key, value in table.mapping("options").items():
        text = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
        if not _QEMU_WORD.fullmatch(key) or not isinstance(text, str | int) or "," in str(text):
            raise table.error("options", f"{key} = {value!r} is not a QEMU option")
        options.append((key, str(text)))
    ident = table.optional_string("id")
    if ident is not None and not re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{4}", ident):
        raise table.error("id", f"{ident!r} is not vendor:device", hint='such as "1234:11e8"')
    vfio = table.boolean("vfio", False)
    port = table.boolean("port", False)
    on_demand = table.boolean("on_demand", False)
    table.done()
    for key, _ in options:
        if port and key in ("addr", "bus"):
            raise table.error("port", f"a root port of its own and options {key} contradict")
    if on_demand and (vfio or not port):
        raise table.error("on_demand", "is for a device with port = true and without vfio = true")
    return PciDevice(name, device, host, vfio, port, on_demand, tuple(options), ident)


def _check_names(machine: Machine, dimms: list[Table], devices: list[Table]) -> None:
    names: set[str] = set()  # of NVDIMMs and devices alike: each becomes an id of QEMU's
    files: set[Path] = set()
    named: list[Nvdimm | PciDevice] = [*machine.nvdimms, *machine.pci]
    for entry, thing in zip([*dimms, *devices], named, strict=True):
        if thing.name in names:
            raise entry.error("name", f"{thing.name!r} is given twice")
        names.add(thing.name)
        if isinstance(thing, Nvdimm) and thing.path:
            if thing.path in files:
                raise entry.error("path", f"{thing.path} stands behind two NVDIMMs")
            files.add(thing.path)
