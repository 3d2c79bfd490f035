"""nvh run and nvh shell: a guest of one's own, without a testcase."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import tempfile
import termios
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from invoke.exceptions import UnexpectedExit

from harness import rundir, signals, ui
from harness.errors import EXIT_OK, UsageError
from harness.guest.boot import booted, write_script
from harness.guest.guest import Guest
from harness.lab import Lab, Options


def run(args: argparse.Namespace) -> int:
    """Run a command in a fresh guest; the exit status is the command's."""
    if not args.command:
        raise UsageError("no command", hint="nvh run [OPTIONS] -- COMMAND")
    files = [_put(word) for word in args.put]
    if args.dry_run:
        return _dry_run(args)
    # One word is a shell line as it stands; several are a command and its arguments.
    command = args.command[0] if len(args.command) == 1 else shlex.join(args.command)
    with _opened(args) as guest:
        for local, remote in files:
            guest.ssh.put(local, remote, mode=local.stat().st_mode & 0o777)
        done = guest.ssh.run(
            command,
            timeout=args.timeout,
            on_stdout=_writer(sys.stdout.buffer),
            on_stderr=_writer(sys.stderr.buffer),
        )
        return done.status


def shell(args: argparse.Namespace) -> int:
    """Open a shell in a fresh guest, over SSH; the exit status is the shell's."""
    if args.dry_run:
        return _dry_run(args)
    with _opened(args) as guest:
        for name, space in guest.namespaces.items():
            print(f"{name}: {space.mode} {space.device}", file=sys.stderr)
        for name, device in guest.vfio_devices.items():
            print(f"{name}: {device.address} group {device.group} on vfio-pci", file=sys.stderr)
        with _raw(sys.stdin):
            try:
                status = guest.ssh.interactive().shell().exited
            except UnexpectedExit as ended:  # of the shell's last command, mostly
                status = ended.result.exited
        signals.forget()  # a SIGINT was for the guest, and invoke passed it on
    return int(status)


@contextlib.contextmanager
def _raw(stream: TextIO) -> Iterator[None]:
    """Leave all keys to the guest, as ssh(1) does.

    invoke (2.2) has Ctrl-C raise SIGINT, and when the terminal then throws away what was typed it
    may take that for the end of its input.
    """
    if not stream.isatty():
        yield
        return
    before = termios.tcgetattr(stream)
    tty.setraw(stream, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(stream, termios.TCSADRAIN, before)


def _lab(args: argparse.Namespace) -> Lab:
    lab = Lab(Options(kernel=args.kernel, accel=args.accel, machine=args.machine))
    lab.machine  # noqa: B018 - a wrong machine file is told before anything is fetched
    return lab


@contextlib.contextmanager
def _opened(args: argparse.Namespace) -> Iterator[Guest]:
    """Boot a guest, with progress until it is up."""
    lab = _lab(args)
    rundir.sweep()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nvh-")))
        with ui.progress() as shown:
            lab.say = shown.say
            opened = booted(lab.recipe(), folder, provisioned=not args.bare, say=shown.say)
            guest = stack.enter_context(opened)
        yield guest


def _dry_run(args: argparse.Namespace) -> int:
    """Print QEMU's arguments as a script instead of starting it."""
    lab = _lab(args)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "qemu.sh"
        with ui.progress() as shown:
            lab.say = shown.say
            write_script(lab.recipe(), script)
        print(script.read_text(), end="")
    return EXIT_OK


def _put(word: str) -> tuple[Path, str]:
    local, _, remote = word.partition(":")
    path = Path(local)
    if not path.is_file():
        raise UsageError(f"--put {local}: no such file")
    try:
        path.open("rb").close()
    except OSError as error:
        raise UsageError(f"--put {local}: {error.strerror}") from error
    return path, remote or f"/root/{path.name}"


def _writer(stream: BinaryIO) -> Callable[[bytes], None]:
    def write(chunk: bytes) -> None:
        stream.write(chunk)
        stream.flush()

    return write
