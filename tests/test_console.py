"""The console over a real socket pair: it is drained whatever happens to its log."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.qemu.console import Console

Line = tuple[Console, socket.socket]
Eventually = Callable[[Callable[[], object]], None]


def ended(console: Console, guest: socket.socket) -> None:
    """Close the guest's end and wait until all that it wrote has been read."""
    guest.close()
    console.close()


def test_everything_lands_in_the_log(serial_line: Line, tmp_path: Path) -> None:
    console, guest = serial_line
    data = bytes(range(256)) * 1000
    guest.sendall(data)
    ended(console, guest)
    assert (tmp_path / "console.log").read_bytes() == data
    assert console.log_error is None
    assert console.position == len(data)


def test_the_log_holds_what_was_read_at_once(
    serial_line: Line, tmp_path: Path, eventually: Eventually
) -> None:
    _, guest = serial_line
    guest.sendall(b"first line")  # no newline, no close, no flush
    log = tmp_path / "console.log"
    eventually(lambda: log.exists() and log.read_bytes() == b"first line")


def test_an_older_log_is_kept(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"before\n")
    ours, theirs = socket.socketpair()
    console = Console(ours, tmp_path / "log")
    theirs.sendall(b"after\n")
    ended(console, theirs)
    assert (tmp_path / "log").read_bytes() == b"before\nafter\n"


def test_wait_finds_what_was_already_there(serial_line: Line, eventually: Eventually) -> None:
    console, guest = serial_line
    guest.sendall(b"Linux version 6.12\n")
    eventually(lambda: console.position)
    match = console.wait(re.compile(rb"version (\S+)"), timeout=0)
    assert match is not None
    assert match[1] == b"6.12"


def test_wait_finds_a_pattern_cut_over_two_chunks(
    serial_line: Line, eventually: Eventually
) -> None:
    console, guest = serial_line
    found: list[re.Match[bytes] | None] = []
    waiter = threading.Thread(
        target=lambda: found.append(console.wait(re.compile(rb"nvh-init: ready"), timeout=30))
    )
    waiter.start()
    guest.sendall(b"noise\nnvh-in")
    eventually(lambda: console.position == 12)
    guest.sendall(b"it: ready\n")
    waiter.join(30)
    assert found
    assert found[0] is not None


def test_wait_looks_only_behind_the_position(serial_line: Line, eventually: Eventually) -> None:
    console, guest = serial_line
    guest.sendall(b"ready\n")
    eventually(lambda: console.position == 6)
    pattern = re.compile(rb"ready")
    assert console.wait(pattern, timeout=0.05, since=console.position) is None
    guest.sendall(b"ready again\n")
    assert console.wait(pattern, timeout=30, since=6) is not None
    assert console.text(6) == "ready again\n"


def test_wait_gives_up_after_its_time(serial_line: Line) -> None:
    console, guest = serial_line
    guest.sendall(b"something else\n")
    begun = time.monotonic()
    assert console.wait(re.compile(rb"ready"), timeout=0.3) is None
    assert time.monotonic() - begun >= 0.3


def test_wait_ends_with_what_check_raises(serial_line: Line) -> None:
    console, _ = serial_line

    class Dead(Exception):
        pass

    def check() -> None:
        raise Dead

    with pytest.raises(Dead):
        console.wait(re.compile(rb"ready"), timeout=60, check=check)


def test_what_came_before_the_death_is_found_first(serial_line: Line) -> None:
    console, guest = serial_line
    guest.sendall(b"ready\n")
    ended(console, guest)

    def check() -> None:
        raise AssertionError("the pattern was there")

    assert console.wait(re.compile(rb"ready"), timeout=60, check=check) is not None


def test_a_flood_does_not_block_the_guest_and_memory_stays_bounded(
    serial_line: Line, tmp_path: Path
) -> None:
    console, guest = serial_line
    guest.settimeout(60)
    block = b"x" * 65535 + b"\n"
    for _ in range(128):  # 8 MiB; an unread socket takes some hundred KiB
        guest.sendall(block)
    guest.sendall(b"the end\n")
    ended(console, guest)
    assert (tmp_path / "console.log").stat().st_size == 128 * 65536 + 8
    assert console.text().endswith("the end\n")
    assert len(console.text()) <= 1 << 20
    assert len(console.text(limit=1 << 30)) <= 3 << 20  # all that is kept
    # A position that has left the memory gives what there is, not an error.
    assert console.text(0).endswith("the end\n")
    assert console.text(console.position - 8) == "the end\n"


def test_a_log_is_cut_at_its_limit_and_says_so(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    console = Console(ours, tmp_path / "log", limit=1000)
    for _ in range(10):
        theirs.sendall(b"y" * 300)
    ended(console, theirs)
    log = (tmp_path / "log").read_bytes()
    assert log == b"y" * 1000 + b"\n[cut after 1000 bytes]\n"
    assert console.log_error is not None
    assert "cut after 1000 bytes" in console.log_error
    # Memory and patterns go on behind the cut.
    assert console.position == 3000
    assert len(console.text()) == 3000


@pytest.mark.parametrize(
    ("log", "words"),
    [(Path("/dev/full"), "No space left on device"), (Path("/nowhere/log"), "No such file")],
)
def test_a_log_that_cannot_be_written_does_not_stop_the_guest(log: Path, words: str) -> None:
    ours, theirs = socket.socketpair()
    console = Console(ours, log)
    theirs.settimeout(60)
    for _ in range(32):
        theirs.sendall(b"z" * 65536)
    theirs.sendall(b"alive\n")
    assert console.wait(re.compile(rb"alive"), timeout=60) is not None
    ended(console, theirs)
    assert console.log_error is not None
    assert str(log) in console.log_error
    assert console.log_lost
    assert words in console.log_error


def test_text_of_hostile_bytes(serial_line: Line) -> None:
    console, guest = serial_line
    guest.sendall(b"a\r\nb\xff\x00\x1b[2J\r\n")
    ended(console, guest)
    assert console.text() == "a\nb�\x00\x1b[2J\n"


def test_text_is_limited(serial_line: Line) -> None:
    console, guest = serial_line
    guest.sendall(b"0123456789")
    ended(console, guest)
    assert console.text(limit=4) == "6789"


def test_closing_ends_the_reader_although_the_guest_lives(
    serial_line: Line, tmp_path: Path
) -> None:
    console, guest = serial_line
    guest.sendall(b"x")
    console.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "console"]
    console.close()  # twice is once
    assert (tmp_path / "console.log").read_bytes() == b"x"
