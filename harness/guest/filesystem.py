"""File systems on the guest's namespaces, and what proves that a mount is DAX."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.errors import GuestLost
from harness.guest.provision import NDCTL_TIMEOUT, NamespaceInfo, Runner
from harness.spec import Machine

#: STATX_ATTR_DAX (include/uapi/linux/stat.h, kernel v5.8).
STATX_ATTR_DAX = 0x0020_0000

#: How a file system is made where a test does not say otherwise.
#: ext4: few inodes, so that no thread is left behind that zeroes their tables for minutes.
#: xfs: it refuses DAX together with reflink before 6.0, and mkfs.xfs turns reflink on since 5.1.
MKFS: Mapping[str, tuple[str, ...]] = {
    "ext4": ("-b", "4096", "-N", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("-m", "reflink=0"),
}
_FORCE = {"ext4": "-qF", "xfs": "-qf"}


@dataclass(frozen=True)
class Mount:
    """A file system mounted in the guest, and what proves that it is DAX."""

    namespace: NamespaceInfo
    fstype: str
    dax: str
    path: str
    options: str  # as /proc/mounts shows them
    attributes: int  # stx_attributes of a fresh regular file on it

    @property
    def is_dax(self) -> bool:
        """Whether a fresh regular file on it is a DAX file."""
        return bool(self.attributes & STATX_ATTR_DAX)


def make_command(fstype: str, device: str, words: Sequence[str]) -> str:
    """Return the shell command that makes a file system."""
    told = shlex.join(_one_extended(words))
    return f"mkfs.{fstype} {_FORCE.get(fstype, '')} {told} {device}"


def _one_extended(words: Sequence[str]) -> list[str]:
    """Return mkfs's options with the values of all -E in one: mke2fs heeds the last alone."""
    given = [index for index, word in enumerate(words[:-1]) if word == "-E"]
    values = [words[index + 1] for index in given]
    left = [word for index, word in enumerate(words) if not {index, index - 1} & set(given)]
    return [*left, "-E", ",".join(values)] if values else left


def options(machine: Machine, nvdimm: str, fstype: str) -> tuple[str, ...]:
    """Return the options that a machine's file system is made with, of another kind the usual."""
    described = machine.nvdimm(nvdimm).namespace
    own = described.mkfs if described and described.filesystem == fstype else ()
    return (*MKFS.get(fstype, ()), *own)


def make_all(
    machine: Machine, namespaces: Mapping[str, NamespaceInfo], run: Runner
) -> dict[str, NamespaceInfo]:
    """Make the machine's file systems and return the namespaces with them.

    Raises GuestLost, with the words of mkfs, when one cannot be made.
    """
    made = dict(namespaces)
    for dimm in machine.nvdimms:
        if dimm.namespace is None or not dimm.namespace.filesystem:
            continue
        fstype = dimm.namespace.filesystem
        space = namespaces[dimm.name]
        words = options(machine, dimm.name, fstype)
        done = run(make_command(fstype, space.device, words), timeout=NDCTL_TIMEOUT, check=False)
        if done.status != 0:
            said = done.stderr.strip().splitlines() or ["it said nothing"]
            # mkfs.xfs tells how it is used after what is wrong.
            raise GuestLost(f"{fstype} could not be made on {dimm.name}: {said[0]}")
        made[dimm.name] = dataclasses.replace(space, filesystem=fstype)
    return made


def mount_command(fstype: str, device: str, path: str, dax: str | None) -> str:
    """Return the command that mounts and proves; ``read_mount`` reads what it says."""
    return f"/run/nvh/mount {fstype} {device} {path} {shlex.quote(f'dax={dax}' if dax else '')}"


def unmount_command(path: str) -> str:
    """Return the command that unmounts, in half of umount(8)'s time."""
    return f"/run/nvh/mount {path}"


def read_mount(
    said: str, namespace: NamespaceInfo, fstype: str, path: str, dax: str | None
) -> Mount:
    """Return the mount that ``mount_command`` has made."""
    attributes, _, options = said.strip().rpartition("0x")[2].partition("\n")
    return Mount(namespace, fstype, dax or "", path, options.strip(), int(attributes, 16))
