"""What a signal does, wherever the main thread is when it comes."""

from __future__ import annotations

import contextlib
import functools
import io
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
from typing import Any
from xml.etree import ElementTree

import pytest

from harness import signals
from harness.signals import MOMENTS, postponed

NUMBER = signal.SIGUSR1

put_off: list[bool] = []


def interrupt(number: int, frame: types.FrameType | None) -> None:
    """Do what the harness's own handler does, but for ending this session's run too."""
    put_off.append(postponed(number, frame))
    if not put_off[-1]:
        raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(signals, "_interrupts", signals._Interrupts())  # not the session's own
    put_off.clear()
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

    def tell() -> None:
        log.info("told")
        time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        tell()
    assert handler.whole == 1


def test_a_tree_is_written_whole_and_then_the_interrupt_comes() -> None:
    """Its writer would be closed first and detached then, of which Python prints a traceback."""

    class Interrupting(io.BytesIO):
        def writable(self) -> bool:  # asked for while the writer is made
            os.kill(os.getpid(), NUMBER)
            return super().writable()

    file = Interrupting()

    def write() -> None:
        ElementTree.ElementTree(ElementTree.Element("told")).write(file)
        time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        write()
    assert file.getvalue() == b"<told />"


def test_what_a_stack_has_entered_is_left() -> None:
    """The signal comes when a context is entered, before the stack has noted how to leave it."""
    left: list[object] = []

    class Context:
        # Nothing of Python in it: the signal finds the stack's own frame.
        send = staticmethod(functools.partial(os.kill, os.getpid(), NUMBER))
        __enter__ = operator.methodcaller("send")

        def __exit__(self, *error: object) -> None:
            left.extend(error[:1])

    def enter(context: Any) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(context)
            time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        enter(Context())
    assert left == [KeyboardInterrupt]


@pytest.mark.parametrize("deadline", [None, 10.0])
def test_a_child_that_is_looked_at_can_be_waited_for(
    busy: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, deadline: float | None
) -> None:
    """Popen takes a lock for each look: an error before its try would keep it for ever."""
    lock = threading.Lock()
    monkeypatch.setattr(busy, "_waitpid_lock", lock)

    def taken(frame: types.FrameType, event: str, of: object) -> None:
        if event == "c_return" and of == lock.acquire:
            sys.setprofile(None)
            interrupt(NUMBER, frame)  # as the interpreter would, between two instructions

    def look() -> None:
        sys.setprofile(taken)
        if deadline is None:
            busy.poll()
            time.sleep(10)
        busy.wait(deadline)

    try:
        with pytest.raises(KeyboardInterrupt):
            look()
    finally:
        sys.setprofile(None)
    assert 0 < put_off.count(True) < MOMENTS / 2
    assert not lock.locked()


def test_who_waits_for_a_child_without_a_deadline_is_interrupted_at_once(
    busy: subprocess.Popen[bytes],
) -> None:
    def wait() -> None:
        threading.Timer(0.2, os.kill, (os.getpid(), NUMBER)).start()
        busy.wait()

    with pytest.raises(KeyboardInterrupt):
        wait()
    assert put_off.count(True) < MOMENTS / 2


@pytest.mark.parametrize("waiting", ["join", "wait"])
def test_what_waits_for_long_is_interrupted_at_once(waiting: str) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, args=(20,), daemon=True)
    thread.start()

    def wait() -> None:
        threading.Timer(0.2, os.kill, (os.getpid(), NUMBER)).start()
        thread.join() if waiting == "join" else over.wait(20)

    try:
        with pytest.raises(KeyboardInterrupt):
            wait()
    finally:
        over.set()
    assert put_off.count(True) < MOMENTS / 2


def test_one_that_comes_while_another_is_put_off_breaks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As from a terminal and from a controller, one behind the other."""
    log = logging.Logger("of a test")
    log.addHandler(handler := Interrupted())
    senders: list[threading.Thread] = []

    def start(function: Callable[..., None], words: tuple[int, int]) -> None:
        sender = threading.Thread(target=function, args=words, daemon=True)
        senders.append(sender)
        if len(senders) == 1:
            os.kill(os.getpid(), NUMBER)
        sender.start()

    def tell() -> None:
        log.info("told")
        time.sleep(10)

    signal.signal(NUMBER, signals.interrupt)
    with monkeypatch.context() as patched:
        # This session goes on, and what was raised in here is forgotten.
        patched.setattr(signals, "_interrupts", signals._Interrupts())
        patched.setattr(signals, "_thread", types.SimpleNamespace(start_new_thread=start))
        with pytest.raises(KeyboardInterrupt):
            tell()
        assert signals.came()
        for sender in senders:
            sender.join()
    assert handler.whole == 1
    assert len(senders) >= 2


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
