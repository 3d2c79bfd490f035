"""One line of a console or dmesg, cleaned: time stamp, caller and what the kernel said."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

#: Characters of a line that are looked at.
LIMIT = 4096

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
#: <6>[   12.345678][  T123] and all that is left out of it by configuration.
_STAMP = re.compile(r"(?:<\d{1,3}>)?\[ *(\d{1,7}\.\d{1,6})(?:@\d+)?\](?: ?\[ *([TC]\d{1,8})\])? ?")
#: Without printk's own stamp: dmesg -T, dmesg -d, syslog, journal, dmesg -x, the caller alone.
_OTHER = re.compile(
    r"(?:<\d{1,3}>)?(?:"
    r"\[\w{3} \w{3} +\d+ [\d:]{8} \d{4}\] ?"
    r"|\[ *[<+] *\d+\.\d+>?\] ?"
    r"|(?:\w{3} +\d+ [\d:]{8}|\d{4}-\d\d-\d\dT\S+)(?: \S+)? kernel: "
    r"|\[ *([TC]\d{1,8})\] ?)"
)
#: How far into a line the stamp may begin: after a login prompt, a console server's time and such.
_STAMP_WITHIN = 100


_DELETED = bytes({*range(32), 127} - {9, 10})
_ROW = re.compile(r"^(?:<\d{1,3}>)?\[ *\d+\.\d+\](?: ?\[ *([TC]\d+)\])? ?(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Line:
    """A message of a kernel, or a line of a program when ``stamped`` is false in a stamped log."""

    text: str
    stamped: bool
    time: float | None  # seconds since the kernel's start
    caller: str  # T123 (a task), C0 (a CPU) or nothing


def clean(raw: bytes) -> str:
    """Return a line as text without colours and controls."""
    text = raw[:LIMIT].decode("utf-8", "replace")
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    return _CONTROL.sub("", text) if not text.isprintable() else text


def parse(text: str) -> Line:
    """Return a clean line taken apart at its first time stamp."""
    match = _STAMP.search(text, 0, _STAMP_WITHIN)
    if match:
        return Line(text[match.end() :], True, float(match[1]), match[2] or "")
    match = _OTHER.match(text)
    if match:
        return Line(text[match.end() :], True, None, match[1] or "")
    return Line(text, False, None, "")


def messages(raw: bytes) -> Iterator[Line]:
    """Return what a raw line holds: two CPUs or a carriage return may put several on one line."""
    for part in raw[:LIMIT].strip(b"\r").split(b"\r"):
        text = clean(part)
        starts = [match.start() for match in _STAMP.finditer(text)]
        if len(starts) < 2:
            yield parse(text)
            continue
        starts[0] = 0
        for begin, end in zip(starts, [*starts[1:], len(text)], strict=True):
            yield parse(text[begin:end])


def rows(block: bytes, *, stamped: bool) -> list[tuple[str, str]] | None:
    """Return caller and text of plain lines at once, None when one of them needs a closer look."""
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    if b"\r" in block or b"\x1b" in block:
        return None
    text = block.translate(None, _DELETED).decode("utf-8", "replace")
    if not stamped:
        return [("", line) for line in text.removesuffix("\n").split("\n")]
    found: list[tuple[str, str]] = _ROW.findall(text)
    return found if len(found) == text.count("\n") else None
