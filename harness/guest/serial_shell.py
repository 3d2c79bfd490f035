"""The root shell on the guest's second serial line: the way in when SSH is not."""

from __future__ import annotations

import re
import secrets
import socket
import time
from typing import TYPE_CHECKING

import pexpect
from pexpect.socket_pexpect import SocketSpawn

from harness.errors import GuestHung

#: How long a silent line is waited for before it is nudged, in seconds.
NUDGE = 2.0
#: What a command may say, in bytes: pexpect keeps all of it until the end is found.
OUTPUT_LIMIT = 8 << 20
_READ = 1 << 16

if TYPE_CHECKING:
    _SocketSpawn = SocketSpawn[bytes]
else:
    _SocketSpawn = SocketSpawn


class _Spawn(_SocketSpawn):
    """Reads no more between two commands than they may say."""

    heard = 0

    def read_nonblocking(self, size: int = 1, timeout: float | None = -1) -> bytes:
        data: bytes = super().read_nonblocking(size, timeout)
        self.heard += len(data)
        if self.heard > OUTPUT_LIMIT:
            raise pexpect.EOF(f"it says more than {OUTPUT_LIMIT} bytes")
        return data


class SerialShell:
    """Runs commands through pexpect; slow, but it needs neither network nor SSH server."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._spawn = self._fresh()

    def _fresh(self) -> _Spawn:
        # What came with the last two reads is searched, and not all that was ever said.
        return _Spawn(self._connection, maxread=_READ, searchwindowsize=2 * _READ)

    def run(self, command: str, *, timeout: float) -> tuple[int, str]:
        """Return a command's status and output; GuestHung after ``timeout`` seconds."""
        token = secrets.token_hex(4)
        # The token is spelt in two halves, so that an echo of the line does not match it.
        spelt = f"{token[:4]}''{token[4:]}"
        line = f"echo {spelt}; {{ {command}\n}} 2>&1; echo {spelt} $?"
        deadline = time.monotonic() + timeout
        self._spawn.heard = 0
        try:
            self._spawn.sendline(line)
            self._expect(rf"{token}\r*\n", deadline)
            self._expect(rf"{token} (\d+)\r*\n", deadline)
        except (pexpect.TIMEOUT, pexpect.EOF, OSError) as error:
            heard = self._spawn.heard
            self._spawn = self._fresh()
            if heard > OUTPUT_LIMIT:
                raise GuestHung(
                    f"the serial shell said more than {OUTPUT_LIMIT >> 20} MiB: {command}"
                ) from error
            raise GuestHung(
                f"the serial shell did not end within {timeout:.0f} s: {command}"
            ) from error
        match, before = self._spawn.match, self._spawn.before
        assert isinstance(match, re.Match)
        assert isinstance(before, bytes)
        return int(match[1]), before.decode(errors="replace").replace("\r", "")

    def _expect(self, pattern: str, deadline: float) -> None:
        """Wait for a pattern, with an empty line now and then.

        QEMU's 16550A (7.2) sometimes loses a transmit interrupt, and what the guest's driver still
        holds waits for the next byte that comes in.
        """
        while True:
            left = deadline - time.monotonic()
            try:
                self._spawn.expect(pattern.encode(), timeout=max(0.0, min(left, NUDGE)))
            except pexpect.TIMEOUT:
                if left <= 0:
                    raise
                self._spawn.sendline("")
            else:
                return
