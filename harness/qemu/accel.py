"""Which accelerator to use, proven by booting the guest's kernel.

A /dev/kvm that opens is not a KVM that works: seen on nested hosts where the firmware runs and
the kernel never prints its first line, or where ``-cpu max`` aborts QEMU on an MSR.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from harness import memo, process
from harness.errors import HarnessError, HostError, LaunchError
from harness.qemu import unprivileged, vm
from harness.qemu.argv import SANDBOX, Wiring

#: How long a kernel under a working KVM may take to its first line, in seconds.
FIRST_LINE = 4.0

_LINUX = re.compile(rb"Linux version ")


@dataclass(frozen=True)
class Accel:
    """An accelerator and why it was chosen."""

    name: str  # kvm or tcg
    why: str


def qemu_program() -> str:
    """Return QEMU's path ($NVH_QEMU or qemu-system-x86_64); HostError when it is missing."""
    named = os.environ.get("NVH_QEMU")
    return process.find(named or "qemu-system-x86_64", package="qemu-system-x86")


def qemu_version(qemu: str) -> str:
    """Return QEMU's version as it tells it ("7.2.22 (Debian ...)")."""
    words = process.run([qemu, "--version"], timeout=20.0).stdout.splitlines()
    return words[0].removeprefix("QEMU emulator version ") if words else "unknown"


def choose(requested: str, *, kernel: Path, digest: str, qemu: str, cache: Path) -> Accel:
    """Choose kvm or tcg.

    ``requested`` is auto, kvm or tcg.  auto boots ``kernel`` under KVM to its first line and
    remembers the answer per host boot, kernel (``digest``) and QEMU.  HostError when kvm was
    asked for by name and does not work, now and not only when it was remembered: a runner that
    was promised KVM is told at once.
    """
    if requested == "tcg":
        return Accel("tcg", "asked for")
    problem = _device_problem()
    if problem is None:
        problem = _remembered(kernel, digest, qemu, cache, anew=requested == "kvm")
    if problem is None:
        return Accel("kvm", "it booted the kernel to its first line")
    if requested == "kvm":
        raise _absent(problem)
    return Accel("tcg", problem)


def require_kvm(qemu: str) -> None:
    """Raise HostError when KVM is not there, or QEMU starts no processor under it.

    It takes no kernel, so a runner that was promised KVM is told before one is fetched.  Whether
    a kernel runs is for ``choose`` to prove.
    """
    problem = _device_problem() or _probe(None, qemu)[0]
    if problem is not None:
        raise _absent(problem)


def _absent(problem: str) -> HostError:
    return HostError(f"KVM was asked for but {problem}", hint="use --accel auto or tcg")


def _device_problem() -> str | None:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return "there is no /dev/kvm"
    except PermissionError:
        return "/dev/kvm may not be opened by this user (add it to the group kvm)"
    except OSError as error:
        return f"/dev/kvm does not open: {error.strerror}"
    return None


def _remembered(kernel: Path, digest: str, qemu: str, cache: Path, *, anew: bool) -> str | None:
    """Return the probe's answer; with ``anew`` a remembered problem is not believed."""
    stat = Path(qemu).stat()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    key = hashlib.sha256(
        json.dumps([boot, digest, qemu, stat.st_mtime_ns, stat.st_size]).encode()
    ).hexdigest()
    file = cache / "kvm" / key
    known = memo.recall(file)
    if "problem" in known and (known["problem"] is None or not anew):
        problem: str | None = known["problem"]
        return problem
    problem, lasting = _probe(kernel, qemu)
    if lasting:
        memo.keep(file, {"problem": problem})
    return problem


def _probe(kernel: Path | None, qemu: str) -> tuple[str | None, bool]:
    """Boot the kernel under KVM; return what is wrong, None when it printed its first line.

    Without a kernel QEMU only has to start.

    Also whether that lasts: QEMU's refusal and a kernel's silence do, a QEMU that was killed may
    have met a full host.  HostError when the host lacks what any QEMU needs.
    """

    words = "console=ttyS0 earlyprintk=serial,ttyS0 panic=-1"

    def boot(wiring: Wiring) -> list[str]:
        if kernel is None:
            return []
        handed = wiring.files.get(kernel)
        image = str(kernel) if handed is None else f"/proc/self/fd/{handed}"
        return ["-kernel", image, "-append", words]

    def argv(wiring: Wiring) -> list[str]:
        return [
            qemu,
            *["-machine", "q35,kernel-irqchip=split"],
            *["-accel", "kvm"],
            *["-cpu", "max"],
            *["-m", "256M"],
            *["-nodefaults", "-no-user-config", "-no-reboot"],
            *["-display", "none"],
            *["-sandbox", SANDBOX],
            *["-device", "intel-iommu,intremap=on"],
            *boot(wiring),
            *["-chardev", f"socket,id=qmp,fd={wiring.qmp}", "-mon", "chardev=qmp,mode=control"],
            *["-chardev", f"socket,id=console,fd={wiring.console}", "-serial", "chardev:console"],
        ]

    begun = time.monotonic()
    try:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nvh-kvm-"))
            user = unprivileged.choose(None, "kvm", qemu)
            files: dict[Path, int] = {}
            if isinstance(user, unprivileged.User):
                handed = unprivileged.handed_over(
                    user, readable=[kernel] if kernel else [], own=[], private=[]
                )
                files = stack.enter_context(handed)
            runs_as = None if isinstance(user, str) else user
            probed = stack.enter_context(
                vm.launched(argv, folder=Path(folder), grace=0, user=runs_as, files=files)
            )
            if kernel is None:
                return None, True
            if probed.console.wait(_LINUX, timeout=FIRST_LINE, check=probed.check):
                return None, True
    except HostError:
        raise
    except HarnessError as error:
        return f"it does not run here: {error.message[:160]}", isinstance(error, LaunchError)
    seconds = time.monotonic() - begun
    return f"under it the kernel printed nothing within {seconds:.0f} s", True
