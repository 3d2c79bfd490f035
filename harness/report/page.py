"""What a report's page shows: the runs, each of their tests, and where it leads to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.report import timeline
from harness.report.escape import one_line, slug, tail
from harness.report.excerpts import Piece, WorkloadRun, commands, pieces, workload_runs
from harness.report.record import TestRecord, boot_findings
from harness.report.table import counted
from harness.verdict.known import KnownIssue
from harness.verdict.status import Status

#: From the worst on.
WORDS = ("FAIL", "ERROR", "MISS", "KNOWN", "SKIP", "DONE", "PASS")
#: Characters of all tests' excerpts in one page, and of one test's: 2,000 tests are still a page.
_BUDGET = 4 << 20
_SHARE = (1200, 16000)
#: From so many tests on, what passed keeps to what was compared: the rest is in its folder.
_MANY = 1200
#: Characters of one value, and values of one test.
_VALUE = 600
_MOST_FACTS = 60
_MOST_FRAMES = 40


@dataclass(frozen=True)
class Stack:
    """Where somebody waited."""

    what: str
    frames: tuple[str, ...]


@dataclass(frozen=True)
class RunInfo:
    """A run, or a kernel of a matrix that never became one."""

    label: str  # short, for a column; "" of the only one
    kernel: str
    properties: Mapping[str, str] = field(default_factory=dict)
    started: str = ""
    seconds: float | None = None
    finished: bool = True
    folder: Path | None = None  # on this host
    href: str = ""  # of the folder, relative to the page's, "" or with a slash at its end
    problem: str = ""  # why there is no verdict, or none on all


class TestView:
    """One test of one run, as the page shows it; all of it is a guest's word until escaped."""

    __test__ = False  # not a class of tests, whatever pytest thinks of its name

    def __init__(
        self,
        record: TestRecord,
        run: RunInfo,
        *,
        of: int = 1,
        again: str = "",
        issue: KnownIssue | None = None,
    ) -> None:
        """Take a record; ``of`` is the number of all tests of the page."""
        self.record = record
        self.run = run
        self.word = record.word
        self.name = one_line(record.name, 160)
        self.row = one_line(record.row or "other", 80)
        self.title = one_line(record.title, 200)
        self.anchor = (
            f"{slug(run.label)}:{slug(record.nodeid)}" if run.label else slug(record.nodeid)
        )
        self.again = again
        self.issue = issue
        self.told = record.seen
        self.seconds = timeline.seconds(record.seconds)
        self.good = record.status.good
        share = max(_SHARE[0], min(_SHARE[1], _BUDGET // max(1, of)))
        self._share = min(share, _SHARE[0]) if self.good else share
        self._brief = of >= _MANY and (self.good or record.status is Status.SKIP)

    @property
    def expectations(self) -> list[tuple[str, str, str, bool]]:
        """What was compared: what, expected, seen, whether that is right."""
        return [
            (
                one_line(str(item.get("what", "")), 120),
                _value(item.get("expected")),
                _value(item.get("seen")),
                bool(item.get("ok")),
            )
            for item in self.record.expectations[:_MOST_FACTS]
        ]

    @property
    def sources(self) -> list[str]:
        """Who says what is right, each once."""
        found = (str(item.get("source", "")) for item in self.record.expectations)
        return [one_line(source, 500) for source in dict.fromkeys(found) if source]

    @property
    def proofs(self) -> list[tuple[str, str, bool]]:
        """What was proven before: what, by which value, whether it was."""
        return [
            (
                one_line(str(item.get("what", "")), 200),
                _value(item.get("seen")),
                bool(item["proven"]),
            )
            for item in self.record.proofs[:_MOST_FACTS]
            if "proven" in item
        ]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What was observed and not judged."""
        if self._brief:
            return []
        shown = {key: value for key, value in self.record.facts.items() if key != "guest"}
        limit = max(80, min(_VALUE, self._share // 4))
        return [
            (one_line(key, 120), _value(value, limit))
            for key, value in list(shown.items())[:_MOST_FACTS]
            if not key.endswith("stack") and value not in ("", None)
        ]

    @property
    def guest(self) -> list[tuple[str, str]]:
        """What was proven about the guest; of a test that passed it is the run's."""
        facts = self.record.facts.get("guest")
        if self.good or not isinstance(facts, Mapping):
            return []
        return [
            (one_line(str(key), 60), _value(value, 300))
            for key, value in list(facts.items())[:_MOST_FACTS]
            if value not in ("", None, [], {}) and not str(key).endswith("_seconds")
        ]

    @cached_property
    def _runs(self) -> list[WorkloadRun]:
        return list(workload_runs(str(self.record.excerpts.get("output", ""))))

    @property
    def charts(self) -> list[timeline.Chart]:
        """The time lines."""
        return [] if self._brief else timeline.charts(self.record, self._runs)

    @property
    def commands(self) -> list[str]:
        """The workloads as the guest was told to run them."""
        if self._brief:
            return []
        output = str(self.record.excerpts.get("output", ""))
        return [one_line(command, 400) for command in commands(output, 12)]

    @property
    def stacks(self) -> list[Stack]:
        """Where the kernel had whoever waited."""
        if self._brief:
            return []
        found = []
        facts: dict[str, Any] = {}
        for part in (*(run.facts for run in self._runs), self.record.facts):
            facts.update(part)
        for key, value in facts.items():
            if key.endswith("stack") and isinstance(value, str) and value.strip():
                where = facts.get(f"{key.removesuffix('stack')}waits_in") or facts.get("wchan")
                what = f"waits in {where}" if where else key
                frames = value.split("\n") if "\n" in value else value.split()
                found.append(Stack(one_line(what, 120), _frames(frames)))
        if kept := str(self.record.excerpts.get("stacks", "")).strip():
            found.append(Stack("processes that were stuck", _frames(kept.splitlines())))
        return found[:4]

    @property
    def findings(self) -> list[str]:
        """What the kernel complained of, the same words once."""
        titles = Counter(
            one_line(f"{item.get('kind')}: {item.get('title')}", 300)
            for item in self.record.findings
        )
        return [
            title if count == 1 else f"{title} ({count} times)"
            for title, count in list(titles.items())[:20]
        ]

    @property
    def logs(self) -> list[tuple[str, list[Piece]]]:
        """What the kernel's log, the console and the workloads said, where it did not pass."""
        if self.good:
            return []
        excerpts, findings = self.record.excerpts, self.record.findings
        dmesg = str(excerpts.get("dmesg", ""))
        console = self._file("console.log")
        found = [("kernel's log", pieces(dmesg, findings, self._share))]
        if console.strip() and not _within(console, dmesg):
            found.append(("console", pieces(console, findings, self._share // 2)))
        output = tail(str(excerpts.get("output", "")), self._share // 2).rstrip()
        found.append(("output", [Piece(False, output)] if output else []))
        return [(name, parts) for name, parts in found if parts]

    def _file(self, name: str, limit: int = 1 << 20) -> str:
        if self.run.folder is None:
            return ""
        try:
            with (self.run.folder / self.record.folder / name).open("rb") as file:
                return file.read(limit).decode("utf-8", "replace")
        except OSError:
            return ""

    @property
    def links(self) -> list[tuple[str, str]]:
        """What lies beside the page: its words and where."""
        if self.run.folder is None:
            return []
        folder, bundle = self.record.folder, self.record.bundle
        found = []
        if (self.run.folder / folder).is_dir():
            found.append((f"{folder}/", f"{self.run.href}{quote(folder)}/"))
        if not self.good and (self.run.folder / bundle).is_file():
            found.append((bundle, f"{self.run.href}{quote(bundle)}"))
        return found

    def tell(self, keys: Sequence[str]) -> tuple[str, str]:
        """Return what a table's cell says of it: what was seen, and of what."""
        wrong = [item for item in self.record.expectations if not item.get("ok")]
        if wrong:
            item = wrong[0]
            seen, right = _value(item.get("seen"), 60), _value(item.get("expected"), 60)
            return f"{seen}, not {right}", one_line(str(item.get("what")), 60)
        told = {str(item.get("what")): item for item in self.record.expectations}
        key = next((key for key in keys if key in told), next(iter(told), ""))
        return (_value(told[key].get("seen"), 60), one_line(key, 60)) if key else ("", "")


@dataclass(frozen=True)
class RunView:
    """A run with its tests in the catalogue's order."""

    info: RunInfo
    tests: tuple[TestView, ...]

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many tests ended with which word, the worst first, without those that nobody met."""
        found = Counter(test.word for test in self.tests)
        return {word: found[word] for word in WORDS if found[word]}

    def having(self, *words: str) -> list[TestView]:
        """Return the tests that ended so."""
        return [test for test in self.tests if test.word in words]

    @property
    def fixed(self) -> list[tuple[str, list[TestView]]]:
        """The known issues that did not show where they were expected."""
        found: dict[str, list[TestView]] = {}
        for test in self.tests:
            for issue in test.record.fixed:
                found.setdefault(issue, []).append(test)
        return sorted(found.items())

    @property
    def while_booting(self) -> list[str]:
        """What the kernel complained of before any test."""
        return boot_findings(test.record for test in self.tests)

    @property
    def word(self) -> str:
        """The run in one word."""
        if any(word in self.counts for word in ("FAIL",)):
            return "FAIL"
        if self.info.problem or not set(self.counts) - {"SKIP", "MISS", "ERROR"}:
            return "MISS"
        if {"ERROR", "MISS"} & set(self.counts):
            return "MISS"
        return "KNOWN" if "KNOWN" in self.counts else "PASS"

    @property
    def answer(self) -> str:
        """This kernel's verdict in a sentence."""
        count, judged = self.counts, sum(self.counts.values()) - self.counts.get("SKIP", 0)
        reasons = counted(len({test.record.known for test in self.having("KNOWN")}), "reason")
        fails, known = count.get("FAIL", 0), count.get("KNOWN", 0)
        untold = count.get("ERROR", 0) + count.get("MISS", 0)
        if not self.tests:
            return "Nothing is known of this kernel: no test ran."
        if fails:
            first = self.having("FAIL")[0]
            said = f"This kernel does something wrong: {counted(fails)} of {judged} fail"
            said += "s" if fails == 1 else ""
            said += f" for a reason that is not known yet, {first.row} first."
        elif judged == untold:
            said = "Nothing is known of this kernel: no test came to a verdict."
        elif untold:
            said = f"No{' new' * bool(known)} fault was found, "
            said += f"but {counted(untold)} of {judged} could not be judged."
        elif known:
            said = (
                f"Nothing new: {count.get('PASS', 0) + count.get('DONE', 0)} of {counted(judged)} "
                f"pass, {known} fail{'s' if known == 1 else ''} for "
                f"{reasons} already known."
            )
        else:
            said = f"This kernel does what is right in {'all ' * (judged > 1)}{counted(judged)}."
        if known and (fails or 0 < untold < judged):
            said += (
                f" {counted(known)} fail{'s' if known == 1 else ''} for {reasons} already known."
            )
        skipped = count.get("SKIP", 0)
        if skipped:
            said += f" {counted(skipped)} {'was' if skipped == 1 else 'were'} skipped."
        return said


def run_view(
    info: RunInfo,
    records: Iterable[TestRecord],
    *,
    again: Mapping[str, str],
    issues: Mapping[str, KnownIssue],
    of: int,
) -> RunView:
    """Return a run's view; ``of`` is the number of all tests of the page."""
    return RunView(
        info,
        tuple(
            TestView(
                record,
                info,
                of=of,
                again=again.get(record.nodeid, ""),
                issue=issues.get(record.known),
            )
            for record in records
        ),
    )


def _value(value: Any, limit: int = 200) -> str:
    if isinstance(value, Mapping) and value:
        text = ", ".join(f"{key}={_value(item, 120)}" for key, item in list(value.items())[:80])
        return one_line(text, limit)
    text = value if isinstance(value, str) else json.dumps(value, default=repr)
    return one_line(text or '""', limit)


def _frames(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(one_line(line, 160) for line in list(lines)[:_MOST_FRAMES])


def _within(console: str, dmesg: str) -> bool:
    """Whether a console says nothing that the kernel's log does not."""
    known = {line.rstrip() for line in dmesg.splitlines()}
    return all(line.rstrip() in known for line in console.splitlines() if line.strip())
