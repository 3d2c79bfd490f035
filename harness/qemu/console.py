"""A guest's serial console: always drained, kept in a file, and watched.

A console that nobody reads freezes the guest after 64 KiB, so a thread reads it whatever happens
to the log file: a full disk stops the log, never the guest.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

#: What is kept in memory for patterns and excerpts, in bytes.
_TAIL = 1 << 20
#: What a console may write into its log, in bytes; what follows is read and dropped.
LOG_LIMIT = 64 << 20


class Console:
    """Reads a connected socket to its end, on a thread of its own."""

    def __init__(self, connection: socket.socket, log: Path, *, limit: int = LOG_LIMIT) -> None:
        self._socket = connection
        self._log = log
        self._limit = limit
        self._tail = bytearray()
        self._total = 0
        self._changed = threading.Condition()
        self._closed = False
        #: Why the log is incomplete, None while it is not.
        self.log_error: str | None = None
        #: Whether that is the host's fault and not the guest's, which said too much.
        self.log_lost = False
        self._thread = threading.Thread(target=self._drain, name="console", daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        try:
            # Unbuffered, so that what was read is in the file when the harness is killed.
            with self._log.open("ab", buffering=0) as log:
                while chunk := self._receive():
                    self._keep(chunk)
                    self._write(log, chunk)
        except OSError as error:
            self.log_error, self.log_lost = f"{self._log}: {error.strerror}", True
            while chunk := self._receive():
                self._keep(chunk)
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(1 << 16)
        except OSError:
            return b""

    def _keep(self, chunk: bytes) -> None:
        with self._changed:
            self._total += len(chunk)
            self._tail += chunk
            if len(self._tail) > 2 * _TAIL:
                del self._tail[:-_TAIL]
            self._changed.notify_all()

    def _write(self, log: IO[bytes], chunk: bytes) -> None:
        if self.log_error is not None:
            return
        room = self._limit - (self._total - len(chunk))
        try:
            log.write(chunk[: max(room, 0)])
            if room < len(chunk):
                self.log_error = f"{self._log}: cut after {self._limit} bytes"
                log.write(f"\n[cut after {self._limit} bytes]\n".encode())
        except OSError as error:
            self.log_error, self.log_lost = f"{self._log}: {error.strerror}", True

    @property
    def position(self) -> int:
        """How many bytes the guest has written so far."""
        with self._changed:
            return self._total

    def text(self, since: int = 0, *, limit: int = _TAIL) -> str:
        """Return what came since a position, at most the last ``limit`` bytes of it."""
        with self._changed:
            return self._since(since)[-limit:].decode(errors="replace").replace("\r", "")

    def _since(self, position: int) -> bytes:
        start = max(0, len(self._tail) - (self._total - position))
        return bytes(self._tail[start:])

    def search(self, pattern: re.Pattern[bytes], *, since: int = 0) -> re.Match[bytes] | None:
        """Look for a pattern in what came since a position."""
        with self._changed:
            return pattern.search(self._since(since))

    def wait(
        self,
        pattern: re.Pattern[bytes],
        *,
        timeout: float,
        since: int = 0,
        check: Callable[[], None] = lambda: None,
    ) -> re.Match[bytes] | None:
        """Wait until a pattern shows in what came since a position; None after ``timeout`` s.

        ``check`` is called now and then and raises when waiting has become pointless.
        """
        deadline = time.monotonic() + timeout
        seen = -1
        while True:
            with self._changed:
                if self._total != seen:
                    seen = self._total
                    if match := pattern.search(self._since(since)):
                        return match
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                if not self._closed:
                    self._changed.wait(min(left, 0.1))
            check()
            if self._closed:
                time.sleep(0.02)

    def ended(self, seconds: float) -> bool:
        """Wait until the other end has closed and all that it wrote has been read."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def close(self) -> None:
        """Stop reading.  What QEMU wrote before it ended has been read by then."""
        self._thread.join(1.0)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(1.0)
        self._socket.close()
