"""Saving a running guest: its devices into a small file, its RAM where it already is.

RAM and NVDIMMs lie in files that QEMU maps shared, and migration leaves those out of the stream
(capability x-ignore-shared, QEMU 4.0), so what is written is the state of the devices: 400 KB.

It goes through a pipe: QEMU 11 refuses an ``fd:`` that is a file, the sandbox a program that would
write one, and ``file:`` is younger than QEMU 7.2.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import subprocess
import time
from pathlib import Path

from harness.errors import HostError
from harness.qemu.vm import Vm

#: How long QEMU may take to write the state, in seconds: it takes 20 ms.
PATIENCE = 30.0
#: What a pipe may hold where nobody has raised /proc/sys/fs/pipe-max-size, in bytes.
_PIPE = 1 << 20

_IGNORE_SHARED = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}


class NotMigratable(HostError):
    """A device of this machine forbids saving; the message carries QEMU's own words."""


def save(vm: Vm, file: Path) -> None:
    """Write the state of a running guest's devices and leave the guest stopped.

    The state says that the guest was running, so a QEMU that takes it in goes on at once.
    Raises NotMigratable, or HostError when QEMU does not get it done.
    """
    vm.qmp.execute("migrate-set-capabilities", _IGNORE_SHARED)
    # The whole state in one go: nothing else uses the pipe.
    vm.qmp.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
    reader, writer = os.pipe()
    try:
        try:
            vm.qmp.send_file(writer, "state")
        finally:
            os.close(writer)
        try:
            vm.qmp.execute("migrate", {"uri": "fd:state"})
        except HostError as error:
            raise NotMigratable(f"this machine cannot be saved: {error.message}") from error
        _receive(vm, reader, file)
        _wait(vm)
    finally:
        os.close(reader)


def _receive(vm: Vm, reader: int, file: Path) -> None:
    """Write what comes out of a pipe into a new file, until QEMU has closed its end."""
    deadline = time.monotonic() + PATIENCE
    try:
        with file.open("xb") as target:
            while time.monotonic() < deadline:
                if not select.select([reader], [], [], 0.05)[0]:
                    vm.check()
                    continue
                chunk = os.read(reader, _PIPE)
                if not chunk:
                    return
                target.write(chunk)
    except OSError as error:
        raise HostError(f"cannot write {file}: {error.strerror}") from error
    raise HostError(f"QEMU did not save the guest within {PATIENCE:.0f} s")


class State:
    """A saved state on its way into a QEMU that was started with ``-incoming defer``.

    ``descriptor`` is the pipe's end that QEMU inherits, under the same number.
    """

    def __init__(self, file: int) -> None:
        """Take the open state file, which stays the caller's."""
        self._file = file
        self._at = 0
        self.descriptor, self._writer = os.pipe()
        self._open = contextlib.ExitStack()
        self._open.callback(os.close, self._writer)
        os.set_blocking(self._writer, False)
        with contextlib.suppress(OSError):  # then it takes more than one round
            fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, _PIPE)
        self.fed = self._feed()

    def feed(self, seconds: float) -> None:
        """Hand on what the pipe takes, or let so much time pass."""
        if self.fed:
            time.sleep(seconds)
        elif select.select([], [self._writer], [], seconds)[1]:
            self.fed = self._feed()

    def _feed(self) -> bool:
        """Return whether that was all: then the pipe ends, as the file does."""
        with contextlib.suppress(BlockingIOError):
            while sent := os.sendfile(self._writer, self._file, self._at, _PIPE):
                self._at += sent
            self._open.close()
            return True
        return False

    def close(self) -> None:
        """Close what is still ours of the pipe."""
        self._open.close()
        os.close(self.descriptor)


def restore(vm: Vm, state: State) -> None:
    """Let a QEMU take in a state and go on."""
    vm.qmp.execute("migrate-set-capabilities", _IGNORE_SHARED)
    try:
        vm.qmp.execute("migrate-incoming", {"uri": f"fd:{state.descriptor}"})
    except HostError:
        # A QEMU that does not take the state in ends, perhaps before it has answered.
        with contextlib.suppress(subprocess.TimeoutExpired):
            vm.child.wait(0.5)
        if vm.child.poll() is None:
            raise
    deadline = time.monotonic() + PATIENCE
    while not vm.event("RESUME"):
        if vm.child.poll() is not None:
            raise NotMigratable(f"this machine cannot be cloned: {vm.words()}")
        if time.monotonic() > deadline:
            raise HostError(f"QEMU did not take in a saved guest within {PATIENCE:.0f} s")
        state.feed(0.002)


def _wait(vm: Vm) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        vm.check()
        answer = vm.qmp.execute("query-migrate")
        match answer.get("status"):
            case "completed":
                return
            case "failed" | "cancelled":
                raise HostError(f"QEMU could not save the guest: {answer.get('error-desc')}")
        time.sleep(0.01)
    raise HostError(f"QEMU did not save the guest within {PATIENCE:.0f} s")
