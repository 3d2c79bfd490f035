"""A running QEMU: started, watched and ended, with nothing left behind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from harness import process
from harness.errors import (
    GuestLockup,
    GuestLost,
    GuestPanic,
    GuestReset,
    HarnessError,
    HostFull,
    HostStall,
    LaunchError,
)
from harness.qemu import processors
from harness.qemu.argv import Wiring
from harness.qemu.console import Console
from harness.qemu.qmp import Qmp, QmpEvent
from harness.qemu.unprivileged import User

#: How long QEMU may take to greet, in seconds: it maps and checks its memory before.
GREETING = 30.0

#: What QEMU may say on its standard error, in bytes: a guest can make it complain without end.
COMPLAINTS = 1 << 20
#: How much more readily the kernel ends a QEMU than others when the host's memory is short.
_OOM_SCORE = 500

#: A disk with less left, in bytes, is full: where its pages are huge, not one of them has room.
_FULL = 2 << 20
#: How long a QEMU that is gone may take to be heard to the end, in seconds.
_LAST_WORDS = 2.0
#: What QEMU says of a page that KVM cannot have, before it stops the guest (7.2, kvm_cpu_exec).
_NO_PAGE = re.compile(rb"error: kvm run failed Bad address")

_PANIC = re.compile(r"Kernel panic - not syncing: (.*)")
_FATAL = re.compile(r"nvh-init: FATAL: (.*)")
#: How long QEMU may be stopped before that is told, in seconds: a debugger stops it for moments.
STALL = 2.0
_LOCKUP = re.compile(
    rb"\] (?:watchdog: )?((?:BUG: soft lockup|Watchdog detected hard LOCKUP)[^\r\n]*)[\r\n]"
)


class Vm:
    """QEMU's process, its monitor and its two serial lines."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        qmp: Qmp,
        console: Console,
        shell: socket.socket,
        stderr: Console,
        folder: Path,
        events: list[QmpEvent],
        mapped: Sequence[Path] = (),
    ) -> None:
        self.child = child
        self.qmp = qmp
        self.console = console
        self.shell = shell
        self._stderr = stderr
        self.folder = folder
        #: What QEMU told, appended to on QMP's thread.
        self.events = events
        self._mapped = mapped
        #: Whom it runs as, in words.
        self.user = "the harness's own user"
        self._stopping = False
        self._resumed = False
        self._stopped_since: float | None = None
        self._asked = float("-inf")  # when its process, which ran, was looked at last
        self._looked = 0  # up to here the console holds no lockup
        self._lockup: GuestLockup | None = None

    def event(self, name: str) -> QmpEvent | None:
        """Return the first event of a name, None while there was none."""
        return next((event for event in self.events if event.name == name), None)

    def death(self) -> HarnessError | None:
        """Say what ended the guest or QEMU, None while both live.

        QEMU is the witness: what the console says only names what QEMU has seen, because anybody
        in the guest can print "Kernel panic".
        """
        if self._stopping:
            return None
        if self.event("GUEST_PANICKED"):
            return self._panic()
        shutdown = self.event("SHUTDOWN")
        if shutdown is not None:
            reason = str(shutdown.data.get("reason", "unknown"))
            if reason.startswith("guest"):
                return self._ended_itself(reason)
        status = self.child.poll()
        if status is None:
            return self._stall() or self._no_page() or self._locked_up()
        # The last event may still be on its way when the process has already gone.
        self.qmp.over(_LAST_WORDS)
        if shutdown is None and self.event("SHUTDOWN") is not None:
            return self.death()
        how = f"signal {-status}" if status < 0 else f"status {status}"
        lost = GuestLost(f"QEMU died with {how}: {self.words()}")
        return (self.full() if status == -signal.SIGBUS else None) or lost

    def full(self) -> HostFull | None:
        """Say that a disk has no room for a page of the guest's memory.

        The files behind it are sparse: a store into a hole that cannot be filled is a SIGBUS for
        QEMU, and EFAULT for a kernel that stores on its behalf (KVM, a disk's read).
        """
        for folder in {file.parent for file in self._mapped}:
            with contextlib.suppress(OSError):
                if shutil.disk_usage(folder).free < _FULL:
                    places = (place for place in (folder, *folder.parents) if place.is_mount())
                    disk = next(places, folder)
                    return HostFull(
                        f"disk full: {disk} has no room for what the guest writes",
                        hint="free space there and run it again",
                    )
        return None

    def _no_page(self) -> HarnessError | None:
        """Say that QEMU has stopped the guest because a page of its memory is not to be had."""
        if self.event("STOP") is None or (match := self._stderr.search(_NO_PAGE)) is None:
            return None
        return self.full() or GuestLost(f"QEMU has stopped the guest: {match[0].decode()}")

    def _stall(self) -> HostStall | None:
        """Say that somebody has stopped QEMU's process."""
        now = time.monotonic()
        if self._stopped_since is None and now - self._asked < STALL / 8:
            return None
        self._asked = now
        try:
            stat = Path(f"/proc/{self.child.pid}/stat").read_text()
        except OSError:
            return None
        if stat.rpartition(")")[2].split()[0] not in "Tt":
            self._stopped_since = None
            return None
        self._stopped_since = self._stopped_since or now
        if now - self._stopped_since < STALL:
            return None
        return HostStall(
            f"host stall: QEMU (process {self.child.pid}) is stopped",
            hint="was it sent SIGSTOP, or is a debugger attached?",
        )

    def _locked_up(self) -> GuestLockup | None:
        """Say that the guest's watchdog has barked, or that the kernel tells of a lockup.

        Anybody in the guest can print the kernel's words: QEMU has to see the processor as well.
        """
        if self._lockup is not None:
            return self._lockup
        barked = self.event("WATCHDOG") is not None
        position = self.console.position
        match = None
        if barked or position != self._looked:
            # A line may have come in halves.
            match = self.console.search(_LOCKUP, since=max(0, self._looked - 200))
            self._looked = position
        if not (match or barked):
            return None
        seen = processors.told(self.qmp)
        if barked or seen:
            words = match[1].decode(errors="replace") if match else ""
            if not words:
                words = seen or "no program has run"
            elif seen:
                words += f" ({seen})"
            self._lockup = GuestLockup(f"lockup: {words}")
            self.save_registers()
        return self._lockup

    def save_registers(self) -> None:
        """Keep what the processors hold in registers.txt, as far as QEMU still answers."""
        with contextlib.suppress(HarnessError, OSError):
            (self.folder / "registers.txt").write_text(processors.registers(self.qmp))

    def check(self) -> None:
        """Raise what ``death`` says."""
        if error := self.death():
            raise error

    def _panic(self) -> GuestPanic:
        # QEMU tells of the panic when the first notifier runs; the trace comes before that, but
        # may still be in the socket.
        self.console.wait(re.compile(rb"end Kernel panic"), timeout=0.3)
        if not self._resumed and not _PANIC.search(self.console.text()):
            # Another processor holds the console: panic() flushes it when it goes on
            # (console_flush_on_panic).
            self._resumed = True
            with contextlib.suppress(HarnessError):
                self.qmp.execute("cont", timeout=1.0)
                self.console.wait(re.compile(rb"end Kernel panic"), timeout=3.0)
        text = self.console.text()
        match = _PANIC.search(text)
        if not (self.folder / "registers.txt").exists():
            self.save_registers()
        return GuestPanic(
            f"the guest's kernel panicked: {match[1].strip() if match else 'no message'}",
            trace=text[-16384:],
        )

    def _ended_itself(self, reason: str) -> HarnessError:
        # QMP may be quicker than the console.
        self.console.wait(re.compile(rb"(?:FATAL|Kernel panic)[^\n]*\n"), timeout=0.5)
        text = self.console.text()
        if match := _FATAL.search(text):
            return GuestLost(f"the guest could not boot: {match[1].strip()}")
        if _PANIC.search(text):
            return self._panic()
        return GuestReset(
            f"unexpected reset: the guest ended unasked ({reason})", hint="see console.log"
        )

    def words(self) -> str:
        """Return what QEMU itself said, in one line."""
        self._stderr.ended(0.5 if self.child.poll() is not None else 0)
        text = self._stderr.text()
        lines = [line for line in text.splitlines() if line.strip()]
        return "; ".join(line.strip() for line in lines[-3:]) if lines else "it left no message"

    def forwarded_port(self) -> int:
        """Return the port on 127.0.0.1 that QEMU forwards to the guest's SSH server."""
        answer = str(self.qmp.execute("human-monitor-command", {"command-line": "info usernet"}))
        match = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s", answer)
        if match is None:
            raise LaunchError("QEMU does not forward a port to the guest")
        return int(match[1])

    def stop(self, *, grace: float) -> None:
        """End QEMU: ask it, then SIGKILL; ``grace`` seconds in between (0 kills at once)."""
        if self._stopping:
            return
        self._stopping = True
        if grace > 0 and self.child.poll() is None:
            with contextlib.suppress(HarnessError):
                self.qmp.execute("quit", timeout=grace)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(grace)
        process.end(self.child, grace=0)
        self.qmp.close()
        self.console.close()
        self._stderr.close()
        self.shell.close()


@contextlib.contextmanager
def launched(
    argv: Callable[[Wiring], list[str]],
    *,
    folder: Path,
    pass_fds: tuple[int, ...] = (),
    grace: float = 2.0,
    user: User | None = None,
    files: Mapping[Path, int] | None = None,
    mapped: Sequence[Path] = (),
) -> Iterator[Vm]:
    """Run a QEMU for as long as the block lasts.

    ``argv`` is called with the descriptors that QEMU inherits, ``files`` among them.  ``folder``
    takes console.log and qemu.stderr.  QEMU runs as ``user``, None for the harness's own;
    ``mapped`` are the files that are its guest's memory.  Raises LaunchError with QEMU's own words
    when it refuses to start.
    """
    with contextlib.ExitStack() as stack:
        ours, theirs = zip(*(socket.socketpair() for _ in range(4)), strict=True)
        for end in (*ours, *theirs):
            stack.callback(end.close)
        qmp, console, shell, stderr = (end.fileno() for end in theirs)
        given = dict(files or {})
        child = process.spawn(
            argv(Wiring(qmp, console, shell, given)),
            stdout=stderr,
            stderr=stderr,
            pass_fds=(qmp, console, shell, *given.values(), *pass_fds),
            env=_heap(),
            privileges=user.setpriv if user else (),
        )
        stack.callback(process.end, child, grace=0)
        _make_first_to_go(child.pid)
        for end in theirs:
            end.close()  # so that ours see the end of file when QEMU is gone
        vm = _connect(child, ours, folder, mapped)
        stack.callback(vm.stop, grace=grace)
        yield vm


def _heap() -> dict[str, str]:
    """Let glibc (2.35 on) take QEMU's heap in huge pages, where the kernel gives them when asked.

    A QEMU that starts touches some 40 MiB of it, and page faults are a third of the processor time
    that this takes.  What the user has set comes last, and so holds.
    """
    set_by_user = os.environ.get("GLIBC_TUNABLES")
    tunables = ["glibc.malloc.hugetlb=1", *([set_by_user] if set_by_user else [])]
    return {"GLIBC_TUNABLES": ":".join(tunables)}


def _make_first_to_go(pid: int) -> None:
    with contextlib.suppress(OSError):  # it has failed already
        Path(f"/proc/{pid}/oom_score_adj").write_text(f"{_OOM_SCORE}\n")


def _connect(
    child: subprocess.Popen[bytes],
    ours: tuple[socket.socket, ...],
    folder: Path,
    mapped: Sequence[Path],
) -> Vm:
    events: list[QmpEvent] = []
    monitor, console, shell, stderr = ours
    vm = Vm(
        child,
        Qmp(monitor, on_event=events.append),
        Console(console, folder / "console.log"),
        shell,
        Console(stderr, folder / "qemu.stderr", limit=COMPLAINTS),
        folder,
        events,
        mapped,
    )
    try:
        vm.qmp.connect(GREETING)
    except LaunchError as error:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.5)
        ended = child.poll() is not None
        vm.stop(grace=0)
        if child.returncode == -signal.SIGBUS and (full := vm.full()):
            raise full from error
        if ended:
            raise LaunchError(f"QEMU refused to start: {vm.words()}") from error
        raise
    return vm
