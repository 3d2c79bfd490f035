"""A guest's memory in a file that crash(8) and drgn read, taken before the guest is killed."""

from __future__ import annotations

import contextlib
import os
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
