"""One report of the kernel while it is being read: which lines are its own, and what it says."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from harness.verdict import titles
from harness.verdict.finding import Finding
from harness.verdict.kinds import Kind
from harness.verdict.logline import Line
from harness.verdict.patterns import END, END_KEY, HEADERS, NOT_A_HEADER, UNMISTAKABLE, Header

#: Lines of one report that are kept.
_MAX_LINES = 400
#: A report ends after so many lines that do not look like part of one; an OOM kill's holds tables.
_MAX_GAP = 40
_MAX_GAP_OOM = 250
#: After so many lines without a sign of a report, a header was only words.
_PATIENCE = 12
#: A panic's trace comes late where other CPUs still speak; two dozen lines without it are no panic.
_PATIENCE_PANIC = 24
#: Signs that the kernel is really reporting.
_BODY = re.compile(
    r"Call [Tt]race|[Bb]acktrace|\+0x[0-9a-f]+/0x[0-9a-f]+|Modules linked in|---\[ end"
    r"|Hardware name:|^CPU: ?\d+ |Kernel Offset:|^Code: |^pc :|^[REN]?IP:|Rebooting in \d"
    r"|^R[A-Z0-9]{2}: [0-9a-f]{16}|^INFO: task|disables this message|^Tainted"
)
#: Looks like part of a report: frames, registers, dumps, and the sentences around them.
_CONTENT = re.compile(
    r"^\s|.*(?:\+0x[0-9a-f]+|\b[0-9a-f]{16}\b|\bRIP\b|Call [Tt]race|[Bb]acktrace)"
    r"|^(?:CPU|Code|Modules|Hardware|Tainted|Not tainted|Workqueue|[CDRG]?[RSF][0-9A-Z]{1,2}:"
    r"|x\d+|pc|lr|sp|Allocated|Freed|The buggy|which|allocated|freed|located|Memory state|page"
    r"|raw|flags|task:|NMI|Sending|rcu|Kernel|---|===|\[<|<|Mem-Info|Oops|Internal error"
    r"|invalid opcode|KASAN|Read of|Write of|value changed|read |write |Reported by"
    r"|stack backtrace|but task|but there|and this|other info|the existing|the first|the second"
    r"|\d+ locks? held|#\d|\"echo|Last |list_|\()"
)
_RULE = re.compile(r"^={20,}")
#: Reports in which one CPU speaks of others.
_ALL_CPUS = {Kind.RCU_STALL, Kind.SOFT_LOCKUP, Kind.HARD_LOCKUP}
RULED = {Kind.KASAN, Kind.KMSAN, Kind.KCSAN, Kind.KFENCE, Kind.UBSAN}
_TAINT = re.compile(r"Tainted: ((?:[A-Z] *)+)(?=\s|$)")
#: What die() continues: the line with [#1] is part of these.
_DYING = {Kind.PAGE_FAULT, Kind.GENERAL_PROTECTION, Kind.BUG, Kind.LIST_CORRUPTION, Kind.OOPS}
#: Words that WARN() or BUG() print around their own header.
_PREAMBLE = {Kind.REFCOUNT, Kind.LIST_CORRUPTION, Kind.BUG}
#: Source files that say more than "WARNING".
_BY_FILE = (
    ("lib/refcount.c", Kind.REFCOUNT),
    ("lib/list_debug.c", Kind.LIST_CORRUPTION),
    ("kernel/locking/lockdep.c", Kind.LOCKDEP),
)


@dataclass
class Splat:
    """A report that is being read; without header when only its "cut here" was seen."""

    first_line: int
    line: Line
    header: Header | None = None
    match: re.Match[str] | None = None
    kind: Kind = Kind.WARNING
    lines: list[str] = field(default_factory=list)
    kept: int = 0  # lines up to the last that looks like part of it
    last_line: int = 0
    gap: int = 0
    seen: int = 0  # lines since it began, its own or not
    confirmed: bool = False
    needs_proof: bool = False
    strict: bool = False  # proof is needed even where the stream ends before it could come
    died: bool = False
    ended: bool = False  # the line that was taken is its last
    second: bool = False  # the header of the WARN() or BUG() around it was seen

    @classmethod
    def begun(cls, number: int, line: Line, header: Header, match: re.Match[str]) -> Splat:
        """Return the report that a header begins."""
        splat = cls(number, line)
        splat.adopt(header, match, line.text, number)
        splat.confirmed = False
        return splat

    def add(self, text: str, number: int) -> None:
        """Take one line of its own."""
        if len(self.lines) < _MAX_LINES:
            self.lines.append(text[:512])
        if not self.confirmed and _BODY.search(text):
            self.confirmed = True
        if _CONTENT.match(text) or text == "":
            self.gap = 0
            if text:
                self.kept = len(self.lines)
                self.last_line = number
        else:
            self.gap += 1

    def take(self, found: list[tuple[str, str]], number: int) -> None:
        """Take its own of many lines; ``number`` is that of the line before them."""
        mine = [
            (at, text)
            for at, (caller, text) in enumerate(found, number + 1)
            if caller == self.line.caller or (self.kind in _ALL_CPUS and caller.startswith("C"))
        ]
        self.seen += len(found)
        before = len(self.lines)
        self.lines += [text[:512] for _, text in mine]
        if not self.confirmed:
            self.confirmed = any(_BODY.search(text) for _, text in mine)
        for index in range(len(mine) - 1, -1, -1):
            at, text = mine[index]
            if text and _CONTENT.match(text):
                self.kept, self.last_line = before + index + 1, at
                self.gap = len(mine) - 1 - index
                return
        self.gap += len(mine)

    @property
    def steady(self) -> bool:
        """Whether nothing about it hangs on the next line."""
        return self.confirmed or not self.needs_proof

    @property
    def complete(self) -> bool:
        """Whether no more lines should be taken."""
        return self.room <= 0 or (not self.steady and self.seen > self.patience)

    @property
    def patience(self) -> int:
        """Lines within which a sign of a report has to come."""
        return _PATIENCE_PANIC if self.kind is Kind.PANIC else _PATIENCE

    @property
    def room(self) -> int:
        """How many more lines can be taken before it might be complete."""
        gap = _MAX_GAP_OOM if self.kind is Kind.OOM_KILL else _MAX_GAP
        return min(gap - self.gap, _MAX_LINES - len(self.lines), 4 * _MAX_LINES - self.seen)

    def adopt(self, header: Header, match: re.Match[str], text: str, number: int) -> None:
        """Take its header."""
        self.header, self.match, self.kind = header, match, refined(header, match)
        self.strict = self.strict or text[: match.start()].strip(" \t=*") != ""
        self.needs_proof = self.needs_proof or header.confirm or self.strict
        self.died = "[#" in text
        self.add(text, number)
        self.kept, self.last_line, self.gap = len(self.lines), number, 0

    def owns(self, line: Line) -> bool:
        """Tell whether a line without a header is part of it."""
        if line.program or line.stamped != self.line.stamped:
            return False
        if line.caller == self.line.caller:
            return True
        return self.kind in _ALL_CPUS and line.caller.startswith("C")

    def is_end(self, text: str) -> bool:
        """Tell whether a line is its last."""
        if END_KEY in text and END.match(text):
            return True
        return self.kind in RULED and len(self.lines) > 2 and _RULE.match(text) is not None

    @property
    def awaits_bug(self) -> bool:
        """Whether it may be the words that WARN() or BUG() print before they begin."""
        return self.kind in _PREAMBLE and not self.confirmed and self.seen < 8

    def absorb(self, header: Header, match: re.Match[str], line: Line, number: int) -> bool:
        """Take a further header when it is part of this report; return whether it was."""
        if self.header is None:
            self.adopt(header, match, line.text, number)
            return True
        dies = header.die or (header.kind is Kind.GENERAL_PROTECTION and "[#" in line.text)
        around = header.kind is Kind.WARNING or header.key == "ernel BUG"
        if header.part:
            pass
        elif dies and self.kind in _DYING and not self.died:
            self.died = True
        elif (
            around
            and self.kind in _PREAMBLE
            and self.header.key != "ernel BUG"
            and not self.second
            and self.seen < 8
        ):
            self.second = True
        elif header.kind is self.kind is Kind.OOM_KILL and header.key != self.header.key:
            self.ended = "Killed process" in line.text
        elif header.key == "unreferenced object 0x" and self.header.key == "BUG: memory leak":
            pass
        elif header.kind is self.kind is Kind.HUNG_TASK and header.key != self.header.key:
            pass  # the second line of a header whose task's name holds a newline
        else:
            return False
        self.add(line.text, number)
        self.kept, self.last_line = len(self.lines), number
        return True

    def finding(self, *, at_end: bool, log_is_stamped: bool) -> Finding | None:
        """Return what it says, None when it was only words.

        ``at_end`` tells that the stream ended within it.
        """
        cut_short = at_end and not self.strict and self.seen <= _PATIENCE
        cut_short = cut_short and (self.line.stamped or not log_is_stamped)
        if not self.confirmed and (self.header is None or (self.needs_proof and not cut_short)):
            return None
        lines = self.lines[: self.kept] or self.lines[:1]
        title, where, trace_wanted = "report without its first line", None, True
        if self.header is not None and self.match is not None:
            title, where = titles.title(self.header, self.match, lines)
            trace_wanted = self.header.trace
        named = where is not None or self.kind is Kind.PANIC
        taint = next((m[1] for m in map(_TAINT.search, lines) if m), "")
        return Finding(
            kind=self.kind,
            title=title,
            severity=self.kind.severity,
            first_line=self.first_line,
            last_line=max(self.last_line, self.first_line),
            taint="".join(taint.split()),
            trace=tuple(lines),
            corrupted=self.header is None or (trace_wanted and not (self.confirmed and named)),
        )


def header_of(text: str) -> tuple[Header, re.Match[str]] | None:
    """Return the header that a message begins with, if it is one.

    One in the middle of a line counts only where its words are the kernel's alone: a prompt or
    half a line of another CPU may stand before it.  Its match does not begin at 0.
    """
    text = text.rstrip()
    found = _header_at(text, len(text) - len(text.lstrip(" \t=*")))
    if found is None:
        inner = UNMISTAKABLE.search(text)
        if inner is not None and inner.start() > 0:
            found = _header_at(text, inner.start())
    return found


def _header_at(text: str, start: int) -> tuple[Header, re.Match[str]] | None:
    for header in HEADERS:
        if header.key in text:
            match = header.regex.match(text, start)
            if match:
                return None if NOT_A_HEADER.match(text, start) else (header, match)
    return None


def refined(header: Header, match: re.Match[str]) -> Kind:
    """Return a header's kind, by the source file where that says more."""
    if header.kind in (Kind.WARNING, Kind.BUG):
        for file, kind in _BY_FILE:
            if file in match[0]:
                return kind
    return header.kind
