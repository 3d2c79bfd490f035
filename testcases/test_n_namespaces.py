"""Namespaces made and taken away, in every mode; taken away while they are in use."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import Any

import pytest

from harness.errors import GuestHung
from harness.guest import Guest
from harness.verdict.expectation import Case
from testcases import namespaces
from testcases.filesystems import NAMES, dax_mount
from testcases.vfio_steps import aligned

MIB, GIB = 1 << 20, 1 << 30
_BYTES = {"4K": 4096, "2M": 2 * MIB, "1G": GIB}


@pytest.mark.parametrize(
    ("mode", "align", "where"),
    [
        ("raw", "", ""),
        ("sector", "", ""),
        ("fsdax", "4K", "mem"),
        ("fsdax", "2M", "dev"),
        ("fsdax", "1G", "mem"),
        ("devdax", "4K", "dev"),
        ("devdax", "2M", "mem"),
        ("devdax", "1G", "mem"),
    ],
)
def test_n1_life_of_a_namespace(
    guest: Guest, case: Case, mode: str, align: str, where: str
) -> None:
    """Made, written, disabled, enabled, read, destroyed, made again; the sizes add up."""
    old = guest.namespace("devdax1g" if align == "1G" else "devdax2m")
    namespaces.ndctl(guest, "destroy-namespace", "-f", old.dev)
    empty = namespaces.room(guest, old.region)
    case.expect("bytes free in an empty region", empty.available, right=empty.size)
    options = ["-m", mode, *(("-a", align, "-M", where) if align else ())]
    # A part of the region, so that something is left; with 1 GiB pages all of it is needed.
    size = empty.size if align == "1G" else 64 * MIB
    # Eight to a page, so that what is written and read of a page is in several sectors.
    sectors = ("-l", "512") if mode == "sector" else ()
    made = namespaces.create(guest, old.region, *options, *sectors, "-s", str(size))
    case.fact("namespace", made)
    case.expect("mode", made.mode, right=mode)
    case.expect("align", made.align, right=_BYTES.get(align, made.align))
    if sectors:
        queue = f"/sys/block/{made.device.removeprefix('/dev/')}/queue"
        sector = guest.run(f"cat {queue}/logical_block_size").stdout.strip()
        case.expect("bytes of a sector", sector, right="512")
    taken = namespaces.room(guest, old.region)
    case.expect("bytes of the namespace", made.raw, right=size)
    case.expect("bytes free beside it", taken.available, right=empty.size - size)
    case.expect("bytes of the device", made.device_size, right=made.usable)
    overhead = made.raw - made.usable
    case.fact("overhead", overhead)
    case.expect("overhead_in_bounds", 0 <= overhead <= _overhead(mode, align, where, made.raw))
    if align:
        case.expect("bytes beyond a multiple of the alignment", made.usable % made.align, right=0)
    namespaces.write_pattern(guest, made.device)
    namespaces.ndctl(guest, "disable-namespace", made.dev)
    case.expect("disabled", namespaces.state(guest, made))
    namespaces.ndctl(guest, "enable-namespace", made.dev)
    case.expect("enabled", namespaces.state(guest, made))
    case.expect("data", namespaces.read_pattern(guest, made.device))
    if sectors:
        # A block that is taken for a free one is overwritten.
        namespaces.write_pattern(guest, made.device)
        case.expect("data written anew", namespaces.read_pattern(guest, made.device), right="equal")
        _two_writers(guest, case, made.device)
    if mode == "fsdax" and align == "4K":
        # What begins the namespace is believed when its checksum is right, and else is data.
        namespaces.ndctl(guest, "disable-namespace", made.dev)
        case.expect("damaged", namespaces.damage(guest, made))
        namespaces.mend(guest, made)
        namespaces.ndctl(guest, "enable-namespace", made.dev)
        case.expect("data", namespaces.read_pattern(guest, made.device))
    namespaces.ndctl(guest, "destroy-namespace", "-f", made.dev)
    again = namespaces.room(guest, old.region)
    case.expect("bytes free after destroying it", again.available, right=empty.size)
    other = namespaces.create(guest, old.region, *options)
    case.expect("mode of the next", other.mode, right=mode)
    case.expect("bytes of the next", other.raw, right=empty.size)


def _two_writers(guest: Guest, case: Case, device: str) -> None:
    """Have two CPUs write the same sectors: each is one of theirs, and has a block of its own."""
    facts = guest.workload("blocks", "--device", device, "--contend", "1500").facts
    case.fact("two writers", facts)
    case.prove("the guest has two CPUs", facts["cpus"] > 1, enable="cpus = 2 in the machine file")
    case.prove("they wrote the same sectors", facts["sectors_of_other"] > 0)
    for key in ("torn", "misplaced", "wrong_sectors"):
        case.expect(key, facts[key])


def _overhead(mode: str, align: str, where: str, raw: int) -> int:
    """Return how much a mode may keep for itself at most.

    fsdax, devdax: the info block, padded to the alignment (drivers/nvdimm/pfn_devs.c,
    nd_pfn_init()), and with -M dev 64 bytes for each page.  sector: arena info blocks, map, log and
    256 spare blocks (Documentation/driver-api/nvdimm/btt.rst).
    """
    if mode == "raw":
        return 0
    if mode == "sector":
        return raw // 16 + 4 * MIB
    # The map itself may be padded to the alignment once more.
    pages = raw // 4096 * 64 + _BYTES[align] if where == "dev" else 0
    return max(_BYTES[align], 2 * MIB) + pages


def test_n1_labels_tell_the_namespaces(guest: Guest, case: Case) -> None:
    """Two namespaces of a region stay what they are when their labels are read anew."""
    old = guest.namespace("devdax2m")
    region = old.region
    namespaces.ndctl(guest, "destroy-namespace", "-f", old.dev)
    empty = namespaces.room(guest, region).available
    dimm = json.loads(namespaces.ndctl(guest, "list", "-D", "-r", region).stdout)[0]["dev"]
    slots = _free_slots(guest, dimm)
    made = [
        namespaces.create(guest, region, "-m", mode, "-s", str(size), "-n", name)
        for mode, size, name in (("raw", 16 * MIB, "first"), ("fsdax", 32 * MIB, "second"))
    ]
    for space in made:
        namespaces.write_pattern(guest, space.device)
    before = _listed(guest, region)
    case.expect("names", [entry.get("name") for entry in before], right=["first", "second"])
    # The next one's size, as the kernel takes it: whole units, and no more than there is.
    seed = guest.run(f"cat /sys/bus/nd/devices/{region}/namespace_seed").stdout.strip()
    folder = f"/sys/bus/nd/devices/{seed}"
    # A uuid is one namespace's only, on the whole bus.
    for owner in (made[0].dev, guest.namespace("fsdax0").dev):
        taken_by = guest.run(f"cat /sys/bus/nd/devices/{owner}/uuid").stdout.strip()
        done = guest.run(f"/bin/echo {taken_by} > {folder}/uuid", check=False)
        case.expect("uuid_twice", namespaces.refused(done))
    guest.run(f"/bin/echo 6b9a7a8e-8f0e-4b7e-9d3c-0d4b3f1f2a11 > {folder}/uuid")
    for what, size in (("part", 16 * MIB + 4096), ("too_large", empty), ("whole", 16 * MIB)):
        done = guest.run(f"/bin/echo {size} > {folder}/size; cat {folder}/size", check=False)
        case.fact(f"size {what}", done.stderr.strip())
        case.expect(f"size_{what}", done.stdout.strip())
    # A label for each that has a uuid and a size, however often it was written.
    case.expect("labels free beside three", _free_slots(guest, dimm), right=slots - 3)
    guest.run(f"/bin/echo 0 > {folder}/size")
    case.expect("labels free beside two", _free_slots(guest, dimm), right=slots - 2)
    taken = namespaces.room(guest, region).available
    case.expect("bytes free beside them", taken, right=empty - 48 * MIB)
    for words in (("disable-region", region), ("disable-dimm", dimm)):
        namespaces.ndctl(guest, *words)
    for words in (("enable-dimm", dimm), ("enable-region", region)):
        namespaces.ndctl(guest, *words)
    case.expect("namespaces read anew", _listed(guest, region), right=before)
    case.expect("labels free, read anew", _free_slots(guest, dimm), right=slots - 2)
    case.expect("bytes free", namespaces.room(guest, region).available, right=taken)
    for space in made:
        case.expect("data", namespaces.read_pattern(guest, space.device))
    # One goes: the other keeps its place and its data.
    namespaces.ndctl(guest, "destroy-namespace", "-f", made[0].dev)
    case.expect("the other namespace", _listed(guest, region), right=before[1:])
    case.expect("labels free beside one", _free_slots(guest, dimm), right=slots - 1)
    taken = namespaces.room(guest, region).available
    case.expect("bytes free beside one", taken, right=empty - 32 * MIB)
    # Before it and behind it: no namespace can have both.
    extent = guest.run(f"cat /sys/bus/nd/devices/{region}/max_available_extent").stdout.strip()
    case.expect("bytes in one piece", int(extent), right=empty - 48 * MIB)
    case.expect("data", namespaces.read_pattern(guest, made[1].device))


def _free_slots(guest: Guest, dimm: str) -> int:
    """Return how many more labels an NVDIMM has room for."""
    return int(guest.run(f"cat /sys/bus/nd/devices/{dimm}/available_slots").stdout)


def _listed(guest: Guest, region: str) -> list[dict[str, Any]]:
    """Return a region's namespaces by name, with what their labels say of them."""
    said = json.loads(namespaces.ndctl(guest, "list", "-N", "-v", "-r", region).stdout or "[]")
    keys = ("name", "mode", "size", "uuid", "raw_uuid", "sector_size", "blockdev", "dev")
    found = [{key: entry[key] for key in keys if key in entry} for entry in said]
    for entry in found:
        where = f"cat /sys/bus/nd/devices/{entry['dev']}/resource"
        entry["resource"] = guest.run(where).stdout.strip()
    return sorted(found, key=lambda entry: str(entry.get("name")))


_SYSTEM_RAM = "daxctl reconfigure-device -m system-ram"


def _system_ram(guest: Guest, case: Case, name: str) -> str:
    """Have device-dax become memory of the system; return its mode, SKIP without kmem."""
    # Not modprobe's word: a kernel without modules may have it built in.
    probe = "modprobe -q kmem; test -d /sys/bus/dax/drivers/kmem"
    if guest.run(probe, check=False).status:
        case.skip("the kernel has no kmem driver", enable="set CONFIG_DEV_DAX_KMEM=m")
    # daxctl wants to choose the zone itself ("kernel policy will auto-online memory, aborting").
    guest.run("echo offline > /sys/devices/system/memory/auto_online_blocks")
    done = guest.run(f"{_SYSTEM_RAM} {name}", timeout=60.0, check=False)
    case.fact("daxctl", done.stderr.strip())
    if "could not find module by name='kmem'" in done.stderr:
        case.skip(
            "daxctl loads kmem, and knows no driver that is built in without modules.builtin",
            enable="set CONFIG_DEV_DAX_KMEM=m, or install the kernel's modules.builtin",
        )
    case.expect("reconfigured", done.status, right=0)
    return str(json.loads(done.stdout)[0]["mode"])


def test_n1_system_ram(guest: Guest, case: Case) -> None:
    """device-dax becomes memory of the system, and device-dax again."""
    namespace = guest.namespace("devdax1g")
    name = namespace.device.removeprefix("/dev/")
    before = _memory(guest)
    case.expect("mode", _system_ram(guest, case, name), right="system-ram")
    case.expect("bytes of memory more", _memory(guest) - before, right=namespace.size)
    start = int(guest.run(f"cat /sys/bus/dax/devices/{name}/resource").stdout, 0)
    whole = f"{start:x}-{start + namespace.size - 1:x}"
    case.expect("ranges of memory", _ranges(guest), right=[whole])
    back = guest.run(f"daxctl reconfigure-device -f -m devdax {name}", timeout=60.0)
    case.expect("mode afterwards", json.loads(back.stdout)[0]["mode"], right="devdax")
    case.expect("bytes of memory more afterwards", _memory(guest) - before, right=0)
    case.expect("ranges of memory afterwards", _ranges(guest), right=[])
    namespaces.write_pattern(guest, namespace.device)
    case.expect("data", namespaces.read_pattern(guest, namespace.device))
    # The driver goes, but what is in use stays memory, and nobody else gets it.
    guest.run(
        f"{_SYSTEM_RAM} {name} && /bin/echo {name} > /sys/bus/dax/drivers/kmem/unbind", timeout=60.0
    )
    case.expect("bytes of memory more, unbound", _memory(guest) - before, right=namespace.size)
    case.expect("ranges of memory, unbound", _ranges(guest), right=[whole])
    done = guest.run(f"/bin/echo {name} > /sys/bus/dax/drivers/kmem/bind", check=False)
    case.expect("bind_in_use", namespaces.refused(done))


def test_n1_whole_memory_blocks(guest: Guest, case: Case) -> None:
    """Of device-dax that begins and ends within memory blocks, those in between become memory."""
    old = guest.namespace("devdax1g")
    sysfs = "/sys/devices/system/memory/block_size_bytes"
    block = int(guest.run(f"cat {sysfs}").stdout, 16)
    namespaces.ndctl(guest, "destroy-namespace", "-f", old.dev)
    # Three and a half: what comes first is kept for the info block.
    options = ("-m", "devdax", "-a", "2M", "-M", "mem", "-s", str(3 * block + block // 2))
    made = namespaces.create(guest, old.region, *options)
    name = made.device.removeprefix("/dev/")
    start = int(guest.run(f"cat /sys/bus/dax/devices/{name}/resource").stdout, 0)
    end = start + made.device_size
    first, last = -(-start // block) * block, end // block * block
    within = start % block != 0 and end % block != 0 and first < last
    case.prove("it begins and ends within blocks", within, seen=(hex(start), hex(end)))
    before = _memory(guest)
    case.expect("mode", _system_ram(guest, case, name), right="system-ram")
    case.expect("ranges of memory", _ranges(guest), right=[f"{first:x}-{last - 1:x}"])
    case.expect("bytes of memory more", _memory(guest) - before, right=last - first)


def _ranges(guest: Guest) -> list[str]:
    """Return the physical addresses that kmem has made memory, each within its device's own."""
    lines = guest.run("cat /proc/iomem").stdout.splitlines()
    found = []
    for above, line in itertools.pairwise(lines):
        where, _, what = line.strip().partition(" : ")
        if what == "System RAM (kmem)" and above.strip().startswith(f"{where} : dax"):
            found.append(where)
    return found


def _memory(guest: Guest) -> int:
    """Return what is online of the system's memory, in bytes."""
    line = guest.run(
        "cd /sys/devices/system/memory; "
        "echo $(( 0x$(cat block_size_bytes) * $(cat memory*/state | grep -c online) ))"
    ).stdout
    return int(line)


@pytest.mark.parametrize("fs", NAMES)
def test_n2_mounted(guest: Guest, case: Case, fs: str) -> None:
    """A mounted namespace is not taken away; afterwards it is."""
    with dax_mount(guest, case, fs) as mount:
        dev = mount.namespace.dev
        guest.run(f"echo kept > {mount.path}/a; sync")
        for what, words in {
            "disable": ("disable-namespace", dev),
            "destroy": ("destroy-namespace", "-f", dev),
            "reconfigure": ("create-namespace", "-f", "-e", dev, "-m", "devdax"),
        }.items():
            case.expect(what, namespaces.refused(namespaces.ndctl(guest, *words, check=False)))
        # What the kernel itself guards, whoever asks.  Not the shell's echo, which says EIO.
        for file in ("size", "uuid"):
            value = "0" if file == "size" else "6b9a7a8e-8f0e-4b7e-9d3c-0d4b3f1f2a11"
            done = guest.run(f"/bin/echo {value} > /sys/bus/nd/devices/{dev}/{file}", check=False)
            case.expect(f"write to {file}", namespaces.refused(done), right="EBUSY")
        case.expect("file", guest.run(f"cat {mount.path}/a").stdout.strip(), right="kept")
    done = namespaces.ndctl(guest, "create-namespace", "-f", "-e", dev, "-m", "devdax")
    case.expect("mode afterwards", json.loads(done.stdout)["mode"], right="devdax")


@pytest.mark.parametrize("action", ["disable", "destroy", "reconfigure"])
def test_n2_mapped_devdax(guest: Guest, case: Case, action: str) -> None:
    """A mapped device is kept, or its mapping is taken away with it: nobody reads on."""
    namespace = guest.namespace("devdax2m")
    dev = namespace.dev
    command = {
        "disable": f"ndctl disable-namespace {dev}",
        "destroy": f"ndctl destroy-namespace -f {dev}",
        "reconfigure": f"ndctl create-namespace -f -e {dev} -m fsdax",
    }[action]
    source = f"dax:{namespace.device}"
    facts = guest.workload("hold", "--source", source, "--run", command, timeout=90.0).facts
    case.fact("hold", facts)
    case.prove("the mapping held data", facts["before"] == "OK", seen=facts["before"])
    case.expect("outcome", _outcome(facts))
    again = {
        "disable": ("enable-namespace", dev),
        "destroy": ("create-namespace", "-r", namespace.region, "-m", "devdax"),
        "reconfigure": ("create-namespace", "-f", "-e", dev, "-m", "devdax"),
    }[action]
    namespaces.ndctl(guest, *again)
    listed = json.loads(namespaces.ndctl(guest, "list", "-N", "-r", namespace.region).stdout)
    device = f"/dev/{listed[0]['chardev']}"
    namespaces.write_pattern(guest, device)
    case.expect("data", namespaces.read_pattern(guest, device))


def _outcome(facts: dict[str, object]) -> str:
    """Return "safe" when what was held is whole, or gone for its holder as well."""
    if facts["holder"] == "hung":
        return "the holder is hung"
    if facts["command"] == "waits":
        if facts["command_after"] == "hung":
            return "the command is hung"
        return "safe" if facts["held"] == "OK" else f"waits; {facts['held']}"
    if facts["status"] == 0:
        gone = facts["held"] in ("SIGBUS", "ENXIO", "EIO", "ENODEV", "short")
        return "safe" if gone else f"taken away, and still its holder reads: {facts['held']}"
    busy = "busy" in str(facts["words"])
    return "safe" if busy and facts["held"] == "OK" else f"{facts['words']}; {facts['held']}"


@pytest.mark.parametrize("how", ["shared", "exclusive"])
def test_n2_open_block_device(guest: Guest, case: Case, how: str) -> None:
    """A block device that somebody has open, plainly or as a mount has it."""
    namespace = guest.namespace("fsdax0")
    command = f"ndctl disable-namespace {namespace.dev}"
    options = ("--block", namespace.device, *(("--exclusive",) if how == "exclusive" else ()))
    facts = guest.workload("hold", *options, "--run", command, timeout=90.0).facts
    case.fact("hold", facts)
    case.prove("the device could be read", facts["before"] == "OK", seen=facts["before"])
    if how == "exclusive":
        case.expect("refused", facts["status"] != 0, right=True)
    case.expect("outcome", _outcome(facts))
    namespaces.ndctl(guest, "enable-namespace", namespace.dev)
    namespaces.write_pattern(guest, namespace.device)
    case.expect("data", namespaces.read_pattern(guest, namespace.device))


def test_n4_read_only_region(guest: Guest, case: Case) -> None:
    """Nothing writes to a region that is read-only: no block device, no mount, no mapping."""
    namespace = guest.namespace("fsdax0")
    block = namespace.device.removeprefix("/dev/")
    switch = f"/sys/bus/nd/devices/{namespace.region}/read_only"
    mount = ("--type", "ext4", "--device", namespace.device, "--path", "/mnt/ro")
    write = f"dd if=/dev/zero of={namespace.device} bs=4096 seek=9000 count=1 oflag=direct"
    with dax_mount(guest, case, "ext4") as mounted:
        guest.run(f"mkdir -p /mnt/ro; echo kept > {mounted.path}/a")
    some = f"head -c 4M {namespace.device}; dd if={namespace.device} bs=4096 skip=9000 count=1"
    head = f"({some}) 2>/dev/null | cksum"
    before = guest.run(head).stdout
    guest.run(f"echo 1 > {switch}")
    case.expect("disk_read_only", guest.run(f"cat /sys/block/{block}/ro").stdout.strip())
    done = guest.run(write, check=False)
    case.expect("write", "not permitted" in done.stderr)
    tried = guest.workload("try_mount", *mount, "--options", "dax=always").facts
    case.expect("mount_writable", tried["mount"])
    tried = guest.workload("try_mount", *mount, "--options", "dax=always", "--readonly").facts
    case.expect("mount_read_only", tried["mount"])
    case.expect("file", guest.run("cat /mnt/ro/a").stdout.strip(), right="kept")
    private = guest.workload("dax_state", "--path", "/mnt/ro/a", "--private").facts
    case.prove("the file is DAX", private["dax"])
    case.expect("private_store", private["private_store"])
    again = guest.workload("try_mount", "--path", "/mnt/ro", "--remount").facts
    case.expect("remount_writable", again["mount"])
    guest.run("umount /mnt/ro")
    case.expect("the device", guest.run(head).stdout, right=before)
    guest.run(f"echo 0 > {switch}")
    case.expect("disk_writable", guest.run(f"cat /sys/block/{block}/ro").stdout.strip())
    case.expect("write_again", guest.run(write, check=False).status)


@pytest.mark.parametrize("align", ["4K", "2M", "1G"])
def test_n5_device_dax_is_its_own_memory(guest: Guest, case: Case, align: str) -> None:
    """All of the device at its page size, each page in its place, and nothing beyond."""
    with contextlib.ExitStack() as stack:
        device = guest.namespace("devdax1g" if align == "1G" else "devdax2m").device
        if align == "4K":
            device = stack.enter_context(aligned(guest, "devdax2m", "4K"))
        sysfs = f"/sys/bus/dax/devices/{device.removeprefix('/dev/')}"
        size, resource, unit = guest.run(f"cd {sysfs}; cat size resource align").stdout.split()
        case.expect("align", int(unit), right=_BYTES[align])
        facts = guest.workload(
            "devdax", "--device", device, "--size", size, "--whole", unit, "--resource", resource
        ).facts
    case.fact("device-dax", facts)
    case.expect("map", facts["map"])
    faults = min(int(size) // int(unit), facts["touched"])
    with case.gathered():
        case.expect("faults of the whole", facts["faults"], right=faults)
        case.expect("page size", facts["kernel_page_size"], right=int(unit))
        keys = ["last_byte", "beyond", "beyond_store", "misplaced_pages", "frames_wrong"]
        if align != "1G":  # pagemap says nothing of those
            keys.append("frames_unknown")
        if align != "4K":
            keys += ["split", "split_protect", "after_split", "part_length"]
        if align == "2M":
            keys.append("part_offset")
        keys += ["map_sync", "store_to_read_only", "writable_of_read_only", "read", "write"]
        for key in keys:
            case.expect(key, facts[key])


@pytest.mark.parametrize("fs", [*NAMES, "xfs-rmapbt"])
def test_n2_driver_unbound_under_a_mount(guest: Guest, case: Case, fs: str) -> None:
    """The device goes away under a mounted file system: nobody reads on, and umount works."""
    mkfs = ("-m", "rmapbt=1") if fs == "xfs-rmapbt" else ()
    kind = fs.partition("-")[0]
    with dax_mount(guest, case, kind, mkfs=mkfs) as mount:
        block = mount.namespace.device.removeprefix("/dev/")
        driver = "/sys/bus/nd/drivers/nd_pmem"
        device = guest.run(f"basename $(readlink -f /sys/block/{block}/device)").stdout.strip()
        command = f"/bin/echo {device} > {driver}/unbind"
        file = f"{mount.path}/a"
        if mkfs:
            # All groups are looked through for who has what lies in them.
            file = namespaces.file_in_other_group(guest, case, mount, "2m")
        options = ("--source", f"file:{file}", "--run", command, "--wait", "8")
        facts = guest.workload("hold", *options).facts
        case.fact("hold", facts)
        case.prove("the mapping held data", facts["before"] == "OK", seen=facts["before"])
        outcome = _outcome(facts)
        if "hung" in outcome:
            # Not waited for any more: nothing can be unmounted, and the guest may stop altogether.
            guest.broken = GuestHung(f"{command}: {outcome}")
            case.expect("outcome", outcome)
        # Whoever still has struct pages of the device is found by the unmount.
        done = guest.run(f"umount {mount.path}", timeout=8.0, check=False)
        with case.gathered():
            case.expect("umount", done.status, right=0)
            case.expect("outcome", outcome)
        guest.run(f"/bin/echo {device} > {driver}/bind")
        guest.run(f"mount -t {kind} -o dax=always {mount.namespace.device} {mount.path}")
        kept = guest.run(f"stat -c %s {file}").stdout.strip()
        case.expect("bytes of the file afterwards", int(kept), right=2 * MIB)
