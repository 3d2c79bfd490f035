"""A kernel's modules: which files a name stands for, in which order they load, as a disk image.

Everything is read from the kernel's own modules.dep, modules.softdep, modules.alias and
modules.builtin: modprobe would mix in the host's /etc/modprobe.d.
"""

from __future__ import annotations

import fnmatch
import gzip
import lzma
import shutil
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from harness import paths, process
from harness.errors import ImageError, KernelError
from harness.images import ext4

_SUFFIXES = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")


@dataclass(frozen=True)
class Closure:
    """Module files, relative to the module directory, in load order, and the names without one."""

    files: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """What guest-images/modules.toml asks for."""

    initramfs: tuple[str, ...]
    decompressed: tuple[str, ...]


def wanted() -> Wanted:
    """Read guest-images/modules.toml."""
    table = tomllib.loads((paths.guest_images() / "modules.toml").read_text())
    return Wanted(tuple(table["initramfs"]["modules"]), tuple(table["image"]["decompressed"]))


def module_name(path: str) -> str:
    """Return the name that the kernel uses for a module file or a user's spelling of it."""
    return path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")


class ModuleTree:
    """A ``lib/modules/RELEASE`` directory after depmod."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "modules.dep").is_file():
            raise KernelError(
                f"{path} has no modules.dep", hint="make modules_install, or depmod -b"
            )

    @cached_property
    def files(self) -> Mapping[str, str]:
        """Module file by name."""
        return {module_name(path): path for path in self._dependencies}

    @cached_property
    def builtin(self) -> frozenset[str]:
        """Names of what is built into the kernel."""
        return frozenset(module_name(line) for line in self._lines("modules.builtin"))

    def closure(self, names: Iterable[str]) -> Closure:
        """Return all that has to be loaded for the names; what is built in needs no file."""
        order: dict[str, None] = {}
        missing = []
        seen: set[str] = set()
        for name in names:
            found = self._resolve(name)
            if found is None:
                missing.append(name)
                continue
            for module in found:
                self._visit(module, order, seen)
        return Closure(tuple(order), tuple(missing))

    def _resolve(self, name: str) -> list[str] | None:
        """Return the modules behind a name or an alias; None if nobody knows it."""
        plain = module_name(name)
        if plain in self.files:
            return [plain]
        if plain in self.builtin:
            return []
        found = [
            module
            for pattern, module in self._aliases
            if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(plain, pattern)
        ]
        return found or None

    def _visit(self, name: str, order: dict[str, None], seen: set[str]) -> None:
        path = self.files.get(name)
        if path is None or name in seen:
            return
        seen.add(name)
        before, after = self._softdeps.get(name, ((), ()))
        for soft in before:
            for module in self._resolve(soft) or ():
                self._visit(module, order, seen)
        for needed in self._dependencies[path]:
            self._visit(module_name(needed), order, seen)
        order[path] = None
        for soft in after:
            for module in self._resolve(soft) or ():
                self._visit(module, order, seen)

    def _lines(self, name: str) -> list[str]:
        path = self.path / name
        if not path.is_file():
            return []
        lines = path.read_text(errors="replace").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]

    @cached_property
    def _dependencies(self) -> Mapping[str, Sequence[str]]:
        found = {}
        for line in self._lines("modules.dep"):
            path, _, needed = line.partition(":")
            found[path.strip()] = needed.split()
            # A bundle's kernel may be anybody's, and its modules are copied to where they lie.
            for name in (path.strip(), *needed.split()):
                if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                    raise KernelError(
                        f"{self.path}/modules.dep names {name}, which is not below it"
                    )
        return found

    @cached_property
    def _aliases(self) -> Sequence[tuple[str, str]]:
        words = (line.split() for line in self._lines("modules.alias"))
        return [(line[1], module_name(line[2])) for line in words if len(line) == 3]

    @cached_property
    def _softdeps(self) -> Mapping[str, tuple[Sequence[str], Sequence[str]]]:
        """Modules to load before and after; a kernel may give several lines for one module."""
        found: dict[str, tuple[list[str], list[str]]] = {}
        for line in self._lines("modules.softdep"):
            words = line.split()
            before, after = found.setdefault(module_name(words[1]), ([], []))
            # A word before the first pre: or post: is read as modprobe reads it: not at all.
            side: list[str] = []
            for word in words[2:]:
                if word in {"pre:", "post:"}:
                    side = before if word == "pre:" else after
                else:
                    side.append(word)
        return found


def remove_links(root: Path) -> None:
    """Remove what modules_install leaves below ``root``: build and source lead to the tree."""
    for link in root.glob("lib/modules/*/*"):
        if link.is_symlink():
            link.unlink()


def write_decompressed(source: Path, target: Path) -> None:
    """Write a module file without its compression; ``target`` is the full path of the new file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.name.endswith(".ko"):
        shutil.copyfile(source, target)
    elif source.name.endswith(".ko.xz"):
        target.write_bytes(lzma.decompress(source.read_bytes()))
    elif source.name.endswith(".ko.gz"):
        target.write_bytes(gzip.decompress(source.read_bytes()))
    elif source.name.endswith(".ko.zst"):
        zstd = process.find("zstd", package="zstd")
        process.run([zstd, "-dqf", "-o", str(target), str(source)], timeout=60)
    else:
        raise ImageError(f"{source} is compressed in a way nobody here knows")


def decompressed_name(path: str) -> str:
    """Return the name of a module file without the suffix of its compression."""
    return path.split(".ko", 1)[0] + ".ko"


def depmod(root: Path, release: str, *, system_map: Path | None = None) -> None:
    """Write modules.dep and its sisters for ``root/lib/modules/RELEASE``."""
    program = process.find("depmod", package="kmod")
    symbols = ["-F", str(system_map)] if system_map else []
    process.run([program, "-b", str(root), *symbols, release], timeout=300)


def build_image(tree: Path, release: str, decompressed: Iterable[str], target: Path) -> None:
    """Write an ext4 image of a module directory; it is mounted at /usr/lib/modules/RELEASE.

    The named modules and what they need are stored decompressed: xz in a guest under TCG costs
    more than reading the bytes.
    """
    source = ModuleTree(tree)
    plain = set(source.closure(decompressed).files)
    work = target.parent / "modules.work"
    staged = work / "lib/modules" / release
    staged.mkdir(parents=True)
    try:
        for path in source.files.values():
            if path in plain:
                write_decompressed(tree / path, staged / decompressed_name(path))
            else:
                (staged / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(tree / path, staged / path)
        for extra in tree.glob("modules.*"):
            shutil.copyfile(extra, staged / extra.name)
        depmod(work, release)
        ext4.write(staged, target, label="nvhmods")
    finally:
        shutil.rmtree(work, ignore_errors=True)
