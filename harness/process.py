"""The only place that starts a host program.

Every program that outlives a call is started from one long-lived thread: the parent-death signal
that ends a QEMU when the harness is killed follows the *thread* that forked, not the process
(prctl(2), PR_SET_PDEATHSIG), so a child started from a short-lived worker thread would die early.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness import signals
from harness.errors import HostError

log = logging.getLogger(__name__)

#: How long a process has to be still to count as at rest, in seconds.
_STILL = 0.5

_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


@dataclass(frozen=True)
class Completed:
    """A host program that ended: its exit status and what it said."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str


def shell_line(argv: Sequence[str]) -> str:
    """Return argv as a line that can be pasted into a shell."""
    return shlex.join(argv)


def find(program: str, *, package: str) -> str:
    """Return the path of a host program; HostError names the Debian package when it is missing."""
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise HostError(f"{program} is not installed", hint=f"apt-get install {package}")
    return path


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
) -> Completed:
    """Run a host program to its end and return what it said.

    ``timeout`` is in seconds; after it the program is ended with all its children.  Raises
    HostError when the program is missing, does not end in time or, with ``check``, exits with
    another status than 0; the message carries its last words.
    """
    log.debug("run: %s", shell_line(argv))
    try:
        child = _piped(argv, env, cwd)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and (cwd is None or cwd.is_dir()):
            raise HostError(f"{argv[0]} is not installed", hint="run make setup") from error
        raise HostError(f"{error.filename or argv[0]}: {error.strerror}") from error
    with child:
        try:
            stdout, stderr = child.communicate(stdin or "", timeout=timeout)
        except BaseException as error:
            _kill_session(child)
            if isinstance(error, subprocess.TimeoutExpired):
                raise HostError(f"no end after {timeout:.0f} s: {shell_line(argv)}") from error
            raise
    result = Completed(tuple(argv), child.returncode, stdout, stderr)
    if check and result.status != 0:
        words = (result.stderr.strip() or result.stdout.strip()).splitlines()
        last = words[-1] if words else "it said nothing"
        raise HostError(f"{Path(argv[0]).name} failed with status {result.status}: {last}")
    return result


@signals.put_off  # behind the call a child would run that nobody knows of
def _piped(
    argv: Sequence[str], env: Mapping[str, str] | None, cwd: Path | None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        list(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=None if env is None else {**os.environ, **env},
        cwd=cwd,
        start_new_session=True,  # so that its children can be ended with it
    )


@signals.put_off
def _kill_session(child: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def spawn(
    argv: Sequence[str],
    *,
    stdout: IO[bytes] | int,
    stderr: IO[bytes] | int,
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    privileges: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """Start a program that dies with the harness, in a session of its own.

    setpriv(1) sets the parent-death signal after the fork, so nothing of Python runs between fork
    and exec.  A session of its own keeps a terminal's Ctrl-C for the harness, which then ends its
    children in order.  ``privileges`` are further options of setpriv(1).
    """
    setpriv = find("setpriv", package="util-linux")
    full = [setpriv, "--pdeathsig", "KILL", *privileges, "--", *argv]
    log.debug("spawn: %s", shell_line(argv))

    def start() -> subprocess.Popen[bytes]:
        with _no_core():
            return subprocess.Popen(
                full,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=tuple(pass_fds),
                cwd=cwd,
                env=None if env is None else {**os.environ, **env},
                start_new_session=True,
            )

    started = _spawner.submit(start)
    try:
        return started.result()
    except BaseException:  # an interrupt: nobody else knows of the child
        _end_unknown(started)
        raise


@signals.put_off
def _end_unknown(started: Future[subprocess.Popen[bytes]]) -> None:
    if not started.cancel() and started.exception() is None:
        end(started.result(), grace=0)


@contextlib.contextmanager
def _no_core() -> Iterator[None]:
    """Let what is started here leave no core: a QEMU's holds its guest's whole memory.

    It is inherited: prlimit(2) on a child that has changed its user needs CAP_SYS_RESOURCE.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


@signals.put_off
def end(child: subprocess.Popen[bytes], *, grace: float) -> int:
    """End a child: SIGTERM, ``grace`` seconds, SIGKILL; return its status as Popen tells it.

    An interrupt meanwhile gives it as long again to end in order, and a second one kills it.
    """
    try:
        if child.poll() is None and grace > 0:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return _awaited(child, grace)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    return child.wait()


def _awaited(child: subprocess.Popen[bytes], seconds: float) -> int:
    try:
        return child.wait(seconds)
    except KeyboardInterrupt:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
        raise


@contextlib.contextmanager
def running(
    argv: Sequence[str], *, stdout: IO[bytes] | int, stderr: IO[bytes] | int, grace: float = 2.0
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for as long as the block lasts."""
    child = spawn(argv, stdout=stdout, stderr=stderr)
    try:
        yield child
    finally:
        end(child, grace=grace)


def demand_of(pid: int) -> dict[int, int]:
    """Return for how long each thread of a process has computed or waited to, in nanoseconds.

    What waited for a core counts: on a host that is full a guest would else seem idle.  Nothing of
    a process that is gone, and where the kernel does not tell (CONFIG_SCHED_INFO).
    """
    demand = {}
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            computed, waited, _ = file.read_text().split()
            demand[int(file.parent.name)] = int(computed) + int(waited)
    return demand


def rests(pid: int, *, within: float) -> bool:
    """Wait until a process wants less than a tenth of a core for half a second.

    Returns False when it has not come to that ``within`` so many seconds.  Of a process that is
    gone, or of which nothing is told, True.
    """
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        begun, before = time.monotonic(), demand_of(pid)
        time.sleep(_STILL)
        grown = sum(demand - before.get(thread, 0) for thread, demand in demand_of(pid).items())
        if grown / 1e9 < (time.monotonic() - begun) / 10:
            return True
    return False
