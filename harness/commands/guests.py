"""nvh run and nvh shell: a guest of one's own, without a testcase."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
import tempfile
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, NoneType
from typing import BinaryIO, TextIO

from harness import rundir, signals, ui
from harness.errors import EXIT_OK, GuestLockup, HarnessError, HostStall, UsageError
from harness.guest.boot import booted, write_script
from harness.guest.guest import Guest
from harness.lab import Lab, Options

#: How often it is looked whether a shell's guest is still there, in seconds.
_LOOK = 0.2


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
        with _hung_up(guest), _raw(sys.stdin):
            return guest.ssh.shell()


@contextlib.contextmanager
def _hung_up(guest: Guest) -> Iterator[None]:
    """Hang up when the guest has died or SIGTERM comes, which ends nvh then.

    Neither reaches invoke's wait for the shell's end: a dead guest's connection stays open while
    QEMU lives, and invoke passes an interrupt on to the guest, as it should a SIGINT.
    """
    over = threading.Event()
    terminated = False

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        if terminated:  # and it has not helped
            signals.interrupt(number, frame)
        terminated = True  # and no Event, whose lock a second signal could find taken

    def watch() -> None:
        while not over.wait(_LOOK):
            # A guest that only hangs may be what its user wants to look at.
            dead = not isinstance(guest.vm.death(), NoneType | HostStall | GuestLockup)
            if terminated or dead:
                guest.ssh.close()
                return

    watcher = threading.Thread(target=watch, name="shell", daemon=True)
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        watcher.start()
        yield
        signals.forget()  # a SIGINT that came was for the guest
    except HarnessError:
        signals.forget()
        raise
    finally:
        over.set()
        watcher.join()
        signal.signal(signal.SIGTERM, before)
        if terminated:
            signals.end()


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
    try:
        tty.setraw(stream, termios.TCSADRAIN)
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
