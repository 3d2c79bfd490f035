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
from harness.qemu.qmp import Refused
from harness.qemu.vm import Vm

#: How long QEMU may take to write the state, in seconds: it takes 20 ms.
PATIENCE = 30.0
#: What a pipe may hold where nobody has raised /proc/sys/fs/pipe-max-size, in bytes.
_PIPE = 1 << 20

_TOO_LONG = f"QEMU did not save the guest within {PATIENCE:.0f} s"

_IGNORE_SHARED = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}


class NotMigratable(HostError):
    """A device of this machine forbids saving; the message carries QEMU's own words."""


def save(vm: Vm, file: Path) -> None:
    """Write the state of a running guest's devices and leave the guest stopped.

    The state says that the guest was running, so a QEMU that takes it in goes on at once.
    Raises NotMigratable, HostError when QEMU does not get it done, or OSError when the file cannot
    be written.
    """
    vm.qmp.execute("migrate-set-capabilities", _IGNORE_SHARED)
    # The whole state in one go: nothing else uses the pipe.
    vm.qmp.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
    reader, writer = _pipe()
    try:
        try:
            vm.qmp.send_file(writer, "state")
        finally:
            os.close(writer)
        try:
            vm.qmp.execute("migrate", {"uri": "fd:state"})
        except Refused as error:
            raise NotMigratable(f"this machine cannot be saved: {error.message}") from error
        deadline = time.monotonic() + PATIENCE
        _receive(vm, reader, file, deadline)
        _wait(vm, deadline)
    finally:
        os.close(reader)


def _pipe() -> tuple[int, int]:
    """Return a pipe that holds a whole state.

    QEMU writes the devices' state with its main loop locked, and answers ``migrate`` from that loop
    (9.0 on: a turn later): a pipe that was full before it is read would keep the answer back.
    """
    reader, writer = os.pipe()
    with contextlib.suppress(OSError):  # this user has too many of them
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE)
    return reader, writer


def _receive(vm: Vm, reader: int, file: Path, deadline: float) -> None:
    """Write what comes out of a pipe into a new file, until QEMU has closed its end."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
        while time.monotonic() < deadline:
            if not select.select([reader], [], [], 0.05)[0]:
                vm.check()
                continue
            chunk = os.read(reader, _PIPE)
            if not chunk:
                return
            target.write(chunk)
    raise HostError(_TOO_LONG)


class State:
    """A saved state on its way into a QEMU that was started with ``-incoming defer``.

    ``descriptor`` is the pipe's end that QEMU inherits, under the same number.  OSError when there
    is no pipe to be had.
    """

    def __init__(self, data: bytes) -> None:
        self._left = memoryview(data)
        reader, writer = _pipe()
        os.set_blocking(writer, False)
        # It stays open until QEMU has the state: one that dies gives the writer no EPIPE.
        self._reader = os.fdopen(reader, "rb", buffering=0)
        self._writer = os.fdopen(writer, "wb", buffering=0)
        self.descriptor = reader
        self._feed()

    @property
    def fed(self) -> bool:
        """Whether all of it is in the pipe, or through."""
        return not self._left

    def feed(self, seconds: float) -> None:
        """Hand on what the pipe takes, or let so much time pass."""
        if self.fed:
            time.sleep(seconds)
        elif select.select([], [self._writer], [], seconds)[1]:
            self._feed()

    def _feed(self) -> None:
        """Write as much as goes in; after all of it the pipe ends, as the state does."""
        # None: the pipe is full.
        while self._left and (taken := self._writer.write(self._left)) is not None:
            self._left = self._left[taken:]
        if self.fed:
            self._writer.close()

    def close(self) -> None:
        """Close what is still ours of the pipe."""
        self._writer.close()
        self._reader.close()


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


def _wait(vm: Vm, deadline: float) -> None:
    while time.monotonic() < deadline:
        vm.check()
        answer = vm.qmp.execute("query-migrate")
        match answer.get("status"):
            case "completed":
                return
            case "failed" | "cancelled":
                raise HostError(f"QEMU could not save the guest: {answer.get('error-desc')}")
        time.sleep(0.01)
    raise HostError(_TOO_LONG)
