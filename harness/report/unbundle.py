"""A bundle that came from somewhere: unpacked and read as the hostile thing that it may be.

Nothing of it is run on the host.  Its programs run in a guest; of the test's own code it only tells
whether it is the same as here; its machine file may not ask for anything of the host's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from harness import process
from harness.errors import EXIT_USAGE, HarnessError, HostError, UsageError
from harness.images import packaged
from harness.report.bundle import EVIDENCE, FORMAT, SHARED
from harness.report.record import TestRecord
from harness.spec import load_machine

#: Of an archive, unpacked: one with a packaged kernel and its modules has some 500 MB.
SIZE_LIMIT = 2 << 30
MEMBER_LIMIT = 20_000
#: Of a JSON file of the bundle that is read whole.
_TEXT_LIMIT = 64 << 20
_TEST = re.compile(r"testcases/(test_[a-z0-9_]{1,60})\.py::(test_[a-z0-9_]{1,120})(\[.{1,200}\])?")
_REPORT = re.compile(r"testcases/test_reports\.py::test_report\[([a-z][a-z0-9_]{0,40})\]")
#: Options of QEMU's devices that name nothing of the host's, as host, romfile and drive do.
_HARMLESS = frozenset({"addr", "bus", "dma_mask", "mac", "membar", "serial"})
_PROGRAM = re.compile(r"[a-z][a-z0-9_]{0,60}")


class BundleError(UsageError):
    """What was given is no bundle, or one that is not to be trusted."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read."""

    folder: Path
    about: Mapping[str, Any]
    record: TestRecord | None  # None: the run was killed while the test ran

    @property
    def nodeid(self) -> str:
        """The test's id, relative to a checkout."""
        return str(self.about["test"])

    @property
    def report(self) -> str | None:
        """The report's name, where the test is one."""
        match = _REPORT.fullmatch(self.nodeid)
        return match[1] if match else None

    @property
    def testcases(self) -> Path:
        """The sources as they were."""
        return self.folder / SHARED / "testcases"

    def programs(self) -> dict[str, Path]:
        """Return the workloads as they ran."""
        folder = self.folder / SHARED / "programs"
        return {
            file.name: file
            for file in (sorted(folder.iterdir()) if folder.is_dir() else ())
            if _PROGRAM.fullmatch(file.name) and file.is_file() and not file.is_symlink()
        }

    def machine_file(self) -> Path | None:
        """Return the file of the run's machine; None where the test names its own."""
        machine = self.about.get("machine")
        if not isinstance(machine, Mapping) or machine.get("own") or not machine.get("name"):
            return None
        file = self.folder / "machine" / f"{PurePosixPath(str(machine['name'])).name}.toml"
        if not file.is_file():
            return None
        described = load_machine(file)
        asks = [f"NVDIMM {dimm.name} on {dimm.path}" for dimm in described.nvdimms if dimm.path]
        asks += [f"PCI device {device.host}" for device in described.pci if device.host]
        for device in described.pci:
            if re.search("vfio|vhost", device.device):
                asks.append(f"QEMU device {device.device}")
            asks += [
                f"option {key} of {device.device}"
                for key, _ in device.options
                if key not in _HARMLESS
            ]
        asks += [f"qemu_args {' '.join(described.qemu_args)}"] if described.qemu_args else []
        if asks:
            raise BundleError(
                f"the bundle's machine asks for what is the host's: {'; '.join(asks)}",
                hint=f"read {file} and give it, or another, with --machine",
            )
        return file

    def kernel(self) -> tuple[str | None, str]:
        """Return what --kernel takes for the bundle's kernel, and what is to be said of it.

        Raises HarnessError when it cannot be had here.
        """
        told = self.about.get("kernel")
        told = told if isinstance(told, Mapping) else {}
        images = sorted((self.folder / SHARED / "kernel/boot").glob("vmlinuz-*"))
        if images:
            for path in (self.folder / SHARED / "kernel").rglob("*"):
                if path.is_symlink():  # what it points to would be read into the guest
                    raise BundleError(f"{path} is a link, and no bundle's kernel has one")
            # An image, never a tree: make would be run in that.
            return str(images[0]), "the bundle's own"
        selector = told.get("selector")
        if selector is None:
            return None, "nvh's default"
        word = str(selector)
        if packaged.SELECTOR.match(word):
            return word, word
        package = word.startswith(packaged.DEB)
        files = word.removeprefix(packaged.DEB).split(",") if package else [word]
        if not all(self._elsewhere(Path(file)) for file in files):
            raise HarnessError(
                f"the bundle's kernel {told.get('release')} was {word}, which is not here",
                hint="name one with --kernel, or make the bundle with nvh test --with-kernel",
            )
        return word, word

    def _elsewhere(self, path: Path) -> bool:
        """Tell whether a path is there, and none that the bundle brought."""
        inside = path.is_absolute() and path.resolve().is_relative_to(self.folder.resolve())
        return path.is_absolute() and not inside and path.exists()


def unpack(archive: Path, target: Path) -> Path:
    """Unpack FILE.tar.zst below ``target`` and return the bundle's directory.

    Only files and directories, below one directory, of bounded number and size, are taken.
    """
    tar = target / "bundle.tar"
    # What is compressed well may be a thousand times as long: the kernel ends zstd at the limit.
    words = ["prlimit", f"--fsize={SIZE_LIMIT}", "zstd", "-d", "-q", "-f", "--long=24"]
    try:
        done = process.run([*words, "-o", str(tar), str(archive)], timeout=600.0, check=False)
        if done.status != 0:
            said = (done.stderr.strip().splitlines() or ["it is no .tar.zst, or too large"])[-1]
            raise BundleError(f"{archive} cannot be unpacked: {said}")
        return _extract(archive, tar, target / "bundle")
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise BundleError(f"{archive} is no bundle: {error}") from error
    except OSError as error:
        raise HostError(f"{archive} cannot be unpacked: {error.strerror}") from error
    finally:
        tar.unlink(missing_ok=True)


def _extract(archive: Path, tar: Path, target: Path) -> Path:
    total = 0
    tops: set[str] = set()
    target.mkdir()
    with tarfile.open(tar, "r:") as members:
        for number, member in enumerate(members, 1):
            total += member.size
            parts = PurePosixPath(member.name).parts
            plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)
            if not plain or member.issparse():
                raise BundleError(f"{archive}: {member.name!r} is no plain file")
            if not parts or member.name.startswith("/") or ".." in parts or "\0" in member.name:
                raise BundleError(f"{archive}: {member.name!r} would lie outside")
            if number > MEMBER_LIMIT or total > SIZE_LIMIT:
                raise BundleError(f"{archive} holds more than a bundle does")
            tops.add(parts[0])
            path = target.joinpath(*parts)
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            source = members.extractfile(member)
            assert source is not None
            with path.open("xb") as out:  # a name that comes twice is no bundle's
                while chunk := source.read(1 << 20):
                    out.write(chunk)
            path.chmod(0o755 if member.mode & 0o100 else 0o644)
            # A kernel is known again by its modules' times.
            seconds = min(max(int(member.mtime), 0), 1 << 32)
            os.utime(path, (seconds, seconds))
    if len(tops) != 1:
        raise BundleError(f"{archive} is no bundle: it holds {len(tops)} directories")
    return target / tops.pop()


def read(folder: Path) -> Bundle:
    """Read a bundle's directory; BundleError when it is none."""
    about = _json(folder / "bundle.json")
    if about.get("format") != FORMAT:
        raise BundleError(f"{folder}: format {about.get('format')!r} is not {FORMAT}")
    if not _TEST.fullmatch(str(about.get("test"))):
        raise BundleError(f"{folder}: {about.get('test')!r} is not a test's id")
    record = None
    result = folder / EVIDENCE / "result.json"
    if result.is_file():
        try:
            record = TestRecord.from_json(_json(result))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{result}: no test record: {error}") from error
        if record.nodeid != about["test"]:
            raise BundleError(f"{result} is of another test: {record.nodeid!r}")
    return Bundle(folder, about, record)


def _json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _TEXT_LIMIT:
            raise BundleError(f"{file} is too large")
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{file.parent} is no bundle: {error}") from error
    if not isinstance(values, dict):
        raise BundleError(f"{file} is no table")
    return values


def code_digest(testcases: Path, nodeid: str) -> str:
    """Return the hash of what a test is written in: its module and those that modules share."""
    module = nodeid.partition("::")[0].rpartition("/")[2]
    found = hashlib.sha256()
    for file in sorted(testcases.glob("*.py")):
        if file.name == module or not file.name.startswith("test_"):
            found.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return found.hexdigest()
