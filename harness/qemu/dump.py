"""A guest's memory in a file that crash(8) and drgn read, taken before the guest is killed."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import time
from pathlib import Path
from typing import BinaryIO

from harness.errors import HarnessError, HostError
from harness.qemu.vm import Vm

#: How long QEMU may take, in seconds: a guest of 1 GiB takes five under load.
PATIENCE = 120.0
_POLL = 0.05
#: Of makedumpfile's flattened format: the header's size, and a piece's offset and size.
_HEADER = 4096
_PLACE = struct.Struct(">qq")
#: Where the header (makedumpfile's IMPLEMENTATION) has the six names of uname(2), and their size.
_UNAME, _UNAME_SIZE = 12, 6 * 65
#: In the block behind it: the kernel's physical base, VMCOREINFO's offset and size.
_BLOCK = 4096
_PHYS_BASE = struct.Struct("<Q")
_VMCOREINFO = struct.Struct("<32xQQ")
#: The most that the kernel writes there (VMCOREINFO_BYTES).
_MOST = 4096
#: Where x86-64 maps the kernel's text and data (__START_KERNEL_map).
_KERNEL_MAP = 0xFFFFFFFF80000000


def save(vm: Vm, file: Path, *, limit: int) -> None:
    """Write RAM and registers in kdump's compressed format; the guest is stopped meanwhile.

    crash finds the kernel's random base by the registers in it.  A file that grows beyond
    ``limit`` bytes is removed, and its QEMU is ended with it.  Raises HostError.
    """
    aside, whole = (file.with_name(f".{file.name}.{end}") for end in ("flat", "tmp"))
    descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        vm.qmp.send_file(descriptor, "dump")
        wanted = {"paging": False, "protocol": "fd:dump", "detach": True, "format": "kdump-zlib"}
        vm.qmp.execute("dump-guest-memory", wanted)
        _wait(vm, descriptor, limit)
        with aside.open("rb") as flat, whole.open("xb") as out:
            _put_in_order(flat, out)
        with whole.open("r+b") as out:
            _complete(vm, out)
        whole.chmod(0o600)
        whole.replace(file)
    except OSError as error:
        raise HostError(f"{file}: {error.strerror}") from error
    except HarnessError:
        vm.stop(grace=0)  # or it would go on writing
        raise
    finally:
        os.close(descriptor)
        for left in (aside, whole):
            with contextlib.suppress(FileNotFoundError):
                left.unlink()


def _wait(vm: Vm, descriptor: int, limit: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        # Holes of a sparse file cost nothing; kdump writes its bitmaps ahead of them.
        if os.fstat(descriptor).st_blocks * 512 > limit:
            raise HostError(
                f"the memory dump is larger than {limit >> 20} MiB",
                hint="allow more: --dump-memory SIZE",
            )
        answer = vm.qmp.execute("query-dump")
        match answer.get("status"):
            case "completed":
                return
            case "failed":
                raise HostError("QEMU could not dump the guest's memory", hint="is the disk full?")
        if time.monotonic() > deadline:
            raise HostError(f"no memory dump after {PATIENCE:.0f} s")
        time.sleep(_POLL)


def _put_in_order(flat: BinaryIO, out: BinaryIO) -> None:
    """Undo the flattening of makedumpfile(8): QEMU's dump (7.2) is made for a pipe.

    Behind a header come pieces, each with its offset in the file and its size.
    """
    flat.seek(_HEADER)
    while len(place := flat.read(_PLACE.size)) == _PLACE.size:
        offset, size = _PLACE.unpack(place)
        if offset < 0:
            return
        out.seek(offset)
        while size > 0:
            piece = flat.read(min(size, 1 << 20))
            if not piece:
                break
            out.write(piece)
            size -= len(piece)
    raise HostError("QEMU's memory dump ends before its end")


def vmcoreinfo(dump: BinaryIO) -> dict[str, str]:
    """Return what the guest's kernel says of itself in a dump; nothing without its fw_cfg driver.

    The guest wrote it: it may hold anything.
    """
    dump.seek(_BLOCK)
    head = dump.read(_VMCOREINFO.size)
    if len(head) < _VMCOREINFO.size:
        return {}
    offset, size = _VMCOREINFO.unpack(head)
    if not 0 < size <= _MOST or offset >= 1 << 62:
        return {}
    dump.seek(offset)
    lines = dump.read(size).decode(errors="replace").splitlines()
    return {key: value for key, sign, value in (line.partition("=") for line in lines) if sign}


def _complete(vm: Vm, dump: BinaryIO) -> None:
    """Fill in what QEMU leaves out of a dump's header, or gets wrong.

    It takes NUMBER(phys_base), which the kernel writes in decimal, for hexadecimal (7.2,
    vmcoreinfo_update_phys_base), and crash believes the header.  Of uname's names it writes the
    machine alone, and libkdumpfile, which drgn reads with, then knows no architecture.
    """
    said = vmcoreinfo(dump)
    try:
        base = int(said["NUMBER(phys_base)"])
        names = int(said["SYMBOL(init_uts_ns)"], 16) + int(said["OFFSET(uts_namespace.name)"])
    except (KeyError, ValueError):
        return
    dump.seek(_BLOCK)
    dump.write(_PHYS_BASE.pack(base % (1 << 64)))
    uname = _physical(vm, names - _KERNEL_MAP + base, _UNAME_SIZE)
    if uname.startswith(b"Linux\0"):
        dump.seek(_UNAME)
        dump.write(uname)


def _physical(vm: Vm, address: int, size: int) -> bytes:
    """Read the guest's memory at a physical address; fewer bytes where QEMU has none there."""
    line = f"xp /{size}xb {address % (1 << 64):#x}"
    answer = str(vm.qmp.execute("human-monitor-command", {"command-line": line}))
    return bytes(int(byte, 16) for byte in re.findall(r"\b0x([0-9a-f]{2})\b", answer))[:size]
