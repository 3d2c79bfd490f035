"""The directory of one run: everything is written as it happens and survives a kill at any time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HostError, UsageError
from harness.report.escape import printable, slug

_FULL = {errno.ENOSPC: "disk full", errno.EDQUOT: "disk full (quota)"}


#: What harness.log may hold, in bytes; what follows is dropped.
LOG_LIMIT = 64 << 20


class _Plain(logging.Formatter):
    """Lines of a log that may be shown on a terminal, whatever a guest's words are in them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's lines."""
        return printable(super().format(record), 1 << 16)


class _Log(logging.FileHandler):
    """A log that ends when it is full."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        if self.stream is None or self.stream.tell() < LOG_LIMIT:
            super().emit(record)


@dataclass(frozen=True)
class ResultsDir:
    """results/DATE-TIME/ of one run."""

    path: Path
    #: Where base/latest pointed before, relative to base; None where it was not there.
    before: Path | None = None

    @classmethod
    def create(cls, base: Path) -> ResultsDir:
        """Make base/DATE-TIME[-N]/ and let base/latest point to it.

        Two runs of the same second get two directories.  Raises HostError when it cannot be made.
        """
        latest = base / "latest"
        before = latest.readlink() if latest.is_symlink() else None
        path = make_folder(base)
        with naming(path):
            (path / "tests").mkdir()
        return cls(path, before)

    @classmethod
    def open(cls, path: Path) -> ResultsDir:
        """Return a run's directory that another process has made."""
        if not (path / "tests").is_dir():
            raise HostError(f"{path} is no results directory")
        return cls(path.absolute())

    def test_dir(self, nodeid: str) -> Path:
        """Return the folder of a test, made if need be; two tests never share one."""
        path = self.path / "tests" / slug(nodeid)
        with naming(path):
            path.mkdir(exist_ok=True)
        return path

    def discard(self) -> None:
        """Remove what a run without any test has made, if it is empty; base/latest goes back."""
        base = self.path.parent
        try:
            (self.path / "tests").rmdir()
            self.path.rmdir()
            others = [path for path in base.iterdir() if path.is_dir() and not path.is_symlink()]
            if self.before is not None and base / self.before in others:
                _point(base / "latest", str(self.before))
            elif others:
                _point(base / "latest", max(others, key=lambda path: path.stat().st_mtime).name)
            else:
                (base / "latest").unlink()
                base.rmdir()
        except OSError:
            return  # something is in it

    def start_log(self) -> None:
        """Let this process add what it logs to harness.log; any number of processes may."""
        with naming(self.path / "harness.log"):
            handler = _Log(self.path / "harness.log")
        handler.setFormatter(_Plain("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
        logging.raiseExceptions = False  # a full disk is told by what cannot do without it
        logging.getLogger().addHandler(handler)
        logging.getLogger().setLevel(logging.DEBUG)
        for noisy in ("paramiko", "invoke", "fabric", "qemu", "asyncio", "filelock"):
            logging.getLogger(noisy).setLevel(logging.WARNING)


def make_folder(base: Path, *, prefix: str = "") -> Path:
    """Make base/[PREFIX]DATE-TIME[-N]/, let base/latest point to it and return its path."""
    stamp = prefix + time.strftime("%Y-%m-%d-%H%M%S")
    with naming(base):
        base.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = base / (stamp if number == 1 else f"{stamp}-{number}")
        with naming(path):
            try:
                path.mkdir()
            except FileExistsError:
                continue
        break
    _point(base / "latest", path.name)
    return path.absolute()


def point_again(folder: Path) -> None:
    """Let the latest beside a folder that is gone on with point to it; without one, make none."""
    link = folder.parent / "latest"
    if link.is_symlink():
        _point(link, folder.name)


@contextlib.contextmanager
def owned(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder against other processes; UsageError when one is at work in it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another {what} is at work in {folder}") from error
        yield
    finally:
        os.close(fd)


def write_atomic(path: Path, data: str | bytes, *, sync: bool = True) -> Path:
    """Write a file aside, sync it and rename it into place.

    A reader sees the old file or the new one; without ``sync`` that holds when the harness is
    killed, not when the host is.  Raises HostError that names the path when the disk is full, in
    which case an older file is untouched.
    """
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        try:
            with aside.open("wb") as file:
                file.write(raw)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise
    return path


def write_json(path: Path, value: Any, *, sync: bool = True, indented: bool = True) -> Path:
    """Write JSON whole or not at all; what JSON cannot hold is written as its repr.

    Not ``indented`` it takes a tenth of the time: only that is written by json's encoder in C.
    """
    indent = 1 if indented else None
    return write_atomic(path, json.dumps(value, indent=indent, default=repr) + "\n", sync=sync)


@contextlib.contextmanager
def reading(file: Path, version: int, what: str) -> Iterator[dict[str, Any]]:
    """Yield what write_json() wrote, with its ``format``.

    Raises HostError, which calls the file no ``what``, when it cannot be read, is of another
    version, or when the block cannot take what is in it.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["format"] != version:
            raise ValueError(f"format {values['format']!r} is not {version}")
        yield values
    except OSError as error:
        raise HostError(f"{file}: {error.strerror}") from error
    except KeyError as error:
        raise HostError(f"{file} is no {what}: no {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise HostError(f"{file} is no {what}: {error}") from error


def append(path: Path, data: str | bytes) -> None:
    """Add to a file that grows as the run goes on; HostError when the disk is full."""
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
    with naming(path), path.open("ab") as file:
        file.write(raw)


def _point(link: Path, target: str) -> None:
    """Make ``link`` a symbolic link to ``target``, with no moment without one."""
    aside = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    with naming(link):
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)
        try:
            aside.replace(link)
        except OSError:
            aside.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a HostError that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise HostError(
                f"{_FULL[error.errno]}: {path}", hint="free space or give --results another disk"
            ) from error
        raise HostError(f"cannot write {path}: {error.strerror}") from error
