"""nvh run and nvh shell: a guest of one's own, without a testcase."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from harness import rundir, ui
from harness.errors import EXIT_OK, UsageError
from harness.guest.boot import booted, prepare_nvdimms, write_script
from harness.guest.guest import Guest
from harness.lab import Lab, Options


def _lab(args: argparse.Namespace) -> Lab:
    lab = Lab(Options(kernel=args.kernel, accel=args.accel, machine=args.machine))
    lab.machine  # noqa: B018 - a wrong machine file is told before anything is fetched
    return lab


def dry_run(lab: Lab) -> int:
    """Print QEMU's arguments as a script instead of starting it."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = lab.recipe()
        nvdimms = prepare_nvdimms(recipe.machine, Path(folder))
        write_script(recipe, nvdimms, Path(folder) / "qemu.sh")
        print((Path(folder) / "qemu.sh").read_text(), end="")
    return EXIT_OK


def run(args: argparse.Namespace) -> int:
    """Run a command in a fresh guest; the exit status is the command's."""
    if not args.command:
        raise UsageError("no command", hint="nvh run [OPTIONS] -- COMMAND")
    files = [_put(word) for word in args.put]
    lab = _lab(args)
    rundir.sweep()
    with tempfile.TemporaryDirectory(prefix="nvh-") as folder:
        with ui.progress() as shown:
            lab.say = shown.say
            if args.dry_run:
                shown.stop()
                return dry_run(lab)
            recipe = lab.recipe()
            opened = booted(recipe, Path(folder), provisioned=not args.bare, say=shown.say)
            guest = opened.__enter__()
        try:
            for local, remote in files:
                guest.ssh.put(local, remote, mode=local.stat().st_mode & 0o777)
            return _stream(guest, args)
        finally:
            opened.__exit__(*sys.exc_info())


def _put(word: str) -> tuple[Path, str]:
    local, _, remote = word.partition(":")
    path = Path(local)
    if not path.is_file():
        raise UsageError(f"--put {local}: no such file")
    return path, remote or f"/root/{path.name}"


def _stream(guest: Guest, args: argparse.Namespace) -> int:
    def out(chunk: bytes) -> None:
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()

    def err(chunk: bytes) -> None:
        sys.stderr.buffer.write(chunk)
        sys.stderr.buffer.flush()

    # One word is a shell line as it stands; several are one command and its arguments, joined as
    # ssh(1) joins them.
    command = " ".join(args.command)
    done = guest.ssh.run(command, timeout=args.timeout, on_stdout=out, on_stderr=err)
    return done.status


def shell(args: argparse.Namespace) -> int:
    """Open a shell in a fresh guest, over SSH."""
    lab = _lab(args)
    rundir.sweep()
    with tempfile.TemporaryDirectory(prefix="nvh-") as folder:
        with ui.progress() as shown:
            lab.say = shown.say
            if args.dry_run:
                shown.stop()
                return dry_run(lab)
            recipe = lab.recipe()
            opened = booted(recipe, Path(folder), provisioned=not args.bare, say=shown.say)
            guest = opened.__enter__()
        try:
            for name, space in guest.namespaces.items():
                print(f"{name}: {space.mode} {space.device}", file=sys.stderr)
            for name, device in guest.vfio_devices.items():
                print(f"{name}: {device.address} group {device.group} on vfio-pci", file=sys.stderr)
            guest.ssh.interactive().shell()
        finally:
            opened.__exit__(*sys.exc_info())
    return EXIT_OK
