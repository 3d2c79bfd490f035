"""A mutant: a kernel with one fault of our own, the tests that must find it, and whether they did.

``guest-images/kernel/mutants/mutants.toml`` has a table for each NAME.patch beside it.  Tests are
named by a row and by parts of their names: "L1 waits ext4" are the tests of L1 with both words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from harness.report.escape import one_line
from harness.report.record import TestRecord
from harness.report.results import write_json
from harness.toml_table import Table
from harness.verdict.expectation import row_id
from harness.verdict.status import Status

BOOK = "mutants.toml"
_SEEN = "seen.json"
#: What the rows of the catalogue need besides base; one configuration for all, so that a mutant
#: differs from the kernel before it in a few files only.
FRAGMENTS = ("iommufd", "gup_test")
_NAME = re.compile(r"[a-z][a-z0-9-]*")
_TESTS = re.compile(r"(?:[A-Z][0-9]{1,3}|[a-z][a-z0-9_]+)(?: [\w.\[\]-]+)*", re.ASCII)


@dataclass(frozen=True)
class Claim:
    """Some tests that must fail, and for what reason."""

    tests: str
    reason: re.Pattern[str]  # in the message, or in the title of a finding


@dataclass(frozen=True)
class Mutant:
    """One patch, and what it does to the catalogue."""

    name: str
    title: str
    undoes: str  # the commit of a report that the harness started from, where it is one
    patch: Path
    fragments: tuple[str, ...]
    fails: tuple[Claim, ...]
    passes: tuple[str, ...]  # neighbours: run with the others, and as good as without the patch
    also: tuple[str, ...]  # fail too, but are not run for it: they take long, or say no more

    @property
    def groups(self) -> str:
        """The groups of the catalogue that must find it."""
        rows = [claim.tests.split()[0] for claim in self.fails]
        return "".join(dict.fromkeys(row[0] for row in rows if row[0].isupper()))

    @property
    def selections(self) -> tuple[str, ...]:
        """The expressions that select what is run for it, as nvh test -k takes them."""
        named = [*(claim.tests for claim in self.fails), *self.passes]
        return tuple(dict.fromkeys(expression(tests) for tests in named))

    def called(self, word: str) -> bool:
        """Whether a user's word means it: a part of its name, a group or a row."""
        rows = [claim.tests.split()[0] for claim in self.fails]
        return word in self.name or word.upper() in self.groups or word.upper() in rows


def expression(tests: str) -> str:
    """Return what selects at least the tests called so."""
    row, *words = tests.split()
    # V1 is in V17 as well; test_v1_ is not.
    first = f"test_{row.lower()}_" if row[0].isupper() else row
    return " and ".join([first, *words])


def are(tests: str, nodeid: str) -> bool:
    """Whether a test is one of those called so."""
    row, *words = tests.split()
    return row_id(nodeid) == row and all(word in short(nodeid) for word in words)


def load(folder: Path) -> tuple[Mutant, ...]:
    """Read every mutant; SpecError names file, line, table and key."""
    whole = Table.load(folder / BOOK)
    found = [_read(whole, name, folder) for name in whole.names()]
    for patch in sorted(folder.glob("*.patch")):
        if patch.stem not in {mutant.name for mutant in found}:
            raise whole.error(patch.stem, f"is missing: there is a {patch.name}")
    return tuple(found)


def _read(whole: Table, name: str, folder: Path) -> Mutant:
    table = whole.table(name)
    if table is None or not _NAME.fullmatch(name):
        raise whole.error(name, "is no table of a mutant's name (a-z, 0-9, -)")
    fails = table.mapping("fails")
    mutant = Mutant(
        name=name,
        title=table.string("title"),
        undoes=table.string("undoes", ""),
        patch=folder / f"{name}.patch",
        fragments=(*FRAGMENTS, *table.strings("config")),
        fails=tuple(_claim(table, tests, reason) for tests, reason in fails.items()),
        passes=tuple(_named(table, "passes", tests) for tests in table.strings("passes")),
        also=tuple(_named(table, "also", tests) for tests in table.strings("also")),
    )
    table.done()
    if not mutant.fails:
        raise table.error("fails", "names no test that must fail")
    if not mutant.passes:
        raise table.error("passes", "names no neighbour that must pass")
    if not mutant.patch.is_file():
        raise table.error("patch", f"there is no {mutant.patch.name} beside {BOOK}")
    return mutant


def _claim(table: Table, tests: str, reason: object) -> Claim:
    _named(table, "fails", tests)
    try:
        if not isinstance(reason, str) or not reason:
            raise re.error("is none")
        return Claim(tests, re.compile(reason))
    except re.error as error:
        raise table.error("fails", f"{tests!r}: {reason!r} as an expression {error}") from error


def _named(table: Table, key: str, tests: str) -> str:
    if not _TESTS.fullmatch(tests):
        raise table.error(key, f"{tests!r} is no row with parts of its tests' names")
    return tests


@dataclass(frozen=True)
class Seen:
    """What a run said of one test."""

    status: Status
    known: str  # the known issue that explains a failure
    reasons: tuple[str, ...]  # the message first, then titles of what the kernel complained of

    @property
    def word(self) -> str:
        """The verdict, with a known failure told apart."""
        return f"KNOWN ({self.known})" if self.known else self.status.value

    @property
    def first(self) -> str:
        """Why it did not pass, on one line."""
        return one_line(self.reasons[0], 160) if self.reasons else ""

    @classmethod
    def of(cls, record: TestRecord) -> Seen:
        """Return what counts of a test's record."""
        titles = [str(finding.get("title", "")) for finding in record.findings]
        reasons = tuple(one_line(text, 500) for text in (record.message, *titles) if text)
        return cls(record.status, record.known, reasons)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Seen:
        """Return what ``to_json`` gave."""
        reasons = tuple(str(reason) for reason in values["reasons"])
        return cls(Status(values["status"]), str(values["known"]), reasons)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {"status": self.status.value, "known": self.known, "reasons": list(self.reasons)}


@dataclass(frozen=True)
class Outcome:
    """What was seen of a kernel."""

    key: str  # the hash of all that decides on it
    seconds: float
    about: Mapping[str, str]  # properties of the run
    selections: tuple[str, ...]  # what was run, as expressions of nvh test -k
    tests: Mapping[str, Seen]

    @property
    def unjudged(self) -> tuple[str, ...]:
        """The tests that could not be judged, by function: they are tried anew."""
        lost = (Status.MISS, Status.ERROR)
        names = [short(test) for test, one in self.tests.items() if one.status in lost]
        return tuple(dict.fromkeys(name.partition("[")[0] for name in names))

    def with_run(self, other: Outcome) -> Outcome:
        """Return it with what a further run has seen."""
        return Outcome(
            other.key,
            self.seconds + other.seconds,
            other.about,
            tuple(dict.fromkeys((*self.selections, *other.selections))),
            {**self.tests, **other.tests},
        )

    def save(self, folder: Path) -> None:
        """Write it into the folder of its runs."""
        tests = {test: one.to_json() for test, one in self.tests.items()}
        write_json(folder / _SEEN, {**self.__dict__, "tests": tests})

    @classmethod
    def load(cls, folder: Path, key: str) -> Outcome:
        """Return what was seen of just this, by any number of runs; nothing else counts."""
        try:
            values = json.loads((folder / _SEEN).read_text(encoding="utf-8"))
            tests = {str(test): Seen.from_json(one) for test, one in values["tests"].items()}
            selections = tuple(str(one) for one in values["selections"])
            found = cls(
                str(values["key"]), float(values["seconds"]), values["about"], selections, tests
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            found = None
        return found if found and found.key == key else cls(key, 0.0, {}, (), {})


class Verdict(Enum):
    """What became of a mutant; the first that fits."""

    UNTESTED = "not tested"
    MISSED = "missed"
    REASON = "found for another reason"
    ELSEWHERE = "differs elsewhere too"
    FOUND = "found"


@dataclass(frozen=True)
class Judgement:
    """A mutant's verdict, and what is wrong with it or with the catalogue."""

    verdict: Verdict
    problems: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]  # tests that failed anew, and why


def untested(why: str) -> Judgement:
    """Return the verdict on a mutant that could not be tested at all."""
    return Judgement(Verdict.UNTESTED, (one_line(why, 500),), ())


def judge(mutant: Mutant, seen: Mapping[str, Seen], unpatched: Mapping[str, Seen]) -> Judgement:
    """Compare what a mutant did to the tests with what is claimed of it.

    ``unpatched`` has the same tests on the kernel without the patch.
    """
    complaints: list[tuple[Verdict, str]] = []
    claimed: set[str] = set()
    for claim in mutant.fails:
        tests = [test for test in seen if are(claim.tests, test)]
        claimed.update(tests)
        if not tests:
            complaints.append((Verdict.UNTESTED, f"no test of {claim.tests} was run"))
        for test in tests:
            complaints += _failing(test, claim, seen[test], unpatched.get(test))
    for near in mutant.passes:
        if not any(are(near, test) and one.status is Status.PASS for test, one in seen.items()):
            complaints.append((Verdict.UNTESTED, f"no test of {near} passed"))
    for test, one in seen.items():
        may_fail = any(are(tests, test) for tests in mutant.also)
        must_pass = any(are(tests, test) for tests in mutant.passes)
        if test not in claimed and (must_pass or not may_fail):
            complaints += _passing(test, one, unpatched.get(test))
    failed = [
        (short(test), one.first)
        for test, one in seen.items()
        if one.status is Status.FAIL and not one.known
    ]
    order = list(Verdict)
    complaints.sort(key=lambda complaint: order.index(complaint[0]))
    verdict = complaints[0][0] if complaints else Verdict.FOUND
    return Judgement(verdict, tuple(text for _, text in complaints), tuple(failed))


def _failing(
    test: str, claim: Claim, one: Seen, before: Seen | None
) -> Iterable[tuple[Verdict, str]]:
    name = short(test)
    if before is None or not (before.status is Status.PASS or before.known):
        word = "was not run" if before is None else f"is {before.word}: {before.first}"
        yield Verdict.UNTESTED, f"{name}: without the patch it {word}"
    elif one.status is Status.PASS or one.known:
        yield Verdict.MISSED, f"{name} is {one.word}"
    elif one.status is not Status.FAIL:
        yield Verdict.UNTESTED, f"{name} is {one.word}: {one.first}"
    elif not any(claim.reason.search(reason) for reason in one.reasons):
        yield Verdict.REASON, f"{name} fails, but not with {claim.reason.pattern!r}: {one.first}"


def _passing(test: str, one: Seen, before: Seen | None) -> Iterable[tuple[Verdict, str]]:
    name = short(test)
    if before is None:
        yield Verdict.UNTESTED, f"{name}: without the patch it was not run"
    elif before.status is Status.FAIL and not before.known:
        yield Verdict.UNTESTED, f"{name}: without the patch it is {before.word}: {before.first}"
    elif one.word != before.word:
        judged = one.status in (Status.FAIL, Status.PASS)
        kind = Verdict.ELSEWHERE if judged else Verdict.UNTESTED
        why = f": {one.first}" if one.first else ""
        yield kind, f"{name} is {one.word}, without the patch {before.word}{why}"


def short(nodeid: str) -> str:
    """Return a test's name without its file."""
    return nodeid.partition("::")[2] or nodeid


def chosen(mutants: Sequence[Mutant], words: str) -> list[Mutant]:
    """Return the mutants that a user names, in words with commas or spaces between them."""
    asked = words.replace(",", " ").split()
    return [one for one in mutants if not asked or any(one.called(word) for word in asked)]
