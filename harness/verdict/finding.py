"""A fault that the kernel reported, and which of them a test has declared."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.verdict.kinds import Kind, Severity


@dataclass(frozen=True)
class Finding:
    """A fault that the kernel reported."""

    kind: Kind
    title: str  # with function and file where the report names them; the same for the same fault
    severity: Severity
    first_line: int  # counted from 1
    last_line: int
    taint: str  # the letters, "" when not tainted or not said
    trace: tuple[str, ...]  # the whole report, cleaned
    corrupted: bool  # its start or its call trace is missing

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "kind": self.kind.value,
            "title": self.title,
            "severity": self.severity.value,
            "line": self.first_line,
            "last_line": self.last_line,
            "taint": self.taint,
            "corrupted": self.corrupted,
            "trace": list(self.trace),
        }


def unexpected(findings: Iterable[Finding], allowed: Sequence[str]) -> list[Finding]:
    """Return the findings that no pattern allows.

    ``allowed`` are regular expressions, looked for in a finding's title and in its first line.
    """
    patterns = [re.compile(pattern) for pattern in allowed]
    return [
        finding
        for finding in findings
        if not any(
            pattern.search(finding.title) or any(map(pattern.search, finding.trace[:1]))
            for pattern in patterns
        )
    ]
