"""An NVDIMM from outside: the host's file behind it, which the guest cannot keep anything from."""

from __future__ import annotations

import base64
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from harness.guest import Guest, NamespaceInfo

_PAGE = 4096
_CHUNK = 4 << 20


def places(guest: Guest, namespace: NamespaceInfo, page: bytes) -> list[int]:
    """Return where a namespace's block device holds this page, in bytes from its start.

    All of it is searched, whoever the blocks belong to, and in moments: the guest would take ten
    seconds under TCG.  The guest's NVDIMMs must be files of its own (fixture ``power_cycle``).
    """
    block = f"/sys/block/{namespace.device.removeprefix('/dev/')}/device/resource"
    region = f"/sys/bus/nd/devices/{namespace.region}/resource"
    first, start = guest.run(f"cat {block} {region}").stdout.split()
    data = int(first, 0) - int(start, 0)
    return [at - data for at in pages_at(guest.nvdimms[namespace.name], page)]


def page_of(guest: Guest, device: str) -> bytes:
    """Return the first page of a block device of the guest."""
    words = guest.run(f"dd if={device} bs={_PAGE} count=1 status=none | base64 -w 0").stdout
    return base64.b64decode(words)


def pages_at(file: Path, page: bytes) -> Iterator[int]:
    """Yield where a sparse file holds this page; what was never written is not read."""
    with file.open("rb") as opened:
        for begin, end in written(opened.fileno()):
            for at in range(begin, end, _CHUNK):
                words = os.pread(opened.fileno(), min(_CHUNK, end - at), at)
                found = words.find(page)
                while found >= 0:
                    yield at + found
                    found = words.find(page, found + 1)


def written(fd: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a sparse file that are no holes."""
    end = 0
    while True:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, begin, os.SEEK_HOLE)
        yield begin, end
