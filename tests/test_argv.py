"""QEMU's argument vector is a pure function of the machine."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.qemu.argv import (
    Boot,
    Memory,
    Wiring,
    build,
    command_line,
    escaped,
    max_memory,
    plug,
)
from harness.spec import GIB, MIB, Machine

Load = Callable[[str], Machine]

WIRING = Wiring(qmp=11, console=12, shell=13)


def boot(machine: Machine, **changed: object) -> Boot:
    values: dict[str, object] = {
        "kernel": Path("/k/bzImage"),
        "initramfs": Path("/i/initramfs"),
        "root": Path("/r/root.img"),
        "modules": Path("/m/modules.img"),
        "nvdimms": {dimm.name: Path(f"/n/{dimm.name}") for dimm in machine.nvdimms},
    }
    return Boot(**(values | changed))  # type: ignore[arg-type]


def argv(machine: Machine, wiring: Wiring | None = WIRING, **changed: object) -> list[str]:
    return build(machine, boot(machine, **changed), accel="tcg", wiring=wiring)


def values(vector: list[str], option: str) -> list[str]:
    """Return the value of each occurrence of an option."""
    return [value for name, value in itertools.pairwise(vector) if name == option]


def devices(vector: list[str]) -> list[str]:
    return [value.partition(",")[0] for value in values(vector, "-device")]


def test_files_that_are_handed_over_are_named_by_descriptor(machine_of: Load) -> None:
    machine = machine_of('[[nvdimm]]\nname = "p0"\nsize = "66M"\n')
    paths = ["/k/bzImage", "/i/initramfs", "/r/root.img", "/m/modules.img", "/n/p0", "/n/ram"]
    files = {Path(path): number for number, path in enumerate(paths, 21)}
    vector = build(
        machine,
        boot(machine),
        accel="tcg",
        wiring=Wiring(11, 12, 13, files),
        memory=Memory(Path("/n/ram"), shared=False),
    )
    words = " ".join(vector)
    assert [words.count(f"/proc/self/fd/{number}") for number in files.values()] == [1] * 6
    assert not any(path in words for path in paths)


@pytest.mark.parametrize("name", ["a,debug-threads=on", "../../etc/passwd", "x,process=evil"])
def test_a_machines_name_is_no_option(machine_of: Load, tmp_path: Path, name: str) -> None:
    machine = replace(machine_of(""), name=name)
    assert values(argv(machine), "-name") == ["nvh-" + name.replace(",", ",,")]


def device(vector: list[str], name: str) -> dict[str, str]:
    """Return the options of a device by its id; its kind under "driver"."""
    for value in values(vector, "-device"):
        kind, *options = value.split(",")
        given = dict(option.split("=", 1) for option in options)
        if given.get("id") == name:
            assert len(given) == len(options), "an option is given twice"
            return {"driver": kind, **given}
    raise AssertionError(f"no device {name}")


def test_the_same_machine_gives_the_same_vector(machine_of: Load) -> None:
    text = '[[nvdimm]]\nname = "p0"\nsize = "66M"\n[[pci]]\nname = "e"\ndevice = "edu"'
    assert argv(machine_of(text)) == argv(machine_of(text))


def test_nothing_of_the_users_is_read(machine_of: Load) -> None:
    vector = argv(machine_of(""))
    assert "-nodefaults" in vector
    assert "-no-user-config" in vector
    assert values(vector, "-display") == ["none"]


def test_the_sandbox_denies_all_that_it_can(machine_of: Load) -> None:
    (sandbox,) = values(argv(machine_of("")), "-sandbox")
    kinds = ("obsolete", "elevateprivileges", "spawn", "resourcecontrol")
    assert sandbox.split(",") == ["on", *(f"{kind}=deny" for kind in kinds)]


def test_the_guest_reaches_no_network_and_only_the_host_reaches_it(machine_of: Load) -> None:
    (network,) = values(argv(machine_of("")), "-netdev")
    assert network.startswith("user,")
    assert "restrict=on" in network.split(",")
    forwards = [word for word in network.split(",") if word.startswith(("hostfwd", "guestfwd"))]
    # Port 0: the host's kernel picks a free one, so that no two guests ever share it.
    assert forwards == ["hostfwd=tcp:127.0.0.1:0-:22"]


@pytest.mark.parametrize(
    ("kind", "first", "words"),
    [
        ("intel", "intel-iommu,intremap=on,caching-mode=on", ["intel_iommu=on"]),
        ("amd", "amd-iommu,intremap=on", []),
        ("virtio", "virtio-iommu-pci", []),
    ],
)
def test_the_iommu_comes_before_every_other_device(
    machine_of: Load, kind: str, first: str, words: list[str]
) -> None:
    machine = machine_of(
        f'[machine]\niommu = "{kind}"\n[[nvdimm]]\nname = "p0"\nsize = "66M"\n'
        '[[pci]]\nname = "e"\ndevice = "edu"\nvfio = true'
    )
    vector = argv(machine)
    assert values(vector, "-device")[0] == first
    assert sum("iommu" in name for name in devices(vector)) == 1
    # Devices that other options would make (-drive if=virtio, -net nic, ...) would be before it.
    assert not {"-drive", "-hda", "-net", "-nic", "-virtfs", "-soundhw"} & set(vector)
    assert [word for word in command_line(machine).split() if "iommu" in word] == words
    assert "kernel-irqchip=split" in values(vector, "-machine")[0].split(",")


def test_no_iommu(machine_of: Load) -> None:
    machine = machine_of('[machine]\niommu = "none"')
    assert not any("iommu" in word for word in argv(machine))


def test_a_device_of_the_host(machine_of: Load) -> None:
    machine = machine_of('[[pci]]\nname = "nic"\nhost = "0000:01:00.0"\noptions = { multi = true }')
    found = device(argv(machine), "nic")
    assert found["driver"] == "vfio-pci"
    assert found["host"] == "0000:01:00.0"
    assert found["multi"] == "on"


def test_an_nvdimm(machine_of: Load) -> None:
    machine = machine_of('[[nvdimm]]\nname = "p0"\nsize = "130M"\nlabel = "2M"\nalign = "2M"')
    vector = argv(machine)
    assert values(vector, "-object") == [
        f"memory-backend-file,id=mem-p0,share=on,mem-path=/n/p0,size={130 * MIB},align={2 * MIB}"
    ]
    assert device(vector, "p0") == {
        "driver": "nvdimm",
        "id": "p0",
        "memdev": "mem-p0",
        "label-size": str(2 * MIB),
    }
    assert "nvdimm=on" in values(vector, "-machine")[0].split(",")


def test_virtio_pmem(machine_of: Load) -> None:
    machine = machine_of('[[nvdimm]]\nname = "v0"\nkind = "virtio-pmem"\nsize = "64M"')
    assert device(argv(machine), "v0")["driver"] == "virtio-pmem-pci"
    assert device(argv(machine), "v0")["memdev"] == "mem-v0"
    assert "nvdimm" not in devices(argv(machine))


def test_an_nvme_gets_a_drive(machine_of: Load) -> None:
    machine = machine_of('[[pci]]\nname = "n0"\ndevice = "nvme"\noptions = { serial = "s" }')
    vector = argv(machine)
    assert device(vector, "n0")["drive"] == "n0-disk"
    assert device(vector, "n0")["serial"] == "s"
    nodes = [word for value in values(vector, "-blockdev") for word in value.split(",")]
    assert "node-name=n0-disk" in nodes


def test_an_nvme_with_a_drive_of_its_own_keeps_it(machine_of: Load) -> None:
    text = '[machine]\nqemu_args = ["-blockdev", "driver=null-co,node-name=mine"]\n'
    machine = machine_of(
        text + '[[pci]]\nname = "n0"\ndevice = "nvme"\noptions = { drive = "mine", serial = "s" }'
    )
    vector = argv(machine)
    assert device(vector, "n0")["drive"] == "mine"
    assert not any("n0-disk" in word for word in vector)


def test_the_guests_own_disks_are_read_only_and_have_serials(machine_of: Load) -> None:
    vector = argv(machine_of(""))
    blocks = values(vector, "-blockdev")
    assert len(blocks) == 4
    assert all("read-only=on" in block.split(",") for block in blocks)
    assert {
        "virtio-blk-pci,drive=root,serial=nvhroot",
        "virtio-blk-pci,drive=modules,serial=nvhmods",
    } <= set(values(vector, "-device"))


def test_a_kernel_without_modules_has_no_disk_for_them(machine_of: Load) -> None:
    vector = argv(machine_of(""), modules=None)
    assert devices(vector).count("virtio-blk-pci") == 1
    assert not any("nvhmods" in word for word in vector)


def test_a_comma_in_a_path_stays_in_the_path(machine_of: Load) -> None:
    machine = machine_of('[[nvdimm]]\nname = "p0"\nsize = "66M"')
    vector = argv(
        machine, root=Path("/a,b/root"), modules=Path("/a,b/m"), nvdimms={"p0": Path("/a,id=x")}
    )
    text = "\n".join(values(vector, "-blockdev"))
    assert "filename=/a,,b/root," in text
    assert "filename=/a,,b/m," in text
    assert "mem-path=/a,,id=x," in values(vector, "-object")[0]
    assert escaped(Path("/a,,b")) == "/a,,,,b"


def test_the_wires_are_descriptors_and_the_console_comes_first(machine_of: Load) -> None:
    vector = argv(machine_of(""))
    assert values(vector, "-chardev") == [
        "socket,id=qmp,fd=11",
        "socket,id=console,fd=12",
        "socket,id=shell,fd=13",
    ]
    # ttyS0 is the console, ttyS1 the shell: the order counts.
    assert values(vector, "-serial") == ["chardev:console", "chardev:shell"]
    assert values(vector, "-mon") == ["chardev=qmp,mode=control"]


def test_for_a_person_the_console_is_the_terminal(machine_of: Load) -> None:
    vector = argv(machine_of(""), None)
    assert values(vector, "-serial") == ["mon:stdio"]
    assert not any("fd=" in word for word in vector)


def test_software_and_command_line(machine_of: Load) -> None:
    machine = machine_of('[machine]\nkernel_args = ["quiet", "a.b=c"]')
    vector = argv(machine, append=("extra=1",))
    assert values(vector, "-kernel") == ["/k/bzImage"]
    assert values(vector, "-initrd") == ["/i/initramfs"]
    (line,) = values(vector, "-append")
    assert line.split()[0] == "console=ttyS0"
    assert line.split()[-3:] == ["quiet", "a.b=c", "extra=1"]
    assert "panic=-1" in line.split()


def test_a_panic_leaves_a_body(machine_of: Load) -> None:
    vector = argv(machine_of(""))
    assert values(vector, "-action") == ["panic=pause,watchdog=pause"]
    assert "-no-reboot" in vector
    assert "pvpanic" in devices(vector)
    assert "i6300esb" in devices(vector)


def test_the_kernel_can_say_where_its_vmcoreinfo_is(machine_of: Load) -> None:
    assert "vmcoreinfo" in devices(argv(machine_of("")))


def test_extra_arguments_stay_whole_and_in_order(machine_of: Load) -> None:
    extra = ["-device", "virtio-balloon", "-global", "a b=c"]
    vector = argv(machine_of(f"[machine]\nqemu_args = {extra}"))
    at = vector.index("virtio-balloon") - 1
    assert vector[at : at + 4] == extra
    assert at > vector.index("virtio-rng-pci")  # behind every device that the harness needs


def test_each_pci_device_has_a_slot_of_its_own(machine_of: Load) -> None:
    text = "".join(f'[[pci]]\nname = "d{n}"\ndevice = "edu"\n' for n in range(14))
    vector = argv(machine_of(text))
    slots = [int(device(vector, f"d{n}")["addr"], 16) for n in range(14)]
    assert len(set(slots)) == 14
    # QEMU fills the bus from 1 on with what has no address; q35's own devices start at 0x1e.
    assert min(slots) > len([value for value in values(vector, "-device") if "addr" not in value])
    assert max(slots) < 0x1E


def test_a_device_that_names_its_address_keeps_it(machine_of: Load) -> None:
    text = '[[pci]]\nname = "d"\ndevice = "edu"\noptions = { addr = "0x9" }'
    assert device(argv(machine_of(text)), "d")["addr"] == "0x9"


KINDS = (
    '[[nvdimm]]\nname = "p0"\nsize = "66M"\n[[pci]]\nname = "e"\ndevice = "edu"\n'
    '[[pci]]\nname = "n"\ndevice = "nvme"\nport = true\noptions = { serial = "s" }\n'
)


def with_memory(machine: Machine, *, shared: bool) -> list[str]:
    memory = Memory(Path("/t/a,b/ram"), shared=shared)
    return build(machine, boot(machine), accel="tcg", wiring=WIRING, memory=memory)


def test_a_device_behind_a_port_of_its_own(machine_of: Load) -> None:
    machine = machine_of(KINDS)
    vector = argv(machine)
    assert device(vector, "port-n")["driver"] == "pcie-root-port"
    assert device(vector, "port-n")["addr"] != device(vector, "e")["addr"]
    found = device(vector, "n")
    assert found["bus"] == "port-n"
    assert "addr" not in found  # that one is the port's
    assert plug(machine.pci[1]) == found  # as it is plugged into a clone


def test_a_template_shares_its_memory_and_lacks_what_is_plugged_in_later(
    machine_of: Load,
) -> None:
    vector = with_memory(machine_of(KINDS), shared=True)
    ram, dimm = values(vector, "-object")
    assert f"mem-path=/t/a,,b/ram,size={GIB}" in ram
    assert "share=on" in ram.split(",")
    assert "share=on" in dimm.split(",")
    assert "memory-backend=ram" in values(vector, "-machine")[0].split(",")
    assert "edu" in devices(vector)
    assert "pcie-root-port" in devices(vector)
    assert "nvme" not in devices(vector)
    assert "-incoming" not in vector


def test_a_clone_maps_everything_privately_and_differs_in_nothing_else(machine_of: Load) -> None:
    machine = machine_of(KINDS)
    template = with_memory(machine, shared=True)
    clone = with_memory(machine, shared=False)
    assert all("share=off" in value.split(",") for value in values(clone, "-object"))
    assert values(clone, "-incoming") == ["defer"]
    # A device at another place than in the template would be another machine to the guest.
    without = [word.replace("share=off", "share=on") for word in clone]
    at = without.index("-incoming")
    assert without[:at] + without[at + 2 :] == template


def test_a_clone_with_nvdimms_of_its_own_writes_them(machine_of: Load) -> None:
    memory = Memory(Path("/run/ram"), shared=False, own_nvdimms=True)
    machine = machine_of(KINDS)
    vector = build(machine, boot(machine), accel="tcg", wiring=None, memory=memory)
    shared = {
        value.split("id=")[1].split(",")[0]: "share=on" in value
        for value in values(vector, "-object")
    }
    assert not shared.pop("ram")
    assert set(shared.values()) == {True}


def test_accelerator_cpu_and_sizes(machine_of: Load) -> None:
    machine = machine_of('[machine]\ncpus = 3\nmemory = "512M"\ncpu = "max,-svm"')
    vector = build(machine, boot(machine), accel="kvm", qemu="/opt/qemu", wiring=None)
    assert vector[0] == "/opt/qemu"
    assert values(vector, "-accel") == ["kvm"]
    assert values(vector, "-smp") == ["3"]
    assert values(vector, "-cpu") == ["max,-svm"]
    # Slots without memory for them are refused by QEMU.
    assert values(vector, "-m") == ["512M"]


@pytest.mark.parametrize(
    ("text", "accel", "cpu"),
    [
        ("", "tcg", "max,cx16=off"),
        ("", "kvm", "max"),
        ('cpu = "max,-svm"', "tcg", "max,-svm,cx16=off"),
        ('cpu = "max,cx16=on"', "tcg", "max,cx16=on"),
        ('iommu = "amd"', "tcg", "max"),
    ],
)
def test_tcg_has_no_cmpxchg16b(machine_of: Load, text: str, accel: str, cpu: str) -> None:
    machine = machine_of(f"[machine]\n{text}\n")
    assert values(build(machine, boot(machine), accel=accel, wiring=None), "-cpu") == [cpu]


def dimms(*shapes: tuple[str, str]) -> str:
    return "".join(
        f'[[nvdimm]]\nname = "p{number}"\nsize = "{size}"\nalign = "{align}"\n'
        for number, (size, align) in enumerate(shapes)
    )


@pytest.mark.parametrize("memory", ["256M", "1G", "1152M"])
@pytest.mark.parametrize(
    "shapes",
    [
        [("66M", "2M")],
        [("66M", "4K")],
        [("2050M", "1G")],
        [("66M", "2M"), ("2050M", "1G")],
        [("66M", "2M"), ("2050M", "1G"), ("66M", "2M"), ("2050M", "1G")],
        [("770M", "2M")] * 4 + [("2050M", "1G")],
    ],
)
def test_there_is_room_for_every_nvdimm_where_it_must_lie(
    machine_of: Load, memory: str, shapes: list[tuple[str, str]]
) -> None:
    machine = machine_of(f'[machine]\nmemory = "{memory}"\n' + dimms(*shapes))
    (options,) = values(argv(machine), "-m")
    parts = dict(word.split("=") for word in options.split(",")[1:])
    assert int(parts["slots"]) >= len(shapes)
    assert parts["maxmem"] == f"{max_memory(machine) // MIB}M"
    assert max_memory(machine) % MIB == 0
    # QEMU lays them out one behind the other from a multiple of 1 GiB on, each at a multiple of
    # its alignment (memory_device_get_free_addr, hw/mem/memory-device.c), in whatever order.
    for order in itertools.islice(itertools.permutations(machine.nvdimms), 24):
        end = 0
        for dimm in order:
            end = -(-end // dimm.align) * dimm.align + dimm.size
        assert end <= max_memory(machine) - machine.memory
    assert max_memory(machine) < machine.memory + 4 * GIB * (1 + len(shapes))
