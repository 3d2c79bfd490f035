"""The content-addressed store of everything that was built or fetched.

An entry is a directory ``KIND/KEY`` with a ``manifest.json`` that holds size and sha256 of each of
its files.  The key is the hash of the recipe's inputs, so a changed recipe is a new entry and an
old one is never changed.  An entry is written aside and renamed into place: it is there whole or
not at all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from harness.errors import HarnessError, ImageError
from harness.images.advance import Advance

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_ASIDE = "aside"
_LOCKS = "locks"
#: Seconds to wait for another process that builds the same entry; a root image takes half a minute.
BUILD_PATIENCE = 1800.0
_ROOM = 16 << 20
_MAKE_ROOM = "nvh image gc, or set NVH_CACHE to a directory with more room"

#: Told in a line of each thing that takes longer.
Progress = Callable[[str], None]


def to_log(message: str) -> None:
    """Report progress to the log only, and there no figures that change all the time."""
    if not isinstance(message, Advance):
        log.info("%s", message)


@dataclass(frozen=True)
class Entry:
    """One published directory of the store; sizes in bytes, times in seconds since the epoch."""

    kind: str
    key: str
    path: Path
    size: int
    created: float

    @property
    def used(self) -> float:
        """Return when the entry was last asked for."""
        try:
            return (self.path / MANIFEST).stat().st_mtime
        except OSError:
            return self.created

    @property
    def digest(self) -> str:
        """Return the hash of the entry's content: that of its list of hashes."""
        try:
            return hash_of(json.dumps(self._files(), sort_keys=True))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ImageError(f"{self.path} is damaged: {error}", hint="ask again") from error

    def damage(self, patterns: Sequence[str] = ("*",)) -> str | None:
        """Compare the files whose names match with the manifest; return what is wrong, or None.

        Reads every byte: half a second for each 250 MB.
        """
        try:
            files = self._files()
            for name in files:
                if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                    continue
                path = self.path / name
                if path.is_symlink() or not path.is_file():
                    return f"{name} is missing"
                if path.stat().st_size != files[name]["size"]:
                    return f"{name} has the wrong size"
                if file_hash(path) != files[name]["sha256"]:
                    return f"{name} has the wrong sha256"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"unreadable: {error!r}"
        return None

    def _files(self) -> dict[str, dict[str, Any]]:
        files = json.loads((self.path / MANIFEST).read_text())["files"]
        if not isinstance(files, dict):
            raise TypeError("files is no table")
        return files


def hash_of(*parts: str | bytes) -> str:
    """Return one sha256 of several values; where one ends and the next begins counts."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(f"{len(data)}:".encode() + data)
    return total.hexdigest()


#: From this size in bytes on a file is hashed by its chunks that are not all zero: the files of a
#: template have gigabytes of holes.
SPARSE = 64 << 20
_CHUNK = 1 << 16


def file_hash(path: Path) -> str:
    """Return the sha256 of a file; of a large one, of its chunks with data and their places."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < SPARSE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        total = hashlib.sha256(f"sparse {size}".encode())
        zeroes = bytes(_CHUNK)
        for offset in _data(file.fileno(), size):
            chunk = os.pread(file.fileno(), _CHUNK, offset)
            if chunk != zeroes[: len(chunk)]:
                total.update(offset.to_bytes(8, "little"))
                total.update(chunk)
        return total.hexdigest()


def _data(descriptor: int, size: int) -> Iterator[int]:
    """Walk over the places of a file's chunks that may hold data."""
    place = 0
    while place < size:
        try:
            begin = os.lseek(descriptor, place, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only holes are left
                return
            raise
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        place = max(place, begin // _CHUNK * _CHUNK)
        while place < end:
            yield place
            place += _CHUNK


def in_use(path: Path) -> int:
    """Mark an entry's directory as used until the descriptor that is returned is closed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


class Store:
    """A directory of entries that many processes use at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            for name in (_ASIDE, _LOCKS):
                (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _store_error(root, error) from error

    def get(
        self,
        kind: str,
        key: str,
        build: Callable[[Path], None],
        *,
        verify: bool | Sequence[str] = True,
        patience: float = BUILD_PATIENCE,
    ) -> Entry:
        """Return the entry, after building it if it is not there or damaged.

        ``verify`` says whether the files of an entry that is there are read and compared with
        their hashes; or it has patterns of the files for which that is done.
        ``build`` fills a fresh directory.  One process builds; others that want the same entry
        wait for it, ``patience`` seconds.  Raises ImageError when it cannot be built; then nothing
        is published.
        """
        found = self._sound(kind, key, verify=verify)
        if found is not None:
            return self._touch(found)
        try:
            with self._lock(f"{kind}-{key}", patience):
                found = self._sound(kind, key, verify=verify)
                return self._touch(found) if found else self._build(kind, key, build)
        except filelock.Timeout as error:
            raise ImageError(
                f"another process has been building {kind} {key[:12]} for {patience:.0f} s",
                hint="end it, or use another NVH_CACHE",
            ) from error

    def find(self, kind: str, key: str) -> Entry | None:
        """Return an entry if it is there, unverified."""
        path = self.root / kind / key
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            return Entry(kind, key, path, int(manifest["size"]), float(manifest["created"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def entries(self) -> list[Entry]:
        """Return every entry, the longest unused first."""
        found = []
        for kind in self._directories(self.root):
            if kind.name in {_ASIDE, _LOCKS}:
                continue
            found += [self.find(kind.name, path.name) for path in self._directories(kind)]
        return sorted((entry for entry in found if entry), key=lambda entry: entry.used)

    def remove(self, entry: Entry) -> bool:
        """Remove an entry; False when a running process uses it (see ``in_use``)."""
        doomed = self._aside()
        try:
            descriptor = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            entry.path.rename(doomed)
        except BlockingIOError:
            return False
        except FileNotFoundError:
            return True
        finally:
            os.close(descriptor)
        shutil.rmtree(doomed, ignore_errors=True)
        return True

    def gc(self, limit_bytes: int, *, kind: str | None = None) -> list[Entry]:
        """Remove the longest unused entries (of a kind) until the rest fits; return what went.

        What a running process uses stays, whatever it takes.
        """
        self.sweep()
        entries = [entry for entry in self.entries() if kind in (None, entry.kind)]
        total = sum(entry.size for entry in entries)
        gone = []
        for entry in entries:
            if total <= limit_bytes:
                break
            if self.remove(entry):
                total -= entry.size
                gone.append(entry)
        return gone

    def sweep(self) -> list[Path]:
        """Remove what builders that are dead left aside; return it."""
        gone = []
        for path in self._directories(self.root / _ASIDE):
            lock = filelock.FileLock(self._aside_lock(path))
            with contextlib.suppress(filelock.Timeout), lock.acquire(timeout=0):
                shutil.rmtree(path, ignore_errors=True)
                gone.append(path)
                self._aside_lock(path).unlink(missing_ok=True)
        return gone

    def owner(self, path: Path) -> Entry | None:
        """Return the entry that a path lies in, None if it lies elsewhere."""
        with contextlib.suppress(ValueError):
            kind, key, *_ = path.relative_to(self.root).parts
            return self.find(kind, key)
        return None

    def check(self, path: Path) -> None:
        """Verify the whole entry that a path lies in, if it does; remove it if it is damaged.

        Raises ImageError then: its user asks again and gets a fresh one.
        """
        entry = self.owner(path)
        damage = entry.damage() if entry else None
        if entry and damage:
            self.remove(entry)
            raise ImageError(
                f"{entry.kind} {entry.key[:12]} was damaged and is removed: {damage}",
                hint="ask again, it is fetched anew",
            )

    def _sound(self, kind: str, key: str, *, verify: bool | Sequence[str]) -> Entry | None:
        entry = self.find(kind, key)
        patterns = ("*",) if verify is True else verify or ()
        damage = entry.damage(patterns) if entry and patterns else None
        if damage is None:
            return entry
        log.warning("%s %s is damaged, building it again: %s", kind, key[:12], damage)
        return None

    def _build(self, kind: str, key: str, build: Callable[[Path], None]) -> Entry:
        self.sweep()
        target = self.root / kind / key
        try:
            with self._working_directory() as aside:
                fresh = aside / "entry"
                fresh.mkdir()
                _fill(fresh, build)
                _write_manifest(fresh)
                target.parent.mkdir(mode=0o700, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    target.rename(aside / "replaced")
                fresh.rename(target)
        except OSError as error:
            raise _store_error(self.root, error) from error
        entry = self.find(kind, key)
        if entry is None:
            raise ImageError(f"{target} vanished while it was published", hint="ask again")
        log.info("%s %s: %d MB", kind, key[:12], entry.size >> 20)
        return entry

    def _touch(self, entry: Entry) -> Entry:
        with contextlib.suppress(OSError):
            os.utime(entry.path / MANIFEST)
        return entry

    def _aside(self) -> Path:
        return self.root / _ASIDE / f"{os.getpid()}-{uuid.uuid4().hex[:12]}"

    def _aside_lock(self, path: Path) -> Path:
        return self.root / _LOCKS / f"aside-{path.name}"

    @contextlib.contextmanager
    def _working_directory(self) -> Iterator[Path]:
        """A directory that a lock marks as ours; the lock goes with our process."""
        path = self._aside()
        lock = self._aside_lock(path)
        with filelock.FileLock(lock):
            path.mkdir()
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)
                lock.unlink(missing_ok=True)

    def _lock(self, name: str, timeout: float) -> filelock.BaseFileLock:
        return filelock.FileLock(self.root / _LOCKS / name, timeout=timeout)

    @staticmethod
    def _directories(path: Path) -> list[Path]:
        try:
            return sorted(child for child in path.iterdir() if child.is_dir())
        except FileNotFoundError:
            return []


def _fill(fresh: Path, build: Callable[[Path], None]) -> None:
    """Build; a program that failed because the disk is full seldom says so in its last line."""
    try:
        build(fresh)
    except HarnessError as error:
        free = shutil.disk_usage(fresh).free
        if free < _ROOM:
            raise ImageError(
                f"no space left in {fresh.parents[2]}: {error.message}", hint=_MAKE_ROOM
            ) from error
        raise


def _write_manifest(path: Path) -> None:
    files = {}
    total = 0
    for file in sorted(path.rglob("*")):
        if file.is_file() and not file.is_symlink():
            status = file.stat()
            total += min(status.st_size, status.st_blocks * 512)  # holes cost nothing
            sha256 = file_hash(file)
            files[str(file.relative_to(path))] = {"size": status.st_size, "sha256": sha256}
    manifest = {"created": time.time(), "size": total, "files": files}
    with (path / MANIFEST).open("w") as out:
        json.dump(manifest, out, indent=1)
        out.flush()
        os.fsync(out.fileno())


def _store_error(root: Path, error: OSError) -> ImageError:
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    return ImageError(
        f"{error.filename or root}: {error.strerror or error}",
        hint=_MAKE_ROOM if full else f"check {root}, or set NVH_CACHE",
    )
