"""An interrupt ends a run, whatever its cleaning does, and reaches its workers, each of them once.

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

from harness import signals
from harness.run_state import worker_id

log = logging.getLogger(__name__)


def pytest_configure(config: pytest.Config) -> None:
    """Let a worker be interrupted once, and its controller pass on that it was."""
    signals.forget()
    worker = worker_id(config) is not None
    if not worker:
        config.pluginmanager.register(_PassOn(), "nvh-interrupts")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with contextlib.suppress(ValueError):  # execnet runs it on another than the main thread
            signal.signal(signal.SIGINT, _once if worker else signals.interrupt)
            if not worker:
                config.add_cleanup(_restore)


def _restore() -> None:
    if signal.getsignal(signal.SIGINT) is signals.interrupt:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _once(number: int, frame: FrameType | None) -> None:
    if signals.postponed(number, frame):
        return
    # What comes from the terminal and from the controller would cut short the first one's cleaning.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals.end()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> None:
    """Let an interrupt end the run: what its cleaning failed with is no verdict on a test."""
    # With --pdb it is for the debugger.
    if signals.came() and not item.config.getoption("usepdb", False):
        raise KeyboardInterrupt


@pytest.hookimpl(tryfirst=True)
def pytest_keyboard_interrupt(excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """Keep the last entry of the traceback alone: pytest makes a text of it to print one line.

    For the text of all of it each file along it is parsed, in each process: most of what the end
    of a run that is interrupted would take.
    """
    if excinfo.type is KeyboardInterrupt:
        excinfo.traceback = excinfo.traceback[-1:]
        excinfo.value.__suppress_context__ = True  # what was being handled has a traceback as well


def pytest_leave_pdb() -> None:
    """Go on after Ctrl-C at a debugger's prompt."""
    signals.forget()


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
