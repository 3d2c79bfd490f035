"""QEMU's argument vector as a pure function of the machine and of what a run adds to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.spec import GIB, MIB, Machine, Nvdimm, PciDevice

#: Serial numbers by which the guest's init finds its disks, whatever order they are probed in.
ROOT_SERIAL = "nvhroot"
MODULES_SERIAL = "nvhmods"

#: The first slot of the root bus for the machine's PCI devices; QEMU fills it from 1 on.
FIRST_SLOT = 0x10
#: Behind those; the ICH9 has 0x1f.
WATCHDOG_SLOT = 0x1E

#: seccomp: a QEMU that was taken over starts no program and changes no user, no priority.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

#: Where the guest is and what it calls the host, on QEMU's restricted user network.
GUEST_ADDRESS = "10.0.2.15/24"
GUEST_GATEWAY = "10.0.2.2"


@dataclass(frozen=True)
class Wiring:
    """What a QEMU inherits: sockets by which the harness talks to it, and perhaps its files."""

    qmp: int
    console: int  # ttyS0: the kernel's console
    shell: int  # ttyS1: a root shell
    files: Mapping[Path, int] = field(default_factory=dict)  # what it could not open by name


@dataclass(frozen=True)
class Boot:
    """What a run adds to a machine: the guest's software and the host's files."""

    kernel: Path
    initramfs: Path
    root: Path
    modules: Path | None
    nvdimms: Mapping[str, Path]  # NVDIMM name -> backing file
    append: tuple[str, ...] = ()


@dataclass(frozen=True)
class Memory:
    """A guest's RAM in a file, for a template and its clones.

    A template writes the file (``shared``); a clone maps it copy-on-write and waits for the state
    of its devices.  A clone's NVDIMMs are copy-on-write as well, unless their files are its own.
    """

    file: Path
    shared: bool
    own_nvdimms: bool = False


def command_line(machine: Machine, extra: Sequence[str] = ()) -> str:
    """Return the guest kernel's command line."""
    iommu = {
        "intel": ["intel_iommu=on"],
        "amd": [],  # on unless told otherwise; it knows no "on"
        "virtio": [],
        "none": [],
    }[machine.iommu]
    return " ".join(
        [
            "console=ttyS0",
            *iommu,
            # Under TCG on a loaded host the timer's self-test fails, and the kernel panics ("timer
            # doesn't work through Interrupt-remapped IO-APIC"); under KVM Linux skips it itself.
            "no_timer_check",
            # The kernel's self-tests of its ciphers cost a third of a second under TCG.
            "cryptomgr.notests",
            # TCG translates a program anew at each address where it lies: a sixth of a test's time.
            # And no test shall pass or fail by the luck of an address.
            "norandmaps",
            # Reboot at once after a panic; -no-reboot turns that into QEMU's end when no pvpanic
            # device has paused it before.
            "panic=-1",
            *machine.kernel_args,
            *extra,
        ]
    )


def build(
    machine: Machine,
    boot: Boot,
    *,
    accel: str,
    qemu: str = "qemu-system-x86_64",
    wiring: Wiring | None,
    memory: Memory | None = None,
) -> list[str]:
    """Return the argument vector; ``wiring`` None is for a person: console on the terminal.

    The machine's PCI devices stand last and at fixed addresses.  One behind a root port is left
    out of a template and of a clone's start, and plugged in (``plug``) when the clone runs: nvme
    forbids migration and may not be there while a state is taken in.  The others have to be there
    from the first boot on, because QEMU lists them in the DMAR table as the IOMMU's scope (7.2,
    build_dmar_q35).
    """
    private = memory is not None and not memory.shared and not memory.own_nvdimms
    boot, memory = _inherited(boot, memory, wiring.files if wiring else {})
    return [
        qemu,
        *_base(machine, accel, memory),
        *_memory(machine, memory),
        *_iommu(machine),  # before every other device, or those would not be behind it
        *_wires(wiring),
        *_software(machine, boot),
        *_disk("root", boot.root, ROOT_SERIAL),
        *(_disk("modules", boot.modules, MODULES_SERIAL) if boot.modules else []),
        *_network(),
        *["-device", "virtio-rng-pci"],
        *["-device", "pvpanic"],
        # The kernel writes there where its VMCOREINFO is (fw_cfg_write_vmcoreinfo, 4.17), and
        # dump-guest-memory puts that into the dump: without it drgn refuses one.
        *["-device", "vmcoreinfo"],
        *["-device", f"i6300esb,addr={WATCHDOG_SLOT:#x}"],
        *[
            arg
            for dimm in machine.nvdimms
            for arg in _nvdimm(dimm, boot.nvdimms[dimm.name], private=private)
        ],
        *machine.qemu_args,
        *[
            arg
            for slot, device in _slots(machine)
            for arg in _pci(device, slot, plugged=memory is None)
        ],
    ]


def _inherited(
    boot: Boot, memory: Memory | None, files: Mapping[Path, int]
) -> tuple[Boot, Memory | None]:
    """Put descriptors in the place of the paths that are handed over as such."""

    def named(path: Path) -> Path:
        return Path(f"/proc/self/fd/{files[path]}") if path in files else path

    boot = replace(
        boot,
        kernel=named(boot.kernel),
        initramfs=named(boot.initramfs),
        root=named(boot.root),
        modules=boot.modules and named(boot.modules),
        nvdimms={name: named(path) for name, path in boot.nvdimms.items()},
    )
    return boot, memory and replace(memory, file=named(memory.file))


def max_memory(machine: Machine) -> int:
    """Return maxmem in bytes: RAM and every NVDIMM, each with room to be aligned."""
    return machine.memory + sum(
        -(-dimm.size // GIB) * GIB + max(dimm.align, GIB) for dimm in machine.nvdimms
    )


def _slots(machine: Machine) -> Iterator[tuple[int, PciDevice]]:
    """Give each PCI device a slot of its own on the root bus, behind those that QEMU picks."""
    return enumerate(machine.pci, FIRST_SLOT)


def _memory(machine: Machine, memory: Memory | None) -> list[str]:
    if memory is None:
        return []
    share = "on" if memory.shared else "off"
    backend = f"memory-backend-file,id=ram,share={share},mem-path={escaped(memory.file)}"
    return [
        *["-object", f"{backend},size={machine.memory}"],
        *([] if memory.shared else ["-incoming", "defer"]),
    ]


def _cpu(machine: Machine, accel: str) -> str:
    """Return the processor; under TCG it has no CMPXCHG16B unless the machine asks for it.

    QEMU up to 7.2 computes the flags after that instruction from another one's operands
    (helper_cmpxchg16b_unlocked() reads an env->cc_op that the translator has not stored): IF, TF
    and VM may come of it when an interrupt follows, and the kernel's allocator dies of it, once in
    some thousand guests.  Linux does without the instruction, but for its driver of AMD's IOMMU
    (v6.14).
    """
    if accel != "tcg" or machine.iommu == "amd" or "cx16" in machine.cpu:
        return machine.cpu
    return f"{machine.cpu},cx16=off"


def _base(machine: Machine, accel: str, ram: Memory | None) -> list[str]:
    # kernel-irqchip=split: intel-iommu's interrupt remapping needs it under KVM, TCG ignores it.
    kind = "q35,nvdimm=on,kernel-irqchip=split"
    if ram is not None:
        kind += ",memory-backend=ram"
    memory = f"{machine.memory // MIB}M"
    if machine.nvdimms:  # QEMU refuses slots without memory to fill them
        memory += f",slots={len(machine.nvdimms)},maxmem={max_memory(machine) // MIB}M"
    return [
        *["-name", f"nvh-{machine.name}".replace(",", ",,")],
        *["-machine", kind],
        # One host thread for all vCPUs: with one each, a vCPU now and then runs a stale int3 after
        # another has patched a static key (QEMU 7.2), and the kernel panics in __schedule.
        *["-accel", "tcg,thread=single" if accel == "tcg" else accel],
        *["-cpu", _cpu(machine, accel)],
        *["-smp", str(machine.cpus)],
        *["-m", memory],
        "-nodefaults",
        "-no-user-config",
        *["-display", "none"],
        "-no-reboot",
        # pvpanic would let QEMU exit with status 0; a paused guest can still be looked at.
        *["-action", "panic=pause,watchdog=pause"],
        *["-sandbox", SANDBOX],
    ]


def _iommu(machine: Machine) -> list[str]:
    match machine.iommu:
        case "intel":
            # intremap: without it VFIO_SET_IOMMU ends in EPERM; caching-mode: the guest's maps
            # reach a host device as well.
            return ["-device", "intel-iommu,intremap=on,caching-mode=on"]
        case "amd":
            return ["-device", "amd-iommu,intremap=on"]
        case "virtio":
            return ["-device", "virtio-iommu-pci"]
    return []


def _wires(wiring: Wiring | None) -> list[str]:
    if wiring is None:
        return ["-serial", "mon:stdio"]
    return [
        *["-chardev", f"socket,id=qmp,fd={wiring.qmp}"],
        *["-mon", "chardev=qmp,mode=control"],
        *["-chardev", f"socket,id=console,fd={wiring.console}"],
        *["-serial", "chardev:console"],
        *["-chardev", f"socket,id=shell,fd={wiring.shell}"],
        *["-serial", "chardev:shell"],
    ]


def _software(machine: Machine, boot: Boot) -> list[str]:
    return [
        *["-kernel", str(boot.kernel)],
        *["-initrd", str(boot.initramfs)],
        *["-append", command_line(machine, boot.append)],
    ]


def _disk(name: str, image: Path, serial: str) -> list[str]:
    file = f"driver=file,node-name={name}-file,filename={escaped(image)},read-only=on,locking=off"
    return [
        *["-blockdev", file],
        *["-blockdev", f"driver=raw,node-name={name},file={name}-file,read-only=on"],
        *["-device", f"virtio-blk-pci,drive={name},serial={serial}"],
    ]


def _network() -> list[str]:
    # restrict=on: the guest reaches nothing but this forward, which QEMU binds to a free port.
    # ipv6=off: slirp would offer the guest a second way out, by its router advertisements.
    return [
        *["-netdev", "user,id=net0,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22"],
        # Nobody listens to a clone's announcement that it has moved.
        *["-device", "virtio-net-pci,netdev=net0,romfile=,guest_announce=off"],
    ]


def _nvdimm(dimm: Nvdimm, path: Path, *, private: bool) -> list[str]:
    share = "off" if private else "on"
    backend = (
        f"memory-backend-file,id=mem-{dimm.name},share={share},mem-path={escaped(path)},"
        f"size={dimm.size},align={dimm.align}"
    )
    if dimm.kind == "virtio-pmem":
        device = f"virtio-pmem-pci,id={dimm.name},memdev=mem-{dimm.name}"
    else:
        device = f"nvdimm,id={dimm.name},memdev=mem-{dimm.name},label-size={dimm.label}"
    return ["-object", backend, "-device", device]


def _pci(device: PciDevice, slot: int, *, plugged: bool) -> list[str]:
    args = []
    where = {"addr": f"{slot:#x}"}
    if device.port:
        port = f"pcie-root-port,id={_port(device)},chassis={slot}"
        args += ["-device", f"{port},addr={slot:#x}"]
    if device.port or {"addr", "bus"} & set(dict(device.options)):
        where = {}
    args += _drive(device)
    if plugged or not device.port:
        options = {**plug(device), **where}
        driver = options.pop("driver")
        words = [driver, *(f"{key}={value}" for key, value in options.items())]
        args += ["-device", ",".join(words)]
    return args


def plug(device: PciDevice) -> dict[str, str]:
    """Return a device as QMP's device_add takes it."""
    options = {"driver": device.device, "id": device.name, **dict(device.options)}
    if device.host:
        options["host"] = device.host
    if device.device == "nvme" and "drive" not in options:
        options["drive"] = f"{device.name}-disk"
    if device.port:
        options["bus"] = _port(device)
    return options


def _port(device: PciDevice) -> str:
    return f"port-{device.name}"


def _drive(device: PciDevice) -> list[str]:
    """Return a disk of zeroes that keeps nothing: enough to be probed, bound and reset."""
    if device.device != "nvme" or "drive" in dict(device.options):
        return []
    disk = f"driver=null-co,node-name={device.name}-disk,size={64 * MIB},read-zeroes=on"
    return ["-blockdev", disk]


def escaped(path: Path) -> str:
    """Return a path for a QEMU option, where a comma stands for itself when doubled."""
    return str(path).replace(",", ",,")
