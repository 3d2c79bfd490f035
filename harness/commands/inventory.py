"""nvh machine, nvh image, nvh kernel, nvh classify: show, list and clean."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness import paths, ui
from harness.errors import EXIT_FAILED, EXIT_OK, UsageError
from harness.images import packaged
from harness.images.store import Entry, Store
from harness.lab import Lab, Options
from harness.process import shell_line
from harness.qemu import argv
from harness.qemu.argv import Boot
from harness.report.record import program
from harness.toml_table import format_size, parse_size


def machine_list(_: argparse.Namespace) -> int:
    """List the machine files that come with the harness."""
    for file in sorted((paths.source_tree() / "guest-images" / "machines").glob("*.toml")):
        comment = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
        print(f"{file.stem:16} {comment}")
    return EXIT_OK


def machine_show(args: argparse.Namespace) -> int:
    """Print a machine, or the argument vector that it stands for."""
    machine = Lab(Options()).find_machine(args.name)
    if not args.argv:
        print(json.dumps(machine.as_dict(), indent=2))
        return EXIT_OK
    boot = Boot(
        kernel=Path("KERNEL"),
        initramfs=Path("INITRAMFS"),
        root=Path("ROOT.img"),
        modules=Path("MODULES.img"),
        nvdimms={dimm.name: dimm.path or Path(f"{dimm.name}.nvdimm") for dimm in machine.nvdimms},
    )
    vector = argv.build(machine, boot, accel=args.accel, wiring=None)
    text = ""
    for word in vector:
        text += (" \\\n  " if word.startswith("-") else " " if text else "") + shell_line([word])
    print(text)
    return EXIT_OK


def image_list(_: argparse.Namespace) -> int:
    """List what the store holds."""
    store = Lab(Options()).store
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("kind", "key", "size", "last used"):
        table.add_column(column, justify="right" if column == "size" else "left")
    entries = store.entries()
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        table.add_row(entry.kind, entry.key[:12], _megabytes(entry.size), used)
    Console().print(table)
    print(f"{_megabytes(sum(entry.size for entry in entries))} in {store.root}")
    return EXIT_OK


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"


def _matching(args: argparse.Namespace) -> list[Entry]:
    if not args.what:  # what every key starts with
        raise UsageError("no image is named", hint="nvh image list")
    entries = Lab(Options()).store.entries()
    found = [e for e in entries if e.key.startswith(args.what) or e.kind == args.what]
    if not found:
        raise UsageError(f"the store holds nothing called {args.what!r}", hint="nvh image list")
    return found


def image_rm(args: argparse.Namespace) -> int:
    """Remove entries by kind or by the start of their key."""
    store = Lab(Options()).store
    for entry in _matching(args):
        done = "removed" if store.remove(entry) else "in use, kept:"
        print(f"{done} {entry.kind} {entry.key[:12]} ({_megabytes(entry.size)})")
    return EXIT_OK


def image_gc(args: argparse.Namespace) -> int:
    """Remove the longest unused entries until the rest fits a limit."""
    limit = parse_size(args.limit)
    if limit is None:
        raise UsageError(f"--limit {args.limit}: not a size", hint='such as "10G"')
    gone = Lab(Options()).store.gc(limit)
    for entry in gone:
        print(f"removed {entry.kind} {entry.key[:12]} ({_megabytes(entry.size)})")
    print(f"{len(gone)} removed; the limit is {format_size(limit)}")
    return EXIT_OK


def image_verify(_: argparse.Namespace) -> int:
    """Compare every entry with its hashes."""
    bad = 0
    for entry in Lab(Options()).store.entries():
        damage = entry.damage()
        bad += damage is not None
        print(f"{entry.kind} {entry.key[:12]}: {damage or 'sound'}")
    return EXIT_FAILED if bad else EXIT_OK


def image_build(args: argparse.Namespace) -> int:
    """Build or fetch all that a boot needs."""
    lab = Lab(Options(kernel=args.kernel))
    with ui.progress() as shown:
        lab.say = shown.say
        images = lab.images
    print(f"kernel    {images.kernel.image}\ninitramfs {images.initramfs}")
    print(f"root      {images.root}\nmodules   {images.modules or 'none'}")
    return EXIT_OK


def kernel_show(args: argparse.Namespace) -> int:
    """Say what a selector stands for, fetching it if need be."""
    lab = Lab(Options(kernel=args.selector))
    with ui.progress() as shown:
        lab.say = shown.say
        kernel = lab.kernel
    print(f"release {kernel.release}\norigin  {kernel.origin}\nimage   {kernel.image}")
    print(f"modules {kernel.modules or 'none'}\nconfig  {kernel.config or 'unknown'}")
    print(f"digest  {kernel.digest}")
    return EXIT_OK


def kernel_fetch(args: argparse.Namespace) -> int:
    """Ask the mirror what selectors stand for now, and fetch it."""
    store = Lab(Options()).store
    for selector in args.selectors:
        if not packaged.SELECTOR.match(selector):
            raise UsageError(
                f"{selector!r} is not what a mirror has",
                hint="debian:6.12, debian:sid, ubuntu:noble",
            )
    with ui.progress() as shown:
        found = [
            packaged.entry(selector, store, progress=shown.say, anew=True)
            for selector in args.selectors
        ]
    for selector, entry in zip(args.selectors, found, strict=True):
        print(f"{selector:20} {packaged.package_of(entry)} {entry.key[:12]}")
    return EXIT_OK


def kernel_list(_: argparse.Namespace) -> int:
    """List the packaged kernels in the store."""
    entries = _kernels(Lab(Options()).store)
    for entry in entries:
        releases = ", ".join(_releases(entry)) or "?"
        print(f"{releases:32} {entry.key[:12]} {_megabytes(entry.size)}")
    if not entries:
        fetch = shell_line([program(), "kernel", "fetch", "debian:6.12"])
        print(f"none yet: {fetch} fetches one")
    return EXIT_OK


def kernel_rm(args: argparse.Namespace) -> int:
    """Remove a packaged kernel: by selector, release or the start of its key."""
    store, what = Lab(Options()).store, args.what
    if packaged.SELECTOR.match(what):
        entry = packaged.stands_for(what, store)
        found = [entry] if entry else []
        packaged.forget(what, store)
    else:
        found = [
            entry
            for entry in _kernels(store)
            if what and (what in _releases(entry) or entry.key.startswith(what))
        ]
    if not found:
        raise UsageError(f"the store holds no kernel called {what!r}", hint="nvh kernel list")
    kept = 0
    for entry in found:
        name = ", ".join(_releases(entry))
        removed = store.remove(entry)
        kept += not removed
        done = "removed" if removed else "in use, kept:"
        print(f"{done} {name} {entry.key[:12]} ({_megabytes(entry.size)})")
    return EXIT_FAILED if kept else EXIT_OK


def _kernels(store: Store) -> list[Entry]:
    return [entry for entry in store.entries() if entry.kind == "kernel"]


def _releases(entry: Entry) -> list[str]:
    return sorted({path.parent.name for path in entry.path.rglob("modules.dep")})
