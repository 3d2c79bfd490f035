"""What a test and its guest leave in the test's folder."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.guest import Guest
from harness.qemu import dump
from harness.report.escape import printable
from harness.report.results import append
from harness.run_state import run_state
from harness.toml_table import parse_size


def echo(item: pytest.Item) -> Callable[[str], None]:
    """Return what prints a test's words and keeps them at once: this process may be killed."""
    file = run_state(item.config).results.test_dir(item.nodeid) / "output.txt"

    def echo(text: str) -> None:
        shown = printable(text, 1 << 16)
        print(shown)
        append(file, f"{shown}\n")

    return echo


def dump_memory(item: pytest.Item, guest: Guest) -> None:
    """Keep the memory of a guest that broke, where the run was asked to."""
    limit = parse_size(item.config.getoption("--nvh-dump-memory") or "")
    broke = guest.broken is not None or guest.vm.death() is not None
    if not limit or not broke or guest.vm.child.poll() is not None:
        return
    try:
        folder = run_state(item.config).results.test_dir(item.nodeid)
        dump.save(guest.vm, folder / "vmcore", limit=limit)
    except HarnessError as error:
        guest.note(f"no memory dump: {error}")


def keep_logs(item: pytest.Item, guest: Guest, prefix: str = "") -> None:
    """Move what a guest of the test's own left into the test's folder."""
    if guest.vm.child.poll() is None:
        return  # a shared guest goes on
    folder = run_state(item.config).results.test_dir(item.nodeid)
    for name, file in left_by(guest).items():
        shutil.move(str(file), str(folder / f"{prefix}{name}"))
    with contextlib.suppress(OSError):
        guest.vm.folder.rmdir()


def left_by(guest: Guest) -> dict[str, Path]:
    """Return what a guest has in its own folder so far, by the names that tests' folders have."""
    folder = guest.vm.folder
    return {
        f"guest-{file.name}" if file.name in {"console.log", "dmesg"} else file.name: file
        for file in (folder.iterdir() if folder.is_dir() else ())
    }
