"""What a signal does, wherever the main thread is when it comes."""

from __future__ import annotations

import functools
import logging
import operator
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator

import pytest

from harness.signals import interrupt

NUMBER = signal.SIGUSR1


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.signal(NUMBER, interrupt)
    yield
    signal.signal(NUMBER, before)


class Interrupted(logging.Handler):
    """Is told to end in the middle of a record."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = 0

    def emit(self, record: logging.LogRecord) -> None:
        os.kill(os.getpid(), NUMBER)
        self.whole += 1


def test_a_signal_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), NUMBER)


def test_a_record_is_logged_whole_and_then_the_interrupt_comes() -> None:
    log = logging.Logger("of a test")
    handler = Interrupted()
    log.addHandler(handler)
    log.info("told")
    assert handler.whole == 1
    with pytest.raises(KeyboardInterrupt):
        time.sleep(10)


def test_an_interrupt_before_a_wait_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is given back, and nobody waits yet: an error would take the interrupt's place."""
    condition = threading.Condition()
    give_back = condition._release_save  # type: ignore[attr-defined]
    take_back = condition._acquire_restore  # type: ignore[attr-defined]
    send = functools.partial(os.kill, os.getpid(), NUMBER)
    # Nothing of Python between the two: the signal finds the condition's own frame.
    interrupted: Callable[[], object] = functools.partial(
        list, map(operator.call, [give_back, send])
    )
    monkeypatch.setattr(condition, "_release_save", interrupted)
    monkeypatch.setattr(condition, "_acquire_restore", lambda state: take_back(state[0]))
    with pytest.raises(KeyboardInterrupt), condition:
        condition.wait(10)


def test_nor_with_a_plain_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an event and a queue have it: the condition's own methods give it back and take it."""
    lock = threading.Lock()
    condition = threading.Condition(lock)
    send = functools.partial(os.kill, os.getpid(), NUMBER)
    steps: list[Callable[[], object]] = [lock.release, send]
    release: Callable[[], object] = functools.partial(list, map(operator.call, steps))
    sending = types.SimpleNamespace(acquire=lock.acquire, release=release)
    monkeypatch.setattr(condition, "_lock", sending)
    lock.acquire()
    with pytest.raises(KeyboardInterrupt):
        condition.wait(10)
    assert lock.locked()


def test_logging_that_does_not_end_is_interrupted_all_the_same() -> None:
    program = """
import logging, os, signal, time
from harness.signals import interruptible

class Stuck(logging.Handler):
    def emit(self, record):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(3000):
            time.sleep(0.01)

interruptible()
logging.getLogger().addHandler(Stuck())
try:
    logging.error("told")
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=25
    )
    assert done.stdout == "interrupted\n", done.stderr
