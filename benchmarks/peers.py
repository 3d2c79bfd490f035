"""Others doing the same work on the same kernel, where they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.figures import Figure
from harness.lab import Lab


def virtme_ng(lab: Lab, runs: int) -> Figure | None:
    """Time virtme-ng running uname -r on the same kernel, q35, without KVM.

    None where it does not run: it comes from PyPI (into this environment too) and needs udev and
    busybox-static on the host.
    """
    path = f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"
    program = shutil.which("vng", path=path)
    if program is None or shutil.which("busybox") is None:
        return None
    command = [
        program,
        *["--run", str(lab.kernel.image)],
        *["--disable-kvm", "--force-9p"],
        *["--cpus", str(lab.machine.cpus), "--memory", "1G"],
        *["--qemu-opts=-machine q35"],
        *["--", "uname", "-r"],
    ]
    samples = []
    for _ in range(runs):
        begun = time.monotonic()
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
            env={**os.environ, "PATH": path},
        )
        if lab.kernel.release not in done.stdout:
            return None
        samples.append(time.monotonic() - begun)
    return Figure("virtme-ng running uname -r", "s", tuple(samples))
