"""QEMU as nobody in particular, where the harness was started as root.

QEMU starts under a user id that owns nothing: setpriv(1) changes it before the exec, so no line of
QEMU runs as root.  The harness's directories stay closed to that user.  What QEMU has to open it
inherits as descriptors and opens again by /proc/self/fd/N, where the kernel asks for the file's own
mode and not for the way to it.

A clone maps its template's files copy-on-write, but QEMU opens such a file for writing all the
same (7.2, file_ram_open; ``rom=off`` came with 8.2).  It is given a sealed copy in memory instead:
F_SEAL_WRITE lets it be opened so and privately mapped, and written by nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import pwd
import re
import secrets
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HostError
from harness.spec import Machine

KVM = Path("/dev/kvm")
#: What systemd keeps for users without a name (systemd.io/UIDS-GIDS, DynamicUser=).
_USERS = range(61184, 65520)
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_CHUNK = 1 << 20
_copying = threading.Lock()


@dataclass(frozen=True)
class User:
    """Whom QEMU runs as; one of each QEMU's own, so that it cannot reach another's."""

    uid: int
    groups: tuple[int, ...] = ()

    @property
    def setpriv(self) -> list[str]:
        """The options of setpriv(1) that change to it."""
        groups = ",".join(map(str, self.groups))
        return [
            *["--reuid", str(self.uid), "--regid", str(self.uid)],
            *(["--groups", groups] if groups else ["--clear-groups"]),
            *["--inh-caps=-all", "--no-new-privs"],
        ]


def choose(machine: Machine | None, accel: str, qemu: str) -> User | str:
    """Return whom QEMU is to run as, or why it keeps the harness's own user."""
    if os.geteuid() != 0:
        return "the harness's own user"
    if reason := _why_root(machine, accel, qemu):
        return f"root: {reason}"
    groups = (KVM.stat().st_gid,) if accel == "kvm" else ()
    return User(_free_uid(), groups)


def _why_root(machine: Machine | None, accel: str, qemu: str) -> str | None:
    if machine is not None:
        for device in machine.pci:
            if device.host:  # /dev/vfio/GROUP, and memory to be locked without a limit
                return f"{device.name} is a device of the host's"
        for dimm in machine.nvdimms:
            if dimm.path is not None:
                return f"NVDIMM {dimm.name} has a path of its own"
        if any(re.search(r"(file|filename|mem-path)=", word) for word in machine.qemu_args):
            return "qemu_args name a file of the host"
    if not _mapped(_USERS.start) or not _mapped(_USERS.stop - 1):
        return "this user namespace has no other users"
    program = Path(qemu)
    if not all(place.stat().st_mode & stat.S_IXOTH for place in (program, *program.parents)):
        return f"{qemu} is not for others to start"
    return _kvm_problem() if accel == "kvm" else None


def _kvm_problem() -> str | None:
    try:
        mode = KVM.stat().st_mode
    except OSError as error:
        return f"{KVM}: {error.strerror}"
    group, others = stat.S_IRGRP | stat.S_IWGRP, stat.S_IROTH | stat.S_IWOTH
    if mode & group == group or mode & others == others:
        return None
    return f"{KVM} opens for root only"


@functools.cache
def _mapped(uid: int) -> bool:
    """Say whether a user id means something in this user namespace."""
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = map(int, line.split())
        if first <= uid < first + count:
            return True
    return False


def _free_uid() -> int:
    """Return a user id that nobody is known by."""
    for _ in range(100):
        uid = secrets.choice(_USERS)
        try:
            pwd.getpwuid(uid)
        except KeyError:
            return uid
    raise HostError(f"no user id from {_USERS.start} on is free for QEMU")


@contextlib.contextmanager
def handed_over(
    user: User, *, readable: Sequence[Path], own: Sequence[Path], private: Sequence[Path]
) -> Iterator[dict[Path, int]]:
    """Make descriptors of files, by path, for a QEMU to inherit; closed after the block.

    ``readable`` are read; ``own`` become the user's, who writes them; ``private`` are mapped
    copy-on-write and never written.
    """
    with contextlib.ExitStack() as stack:
        made: dict[Path, int] = {}
        try:
            for path in own:
                os.chown(path, user.uid, user.uid)
                made[path] = _by_name(path, stack)
            for path in readable:
                public = path.stat().st_mode & stat.S_IROTH
                made[path] = _by_name(path, stack) if public else sealed_copy(path)
            made.update({path: sealed_copy(path) for path in private})
        except OSError as error:
            where = error.filename or "a file for QEMU"
            raise HostError(f"{where}: {error.strerror or error}") from error
        yield made


def _by_name(path: Path, stack: contextlib.ExitStack) -> int:
    """Return a descriptor that is good for opening the file again and for nothing else."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor


def sealed_copy(path: Path) -> int:
    """Return a copy of a file in memory that can no longer be written; one for each process."""
    found = path.stat()
    with _copying:
        return _sealed(path, (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size))


@functools.cache
def _sealed(path: Path, _identity: tuple[int, ...]) -> int:
    descriptor = os.memfd_create(f"nvh-{path.name}"[:200], os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        with path.open("rb", buffering=0) as source:
            os.ftruncate(descriptor, os.fstat(source.fileno()).st_size)
            for begin, end in _data(source.fileno()):
                _copy(source.fileno(), descriptor, begin, end)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _data(descriptor: int) -> Iterator[tuple[int, int]]:
    """Go through the parts of a sparse file that are no holes."""
    end = 0
    while True:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        yield begin, end


def _copy(source: int, target: int, begin: int, end: int) -> None:
    while begin < end:
        chunk = os.pread(source, min(_CHUNK, end - begin), begin)
        if not chunk:
            raise OSError("the file became shorter")
        begin += os.pwrite(target, chunk, begin)
