"""Find the faults that a kernel reports in a stream of console or dmesg text.

The stream may be cut anywhere.  Whole blocks are scanned for a few literals first, at the speed of
bytes.find(); only lines that hold one, and the lines of a report that such a line began, are taken
apart.  Nothing here knows of guests: bytes go in, findings come out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.verdict.finding import Finding, unexpected
from harness.verdict.kinds import Kind
from harness.verdict.logline import LIMIT, Line, clean, messages, parse, rows
from harness.verdict.patterns import (
    ASKED_FOR,
    BANNER,
    BANNER_KEYS,
    CUT_HERE,
    END,
    END_KEY,
    Header,
)
from harness.verdict.reboot import Boot
from harness.verdict.scan import candidates
from harness.verdict.splat import RULED, Splat, header_of

__all__ = ["Classifier", "Finding", "Kind", "classify", "unexpected"]

#: An ended report's tail (registers again, modules) may still come within so many lines.
_TAIL = 120
#: Bytes of a report that are taken at once where no line of them holds a trigger.
_BULK = 4096
_PARTIAL = 64 << 10
_LOOK_BACK = 16 << 10
_BOOT_KEPT = 48 << 10
_EXPLAINED_WITHIN = 6000

_KERNEL_STAMP = re.compile(rb"(?:^|\n)[^\n]{0,60}\[ *\d+\.\d{6}\](?: |\[)")
_ANY_STAMP = re.compile(rb"\[ *(\d{1,9}\.\d{6})\]")


class Classifier:
    """Reads a stream piece by piece; ``feed`` returns the findings that are complete."""

    def __init__(self) -> None:
        self._partial = b""
        self._skipping = False  # within a line without an end, behind what is looked at
        self._line = 0
        self._stamped = False
        self._open: dict[str, Splat] = {}
        self._done: list[Finding] = []
        self._ended_at = -_TAIL
        self._tail = b""
        self._boots = 0
        self._first_boot = b""
        self._boot: Boot | None = None
        self._panicked = False  # since the last boot

    def feed(self, data: bytes) -> list[Finding]:
        """Take the next piece of the stream, cut anywhere."""
        if self._skipping:
            _, newline, data = data.partition(b"\n")
            if not newline:
                return []
            self._skipping = False
            data = b"\n" + data
        data = self._partial + data
        cut = data.rfind(b"\n") + 1
        block, self._partial = data[:cut], data[cut:]
        if len(self._partial) > _PARTIAL:
            self._partial, self._skipping = self._partial[:LIMIT], True
        if block:
            self._block(block)
        return self._take()

    def finish(self) -> list[Finding]:
        """End the stream: what is open is a finding, cut short or not."""
        if self._partial:
            self._block(self._partial + b"\n")
            self._partial = b""
        self._end_boot()
        for context in list(self._open):
            self._close(context, at_end=True)
        return self._take()

    def _take(self) -> list[Finding]:
        done, self._done = sorted(self._done, key=lambda f: f.first_line), []
        return done

    def _block(self, block: bytes) -> None:
        """Go through whole lines: fast where nothing is open, line by line where a report is."""
        if not self._stamped and _KERNEL_STAMP.search(block):
            self._stamped = True
        starts = candidates(block)
        position = 0
        index = 0
        while position < len(block):
            if not self._open and self._boot is None:
                while index < len(starts) and starts[index] < position:
                    index += 1
                if index == len(starts):
                    self._line += block.count(b"\n", position)
                    break
                self._line += block.count(b"\n", position, starts[index])
                position = starts[index]
            while index < len(starts) and starts[index] < position:
                index += 1
            stop = starts[index] if index < len(starts) else len(block)
            if position < stop:
                taken = self._bulk(block[position : min(stop, position + _BULK)])
                if taken:
                    position += taken
                    continue
            end = block.find(b"\n", position)
            self._line += 1
            raw = block[position:end]
            if index < len(starts) and starts[index] == position:
                self._candidate(raw, block, position)
            else:
                self._follow(parse(clean(raw.strip(b"\r"))))
            position = end + 1
        self._first_boot += block[: max(0, _BOOT_KEPT - len(self._first_boot))]
        self._tail = (self._tail + block[-_LOOK_BACK:])[-_LOOK_BACK:]

    def _bulk(self, piece: bytes) -> int:
        """Give lines without a trigger to the reports that are open; return the bytes taken.

        Returns 0 when the lines have to be looked at one by one.
        """
        reports = self._open.values()
        if self._boot is not None:
            return 0 if reports else self._boot_lines(self._boot, piece)
        if any(not report.steady for report in reports):
            return 0
        # No more lines than could end a report, so that it ends where it would line by line.
        room = min(report.room for report in reports)
        piece = piece[: piece.rfind(b"\n") + 1]
        if piece.count(b"\n") > room:
            piece = piece[: len(piece) - len(piece.split(b"\n", room)[-1])]
        if not piece:
            return 0
        found = rows(piece, stamped=self._stamped)
        if found is None or any(
            line.stamped != self._stamped for line in (r.line for r in reports)
        ):
            return 0
        if b"=====" in piece and any(report.kind in RULED for report in reports):
            return 0
        for context, report in list(self._open.items()):
            report.take(found, self._line)
            if report.complete:
                self._close(context)
        self._line += len(found)
        return len(piece)

    def _boot_lines(self, boot: Boot, piece: bytes) -> int:
        """Give lines to the boot that is being looked at; return the bytes taken."""
        lines = piece.split(b"\n", boot.room)[:-1]
        taken = sum(map(len, lines)) + len(lines)
        boot.take(piece[:taken], len(lines))
        self._line += len(lines)
        if boot.complete:
            self._end_boot()
        return taken

    # Headers

    def _candidate(self, raw: bytes, block: bytes, position: int) -> None:
        for line in messages(raw):
            if line.program:
                self._follow(line)
                continue
            if BANNER.match(line.text):
                archived = b" kernel: " in raw
                self._banner(line, block, position, archived=archived)
                continue
            found = header_of(line.text)
            if found is not None:
                self._begin(line, *found)
            elif CUT_HERE in line.text and line.text.startswith("---"):
                self._cut_here(line)
            else:
                self._follow(line)

    def _begin(self, line: Line, header: Header, match: re.Match[str]) -> None:
        report = self._open.get(line.caller)
        if report is not None and report.absorb(header, match, line, self._line):
            if report.ended:
                self._close(line.caller)
            return
        if report is not None:
            self._close(line.caller)
        self._pass_by(line)
        report = Splat.begun(self._line, line, header, match)
        # Where the kernel stamps its lines, one without a stamp is a program's until more follows.
        foreign = self._stamped and not line.stamped
        report.needs_proof = report.needs_proof or foreign or (header.common and not line.stamped)
        if header.one_line and not foreign:
            self._finish_report(report, at_end=False)
        else:
            self._open[line.caller] = report

    def _cut_here(self, line: Line) -> None:
        before = self._open.get(line.caller)
        if before is not None:
            if before.awaits_bug:
                self._follow(line)  # words, then this line, then BUG(): one report
                return
            self._close(line.caller)
        self._pass_by(line)
        report = Splat(self._line, line, needs_proof=True)
        report.add(line.text, self._line)
        report.confirmed = False
        self._open[line.caller] = report

    # Lines of a report

    def _follow(self, line: Line) -> None:
        """Give a line to the reports that it belongs to."""
        if self._boot is not None:
            self._boot.add(line)
            if self._boot.complete:
                self._end_boot()
        if not self._open:
            if END_KEY in line.text:
                self._orphan(line)
            return
        for context, report in list(self._open.items()):
            report.seen += 1
            if report.owns(line):
                report.add(line.text, self._line)
                if report.is_end(line.text):
                    self._close(context)
                    continue
            if report.complete:
                self._close(context)

    def _pass_by(self, line: Line) -> None:
        """Count a line that begins a report of its own for the others that are open."""
        for report in self._open.values():
            report.seen += 1
        if self._boot is not None:
            self._boot.add(line)
            if self._boot.complete:
                self._end_boot()

    def _orphan(self, line: Line) -> None:
        """Report the end of a trace whose beginning nobody saw."""
        if not END.match(line.text) or self._line - self._ended_at < _TAIL:
            return
        if self._stamped and not line.stamped:
            return
        self._ended_at = self._line
        panic = "Kernel panic" in line.text
        kind = Kind.PANIC if panic else Kind.OOPS
        self._done.append(
            Finding(
                kind=kind,
                title="end of a report without its start",
                severity=kind.severity,
                first_line=self._line,
                last_line=self._line,
                taint="",
                trace=(line.text,),
                corrupted=True,
            )
        )

    def _close(self, context: str, *, at_end: bool = False) -> None:
        self._finish_report(self._open.pop(context), at_end=at_end)

    def _finish_report(self, report: Splat, *, at_end: bool) -> None:
        finding = report.finding(at_end=at_end, log_is_stamped=self._stamped)
        if finding is not None:
            self._ended_at = self._line
            self._panicked = self._panicked or finding.kind is Kind.PANIC
            self._done.append(finding)

    # Boots

    def _banner(self, line: Line, block: bytes, position: int, *, archived: bool) -> None:
        """A kernel begins to boot: the first of the stream, asked for, or unexpected.

        It stands at ``position`` of the block that is being read.  A syslog is an archive of many
        boots, whose ends are rarely in it.
        """
        if self._boot is not None and self._boot.seen < 60:
            self._boot.add(line)
            return
        full = line.text.startswith(BANNER_KEYS[0])
        if full and self._stamped and not line.stamped:
            return
        words = [
            report
            for report in self._open.values()
            if report.kind is Kind.PANIC and not report.steady
        ]
        for context in list(self._open):
            self._close(context)
        before = block[max(0, position - _LOOK_BACK) : position]
        if position < _LOOK_BACK:
            before = (self._tail + before)[-_LOOK_BACK:]
        before = before[max(0, before.rfind(BANNER_KEYS[0].encode())) :]
        stamps = [float(stamp) for stamp in _ANY_STAMP.findall(before)[-200:]]
        again = any(stamps) or (self._boots > 0 and full)
        recent = before[-_EXPLAINED_WITHIN:]
        explained = self._panicked or archived or any(word in recent for word in ASKED_FOR)
        self._boots += full
        if not again:
            self._first_boot = b""
        elif not explained:
            known = self._first_boot + block[: min(position, _BOOT_KEPT)]
            self._boot = Boot(self._line, line, max(stamps, default=0.0), known[:_BOOT_KEPT])
            self._boot.words = words
        self._panicked = False

    def _end_boot(self) -> None:
        boot, self._boot = self._boot, None
        if boot is None or boot.is_a_copy():
            return
        # Words of a panic, then really a boot: they were true, and the boot is explained.
        for report in boot.words:
            self._finish_report(report, at_end=True)
        if not boot.words:
            self._done.append(boot.finding())


def classify(lines: Iterable[str]) -> list[Finding]:
    """Return the findings of a log given as lines, with or without line ends, in order."""
    classifier = Classifier()
    found: list[Finding] = []
    block: list[str] = []
    for line in lines:
        block.append(line.rstrip("\n"))
        if len(block) >= 4096:
            found += classifier.feed(_encode(block))
            block = []
    found += classifier.feed(_encode(block)) + classifier.finish()
    return sorted(found, key=lambda finding: finding.first_line)


def _encode(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
