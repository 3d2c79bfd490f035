"""nvh doctor: what this host can do, and what to do about what it cannot."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from harness import paths, process
from harness.errors import EXIT_OK, EXIT_UNTESTABLE, HarnessError, HostError
from harness.images import workloads
from harness.lab import Lab, Options
from harness.pool import memory_available
from harness.qemu import accel
from harness.rundir import ROOM, rundir

#: What a run from an empty cache writes, in bytes: packages, images and the kernel.
CACHE_ROOM = 3 << 30


def doctor(args: argparse.Namespace) -> int:
    """Check the host; the exit code is 125 when something that is needed is missing."""
    out = Console(highlight=False, soft_wrap=True)
    bad = 0
    for name, check in _checks(args):
        try:
            out.print(f"[green]ok[/]      {name}: {escape(check())}")
        except HarnessError as error:
            bad += 1
            out.print(f"[red]missing[/] {name}: {escape(str(error))}")
    return EXIT_UNTESTABLE if bad else EXIT_OK


def _checks(args: argparse.Namespace) -> list[tuple[str, Callable[[], str]]]:
    return [
        ("QEMU", _qemu),
        ("mmdebstrap", lambda: process.find("mmdebstrap", package="mmdebstrap")),
        ("mke2fs", lambda: process.find("mke2fs", package="e2fsprogs")),
        ("depmod", lambda: process.find("depmod", package="kmod")),
        ("C compiler", lambda: process.find("gcc", package="gcc")),
        ("make", lambda: process.find("make", package="make")),
        ("setpriv", lambda: process.find("setpriv", package="util-linux")),
        ("accelerator", lambda: _accelerator(args)),
        ("memory", _memory),
        ("cache", lambda: _room(paths.cache_dir(), CACHE_ROOM)),
        ("guest files", _run_room),
        ("workloads", _workloads),
    ]


def _qemu() -> str:
    program = accel.qemu_program()
    return f"{program} {accel.qemu_version(program)}"


def _accelerator(args: argparse.Namespace) -> str:
    if not Path("/dev/kvm").exists() and args.accel != "kvm":
        return "tcg: there is no /dev/kvm"
    chosen = Lab(Options(accel=args.accel, kernel=args.kernel)).accel
    return f"{chosen.name}: {chosen.why}"


def _memory() -> str:
    free = memory_available()
    cores = len(os.sched_getaffinity(0))
    if free < ROOM:
        raise HostError(f"only {free >> 20} MiB are free", hint="a guest needs 1 GiB")
    return f"{free >> 20} MiB free, {cores} cores"


def _room(folder: Path, needed: int) -> str:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise HostError(
            f"{folder} has {free >> 20} MiB free", hint=f"{needed >> 20} MiB, or set NVH_CACHE"
        )
    return f"{folder} has {free >> 30} GiB free"


def _run_room() -> str:
    with rundir() as folder:
        return _room(folder.parent, ROOM)


def _workloads() -> str:
    built = workloads.folder() / "build"
    if not built.is_dir() and workloads.folder().is_dir():
        return f"not built yet: a run builds them from {workloads.folder()}"
    files = sorted(built.iterdir()) if built.is_dir() else []
    names = [file.name for file in files if file.is_file() and os.access(file, os.X_OK)]
    if not names:
        raise HostError("no workload is built", hint="make workloads")
    return ", ".join(names)
