"""An NVDIMM as the host has it: a file, which is compared whole, block by block.

The guest's kernel says which of its blocks are free and which are a file's; the file on the host
says what is in them, whatever the guest's page tables and page cache show.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.guest import Guest
from harness.guest.filesystem import Mount
from testcases.nvdimm_file import written

BLOCK = 4096
_CHUNK = 1 << 20
_ZERO = bytes(BLOCK)
#: The pfn info block lies at 4 KiB (drivers/nvdimm/pfn_devs.c, nd_pfn_validate()).
_INFO_END = 8192
#: fs/ext4/ext4_extents.h, EXT4_EXT_MAGIC.
_EXTENT_MAGIC = (0xF30A).to_bytes(2, "little")


@dataclass(frozen=True)
class Layout:
    """A file system on an NVDIMM, its places as block numbers of the NVDIMM's file."""

    first: int
    end: int
    free: frozenset[int]
    files: dict[str, tuple[int, ...]]  # each file's blocks, in the file's order


def read_blocks(path: Path) -> dict[int, bytes]:
    """Return a digest of each block that is not all zero."""
    return {number: _digest(block) for number, block in _data(path)}


def file_digest(path: Path, numbers: tuple[int, ...]) -> str:
    """Return the sha256 of these blocks, one after the other."""
    whole = hashlib.sha256()
    with path.open("rb") as image:
        for number in numbers:
            whole.update(os.pread(image.fileno(), BLOCK, number * BLOCK))
    return whole.hexdigest()


def _digest(block: bytes) -> bytes:
    return hashlib.blake2b(block, digest_size=8).digest()


def _data(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks that the file has, and are not all zero."""
    with path.open("rb") as image:
        for begin, end in written(image.fileno()):
            for at in range(begin - begin % BLOCK, end, _CHUNK):
                chunk = os.pread(image.fileno(), min(_CHUNK, end - at), at)
                for offset in range(0, len(chunk), BLOCK):
                    block = chunk[offset : offset + BLOCK]
                    if block != _ZERO:
                        yield (at + offset) // BLOCK, block


def layout(guest: Guest, mount: Mount, *files: str) -> Layout:
    """Ask a mounted file system which blocks are free, and which are these files'."""
    block = mount.namespace.device.removeprefix("/dev/")
    commands = [
        f"cat /sys/block/{block}/device/resource",
        f"cat /sys/bus/nd/devices/{mount.namespace.region}/resource",
        f"cat /sys/block/{block}/size",
        f"xfs_io -r -c fsmap {mount.path}",
    ]
    start, region, size, *rows = guest.run(" && ".join(commands)).stdout.splitlines()
    first = (int(start, 0) - int(region, 0)) // BLOCK
    free: set[int] = set()
    for row in rows:
        found = re.search(r"\[(\d+)\.\.(\d+)\]: free space ", row)
        if found:
            free.update(range(first + int(found[1]) // 8, first + (int(found[2]) + 1) // 8))
    return Layout(
        first=first,
        end=first + int(size) // 8,
        free=frozenset(free),
        files={file: _blocks_of(guest, f"{mount.path}/{file}", first) for file in files},
    )


def _blocks_of(guest: Guest, path: str, first: int) -> tuple[int, ...]:
    """Return a file's blocks; a hole has none."""
    numbers: list[int] = []
    for line in guest.run(f"xfs_io -r -c fiemap {path}").stdout.splitlines()[1:]:
        found = re.fullmatch(r"\s*\d+: \[\d+\.\.\d+\]: (\d+)\.\.(\d+)", line)
        if found:
            numbers.extend(range(first + int(found[1]) // 8, first + (int(found[2]) + 1) // 8))
    return tuple(numbers)


def strays(
    file: Path, before: dict[int, bytes], where: Layout, changed: tuple[str, ...]
) -> list[str]:
    """Return the blocks that are not as they were and had to be, each in words.

    Only the files that were ``changed`` and the file system's own blocks may differ.
    """
    after = read_blocks(file)
    owners = {number: name for name, numbers in where.files.items() for number in numbers}
    found: list[str] = []
    for number in sorted(before.keys() | after.keys()):
        if before.get(number) == after.get(number):
            continue
        owner = owners.get(number)
        if owner in changed:
            continue
        at = f"block {number - where.first} of the device"
        if owner is not None:
            found.append(f"{at}: of file {owner}")
        elif number in where.free:
            if not _was_metadata(file, number):
                found.append(f"{at}: free")
        elif number * BLOCK < _INFO_END or number >= where.end:
            found.append(f"byte {number * BLOCK:#x} of the NVDIMM: outside the file system")
    return found


def _was_metadata(file: Path, number: int) -> bool:
    """Whether a free block holds a part of an ext4 extent tree, given back when extents merged."""
    with file.open("rb") as image:
        return os.pread(image.fileno(), 2, number * BLOCK) == _EXTENT_MAGIC
