"""The header of a memory dump: what QEMU leaves out of it, and what a guest writes into it."""

from __future__ import annotations

import io
import struct
from types import SimpleNamespace
from typing import Any

import pytest

from harness.qemu import dump

SAID = """OSRELEASE=6.12.0
NUMBER(phys_base)=75497472
SYMBOL(init_uts_ns)=ffffffffb801f700
OFFSET(uts_namespace.name)=0
"""


def made_up(said: bytes, *, size: int | None = None, offset: int = 8192) -> io.BytesIO:
    """Return a dump's header as QEMU 7.2 writes it."""
    base = 0x75497472  # 75497472 read as if it were hexadecimal
    place = struct.pack("<QIIQQQQ", base, 1, 0, 0, 0, offset, len(said) if size is None else size)
    head = b"KDUMP   " + bytes(4 + 4 * 65) + b"x86_64".ljust(2 * 65, b"\0")
    return io.BytesIO(head.ljust(4096, b"\0") + place.ljust(4096, b"\0") + said)


def vm(memory: bytes) -> Any:
    """Return a QEMU that shows this memory, wherever it is asked for, and notes where."""
    asked: list[str] = []

    def execute(_: str, arguments: dict[str, str]) -> str:
        asked.append(arguments["command-line"])
        rows = [memory[at : at + 8] for at in range(0, len(memory), 8)]
        return "".join(
            f"{at * 8:016x}: {' '.join(f'0x{byte:02x}' for byte in row)}\r\n"
            for at, row in enumerate(rows)
        )

    return SimpleNamespace(qmp=SimpleNamespace(execute=execute), asked=asked)


UNAME = b"".join(
    word.ljust(65, b"\0") for word in (b"Linux", b"nvh", b"6.12.0", b"#1", b"x86_64", b"(none)")
)


def test_the_header_gets_the_names_and_the_right_base() -> None:
    core, qemu = made_up(SAID.encode()), vm(UNAME)
    dump._complete(qemu, core)
    assert core.getvalue()[12:402] == UNAME
    assert struct.unpack_from("<Q", core.getvalue(), 4096) == (75497472,)
    assert qemu.asked == ["xp /390xb 0x3c81f700"]


def test_a_base_below_zero_is_one() -> None:
    core = made_up(SAID.replace("75497472", "-2097152").encode())
    dump._complete(vm(UNAME), core)
    assert struct.unpack_from("<q", core.getvalue(), 4096) == (-2097152,)


def test_names_that_are_none_are_not_taken() -> None:
    core = made_up(SAID.encode())
    dump._complete(vm(b"\0" * 390), core)
    assert core.getvalue()[12:17] == bytes(5)


@pytest.mark.parametrize(
    "core",
    [
        made_up(b""),
        made_up(SAID.encode(), size=1 << 40),
        made_up(SAID.encode(), offset=1 << 63),
        made_up(b"NUMBER(phys_base)=\xff\nSYMBOL(init_uts_ns)\n=\n" + bytes(range(256))),
        made_up(SAID.replace("75497472", "9" * 5000).encode()[:4096]),
        io.BytesIO(b"KDUMP   "),
    ],
)
def test_what_a_guest_writes_there_may_be_anything(core: io.BytesIO) -> None:
    before = core.getvalue()
    dump._complete(vm(UNAME), core)
    assert core.getvalue() == before
