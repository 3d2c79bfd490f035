"""Machine files: what they may leave out, and how each mistake is told."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import paths
from harness.errors import EXIT_USAGE, SpecError, UsageError
from harness.spec import GIB, MIB, Machine, find_machine, load_machine
from harness.toml_table import format_size, parse_size

Load = Callable[[str], Machine]

DIMM = '[[nvdimm]]\nname = "p0"\nsize = "{size}"\n{more}'
MACHINES = paths.guest_images() / "machines"


def dimm(size: str = "66M", more: str = "") -> str:
    return DIMM.format(size=size, more=more)


def namespace(mode: str = "fsdax", more: str = "") -> str:
    return f'[nvdimm.namespace]\nmode = "{mode}"\n{more}'


def test_an_empty_file_is_a_machine(machine_of: Load) -> None:
    machine = machine_of("")
    assert (machine.name, machine.cpus, machine.memory) == ("made", 2, GIB)
    assert (machine.cpu, machine.iommu) == ("max", "intel")
    assert machine.nvdimms == ()
    assert machine.pci == ()
    assert not machine.has_host_device


def test_defaults_of_an_nvdimm(machine_of: Load) -> None:
    one = machine_of(dimm(more=namespace())).nvdimm("p0")
    assert (one.kind, one.label, one.align, one.path) == ("nvdimm", 2 * MIB, 2 * MIB, None)
    assert one.usable == 64 * MIB
    assert one.namespace is not None
    assert (one.namespace.align, one.namespace.map) == (2 * MIB, "mem")


def test_a_file_system_and_what_else_mkfs_is_told(machine_of: Load) -> None:
    more = 'filesystem = "xfs"\nmkfs = ["-d", "su=2m,sw=1"]'
    one = machine_of(dimm(more=namespace(more=more))).nvdimm("p0").namespace
    assert one is not None
    assert (one.filesystem, one.mkfs) == ("xfs", ("-d", "su=2m,sw=1"))


def test_a_region_without_namespace(machine_of: Load) -> None:
    assert machine_of(dimm()).nvdimm("p0").namespace is None


def test_virtio_pmem_has_no_label(machine_of: Load) -> None:
    one = machine_of(dimm("64M", 'kind = "virtio-pmem"\n' + namespace())).nvdimm("p0")
    assert one.label == 0
    assert one.usable == 64 * MIB


def test_a_device_of_the_host(machine_of: Load) -> None:
    machine = machine_of('[[pci]]\nname = "nic"\nhost = "0000:01:00.0"\nvfio = true')
    assert machine.has_host_device
    assert (machine.pci[0].device, machine.pci[0].host) == ("vfio-pci", "0000:01:00.0")


def test_options_are_words_that_qemu_takes(machine_of: Load) -> None:
    text = '[[pci]]\nname = "d"\ndevice = "pci-testdev"\n'
    device = machine_of(text + 'options = { membar = "1M", on = true, off = false, n = 3 }').pci[0]
    assert dict(device.options) == {"membar": "1M", "on": "on", "off": "off", "n": "3"}


def test_the_machine_is_frozen_and_hashable(machine_of: Load) -> None:
    machine = machine_of(dimm())
    with pytest.raises(dataclasses.FrozenInstanceError):
        machine.cpus = 3  # type: ignore[misc]
    assert hash(machine) == hash(machine_of(dimm()))


def test_the_digest_tells_machines_apart(machine_of: Load) -> None:
    assert machine_of(dimm()).digest == machine_of(dimm()).digest
    assert machine_of(dimm()).digest != machine_of(dimm("82M")).digest
    assert machine_of('[machine]\nkernel_args = ["a"]').digest != machine_of("").digest


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("[machine]\ncpus = 0", "[machine] cpus", "not between 1 and 64"),
        ("[machine]\ncpus = 65", "[machine] cpus", "not between 1 and 64"),
        ("[machine]\ncpus = true", "[machine] cpus", "not a whole number"),
        ('[machine]\ncpus = "2"', "[machine] cpus", "not a whole number"),
        ('[machine]\nmemory = "1.5G"', "[machine] memory", "not a size"),
        ('[machine]\nmemory = "-1G"', "[machine] memory", "not a size"),
        ("[machine]\nmemory = true", "[machine] memory", "not a size"),
        ('[machine]\nmemory = "300M"', "[machine] memory", "300M"),
        ('[machine]\nmemory = "128M"', "[machine] memory", "from 256M on"),
        ('[machine]\nmemory = "1T"', "[machine] memory", "1024G"),
        ('[machine]\ncpu = "max host"', "[machine] cpu", "not a word"),
        ('[machine]\niommu = "smmu"', "[machine] iommu", "intel, amd, virtio, none"),
        ("[machine]\nkernel_args = [1]", "[machine] kernel_args", "list of strings"),
        ('[machine]\nqemu_args = "-s"', "[machine] qemu_args", "list of strings"),
        ('[machine]\npackages = ["fio", "a b"]', "[machine] packages", "name of a package"),
        ('[machine]\npackages = ["-fio"]', "[machine] packages", "name of a package"),
        ('[machine]\nmodules = ["kvm; reboot"]', "[machine] modules", "name of a module"),
        ('[machine]\npackages = ["fio-"]', "[machine] packages", "name of a package"),
        ("machine = 1", "machine", "not a table"),
        ("[nvdimm]\n", "nvdimm", "[[nvdimm]]"),
        ("nvdimm = [1]", "nvdimm", "[[nvdimm]]"),
        ('[[nvdimm]]\nsize = "66M"', "[nvdimm #1] name", "is missing"),
        ('[[nvdimm]]\nname = "p0"', "[nvdimm #1] size", "is missing"),
        ('[[nvdimm]]\nname = "P,0"\nsize = "66M"', "[nvdimm #1] name", "not a name"),
        (dimm(more='kind = "nvme"'), "[nvdimm #1] kind", "nvdimm, virtio-pmem"),
        (dimm(more='label = "64K"'), "[nvdimm #1] label", "too small (at least 128K)"),
        (dimm(more="label = 0"), "[nvdimm #1] label", "too small"),
        (dimm(more='align = "3M"'), "[nvdimm #1] align", "not a power of two"),
        (dimm(more='align = "2G"'), "[nvdimm #1] align", "not a power of two from 4K to 1G"),
        (dimm(more='path = "here"'), "[nvdimm #1] path", "not an absolute path"),
        (dimm(more=namespace("pmem")), "[nvdimm #1.namespace] mode", "fsdax, devdax, sector, raw"),
        (dimm(more=namespace(more='align = "1M"')), "[nvdimm #1.namespace] align", "4K, 2M or 1G"),
        (dimm(more=namespace(more='map = "pmem"')), "[nvdimm #1.namespace] map", "mem, dev"),
        (dimm(more="[nvdimm.namespace]"), "[nvdimm #1.namespace] mode", "is missing"),
        (
            dimm("66M", 'kind = "virtio-pmem"\nlabel = "2M"'),
            "[nvdimm #1] label",
            "no label area (remove the key)",
        ),
        (
            dimm("64M", 'kind = "virtio-pmem"\n' + namespace("devdax")),
            "[nvdimm #1] namespace",
            "one fsdax namespace and no other",
        ),
        ('[[pci]]\nname = "d"', "[pci #1] device", "is missing"),
        ('[[pci]]\nname = "d"\ndevice = "edu,addr=5"', "[pci #1] device", "not a QEMU device"),
        ('[[pci]]\nname = "d"\nhost = "1:0"', "[pci #1] host", "such as 0000:01:00.0"),
        (
            '[[pci]]\nname = "d"\nhost = "0000:01:00.0"\ndevice = "edu"',
            "[pci #1] device",
            "either QEMU's (device) or the host's (host)",
        ),
        ('[[pci]]\nname = "d"\ndevice = "edu"\nid = "edu"', "[pci #1] id", 'such as "1234:11e8"'),
        ('[[pci]]\nname = "d"\ndevice = "edu"\nvfio = "yes"', "[pci #1] vfio", "true or false"),
        (
            '[[pci]]\nname = "d"\ndevice = "edu"\noptions = { a = "1,b=2" }',
            "[pci #1] options",
            "not a QEMU option",
        ),
        (
            '[[pci]]\nname = "d"\ndevice = "edu"\noptions = { a = [1] }',
            "[pci #1] options",
            "not a QEMU option",
        ),
        (
            '[machine]\niommu = "none"\n'
            '[[pci]]\nname = "a"\ndevice = "edu"\n[[pci]]\nname = "b"\ndevice = "edu"\nvfio = true',
            "[pci #2] vfio",
            'without an IOMMU (set [machine] iommu = "intel" or vfio = false)',
        ),
        (dimm() + dimm(), "[nvdimm #2] name", "'p0' is given twice"),
        (
            '[[pci]]\nname = "d"\ndevice = "edu"\n[[pci]]\nname = "d"\ndevice = "edu"',
            "[pci #2] name",
            "'d' is given twice",
        ),
        (dimm() + '[[pci]]\nname = "p0"\ndevice = "edu"', "[pci #1] name", "'p0' is given twice"),
        (
            dimm(more='path = "/srv/p"\n') + dimm(more='path = "/srv/p"').replace("p0", "p1"),
            "[nvdimm #2] path",
            "/srv/p stands behind two NVDIMMs",
        ),
        (dimm("2M"), "[nvdimm #1] size", "leaves nothing behind the label of 2M"),
        (
            dimm("0", 'kind = "virtio-pmem"'),
            "[nvdimm #1] size",
            '0 leaves nothing (use size = "16M")',
        ),
        (
            dimm(more=namespace("sector", 'align = "4K"')),
            "[nvdimm #1.namespace] align",
            "a sector namespace has no struct pages",
        ),
        (
            dimm(more=namespace("raw", 'map = "dev"')),
            "[nvdimm #1.namespace] map",
            "a raw namespace has no struct pages",
        ),
        (
            dimm(more=namespace(more='mkfs = ["-K"]')),
            "[nvdimm #1.namespace] mkfs",
            "no file system to make (set filesystem)",
        ),
        (
            '[[pci]]\nname = "d"\ndevice = "nvme"\non_demand = true',
            "[pci #1] on_demand",
            "port = true",
        ),
        (
            '[[pci]]\nname = "d"\ndevice = "nvme"\nport = true\nvfio = true\non_demand = true',
            "[pci #1] on_demand",
            "without vfio = true",
        ),
        (
            '[[pci]]\nname = "d"\ndevice = "nvme"\nport = true\noptions = { addr = "5" }',
            "[pci #1] port",
            "a root port of its own and options addr contradict",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(
    machine_of: Load, tmp_path: Path, text: str, where: str, words: str
) -> None:
    with pytest.raises(SpecError) as caught:
        machine_of(text)
    said = str(caught.value)
    assert re.match(re.escape(f"{tmp_path}/made.toml:") + r"\d+: " + re.escape(f"{where}: "), said)
    assert words in said
    assert "\n" not in said
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize(
    ("text", "where", "hint"),
    [
        ("[machine]\nmemroy = 1", "[machine] memroy", "did you mean memory?"),
        ("[machine]\nzzz = 1", "[machine] zzz", "known: cpu, cpus, iommu, kernel_args"),
        ("[[nvdim]]\n", "nvdim", "did you mean nvdimm?"),
        (dimm(more='lable = "2M"'), "[nvdimm #1] lable", "did you mean label?"),
        (
            dimm(more=namespace(more="alignment = 1")),
            "[nvdimm #1.namespace] alignment",
            "did you mean align?",
        ),
        ('[[pci]]\nname = "d"\ndevice = "edu"\nvifo = true', "[pci #1] vifo", "did you mean vfio?"),
    ],
)
def test_an_unknown_key_gets_a_suggestion(
    machine_of: Load, text: str, where: str, hint: str
) -> None:
    with pytest.raises(SpecError) as caught:
        machine_of(text)
    assert f"{where}: unknown key ({hint}" in str(caught.value)


@pytest.mark.parametrize(
    ("size", "label", "align", "namespace_align", "proposed"),
    [
        ("1024M", "2M", "2M", "2M", "1026M"),  # the one that ndctl refuses: 0x3fe00000
        ("2M", "2M", "2M", "2M", "18M"),  # nothing is left behind the label
        ("1M", "2M", "2M", "2M", "18M"),  # less than the label
        ("20M", "2M", "2M", "2M", "34M"),  # rounded up, never down
        ("16M", "128K", "2M", "4K", "16512K"),
        ("1026M", "2M", "2M", "1G", "2050M"),  # 1 GiB pages need as much again
        ("1024M", "2M", "1G", "1G", "2050M"),
        ("1026M", "2M", "1G", "2M", None),
        ("2050M", "2M", "1G", "1G", None),
        ("2050M", "2M", "2M", "1G", None),
        ("34M", "2M", "2M", "2M", None),
        ("770M", "2M", "2M", "4K", None),
    ],
)
def test_a_size_that_ndctl_would_refuse(
    machine_of: Load, size: str, label: str, align: str, namespace_align: str, proposed: str | None
) -> None:
    def text(size: str) -> str:
        more = f'label = "{label}"\nalign = "{align}"\n'
        return dimm(size, more + namespace("devdax", f'align = "{namespace_align}"'))

    if proposed is None:
        assert machine_of(text(size)).nvdimm("p0").size == parse_size(size)
        return
    with pytest.raises(SpecError) as caught:
        machine_of(text(size))
    assert "[nvdimm #1] size: " in caught.value.message
    assert format_size(parse_size(size) or 0) in caught.value.message
    assert caught.value.hint == f'use size = "{proposed}"'
    # What is proposed is accepted.
    assert machine_of(text(proposed)).nvdimm("p0").usable % (16 * MIB) == 0


def test_a_size_counts_for_virtio_pmem_too(machine_of: Load) -> None:
    with pytest.raises(SpecError, match='use size = "80M"'):
        machine_of(dimm("66M", 'kind = "virtio-pmem"'))


def test_a_file_that_is_not_toml_names_the_line(machine_of: Load) -> None:
    with pytest.raises(SpecError, match=r"made\.toml: not TOML: .*line 2"):
        machine_of("[machine]\ncpus = = 2\n")


def test_a_file_that_is_nested_too_deeply(machine_of: Load) -> None:
    with pytest.raises(SpecError, match=r"made\.toml: not TOML: "):
        machine_of("a = " + "[" * 100_000)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("zzz = 1\n[machine]\n", 1),
        ("[machine]\ncpu = 'max'\n\n  cpus=0\n", 4),
        ("[ machine ]  # here\n'cpus' = 0\n", 2),
        ('machine = { cpu = "max", cpus = 0 }\n', 1),
        ("# cpus = 1\nmachine.cpus = 0\n", 2),
        ("[[pci]]\nname = 'size'\ndevice = 'edu'\n[[nvdimm]]\nname = 'p0'\n", 4),
        (dimm() + "\n" + dimm("65M"), 7),
        (dimm() + "\n" + dimm(more=namespace("pmem")), 9),
        (dimm(more=namespace()) + dimm(more=namespace("pmem")), 10),
        (dimm(more="[nvdimm.namespace]\n"), 4),
        ("[machine]\n[nvdimm]\nname = 'p0'\n", 2),
    ],
)
def test_a_mistake_is_told_with_its_line(machine_of: Load, text: str, line: int) -> None:
    with pytest.raises(SpecError, match=rf"made\.toml:{line}: "):
        machine_of(text)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "binary.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="not TOML"):
        load_machine(file)


@pytest.mark.parametrize(("name", "words"), [("none.toml", "No such file"), ("", "Is a directory")])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        load_machine(tmp_path / name)


def test_an_unknown_nvdimm_names_those_there_are(machine_of: Load) -> None:
    with pytest.raises(UsageError, match=r"no NVDIMM 'p1' \(it has p0\)"):
        machine_of(dimm()).nvdimm("p1")


# The machines that come with the harness


def test_the_default_machine_has_what_the_catalogue_needs() -> None:
    machine = find_machine("default", folder=MACHINES)
    modes = {
        (dimm.namespace.mode, dimm.namespace.align) for dimm in machine.nvdimms if dimm.namespace
    }
    assert {("fsdax", 2 * MIB), ("devdax", 2 * MIB), ("devdax", GIB)} <= modes
    assert {"edu", "pci-testdev", "nvme"} <= {device.device for device in machine.pci}
    assert machine.iommu == "intel"


@pytest.mark.parametrize("file", sorted(MACHINES.glob("*.toml")), ids=lambda file: file.stem)
def test_every_machine_file_of_ours_loads(file: Path) -> None:
    assert find_machine(file.stem, folder=MACHINES) == load_machine(file)


@pytest.mark.parametrize("selector", ["defualt", "", "..", "default "])
def test_an_unknown_machine_names_those_there_are(selector: str) -> None:
    with pytest.raises(UsageError, match=r"known: .*default.*; or give a \.toml file"):
        find_machine(selector, folder=MACHINES)


def test_a_machine_is_found_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[machine]\ncpus = 1\n")
    assert find_machine(f"{tmp_path}/mine.toml", folder=MACHINES).cpus == 1


# Sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4k", 4096),
        ("4KiB", 4096),
        ("770M", 770 * MIB),
        ("2 G", 2 * GIB),
        ("1T", 1 << 40),
        ("", None),
        ("M", None),
        ("1.5G", None),
        ("-1", None),
        ("0x10", None),
        ("1P", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("size", [1, 4095, 4096, 770 * MIB, 2 * GIB, 2050 * MIB, (1 << 40) + 1024])
def test_a_printed_size_reads_back(size: int) -> None:
    assert parse_size(format_size(size)) == size
