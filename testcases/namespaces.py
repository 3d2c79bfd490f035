"""Steps with ndctl and sysfs that the N rows have in common."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from harness.guest import Guest
from harness.guest.filesystem import Mount
from harness.guest.ssh import Result
from harness.verdict.expectation import Case

_SYSFS = "/sys/bus/nd/devices"
#: ndctl's time for one namespace under TCG is 1 to 3 s, stretched by the guest's scale.
_TIMEOUT = 40.0


@dataclass(frozen=True)
class Room:
    """Sizes of a region as the kernel gives them, in bytes."""

    size: int
    available: int


@dataclass(frozen=True)
class Namespace:
    """A namespace that ndctl has made, and what the kernel says of its sizes, in bytes."""

    dev: str  # namespace1.0
    mode: str
    align: int  # 0 where the mode has none
    device: str  # /dev/pmem1, /dev/pmem1s, /dev/dax1.0
    raw: int  # what the region gave for it
    usable: int  # what ndctl says can be used
    device_size: int  # what the device itself says


def room(guest: Guest, region: str) -> Room:
    """Return a region's size and what is not taken of it."""
    files = " ".join(f"{_SYSFS}/{region}/{name}" for name in ("size", "available_size"))
    size, available = guest.run(f"cat {files}").stdout.split()
    return Room(int(size), int(available))


def ndctl(guest: Guest, *words: str, check: bool = True) -> Result:
    """Run ndctl."""
    return guest.run(f"ndctl {' '.join(words)}", timeout=_TIMEOUT, check=check)


def create(guest: Guest, region: str, *options: str) -> Namespace:
    """Make a namespace of a region."""
    made: dict[str, Any] = json.loads(
        ndctl(guest, "create-namespace", "-r", region, *options).stdout
    )
    dax = made.get("daxregion", {})
    name = made.get("blockdev") or dax.get("devices", [{}])[0].get("chardev") or made["chardev"]
    size = (
        f"echo $(( $(cat /sys/block/{name}/size) * 512 ))"
        if "blockdev" in made
        else f"cat /sys/bus/dax/devices/{name}/size"
    )
    raw, own = guest.run(f"cat {_SYSFS}/{made['dev']}/size; {size}").stdout.split()
    return Namespace(
        dev=made["dev"],
        mode=made["mode"],
        align=int(made.get("align", dax.get("align", 0))),
        device=f"/dev/{name}",
        raw=int(raw),
        usable=int(dax.get("size", made["size"])),
        device_size=int(own),
    )


def state(guest: Guest, namespace: Namespace) -> str:
    """Return "enabled" or "disabled" as ndctl lists it, "gone" when it does not, and what of its
    device is left: "disabled, device there" is wrong.
    """
    listed = json.loads(ndctl(guest, "list", "-N", "-i", "-n", namespace.dev).stdout or "[]")
    there = guest.run(f"[ -e {namespace.device} ]", check=False).status == 0
    words = listed[0].get("state", "enabled") if listed else "gone"
    return f"{words}, device {'there' if there else 'gone'}"


def write_pattern(guest: Guest, device: str) -> None:
    """Put patterns all over a block device, or on the first pages of device-dax."""
    if "/dax" in device:
        guest.workload("poison", "--source", f"dax:{device}", "--size", _mapped(guest, device))
    else:
        guest.workload("blocks", "--device", device)


def read_pattern(guest: Guest, device: str) -> str:
    """Compare with what write_pattern() has put there, past the page cache: equal or differs."""
    if "/dax" in device:
        options = ("--source", f"dax:{device}", "--size", _mapped(guest, device), "--keep")
        return str(guest.workload("poison", *options).facts["rest"])
    wrong = guest.workload("blocks", "--device", device, "--keep").facts["wrong_blocks"]
    return "equal" if wrong == 0 else f"{wrong} blocks differ"


def _mapped(guest: Guest, device: str) -> str:
    """Return how much of device-dax is mapped: nothing less than its alignment can be."""
    align = guest.run(f"cat /sys/bus/dax/devices/{device.removeprefix('/dev/')}/align").stdout
    return str(max(int(align), 2 << 20))


_DRIVER = "/sys/bus/nd/drivers/nd_pmem"
#: The namespace is bound as it is, whatever its info block at 4 KiB says; a byte there that says
#: nothing, but is in the checksum, is changed; and it is bound again.
_DAMAGE = """
cd {sysfs}/{dev} && echo 1 > force_raw && echo {dev} > {driver}/bind && disk=/dev/$(ls block) &&
dd if=$disk of=/tmp/info bs=4096 skip=1 count=1 iflag=direct && cp /tmp/info /tmp/damaged &&
printf x | dd of=/tmp/damaged bs=1 seek=2000 conv=notrunc && ! cmp -s /tmp/info /tmp/damaged &&
dd if=/tmp/damaged of=$disk bs=4096 seek=1 oflag=direct &&
echo {dev} > {driver}/unbind && echo 0 > force_raw || exit 1
/bin/echo {dev} > {driver}/bind
cat mode
"""
_MEND = """
cd {sysfs}/{dev} && dd if=/tmp/info of=/dev/$(ls block) bs=4096 seek=1 oflag=direct &&
echo {dev} > {driver}/unbind
"""


def damage(guest: Guest, namespace: Namespace) -> str:
    """Damage the info block of a disabled namespace of fsdax; return the mode that it has then."""
    words = _DAMAGE.format(sysfs=_SYSFS, driver=_DRIVER, dev=namespace.dev)
    return guest.run(words, timeout=_TIMEOUT).stdout.strip()


def mend(guest: Guest, namespace: Namespace) -> None:
    """Undo damage() where the namespace is raw for it; it is disabled afterwards."""
    words = _MEND.format(sysfs=_SYSFS, driver=_DRIVER, dev=namespace.dev)
    guest.run(words, timeout=_TIMEOUT)


def file_in_other_group(guest: Guest, case: Case, mount: Mount, size: str) -> str:
    """Make a file of xfs whose blocks lie in another allocation group than the first."""
    # New directories take turns among the groups, and files go where their directory is.
    folder = f"{mount.path}/3"
    file = f"{folder}/a"
    made = guest.run(
        f"mkdir {mount.path}/1 {mount.path}/2 {folder}; "
        f"xfs_io -f -c 'falloc 0 {size}' -c 'bmap -v' {file}"
    )
    # "0: [0..4095]: 16384..20479 2 (0..4095) 4096 10000"
    groups = re.findall(r"^\s*\d+: \[\S+\s+\d+\.\.\d+\s+(\d+) ", made.stdout, re.MULTILINE)
    elsewhere = bool(groups) and "0" not in groups
    case.prove("the file lies in another group than the first", elsewhere, seen=made.stdout)
    return file


def refused(done: Result) -> str:
    """Return EBUSY or EINVAL where that is why a command was refused, else its words."""
    words = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
    for said, name in (("Device or resource busy", "EBUSY"), ("Invalid argument", "EINVAL")):
        if done.status != 0 and any(said in line for line in words):
            return name
    return f"status {done.status}: {words[-1]}"
