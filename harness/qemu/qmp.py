"""QMP for synchronous callers: qemu.qmp on an event loop of its own."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError, Runstate

from harness import signals
from harness.errors import HostError, LaunchError

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class QmpEvent:
    """Something that QEMU told unasked: its name, its data and when it came (monotonic s)."""

    name: str
    data: Mapping[str, Any]
    at: float


class Refused(HostError):
    """QEMU answered that it does not do what it was asked for; the message carries its words."""


class _Loop:
    """One event loop on one daemon thread for all QMP connections of the process."""

    _lock = threading.Lock()
    _loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    @signals.put_off
    def _running(cls) -> asyncio.AbstractEventLoop:
        with cls._lock:
            if cls._loop is None:
                cls._loop = asyncio.new_event_loop()
                cls._loop.set_exception_handler(_unretrieved)
                threading.Thread(target=cls._loop.run_forever, name="qmp", daemon=True).start()
            return cls._loop

    @classmethod
    def call(cls, work: Coroutine[Any, Any, T], timeout: float) -> T:
        future = asyncio.run_coroutine_threadsafe(work, cls._running())
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise


def _unretrieved(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # What ended a connection is told by whoever uses it; asyncio would print a traceback as well.
    log.debug("qmp: %s: %r", context.get("message"), context.get("exception"))


#: Connections that stand.  An interrupt can come between making one and entering its context; then
#: Python would end the loop under it, and print what its coroutines say to that.
_standing: set[Qmp] = set()


@atexit.register
def _close_all() -> None:
    for connection in list(_standing):
        connection.close()


class Qmp:
    """A QMP connection over a socket that is already connected to a QEMU."""

    def __init__(self, connection: socket.socket, *, on_event: Callable[[QmpEvent], None]) -> None:
        self._socket = connection
        self._on_event = on_event
        self._client: QMPClient | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._over = threading.Event()

    def connect(self, timeout: float) -> None:
        """Greet QEMU; LaunchError when it says nothing within ``timeout`` seconds."""
        _standing.add(self)
        try:
            _Loop.call(self._connect(), timeout)
        except (
            concurrent.futures.TimeoutError,
            QMPError,
            OSError,
            EOFError,
            AssertionError,  # of qemu.qmp itself: QEMU died right behind its greeting
        ) as error:
            raise LaunchError(f"QEMU does not speak QMP: {error or 'no answer'}") from error

    async def _connect(self) -> None:
        # Made here: a QMPClient belongs to the loop in which it is made.
        self._client = QMPClient("nvh")
        self._client.logger.disabled = True  # every error of it is raised here as well
        listener = EventListener()
        self._client.register_listener(listener)
        await self._client.connect(self._socket)
        self._tasks = [
            asyncio.create_task(self._read(listener)),
            asyncio.create_task(self._watch(self._client)),
        ]

    async def _read(self, listener: EventListener) -> None:
        async for event in listener:
            data = event.get("data")
            self._on_event(
                QmpEvent(
                    str(event["event"]), data if isinstance(data, dict) else {}, time.monotonic()
                )
            )

    async def _watch(self, client: QMPClient) -> None:
        while client.runstate is Runstate.RUNNING:
            await client.runstate_changed()
        self._over.set()

    def over(self, timeout: float) -> bool:
        """Wait until QEMU has closed the connection: what it told before that has been heard."""
        return self._over.wait(timeout)

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float = 10.0
    ) -> Any:
        """Run a QMP command.  Refused: by QEMU; HostError: no answer in time or no connection."""
        assert self._client is not None
        try:
            return _Loop.call(self._client.execute(command, arguments), timeout)
        except ExecuteError as error:
            raise Refused(f"QEMU refused {command}: {error}") from error
        except concurrent.futures.TimeoutError as error:
            raise HostError(f"QEMU did not answer {command} within {timeout:.0f} s") from error
        except (QMPError, OSError, EOFError) as error:
            raise HostError(f"QEMU is gone ({command}: {error})") from error

    def send_file(self, descriptor: int, name: str, *, timeout: float = 10.0) -> None:
        """Hand QEMU an open file, which commands then name as ``fd:NAME``."""
        assert self._client is not None
        client = self._client

        async def send() -> None:
            client.send_fd_scm(descriptor)

        try:
            _Loop.call(send(), timeout)
        except (concurrent.futures.TimeoutError, QMPError, OSError, EOFError) as error:
            raise HostError(f"QEMU does not take a file: {error or 'no answer'}") from error
        self.execute("getfd", {"fdname": name}, timeout=timeout)

    def close(self) -> None:
        """Drop the connection; an error on the way no longer matters."""
        _standing.discard(self)
        self._over.set()
        if self._client is None:
            self._socket.close()
            return
        with contextlib.suppress(Exception):
            _Loop.call(self._disconnect(), 2.0)
        self._client = None

    async def _disconnect(self) -> None:
        assert self._client is not None
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self._client.disconnect()
        for task in self._tasks:
            task.cancel()
