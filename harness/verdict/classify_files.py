"""Classify log files for the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

from harness.errors import EXIT_FAILED, EXIT_OK, UsageError
from harness.verdict.classifier import Classifier, Finding

_BLOCK = 1 << 20


def findings_of(stream: BinaryIO) -> list[Finding]:
    """Return what a log holds, in order."""
    classifier = Classifier()
    found: list[Finding] = []
    while block := stream.read(_BLOCK):
        found += classifier.feed(block)
    return sorted(found + classifier.finish(), key=lambda finding: finding.first_line)


def classify_files(
    names: Sequence[str], *, as_json: bool = False, out: TextIO | None = None
) -> int:
    """Print what each file holds ("-" is standard input); return 1 where there is a finding.

    Each file gives one JSON object on a line, or one plain line for each finding.  Raises
    UsageError when a file cannot be read.
    """
    out = out or sys.stdout
    code = EXIT_OK
    for name, found in _each(names):
        code = EXIT_FAILED if found else code
        if as_json:
            # ASCII only: nothing that a guest printed can reach the terminal.
            print(json.dumps({"file": name, "findings": [f.as_dict() for f in found]}), file=out)
            continue
        for finding in found:
            mark = " (corrupted)" if finding.corrupted else ""
            line = f"{name}:{finding.first_line}: {finding.kind}: {finding.title}{mark}"
            print(_ascii(line), file=out)
        if not found:
            print(_ascii(f"{name}: no finding"), file=out)
    return code


def _each(names: Sequence[str]) -> Iterator[tuple[str, list[Finding]]]:
    for name in names:
        if name == "-" and sys.stdin is None:  # Python's word for one that is closed
            raise UsageError("-: standard input is closed", hint="give it a log, or name a FILE")
        try:
            if name == "-":
                found = findings_of(sys.stdin.buffer)
            elif name:
                with Path(name).open("rb") as file:
                    found = findings_of(file)
            else:  # Path("") is here
                raise UsageError("a FILE without a name", hint="- is standard input")
        except OSError as error:
            raise UsageError(f"{name}: {error.strerror}") from error
        yield name, found


def _ascii(text: str) -> str:
    """Return text that no terminal obeys: logs and their names are a stranger's."""
    return "".join(c if c.isprintable() else "?" for c in text).encode("ascii", "replace").decode()
