"""The serial shell against a guest that says what it likes."""

from __future__ import annotations

import re
import resource
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from harness.errors import GuestHung
from harness.guest import serial_shell
from harness.guest.serial_shell import OUTPUT_LIMIT, SerialShell

Guest = Callable[[Callable[[socket.socket, str], None]], SerialShell]


@pytest.fixture
def guest() -> Iterator[Guest]:
    """A shell whose other end answers each command as a function does."""
    ours, theirs = socket.socketpair()

    def made(answer: Callable[[socket.socket, str], None]) -> SerialShell:
        def serve() -> None:
            text = ""
            try:
                while chunk := theirs.recv(1 << 16):
                    text += chunk.decode()
                    while match := re.search(r"echo (\w{4})''(\w{4}) \$\?\n", text):
                        text = text[match.end() :]
                        answer(theirs, match[1] + match[2])
            except OSError:
                pass

        threading.Thread(target=serve, daemon=True).start()
        return SerialShell(ours)

    yield made
    ours.close()
    theirs.close()


def test_an_answer_longer_than_what_is_read_at_once(guest: Guest) -> None:
    body = "".join(f"line {number}\n" for number in range(40_000))

    def answer(line: socket.socket, token: str) -> None:
        line.sendall(f"{token}\n{body}{token} 7\n".encode())

    shell = guest(answer)
    assert shell.run("x", timeout=60) == (7, body)
    assert shell.run("x", timeout=60) == (7, body)


def test_a_line_without_an_end_is_given_up_in_bounded_memory(guest: Guest) -> None:
    first = True

    def answer(line: socket.socket, token: str) -> None:
        nonlocal first
        line.sendall(f"{token}\n".encode())
        if first:
            first = False
            for _ in range(1 << 10):  # 1 GiB, if anybody listened
                line.sendall(b"A" * (1 << 20))
        line.sendall(f"fine\n{token} 0\n".encode())

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(GuestHung, match="said more than 8 MiB: x"):
        guest(answer).run("x", timeout=60)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown << 10 < 8 * OUTPUT_LIMIT


def test_what_a_command_said_too_late_is_none_of_the_next(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serial_shell, "NUDGE", 0.1)
    go = threading.Event()

    def answer(line: socket.socket, token: str) -> None:
        go.wait(30)
        line.sendall(f"{token}\nlate\n{token} 0\n".encode())

    shell = guest(answer)
    with pytest.raises(GuestHung, match="did not end within"):
        shell.run("x", timeout=0.3)
    go.set()
    assert shell.run("y", timeout=30) == (0, "late\n")
