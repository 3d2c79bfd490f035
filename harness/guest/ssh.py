"""Commands in the guest over SSH, with deadlines that hold whatever the guest does."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import logging
import select
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import fabric
import paramiko
from invoke.exceptions import ThreadException, UnexpectedExit

from harness.errors import GuestHung, GuestLost, HarnessError
from harness.guest.keys import Identity

log = logging.getLogger(__name__)

#: What is kept of each of a command's output streams, in bytes; the rest is read and dropped.
OUTPUT_LIMIT = 4 << 20


#: How long the streams of a command that has ended may pause before they count as held open by a
#: process that it left behind, in seconds.
_AFTERMATH = 1.0
#: How much longer than a deadline paramiko may take to notice it, in seconds.
_GRACE = 2.0

#: A longer command goes to a file, in bytes: the guest's dropbear takes 9000 (2022.83).
_COMMAND = 8192
#: What of a command a message has room for, in characters.
_NAME = 200

T = TypeVar("T")


class CommandTimeout(GuestHung):
    """A command in the guest did not end within its deadline; ``stacks`` tells of who waits."""

    def __init__(self, message: str, *, stacks: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.stacks = stacks


@dataclass(frozen=True)
class Result:
    """A command that ended in the guest."""

    command: str
    status: int  # 128 + N when signal N ended it
    stdout: str
    stderr: str
    seconds: float


class _SinkError(Exception):
    """The harness's own side of a stream broke, a closed pipe for instance."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class _Capture:
    """One output stream, bounded."""

    def __init__(self, sink: Callable[[bytes], None] | None) -> None:
        self.data = bytearray()
        self._sink = sink

    def take(self, chunk: bytes) -> None:
        if self._sink is not None:
            try:
                self._sink(chunk)
            except OSError as error:
                raise _SinkError(error) from error
        self.data += chunk[: max(0, OUTPUT_LIMIT - len(self.data))]

    def text(self) -> str:
        return self.data.decode(errors="replace")


def named(command: str) -> str:
    """Return a command on one line, of a long one the end: what it runs follows its settings."""
    line = " ".join(command.split())
    return line if len(line) <= _NAME else f"... {line[-_NAME:]}"


@contextlib.contextmanager
def _closed_after(channel: paramiko.Channel, seconds: float) -> Iterator[None]:
    """Close a channel when the block takes longer: a request waits for its answer for ever."""
    timer = threading.Timer(max(seconds, 0.0), channel.close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Ssh:
    """A connection to one guest and to no other."""

    def __init__(self, port: int, identity: Identity, *, check: Callable[[], None]) -> None:
        self.port = port
        self._identity = identity
        self._check = check
        self._connection: fabric.Connection | None = None
        #: Called when a command has been silent for ``patience`` seconds; raises what is wrong.
        self.on_silence: Callable[[], None] = lambda: None
        self.patience = 10.0
        self._scripts = itertools.count()

    def connect(self, timeout: float) -> None:
        """Log in.  GuestLost: refused, another host key, or no answer within ``timeout`` seconds.

        QEMU accepts the forwarded connection itself and only then tries the guest, so a refusal
        in the guest shows as an end of file during the banner.
        """
        try:
            wire = socket.create_connection(("127.0.0.1", self.port), timeout=timeout)
        except OSError as error:
            self._check()
            raise GuestLost(f"QEMU's forwarded port does not answer: {error}") from error
        # Without it every request waits 40 ms for the guest's delayed acknowledgement.
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._await_banner(wire, time.monotonic() + timeout)
        except HarnessError:
            wire.close()
            raise
        wire.settimeout(timeout)
        connection = fabric.Connection(
            "127.0.0.1",
            user="root",
            port=self.port,
            # Lazy: nothing of the user's or the system's configuration is read.
            config=fabric.Config(lazy=True, overrides={"load_ssh_configs": False}),
            connect_timeout=timeout,
            connect_kwargs={
                "sock": wire,
                "pkey": self._identity.client_key,
                "look_for_keys": False,
                "allow_agent": False,
                "banner_timeout": timeout,
                "auth_timeout": timeout,
            },
        )
        client: paramiko.SSHClient = connection.client
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        client.get_host_keys().clear()
        client.get_host_keys().add(
            f"[127.0.0.1]:{self.port}", "ssh-ed25519", self._identity.host_key
        )
        try:
            connection.open()
        except (OSError, EOFError, paramiko.SSHException) as error:
            with contextlib.suppress(Exception):
                connection.close()
            wire.close()
            self._check()
            raise GuestLost(f"SSH to the guest fails: {error or type(error).__name__}") from error
        self._connection = connection

    def _await_banner(self, wire: socket.socket, deadline: float) -> None:
        """Wait for the server's first byte: paramiko would not notice that the guest has died."""
        wire.settimeout(0.1)
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError, ConnectionError):
                wire.recv(1, socket.MSG_PEEK)  # nothing is the end: paramiko finds it again
                return
            self._check()
        raise GuestHung("the guest's SSH server says nothing")

    @property
    def connected(self) -> bool:
        """Whether there is a session that has not been lost."""
        return self._connection is not None and bool(self._connection.is_connected)

    @property
    def transport(self) -> paramiko.Transport | None:
        """The connection below the session, None while there is none."""
        return None if self._connection is None else self._connection.transport

    def run(
        self,
        command: str,
        *,
        timeout: float,
        stdin: bytes | None = None,
        on_stdout: Callable[[bytes], None] | None = None,
        on_stderr: Callable[[bytes], None] | None = None,
    ) -> Result:
        """Run a shell command and wait for its end.

        Raises CommandTimeout after ``timeout`` seconds, GuestLost when the connection breaks,
        and whatever the guest's watcher says when the guest dies meanwhile.
        """
        self._check()  # a guest that is dead already would only be noticed after the deadline
        begun = time.monotonic()
        sent = command
        if len(command.encode()) > _COMMAND:
            sent = f". {self._script(command, timeout)}"
        # A shell that execs its last command leaves a death by a signal to SSH's exit-signal, of
        # which paramiko does not tell.
        sent += "\n\nexit $?"  # the empty line is for one that ends in a backslash
        out, err = _Capture(on_stdout), _Capture(on_stderr)
        try:
            channel = self._attend(lambda: self._open(sent, timeout), begun + timeout)
            with contextlib.closing(channel):
                if stdin is not None:
                    channel.settimeout(timeout)
                    channel.sendall(stdin)
                    channel.shutdown_write()
                self._drain(channel, out, err, begun + timeout)
                status = self._status(channel, begun + timeout)
        except _SinkError as broken:
            raise broken.error from None
        except (OSError, EOFError, paramiko.SSHException) as error:
            # paramiko has several words for a server that does not answer.
            if isinstance(error, TimeoutError) or time.monotonic() - begun >= timeout:
                self._check()
                said = out.text()[-200:].strip()
                raise CommandTimeout(
                    f"no end after {timeout:.0f} s: {named(command)}"
                    + (f" (it said: {said})" if said else "")
                ) from error
            self._died()
            raise GuestLost(f"SSH broke during: {named(command)} ({error})") from error
        if status < 0:  # the connection closed without a status
            self._died()
            status = 255
        return Result(command, status, out.text(), err.text(), time.monotonic() - begun)

    def _script(self, command: str, timeout: float) -> str:
        """Write a command to a file of the guest and return its path."""
        path = f"/run/nvh/command-{next(self._scripts)}"
        self._write(f"cat > {path}", path, command.encode(), timeout)
        return path

    def _write(self, command: str, path: str, data: bytes, timeout: float) -> None:
        done = self.run(command, timeout=timeout, stdin=data)
        if done.status != 0:
            raise GuestLost(f"cannot write {path} in the guest: {done.stderr.strip()}")

    def _open(self, command: str, timeout: float) -> paramiko.Channel:
        transport = self.transport
        if transport is None or not transport.is_active():
            raise EOFError("not connected")
        begun = time.monotonic()
        channel = transport.open_session(timeout=max(timeout, 1.0))
        try:
            with _closed_after(channel, begun + timeout - time.monotonic()):
                channel.exec_command(command)
        except BaseException:
            channel.close()
            raise
        return channel

    def _attend(self, work: Callable[[], T], deadline: float) -> T:
        """Do what paramiko waits for without looking around, on a thread, and look around."""
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, name="ssh", daemon=True).start()
        asked = time.monotonic()
        while True:
            with contextlib.suppress(concurrent.futures.TimeoutError):
                return done.result(0.05)
            if done.done():
                return done.result()  # its own error, a time-out perhaps
            self._check()
            now = time.monotonic()
            if now > deadline + _GRACE:
                raise TimeoutError
            if now - asked > self.patience:
                self.on_silence()
                asked = time.monotonic()

    def _drain(
        self, channel: paramiko.Channel, out: _Capture, err: _Capture, deadline: float
    ) -> None:
        """Read both streams until the command has closed them.

        A background process may hold them open for ever, so once the command has ended, a pause
        ends the reading too; but the exit status may overtake the last of the output.
        """
        heard = asked = time.monotonic()
        while True:
            now = time.monotonic()
            if now > deadline:
                raise TimeoutError
            if now - max(asked, heard) > self.patience:
                self.on_silence()
                asked = time.monotonic()
            if channel.recv_ready() or channel.recv_stderr_ready():
                heard = now
                if channel.recv_ready():
                    out.take(channel.recv(1 << 16))
                if channel.recv_stderr_ready():
                    err.take(channel.recv_stderr(1 << 16))
                continue
            # Looked at before the streams are looked at again: what is there then came earlier.
            over = channel.eof_received or channel.closed
            over = over or (channel.exit_status_ready() and now - heard > _AFTERMATH)
            if over and not (channel.recv_ready() or channel.recv_stderr_ready()):
                return
            self._check()
            select.select([channel], [], [], 0.05)

    def _status(self, channel: paramiko.Channel, deadline: float) -> int:
        # recv_exit_status() waits for ever, so wait here and ask only when it is there.
        while not channel.exit_status_ready():
            if time.monotonic() > deadline:
                raise TimeoutError
            self._check()
            channel.status_event.wait(0.05)
        return channel.recv_exit_status()

    def _died(self) -> None:
        """Give QEMU a moment to say why the connection broke."""
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            self._check()
            time.sleep(0.05)

    def put(self, local: Path, remote: str, *, mode: int = 0o755) -> None:
        """Copy a file into the guest (through a shell: no SFTP round trips)."""
        folder = shlex.quote(remote.rsplit("/", 1)[0] or "/")
        target = shlex.quote(remote)
        command = f"mkdir -p {folder} && cat > {target} && chmod {mode:o} {target}"
        self._write(command, remote, local.read_bytes(), timeout=60.0)

    def shell(self) -> int:
        """Let the user at a login shell; return its exit status, 255 when it has told none.

        A SIGINT is the guest's.  Raises GuestLost when the connection breaks, and whatever the
        guest's watcher says when the guest has died.
        """
        if self._connection is None:
            raise GuestLost("SSH to the guest is not connected")
        try:
            status = int(self._connection.shell().exited)
        except UnexpectedExit as ended:  # of the shell's last command, mostly
            status = int(ended.result.exited)
        except (OSError, EOFError, paramiko.SSHException, ThreadException) as error:
            # A key pressed into a shell or a connection that was gone is one, too.
            log.info("the shell's end: %r", error)
            status = -1
        if status < 0:  # the connection closed without a status
            self._died()
            if not self.connected:
                raise GuestLost("SSH broke during the shell")
            status = 255
        return status

    def close(self) -> None:
        """Hang up, without waiting for a guest that may no longer answer."""
        if self._connection is None:
            return
        transport = self._connection.transport
        if transport is not None:
            with contextlib.suppress(OSError):
                transport.sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(Exception):
            self._connection.close()
        self._connection = None
