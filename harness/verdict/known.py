"""Known issues: rows that a kernel is known to fail, and what the failure looks like there.

A known issue explains one failure of one test on a range of kernels.  Another symptom is a new
failure, and a known issue that no longer shows is told, so that the list stays true.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.toml_table import Table

_CONDITION = re.compile(r"(<=|>=|<|>)\s*(\d+(?:\.\d+)*)")


@dataclass(frozen=True)
class KnownIssue:
    """Why a kernel fails some tests, and how that shows."""

    id: str
    title: str
    tests: tuple[str, ...]  # patterns of test names, as of the shell
    kernels: tuple[str, ...]  # conditions that all hold: ">=6.1", "<6.15"
    symptom: re.Pattern[str]  # of each mismatch, message or finding's title of the failure
    requires: re.Pattern[str] | None  # of one of them at least: without it the others are new
    evidence: str
    link: str

    def concerns(self, test: str, release: str) -> bool:
        """Whether it may show in a test on a kernel."""
        return any(fnmatch.fnmatchcase(test, pattern) for pattern in self.tests) and all(
            holds(condition, release) for condition in self.kernels
        )

    def explains(self, symptoms: Sequence[str]) -> bool:
        """Whether these symptoms, all that a failure has, are its own."""
        return (
            bool(symptoms)
            and all(self.symptom.search(symptom) for symptom in symptoms)
            and (self.requires is None or any(map(self.requires.search, symptoms)))
        )


class KnownIssues:
    """All of them."""

    def __init__(self, issues: Iterable[KnownIssue] = ()) -> None:
        self._issues = tuple(issues)

    @classmethod
    def load(cls, file: Path) -> KnownIssues:
        """Read testcases/known-issues.toml; SpecError names file, table and key."""
        root = Table.load(file)
        issues = [_read(table) for table in root.tables("issue")]
        root.done()
        return cls(issues)

    def __iter__(self) -> Iterator[KnownIssue]:
        return iter(self._issues)

    def expected(self, test: str, release: str) -> tuple[KnownIssue, ...]:
        """Return what should show in a test (its name with parameters) on a kernel."""
        return tuple(issue for issue in self._issues if issue.concerns(test, release))

    def explain(self, test: str, release: str, symptoms: Iterable[str]) -> KnownIssue | None:
        """Return the known issue that explains every symptom of a failure, None for a new one."""
        seen = [symptom for symptom in symptoms if symptom]
        for issue in self.expected(test, release):
            if issue.explains(seen):
                return issue
        return None


def version(release: str) -> tuple[int, ...]:
    """Return the numbers that a release starts with: (6, 12, 117) of 6.12.117+deb12-amd64."""
    match = re.match(r"\d+(?:\.\d+)*", release)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def check_conditions(table: Table, key: str) -> tuple[str, ...]:
    """Take a list of conditions on a kernel's release from a table."""
    conditions = table.strings(key)
    for condition in conditions:
        if not _CONDITION.fullmatch(condition):
            raise table.error(key, f"{condition!r} is not a condition such as '<6.15'")
    return conditions


def holds(condition: str, release: str) -> bool:
    """Whether a kernel fulfils a condition such as '<6.15' that has been checked."""
    match = _CONDITION.fullmatch(condition)
    assert match is not None  # checked when it was read
    have, bound = version(release), version(match[2])
    # 6.12.117 is neither above nor below 6.12: it is 6.12.
    have = have[: len(bound)]
    return {"<": have < bound, "<=": have <= bound, ">": have > bound, ">=": have >= bound}[
        match[1]
    ]


def _read(table: Table) -> KnownIssue:
    symptom, requires = _pattern(table, "symptom"), _pattern(table, "requires", "")
    kernels = check_conditions(table, "kernels")
    issue = KnownIssue(
        id=table.string("id"),
        title=table.string("title"),
        tests=table.strings("tests"),
        kernels=kernels,
        symptom=symptom,
        requires=requires if requires.pattern else None,
        evidence=table.string("evidence"),
        link=table.string("link", ""),
    )
    table.done()
    if not issue.tests:
        raise table.error("tests", "is missing: which tests does it explain?")
    return issue


def _pattern(table: Table, key: str, *otherwise: str) -> re.Pattern[str]:
    try:
        return re.compile(table.string(key, *otherwise))
    except re.error as error:
        raise table.error(key, f"is no regular expression: {error}") from error
