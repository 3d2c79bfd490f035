"""Mutants: what is said of them is read strictly, and what a run shows is judged without mercy."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks import mutant
from benchmarks.mutant import Claim, Judgement, Seen, Verdict, judge
from benchmarks.mutants_page import page
from harness import paths
from harness.errors import SpecError
from harness.verdict.expectation import Catalogue
from tests.made_up_mutants import (
    BOOK,
    IN_V,
    KNOWN,
    OK,
    PATCH,
    V1,
    V3,
    V3_XFS,
    WRONG,
    book,
    made,
    outcome,
    seen,
)


def judged(tests: Mapping[str, Seen], unpatched: Mapping[str, Seen] | None = None) -> Judgement:
    """Judge tests called by their functions; without the patch all pass where nothing is said."""
    before = dict.fromkeys(tests, OK) | dict(unpatched or {})
    return judge(
        made(),
        {IN_V + name: one for name, one in tests.items()},
        {IN_V + name: one for name, one in before.items()},
    )


# What is said of a mutant


def test_a_book_is_read(tmp_path: Path) -> None:
    (one,) = mutant.load(book(tmp_path))
    assert (one.name, one.title, one.undoes) == (
        "short-pin",
        "VFIO pins without FOLL_LONGTERM",
        "1. vfio",
    )
    assert one.patch == tmp_path / "short-pin.patch"
    assert one.fragments == ("iommufd", "gup_test")
    assert [claim.tests for claim in one.fails] == ["V3 refused", "V5"]
    assert (one.passes, one.also) == (("V1", "P1 fsdax"), ("V21", "vfio_fsdax_pins"))
    assert one.groups == "V"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("title =", "titel =", r"mutants.toml:2: \[short-pin\] title: is missing"),
        ("also =", "alsi =", r"\[short-pin\] alsi: unknown key \(did you mean also\?\)"),
        ("fails = {", "fails = {} # {", "fails: names no test that must fail"),
        ('["V1", "P1 fsdax"]', "[]", "passes: names no neighbour that must pass"),
        ('"V5" =', '"5V" =', "'5V' is no row with parts of its tests' names"),
        ('"V1",', '"V1 and (",', r"passes: 'V1 and \(' is no row"),
        ("'EFAULT'", "'('", "'V5': '\\(' as an expression missing \\)"),
        ("'EFAULT'", "''", "'V5': '' as an expression is none"),
        ("'EFAULT'", "1", "'V5': 1 as an expression is none"),
        ("[short-pin]", "[Short_Pin]", "Short_Pin: is no table of a mutant's name"),
        ("[short-pin]", "[other]", r"there is no other.patch beside mutants.toml"),
    ],
)
def test_what_is_wrong_in_a_book_is_told(
    tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    assert old in BOOK
    with pytest.raises(SpecError, match=complaint):
        mutant.load(book(tmp_path, BOOK.replace(old, new)))


def test_a_patch_that_the_book_does_not_know_is_told(tmp_path: Path) -> None:
    folder = book(tmp_path, patches={"short-pin": PATCH, "stray": PATCH})
    with pytest.raises(SpecError, match=r"stray: is missing: there is a stray.patch"):
        mutant.load(folder)


@pytest.mark.parametrize(
    ("tests", "nodeid", "right"),
    [
        ("V3", IN_V + V3, True),
        ("V3 refused xfs", IN_V + V3, False),
        ("V3 refused xfs", IN_V + V3_XFS, True),
        ("V1", "testcases/test_v_limits.py::test_v17_memlock[16M]", False),
        ("V17 [16M]", "testcases/test_v_limits.py::test_v17_memlock[16M]", True),
        ("V17 limits", "testcases/test_v_limits.py::test_v17_memlock[16M]", False),
        ("vfio_fsdax_pins", "testcases/test_reports.py::test_report[vfio_fsdax_pins]", True),
        ("vfio_fsdax_pins", IN_V + V3, False),
    ],
)
def test_tests_are_called_by_row_and_words(tests: str, nodeid: str, right: bool) -> None:
    assert mutant.are(tests, nodeid) is right


def test_what_is_run_is_what_must_fail_and_its_neighbours() -> None:
    one = made(passes=("V1", "V3 refused", "vfio_fsdax_pins", "V8 2M-touched"))
    assert one.selections == (
        *("test_v3_ and refused", "test_v1_"),
        *("vfio_fsdax_pins", "test_v8_ and 2M-touched"),
    )


@pytest.mark.parametrize(
    ("words", "found"),
    [("", "ab"), ("short", "a"), ("V", "a"), ("v3,P", "ab"), ("P1", "b"), ("V1", ""), ("x", "")],
)
def test_mutants_are_chosen_by_name_group_or_row(words: str, found: str) -> None:
    pinned = made(name="long-pin", fails=(Claim("P1", re.compile("x")),))
    names = {"short-pin": "a", "long-pin": "b"}
    picked = mutant.chosen([made(), pinned], words)
    assert "".join(names[one.name] for one in picked) == found


def test_our_own_mutants_break_every_group_and_undo_every_report() -> None:
    every = mutant.load(paths.guest_images() / "kernel" / "mutants")
    catalogue = Catalogue.load(paths.source_tree() / "testcases" / "catalogue")
    assert len(every) >= 12
    assert {group for one in every for group in one.groups} == set("VPLSKN")
    assert sorted({one.undoes[0] for one in every if one.undoes}) == list("12345")
    for one in every:
        for tests in [*(claim.tests for claim in one.fails), *one.passes, *one.also]:
            row = tests.split()[0]
            assert row in catalogue or (paths.reports() / f"{row}.toml").is_file()


# Judging


def test_found_is_a_new_failure_for_the_reason_and_nothing_else() -> None:
    found = judged({V1: OK, V3: WRONG, V3_XFS: WRONG})
    assert found.verdict is Verdict.FOUND
    assert found.problems == ()
    assert found.failed == ((V3, WRONG.reasons[0]), (V3_XFS, WRONG.reasons[0]))


def test_the_kernels_own_words_are_a_reason_too() -> None:
    warned = seen("FAIL", "splat", "map: expected EOPNOTSUPP in a title")
    assert judged({V1: OK, V3: warned}).verdict is Verdict.FOUND


@pytest.mark.parametrize(
    ("tests", "unpatched", "verdict", "problem"),
    [
        ({V3: OK}, {}, Verdict.MISSED, f"{V3} is PASS"),
        ({V3: WRONG, V3_XFS: OK}, {}, Verdict.MISSED, f"{V3_XFS} is PASS"),
        ({V3: KNOWN}, {V3: KNOWN}, Verdict.MISSED, f"{V3} is KNOWN (unmapped-pins)"),
        (
            {V3: seen("FAIL", "mmap: expected OK, seen ENOMEM")},
            {},
            Verdict.REASON,
            f"{V3} fails, but not with '^map: expected EOPNOTSUPP': mmap: expected OK, seen ENOMEM",
        ),
        ({V3: seen("MISS", "the guest hangs")}, {}, Verdict.UNTESTED, "is MISS: the guest hangs"),
        ({V3: seen("SKIP", "no DAX")}, {V3: seen("SKIP")}, Verdict.UNTESTED, "without the patch"),
        ({V3: WRONG}, {V3: WRONG}, Verdict.UNTESTED, "without the patch it is FAIL: map: expected"),
        (
            {V3: WRONG, "test_v2_x": WRONG},
            {"test_v2_x": WRONG},
            Verdict.UNTESTED,
            "test_v2_x: without the patch it is FAIL: map: expected",
        ),
        ({}, {}, Verdict.UNTESTED, "no test of V3 refused was run"),
        (
            {V3: WRONG, "test_v2_x": seen("FAIL", "map: expected EFAULT, seen OK")},
            {},
            Verdict.ELSEWHERE,
            "test_v2_x is FAIL, without the patch PASS: map: expected EFAULT, seen OK",
        ),
        (
            {V3: WRONG, "test_l6_x": seen("FAIL", "another symptom")},
            {"test_l6_x": KNOWN},
            Verdict.ELSEWHERE,
            "test_l6_x is FAIL, without the patch KNOWN (unmapped-pins): another symptom",
        ),
        (
            {V3: WRONG, "test_v2_x": seen("MISS", "no answer")},
            {},
            Verdict.UNTESTED,
            "test_v2_x is MISS, without the patch PASS: no answer",
        ),
        # The worst is the verdict, and all is told.
        ({V3: OK, "test_v2_x": WRONG}, {}, Verdict.MISSED, "test_v2_x is FAIL"),
    ],
)
def test_what_is_not_found_as_said(
    tests: dict[str, Seen], unpatched: dict[str, Seen], verdict: Verdict, problem: str
) -> None:
    found = judged({V1: OK, **tests}, unpatched)
    assert found.verdict is verdict
    assert any(problem in told for told in found.problems), found.problems


def test_known_failures_and_skips_that_stay_are_no_difference() -> None:
    same = {"test_l6_x": KNOWN, "test_p4_x": seen("SKIP", "no vivid")}
    assert judged({V1: OK, V3: WRONG, **same}, same).verdict is Verdict.FOUND


def test_what_fails_also_is_not_held_against_it() -> None:
    tests = {V1: OK, V3: WRONG, "test_v21_inner[fsdax]": seen("FAIL", "it starts")}
    assert judged(tests).verdict is Verdict.FOUND


def test_a_neighbour_must_pass_even_among_what_may_fail() -> None:
    mutant = dataclasses.replace(made(), passes=("V1", "V21 [anon]"))
    near = "test_v21_inner[anon]"
    tests = {IN_V + V1: OK, IN_V + V3: WRONG, IN_V + near: seen("FAIL", "it starts")}
    before = {IN_V + V1: OK, IN_V + V3: OK, IN_V + near: OK}
    assert judge(mutant, tests, before).verdict is not Verdict.FOUND
    assert judge(mutant, {**tests, IN_V + near: OK}, before).verdict is Verdict.FOUND


def test_a_neighbour_that_was_not_run_is_told() -> None:
    found = judged({V3: WRONG})
    assert (found.verdict, found.problems) == (Verdict.UNTESTED, ("no test of V1 passed",))
    without = judge(made(), {IN_V + V1: OK, IN_V + V3: WRONG}, {IN_V + V3: OK})
    assert without.problems == (f"{V1}: without the patch it was not run",)


# The page


def test_the_page_has_a_line_for_each_and_tells_what_is_wrong() -> None:
    tests = {IN_V + V1: OK, IN_V + V3: seen("FAIL", "map: expected A|B, seen <C>")}
    found = Judgement(Verdict.FOUND, (), ((V3, "map: expected A|B, seen <C>"),))
    bad = made(name="missed", undoes="5. Support faulting PFNMAP vmas")
    text = page(
        [
            (made(), found, outcome(tests)),
            (bad, Judgement(Verdict.MISSED, (f"{V3} is PASS",), ()), outcome({IN_V + V3: OK})),
        ],
        "linux-source-6.12 6.12.117-1",
    )  # fmt: skip
    assert "kernel 6.12.117-nvh, tcg: 1 of 2 found." in text
    assert (
        "| `short-pin` | VFIO pins without FOLL_LONGTERM | V3 refused | V3 1 of 2 tests; "
        f"`{V3}`: map: expected A\\|B, seen &lt;C> | 62 | found |\n"
    ) in text
    assert (
        "| `missed` | VFIO pins without FOLL_LONGTERM | V3 refused | nothing | 62 | missed |"
        in text
    )
    assert "* 5. Support faulting PFNMAP vmas: `missed`\n" in text
    assert f"## What was not as said\n\n* `missed`: {V3} is PASS\n" in text


def test_a_page_of_found_mutants_has_no_complaints() -> None:
    rows = [(made(), Judgement(Verdict.FOUND, (), ()), outcome({}))]
    text = page(rows, "a source")
    assert "not as said" not in text
    assert "undone" not in text
    assert "Not run" not in text
    assert "\nNot run: other, third.\n" in page(rows, "a source", ["other", "third"])
