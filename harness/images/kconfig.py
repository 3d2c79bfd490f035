"""A kernel's configuration: read from a file or out of the image, held against what guests need."""

from __future__ import annotations

import bz2
import lzma
import re
import struct
import tempfile
import tomllib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import paths, process
from harness.errors import HarnessError
from harness.images.kernel import Kernel

#: scripts/extract-ikconfig looks for the same marks.
_START, _END = b"IKCFG_ST\x1f\x8b", b"IKCFG_ED"
_LINE = re.compile(r"(CONFIG_\w+)=(.*)")


@dataclass(frozen=True)
class Problem:
    """A configuration line that a kernel lacks; ``group`` is a table of required.toml."""

    group: str
    option: str
    why: str
    modules_will_do: bool

    def __str__(self) -> str:
        """Return the line to put into .config, with the reason."""
        return f"{self.option}={'m' if self.modules_will_do else 'y'} ({self.why})"


def read(kernel: Kernel) -> Mapping[str, str] | None:
    """Return a kernel's options and values; None when it does not tell its configuration."""
    if kernel.config is not None:
        return parse(kernel.config.read_text(errors="replace"))
    text = from_image(kernel.image.read_bytes())
    return None if text is None else parse(text)


def parse(text: str) -> dict[str, str]:
    """Return the options that are set in a .config."""
    matches = (_LINE.match(line) for line in text.splitlines())
    return {match[1]: match[2].strip('"') for match in matches if match}


def problems(kernel: Kernel, *, groups: tuple[str, ...] = ("boot",)) -> list[Problem]:
    """Return what guest-images/kernel/required.toml asks for and a kernel lacks.

    An unknown configuration gives no problems: the guest's console then says what is missing.
    """
    options = read(kernel)
    if options is None:
        return []
    return lacking(options, groups=groups, modular=kernel.modules is not None)


def lacking(
    options: Mapping[str, str], *, groups: tuple[str, ...] = ("boot",), modular: bool = False
) -> list[Problem]:
    """Return what required.toml asks for and a configuration does not set.

    ``modular``: the kernel comes with its modules, so =m does where it has a loader for them.
    """
    table = _required()
    modular = modular and options.get("CONFIG_MODULES") == "y"
    good = {"y", "m"} if modular else {"y"}
    return [
        Problem(group, option, why, modular)
        for group in groups
        for option, why in table[group].items()
        if options.get(option) not in good
    ]


def rows_of(option: str) -> tuple[str, ...]:
    """Return the patterns of the catalogue's rows that an option is needed for."""
    return tuple(_required()["rows"].get(option, ()))


def _required() -> dict[str, Any]:
    return tomllib.loads((paths.guest_images() / "kernel" / "required.toml").read_text())


def from_image(image: bytes) -> str | None:
    """Return the .config inside a bzImage (CONFIG_IKCONFIG=y), None if it holds none."""
    for data in (image, _payload(image)):
        start = data.find(_START)
        if start < 0:
            continue
        end = data.find(_END, start)
        try:
            unpacked = zlib.decompress(data[start + 8 : end if end > 0 else None], wbits=31)
        except zlib.error:
            return None
        return unpacked.decode(errors="replace")
    return None


def _payload(image: bytes) -> bytes:
    """Return the kernel proper of a bzImage, decompressed as far as it goes.

    payload_offset counts from the protected-mode code (Documentation/arch/x86/boot.rst).
    """
    if image[0x202:0x206] != b"HdrS":
        return b""
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    data = image[start : start + length]
    try:
        return _decompress(data)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, HarnessError):
        return b""


def _decompress(data: bytes) -> bytes:
    # The build appends the unpacked size to the stream, so trailing bytes are no error.
    if data.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(wbits=31).decompress(data)
    if data.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data)
    if data.startswith(b"]\0\0"):
        return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data)
    if data.startswith(b"BZh"):
        return bz2.BZ2Decompressor().decompress(data)
    for magic, program in ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\x02\x21\x4c\x18", "lz4")):
        if data.startswith(magic):
            return _with_program(process.find(program, package=program), data)
    return b""


def _with_program(program: str, data: bytes) -> bytes:
    with tempfile.TemporaryDirectory(prefix="nvh-kernel-") as scratch:
        packed, unpacked = Path(scratch, "packed"), Path(scratch, "unpacked")
        packed.write_bytes(data)
        process.run([program, "-dqf", str(packed), str(unpacked)], timeout=60, check=False)
        return unpacked.read_bytes() if unpacked.exists() else b""
