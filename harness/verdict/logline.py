"""One line of a console or dmesg, cleaned: time stamp, caller and what the kernel said."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

#: Characters of a line that are looked at.
LIMIT = 4096

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
#: <6>[   12.345678][  T123] and all that is left out of it by configuration or added by a vendor:
#: [12.345678@0], [12.345678 <0.000012>], [12.345678 / 03-04 05:06:07.8], [12.345] [12.345678]@0.
_STAMP = re.compile(
    r"(?:<(?P<level>\d{1,3})>)?\[ *(?P<time>\d{1,9}\.\d{1,6})(?:[@ ][^\]\[]{1,40})?\]"
    r"(?: \[ *\d{1,9}\.\d{6}\]@\d)?(?: ?\[ *(?P<caller>[TC]\d{1,8})\])? ?"
)
#: What a journal or a phone's kernel puts between stamp and message: the word kernel, CPU and task.
_TAG = re.compile(
    r"(?:\S{1,64} )?kernel: ?"
    r"| ?(?:<\d>)?\.?\(\d+\)\[\d+:[^\]]{1,30}\] ?"  # (0)[123:comm]
    r"| ?\[\d{1,2}: *[^\]]{1,30}: *\d+\] ?"  # [2:  comm:  123]
    r"|c\d{1,2} +\d+ "
    r"|\[ *\d{1,9}\.\d{6}\]@\d "
)
_DATE = (
    r"(?:(?:\w{3} )?\w{3} +\d+ [\d:]{8}(?:\.\d+)?(?: \d{4})?"
    r"|(?:\w{3} )?\d{4}-\d\d-\d\d[T ][\d:]{8}\S*"
    r"|\d{9,10}\.\d{6})"
)
#: Without printk's own stamp: dmesg -T, dmesg -d, dmesg -H, dmesg --time-format=iso, syslog, the
#: journal, /dev/kmsg and netconsole, dmesg -x, the caller alone.
_OTHER = re.compile(
    r"(?:<(?P<level>\d{1,3})>)?(?:kern *:[a-z]+ *: )?(?:"
    r"\[\w{3} \w{3} +\d+ [\d:]{8} \d{4}\] ?"
    r"|\[(?: *[<+] *\d+\.\d+>?|\w{3} ?\d{1,2} \d\d:\d\d)\] ?"
    r"|\d{4}-\d\d-\d\dT[\d:]{8},\d{6}[+-]\d\d:\d\d "
    rf"|{_DATE}(?: \S+){{0,3}}? kernel(?:\[\d+\])?: ?"
    r"|kernel: ?"
    r"|(?P<record>\d{1,3}),\d+,\d+,[-+c](?:,caller=[TC]\d+)?;"
    r"|kern *:[a-z]+ *: "
    r"|\[ *(?P<caller>[TC]\d{1,8})\] ?)"
)
#: dmesg -x before what a program wrote into /dev/kmsg.
_PROGRAM = re.compile(r"(?:user|daemon|syslog|auth|cron|local\d) *:[a-z]+ *: ")
#: From here on a number before a message is a program's: printk(9) has facility 0.
_FACILITIES = 8
#: How far into a line the stamp may begin: after a login prompt, a console server's time and such.
_STAMP_WITHIN = 100

_DELETED = bytes({*range(32), 127} - {9, 10})
_ROW = re.compile(r"^(?:<\d>)?\[ *\d+\.\d+\](?: ?\[ *([TC]\d+)\])? ?(.*)$", re.MULTILINE)


class Line(NamedTuple):
    """A message of a kernel, or a line of a program when ``stamped`` is false in a stamped log."""

    text: str
    stamped: bool
    time: float | None  # seconds since the kernel's start
    caller: str  # T123 (a task), C0 (a CPU) or nothing
    program: bool = False  # whether a program wrote it into the kernel's log


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
        end = match.end()
        tag = _TAG.match(text, end)
        program = int(match["level"] or 0) >= _FACILITIES or _PROGRAM.match(text) is not None
        said = text[tag.end() if tag else end :]
        return Line(said, not program, float(match["time"]), match["caller"] or "", program)
    match = _OTHER.match(text)
    if match:
        program = int(match["level"] or match["record"] or 0) >= _FACILITIES
        return Line(text[match.end() :], not program, None, match["caller"] or "", program)
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
    if len(found) != text.count("\n") or (found and _TAG.match(found[0][1])):
        return None
    return found
