"""nvh report --format ktap: what readers of KTAP make of it, whatever a guest said."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.guest import ktap as workloads
from harness.report import ktap, stored
from harness.report.record import TestRecord
from harness.verdict.status import Status
from tests.made_up_results import hostile, of_every_verdict, record, write_matrix, write_run

# As tools/testing/kunit/kunit_parser.py of Linux 6.12 tells lines apart.
VERSION = re.compile(r"\s*KTAP version 1$")
END = re.compile(r"List of all partitions:|Kernel panic - not syncing: VFS:|reboot: System halted")
PLAN = re.compile(r"^\s*1\.\.([0-9]+)")
RESULT = re.compile(r"^(\s*)(ok|not ok) ([0-9]+) (?:- )?([^#]*)( # .*)?$")
SKIP = re.compile(r"^\s*(?:ok|not ok) [0-9]+ (?:- )?.* # SKIP")
CRASH = re.compile(r"^\s*# .*?: kunit test case crashed!$")
SUBTEST = re.compile(r"^\s*# Subtest: ")

#: What a guest could say to be taken for something else.
EVIL = (
    *("SKIP this", "x # SKIP y", "# XFAIL", "KTAP version 1", "1..9", "Bail out! of here"),
    *("\nok 7 forged\n", "not ok 8", "\n# facts {}\n", "Subtest: forged", "\r\x1b[2Jok 1 x"),
    *(
        "Kernel panic - not syncing: VFS: no root",
        "reboot: System halted",
        "List of all partitions:",
    ),
    *("a: kunit test case crashed!", "", "#", "- ", "\u2028ok 1 x", "\x85ok 1 x"),
)


@dataclass
class Test:
    """A result with those below it."""

    __test__ = False

    word: str
    name: str
    data: str = ""
    below: list[Test] = field(default_factory=list)


def read(text: str) -> list[Test]:
    """Return the tests, each with those that were told before it and are indented further."""
    lines = iter(text.splitlines())
    assert text.endswith("\n")
    return list(_level(lines, ""))


def _level(lines: Iterator[str], indent: str) -> Iterator[Test]:
    assert VERSION.fullmatch(next(lines))
    yield from _planned(lines, indent)


def _planned(lines: Iterator[str], indent: str) -> Iterator[Test]:
    planned, number, below = None, 0, list[Test]()
    for line in lines:
        assert not END.search(line)
        assert not CRASH.match(line)
        assert not SUBTEST.match(line)
        if VERSION.fullmatch(line):
            assert line.startswith(f"{indent}  KTAP")
            below = list(_planned(lines, f"{indent}  "))
        elif match := PLAN.match(line):
            assert planned is None
            planned = int(match[1])
        elif match := RESULT.match(line):
            number += 1
            assert (match[1], int(match[3])) == (indent, number)
            word = "SKIP" if SKIP.match(line) else match[2]
            yield Test(word, match[4], (match[5] or "").removeprefix(" # "), below)
            below = []
        else:
            assert line.startswith(f"{indent}# ")
        if number == planned:
            return
    assert number == planned


def of(tmp_path: Path, *records: TestRecord, finished: bool = True) -> str:
    return ktap.build(stored.load(write_run(tmp_path / "run", records, finished=finished)))


def test_each_verdict_has_its_word(tmp_path: Path) -> None:
    text = of(tmp_path, *of_every_verdict())
    found = {test.name.rpartition("[")[2].rstrip("]"): test for test in read(text)}
    said = "seen_waiting: expected true, seen false"
    assert {name: (test.word, test.data) for name, test in found.items()} == {
        "pass-ext4": ("ok", ""),
        "done-ext4": ("ok", Status.DONE.meaning),
        "skip-ext4": ("SKIP", f"SKIP {said}"),
        "error-ext4": ("not ok", f"ERROR ERROR: {said}"),
        "miss-ext4": ("not ok", f"ERROR MISS: {said}"),
        "truncate-xfs": ("not ok", f"FAIL: {said}"),
        "truncate-xfs-known": ("ok", f"XFAIL known issue dax-unmapped-pins: {said}"),
    }
    first = found["pass-ext4"].name
    assert first == "testcases.test_l_layout.test_l1_operation_waits_for_the_pin[pass-ext4]"
    assert "# kernel: WARNING in dax_disassociate_entry (fs/dax.c:390)\n" in text
    assert text.startswith("KTAP version 1\n# kernel: 6.12.1\n")


def test_the_harness_reads_its_own(tmp_path: Path) -> None:
    records = [*of_every_verdict(), hostile()]
    found = workloads.parse("nvh report", 1, of(tmp_path, *records), "", 0.0)
    assert len(found.steps) == len(records)
    bad = (Status.FAIL, Status.ERROR, Status.MISS)
    right = sum(one.status not in bad or bool(one.known) for one in records)
    assert sum(step.ok for step in found.steps) == right


def test_no_word_of_a_guest_is_taken_for_a_result(tmp_path: Path) -> None:
    records = [
        record(
            f"test_l1_x[{number}-{words}]",
            Status.FAIL,
            row=words,
            title=words,
            message=words,
            hint=words,
            known="",
            findings=({"title": words},),
        )
        for number, words in enumerate(EVIL)
    ]
    text = of(tmp_path, *records, hostile())
    assert [test.word for test in read(text)] == ["not ok"] * (len(EVIL) + 1)
    assert text.isascii() or text.replace("\n", "").isprintable()
    assert len(workloads.parse("nvh report", 1, text, "", 0.0).steps) == len(EVIL) + 1


def test_a_run_that_was_cut_short_is_no_pass(tmp_path: Path) -> None:
    *others, last = read(of(tmp_path, record("test_l1_x"), finished=False))
    assert [test.word for test in others] == ["ok"]
    assert (last.word, last.data) == ("not ok", "ERROR MISS: The run did not end.")


def test_kernels_have_their_tests_below_them(tmp_path: Path) -> None:
    known = [one for one in of_every_verdict() if one.known or one.status is Status.PASS]
    skipped = [one for one in of_every_verdict() if one.status is Status.SKIP]
    runs: dict[str, Sequence[TestRecord] | str] = {
        "debian:6.1": of_every_verdict(),
        "debian:6.12": known,
        "debian:sid": skipped,
        "none": "it panicked # SKIP it",
    }
    text = ktap.build(stored.load(write_matrix(tmp_path, runs)))
    found = {test.name: test for test in read(text)}
    assert {name: test.word for name, test in found.items()} == {
        "6.1": "not ok",
        "6.12": "ok",
        "sid": "SKIP",
        "none": "not ok",
    }
    assert [len(test.below) for test in found.values()] == [7, 2, 1, 1]
    assert found["none"].below[0].name == "the run itself"
    assert len(workloads.parse("nvh report", 1, text, "", 0.0).steps) == 4


@pytest.mark.parametrize("broken", ["1..8", "not ok 3", "  ok 1 x\n"])
def test_the_reader_of_these_tests_can_fail(tmp_path: Path, broken: str) -> None:
    text = of(tmp_path, *of_every_verdict()).replace("1..7\n", f"{broken}\n")
    with pytest.raises(AssertionError):
        read(text)
