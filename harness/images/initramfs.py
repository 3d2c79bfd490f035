"""The initramfs: our static init and the modules that reach the root disk.

It is an uncompressed newc archive.  Decompression under TCG costs more than copying, and the
kernel takes several archives one behind the other, so that what a single run adds (keys,
addresses) is a segment appended to a base that is built once.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harness import paths, process
from harness.errors import UnfitKernel
from harness.images import modules

#: Where per-run files lie in the archive; init moves them to /run/nvh.
RUN_DIR = "nvh"
_CFLAGS = ("-std=c11", "-D_GNU_SOURCE", "-Os", "-static", "-s", "-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class CpioEntry:
    """One file, directory or device node of an archive; ``mode`` includes the type."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def cpio(entries: Iterable[CpioEntry]) -> bytes:
    """Return a newc archive (Documentation/driver-api/early-userspace/buffer-format.rst).

    Times are 0 and owners root, so the same entries always give the same bytes.
    """
    out = bytearray()
    for number, entry in enumerate(entries, start=1):
        out += _record(entry, inode=number)
    out += _record(CpioEntry("TRAILER!!!", 0), inode=0)
    out += bytes(-len(out) % 512)
    return bytes(out)


def _record(entry: CpioEntry, *, inode: int) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    record = bytearray(b"070701" + b"".join(b"%08x" % field for field in fields) + name)
    record += bytes(-len(record) % 4)
    record += entry.data
    record += bytes(-len(record) % 4)
    return bytes(record)


def run_segment(files: Mapping[str, bytes]) -> bytes:
    """Return an archive of per-run files, to be appended to the base initramfs.

    Names are relative to /run/nvh of the guest; files get mode 0600, directories 0700.
    """
    directories = {RUN_DIR}
    for name in files:
        directories.update(str(parent) for parent in PurePosixPath(RUN_DIR, name).parents)
    entries = [CpioEntry(name, stat.S_IFDIR | 0o700) for name in sorted(directories) if name != "."]
    entries += [
        CpioEntry(f"{RUN_DIR}/{name}", stat.S_IFREG | 0o600, data)
        for name, data in sorted(files.items())
    ]
    return cpio(entries)


#: What of guest-images/init is built into the archive; programs end in .c.
SOURCES = ("init.c", "door.c", "log.c", "mount.c", "resume.c", "rc")


def sources() -> dict[str, bytes]:
    """Return everything of guest-images/init that goes into the archive, for its key."""
    directory = paths.guest_images() / "init"
    return {name: (directory / name).read_bytes() for name in SOURCES}


def compile_program(name: str, target: Path) -> bytes:
    """Build guest-images/init/NAME.c as a static program at ``target`` and return it."""
    source = paths.guest_images() / "init" / f"{name}.c"
    compiler = process.find("gcc", package="gcc libc6-dev")
    process.run([compiler, *_CFLAGS, "-o", str(target), str(source)], timeout=120)
    return target.read_bytes()


def build(tree: Path | None, names: Iterable[str], target: Path) -> None:
    """Write the base initramfs for a kernel whose modules lie in ``tree`` (None: monolithic)."""
    work = target.parent
    program = work / "program.work"
    entries = [
        # The kernel opens it for init before devtmpfs is there.
        CpioEntry("dev", stat.S_IFDIR | 0o755),
        CpioEntry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        CpioEntry("init", stat.S_IFREG | 0o755, compile_program("init", program)),
    ]
    handed_over = {name: data for name, data in sources().items() if not name.endswith(".c")}
    for name in ("door", "log", "mount", "resume"):
        handed_over[name] = compile_program(name, program)
    program.unlink()
    loaded: list[str] = []
    if tree is not None:
        source = modules.ModuleTree(tree)
        names = list(names)
        closure = source.closure(name.removesuffix("?") for name in names)
        missing = [name for name in closure.missing if name in names]  # as spelt: not optional
        if missing:
            raise UnfitKernel(
                f"the kernel lacks {', '.join(missing)}, as module and built in",
                hint="guest-images/kernel/required.toml lists what a guest needs",
            )
        scratch = work / "module.work"
        for path in closure.files:
            modules.write_decompressed(tree / path, scratch)
            name = f"lib/{modules.module_name(path)}.ko"
            entries.append(CpioEntry(name, stat.S_IFREG | 0o600, scratch.read_bytes()))
            loaded.append(f"/{name}\n")
        scratch.unlink(missing_ok=True)
        entries.insert(0, CpioEntry("lib", stat.S_IFDIR | 0o755))
    listing = "".join(loaded).encode()
    entries.append(CpioEntry("modules.list", stat.S_IFREG | 0o600, listing))
    target.write_bytes(cpio(entries) + run_segment(handed_over))
