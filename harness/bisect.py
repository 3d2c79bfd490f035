"""The search for where a kernel turned: which to test next, and what the verdicts leave open.

The candidates are in order; the first has not turned and the last has.  Some cannot be tested: they
are stepped around, and when only such are left between the two sides, the answer is a range.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from harness.errors import EXIT_FAILED, EXIT_OK, EXIT_UNTESTABLE


class Verdict(StrEnum):
    """What is said of one kernel."""

    GOOD = "good"  # every run passed
    BAD = "bad"  # a run showed the symptom
    SKIP = "skip"  # it does not build or boot, or fails otherwise

    @classmethod
    def of(cls, exit_code: int) -> Verdict | None:
        """Return what an exit code of ``nvh repro`` says of a kernel: None where nothing."""
        known = {EXIT_OK: cls.GOOD, EXIT_FAILED: cls.BAD, EXIT_UNTESTABLE: cls.SKIP}
        return known.get(exit_code)


class Turn(StrEnum):
    """What is searched for: a bug's arrival, or its end."""

    BROKEN = "bad"
    FIXED = "fixed"

    @property
    def old(self) -> Verdict:
        """The verdict on the older side."""
        return Verdict.GOOD if self is Turn.BROKEN else Verdict.BAD

    @property
    def new(self) -> Verdict:
        """The verdict on the newer side."""
        return Verdict.BAD if self is Turn.BROKEN else Verdict.GOOD


@dataclass(frozen=True)
class Bounds:
    """How far a search is: the last candidate of the old side, the first of the new one."""

    old: int
    new: int
    skipped: tuple[int, ...]  # between the two

    @property
    def candidates(self) -> tuple[int, ...]:
        """Those that may be the first of the new side, when no more can be tested."""
        return (*self.skipped, self.new)


def bounds(turn: Turn, verdicts: Mapping[int, Verdict], count: int) -> Bounds:
    """Return where a search among ``count`` candidates stands; the ends need no verdict."""
    new = min((at for at, word in verdicts.items() if word is turn.new), default=count - 1)
    old = max((at for at, word in verdicts.items() if word is turn.old), default=0)
    skipped = sorted(at for at, word in verdicts.items() if word is Verdict.SKIP and old < at < new)
    return Bounds(old, new, tuple(skipped))


def following(turn: Turn, verdicts: Mapping[int, Verdict], count: int) -> int | None:
    """Return the candidate to test next, None when no further one can tell anything.

    That is the middle; with some that cannot be tested, the middle of the longest stretch of the
    others: beside one that does not build, the next one mostly does not build either.
    """
    found = bounds(turn, verdicts, count)
    edges = [found.old, *found.skipped, found.new]
    after, before = max(itertools.pairwise(edges), key=lambda pair: pair[1] - pair[0])
    return (after + before) // 2 if before - after > 1 else None
