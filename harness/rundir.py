"""Private working directories of guests and runs, swept when their owner was killed."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import signals
from harness.errors import HostError

log = logging.getLogger(__name__)

_PREFIX = "nvh-run-"
#: What a directory should have room for, in bytes: NVDIMM files are sparse, file systems small.
ROOM = 1 << 30


def _candidates() -> list[Path]:
    # /dev/shm first: guest memory that is written back to a disk slows the guest.
    return [Path("/dev/shm"), Path(tempfile.gettempdir())]  # noqa: S108


def _base() -> Path:
    first, *_ = _candidates()
    for folder in _candidates():
        with contextlib.suppress(OSError):
            if os.access(folder, os.W_OK) and shutil.disk_usage(folder).free >= ROOM:
                if folder != first:
                    _tell(
                        f"{first} has no room for a guest: its files go to {folder}, a slower disk"
                    )
                return folder
    names = " nor ".join(str(folder) for folder in _candidates())
    raise HostError(f"neither {names} has 1 GiB free for a guest", hint="free space or set TMPDIR")


def room() -> int:
    """Return for how many guests at once the host has room for files, wherever they can be."""
    free: dict[int, int] = {}
    for folder in _candidates():
        with contextlib.suppress(OSError):
            if os.access(folder, os.W_OK):
                free[folder.stat().st_dev] = shutil.disk_usage(folder).free
    return sum(size // ROOM for size in free.values())


@functools.cache
def _tell(line: str) -> None:
    """Say something about the host once, not for each guest."""
    log.warning("%s", line)


def sweep() -> None:
    """Remove directories of our own user whose owner died without cleaning up."""
    for base in _candidates():
        for folder in base.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                    continue
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    log.debug("sweeping %s", folder)
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(fd)


@contextlib.contextmanager
def rundir(*, of_guest: bool = True) -> Iterator[Path]:
    """Make a directory of mode 0700 that lasts as long as the block, locked by its owner.

    A guest's is in memory if there is room; raises HostError when there is none on a disk either.
    Another one is where temporary files are.
    """
    try:
        folder, fd = _make(_base() if of_guest else Path(tempfile.gettempdir()))
    except OSError as error:
        raise HostError(f"cannot make a working directory: {error.strerror}") from error
    try:
        yield folder
    finally:
        _remove(folder, fd)


@signals.put_off  # else nobody knows of it before it is locked
def _make(base: Path) -> tuple[Path, int]:
    """Return a fresh directory and the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(fd, fcntl.LOCK_EX)
            # Another process's sweep may have come between making and locking it.
            if folder.is_dir():
                return folder, fd
            os.close(fd)


@signals.put_off
def _remove(folder: Path, fd: int) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(fd)
