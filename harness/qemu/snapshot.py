"""Saving a running guest: its devices into a small file, its RAM where it already is.

RAM and NVDIMMs lie in files that QEMU maps shared, and migration leaves those out of the stream
(capability x-ignore-shared, QEMU 4.0), so what is written is the state of the devices: 400 KB.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

from harness.errors import HostError
from harness.qemu.vm import Vm

#: How long QEMU may take to write the state, in seconds: it takes 20 ms.
PATIENCE = 30.0


_IGNORE_SHARED = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}


class NotMigratable(HostError):
    """A device of this machine forbids saving; the message carries QEMU's own words."""


def save(vm: Vm, file: Path) -> None:
    """Write the state of a running guest's devices and leave the guest stopped.

    The state says that the guest was running, so a QEMU that takes it in goes on at once.
    Raises NotMigratable, or HostError when QEMU does not get it done.
    """
    vm.qmp.execute("migrate-set-capabilities", _IGNORE_SHARED)
    # The whole state in one go: nothing else uses the file.
    vm.qmp.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        vm.qmp.send_file(descriptor, "state")
        try:
            vm.qmp.execute("migrate", {"uri": "fd:state"})
        except HostError as error:
            raise NotMigratable(f"this machine cannot be saved: {error.message}") from error
        _wait(vm)
    finally:
        os.close(descriptor)


def restore(vm: Vm, descriptor: int) -> None:
    """Let a QEMU that was started with ``-incoming defer`` take in a state and go on.

    ``descriptor`` is the open state file, inherited by QEMU under the same number: the sandbox
    forbids it to start a program that would read one.
    """
    vm.qmp.execute("migrate-set-capabilities", _IGNORE_SHARED)
    try:
        vm.qmp.execute("migrate-incoming", {"uri": f"fd:{descriptor}"})
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
        time.sleep(0.002)


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
