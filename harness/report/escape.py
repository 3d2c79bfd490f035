"""What a guest printed, made harmless for a terminal, for XML and for file names.

A guest is hostile: it prints escape sequences, NUL, half a UTF-8 character, ``]]>``, lines without
an end and names with ``..`` in them.  Nothing of it is shown or stored by name except through here.
"""

from __future__ import annotations

import hashlib
import re

#: Escape sequences of a terminal: CSI, OSC (ended by BEL or ST, or never) and two-byte ones.
_ANSI = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[ -/]*[0-~]?)"
    r"|\x9b[0-?]*[ -/]*[@-~]?"
)
#: Controls but for tab and newline, C1, what reverses or hides text, surrogates, non-characters.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff\ufff9-\ufffb\ufffe\uffff]"
)
_UNSAFE_NAME = re.compile(r"[^A-Za-z0-9_.,=+@-]+")

CUT = " [...]"


def text_of(data: bytes | str) -> str:
    """Return bytes of a guest as text; what is no UTF-8 becomes a replacement character."""
    return data if isinstance(data, str) else data.decode("utf-8", "replace")


def printable(text: bytes | str, limit: int = 4096) -> str:
    """Return text that a terminal shows as it is: no escape sequence, control or NUL.

    Newlines and tabs stay, CR LF becomes LF, another control becomes ``\\xNN``.  The result is
    never longer than ``limit`` characters; what was cut is marked.
    """
    # Bound the work too: nothing behind four times the limit could be shown anyway.
    head = text[: 4 * limit + 64]
    plain = _ANSI.sub("", text_of(head)).replace("\r\n", "\n").replace("\r", "\n")
    plain = _CONTROL.sub(_spell_out, plain)
    if len(plain) <= limit and len(head) == len(text):
        return plain
    return plain[: max(0, limit - len(CUT))] + CUT[: max(0, limit)]


def one_line(text: bytes | str, limit: int = 200) -> str:
    """Return text as one printable line: runs of white space become one space."""
    return printable(" ".join(printable(text, 4 * limit).split()), limit)


def tail(text: bytes | str, limit: int) -> str:
    """Return the last ``limit`` characters at most, printable, cut at a line's start."""
    if len(text) <= limit:
        return printable(text, 2 * limit + 64)
    end = text_of(text[-limit:])
    end = end.partition("\n")[2] or end
    return "[...]\n" + printable(end, 2 * limit + 64)


def xml_safe(text: bytes | str, limit: int = 16384) -> str:
    """Return text for an XML element or attribute, bounded to ``limit`` characters.

    An XML library escapes ``<``, ``&`` and quotes, but happily writes what XML 1.0 forbids in any
    form (most controls, surrogates); those are gone here.  ``]]>`` is split so that a reader that
    puts the text into CDATA is safe too.
    """
    return printable(text, limit).replace("]]>", "]] >")[:limit]


def slug(nodeid: str, limit: int = 96) -> str:
    """Return a file name for a test's id: [A-Za-z0-9_.,=+@-] only, never a dot first.

    Where anything had to be changed beyond the separators of a pytest id, a short hash of the
    whole id follows, so that two ids never share a name.
    """
    base = nodeid.rsplit("/", 1)[-1] if "[" not in nodeid else _base_with_parameters(nodeid)
    name = base.replace(".py::", ".").replace("::", ".").replace("[", "-").removesuffix("]")
    safe = _UNSAFE_NAME.sub("_", name).lstrip(".-")
    safe = re.sub(r"\.{2,}", ".", safe).rstrip(".")
    if safe and safe == name and len(safe) <= limit and "]" not in name:
        return safe
    digest = hashlib.sha256(nodeid.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe[: limit - 9].rstrip('.') or 'test'}-{digest}"


def _base_with_parameters(nodeid: str) -> str:
    path, bracket, parameters = nodeid.partition("[")
    return path.rsplit("/", 1)[-1] + bracket + parameters


def _spell_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
