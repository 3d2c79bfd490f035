"""An interrupt reaches the workers of a run too, and each of them once.

Ctrl-C on a terminal is for all processes; ``kill`` and CI systems tell one, and xdist then lets its
workers go on for up to 10 s (3.6, NodeManager.EXIT_TIMEOUT) with their tests and guests.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from types import FrameType
from typing import Any

import pytest

from harness.run_state import worker_id
from harness.signals import postponed

log = logging.getLogger(__name__)


def pytest_configure(config: pytest.Config) -> None:
    """Let a worker be interrupted once, and its controller pass on that it was."""
    if worker_id(config) is None:
        config.pluginmanager.register(_PassOn(), "nvh-interrupts")
    elif signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with contextlib.suppress(ValueError):  # execnet runs it on another than the main thread
            signal.signal(signal.SIGINT, _once)


def _once(number: int, frame: FrameType | None) -> None:
    if postponed(number, frame):
        return
    # What comes from the terminal and from the controller would cut short the first one's cleaning.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


class _PassOn:
    def __init__(self) -> None:
        self._nodes: list[Any] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Note a worker."""
        self._nodes.append(node)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Interrupt the workers; one that is not up yet has nothing to clean."""
        if excinfo.type is not KeyboardInterrupt:
            return
        for node in self._nodes:
            up = hasattr(node, "workerinfo")
            # execnet has no public name for it (2.1, Popen2IOMaster).
            child = getattr(getattr(node.gateway, "_io", None), "popen", None)
            if child is not None and child.poll() is None:
                log.info("the controller was interrupted, so is worker %s", node.gateway.id)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGINT if up else signal.SIGKILL)
