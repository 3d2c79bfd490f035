"""The search of a bisection by itself, held against brute force, and the order of kernels."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import bisect
from harness.bisect import Turn, Verdict
from harness.commands import bisect as command
from harness.errors import UsageError
from harness.images import apt, packaged
from harness.images.store import Store

# The search


def searched(turn: Turn, truth: list[Verdict]) -> tuple[bisect.Bounds, int]:
    """Search with the ends known; return what was found and after how many tests."""
    verdicts = {0: truth[0], len(truth) - 1: truth[-1]}
    while (at := bisect.following(turn, verdicts, len(truth))) is not None:
        assert at not in verdicts  # none is tried twice, so this ends
        verdicts[at] = truth[at]
    return bisect.bounds(turn, verdicts, len(truth)), len(verdicts) - 2


@pytest.mark.parametrize("turn", list(Turn))
@pytest.mark.parametrize("count", range(2, 10))
def test_every_search_finds_what_can_be_found(turn: Turn, count: int) -> None:
    for first in range(1, count):
        right = [turn.old] * first + [turn.new] * (count - first)
        for skips in itertools.product((False, True), repeat=count - 2):
            skipped = [False, *skips, False]
            truth = [Verdict.SKIP if skip else right[at] for at, skip in enumerate(skipped)]
            found, tests = searched(turn, truth)
            assert found.old == max(at for at in range(first) if not skipped[at])
            assert found.new == min(at for at in range(first, count) if not skipped[at])
            assert found.skipped == tuple(range(found.old + 1, found.new))
            assert first in found.candidates or found.candidates == (found.new,)
            if not any(skips):
                assert found.candidates == (first,)
                assert tests <= math.ceil(math.log2(count - 1))


def test_what_does_not_build_is_left_far_behind() -> None:
    """Beside one that does not build the next one does not build either."""
    truth = [Verdict.GOOD] * 20 + [Verdict.SKIP] * 24 + [Verdict.GOOD] * 10 + [Verdict.BAD] * 46
    found, tests = searched(Turn.BROKEN, truth)
    assert found == bisect.Bounds(53, 54, ())
    assert tests < 12


def test_an_exit_code_is_a_verdict() -> None:
    words = {code: Verdict.of(code) for code in (0, 1, 125)}
    assert words == {0: Verdict.GOOD, 1: Verdict.BAD, 125: Verdict.SKIP}
    assert {Verdict.of(code) for code in (2, 130, 141, -9)} == {None}  # of no kernel


# The order of kernels


def releases(kernel: str) -> tuple[int, ...]:
    return tuple(int(part) for part in kernel.split("."))


@pytest.mark.parametrize(
    ("good", "bad", "listed", "kernels", "turn"),
    [
        ("6.1", "6.12", [], "6.1 6.12", Turn.BROKEN),
        ("6.12", "6.1", [], "6.1 6.12", Turn.FIXED),
        ("6.1", "6.12", ["6.6", "6.9", "6.6"], "6.1 6.6 6.9 6.12", Turn.BROKEN),
        ("6.12", "6.1", ["6.6"], "6.1 6.6 6.12", Turn.FIXED),
        ("6.1", "6.9", ["5.10", "6.1", "6.6", "6.9", "7.2"], "6.1 6.6 6.9", Turn.BROKEN),
        ("6.9", "6.1", ["5.10", "6.1", "6.6", "6.9", "7.2"], "6.1 6.6 6.9", Turn.FIXED),
        ("6.1", "6.9", ["6.1", "6.6"], "6.1 6.6 6.9", Turn.BROKEN),
        ("6.1", "6.9", ["6.6", "6.9"], "6.1 6.6 6.9", Turn.BROKEN),
        ("6.9", "6.1", ["6.6", "6.9"], "6.1 6.6 6.9", Turn.FIXED),
        ("6.9", "6.1", ["6.1", "6.6"], "6.1 6.6 6.9", Turn.FIXED),
        ("6.9", "6.1", ["6.1"], "6.1 6.9", Turn.FIXED),
    ],
)
def test_the_ends_are_put_where_they_belong(
    good: str, bad: str, listed: list[str], kernels: str, turn: Turn
) -> None:
    found = command.in_order(good, bad, listed, releases)
    assert found == (tuple(kernels.split()), turn)


def test_a_list_with_one_end_in_its_middle() -> None:
    with pytest.raises(UsageError, match="list both ends"):
        command.in_order("6.6", "7.2", ["6.1", "6.6", "6.12"], releases)


@dataclass(frozen=True)
class Mirror:
    """Offers kernels as a distribution's archive names them."""

    names: tuple[str, ...]

    def update(self) -> str | None:
        return "no network"

    def search(self, pattern: str) -> list[apt.Package]:
        found = [name for name in self.names if re.fullmatch(pattern, name)]
        return [apt.Package(name, "1", "sha", ()) for name in found]


def test_without_a_list_it_is_each_series_that_the_mirrors_offer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ["linux-image-6.12.9+deb13-amd64", "linux-image-6.9.7-amd64", "linux-image-amd64"]
    names += ["linux-image-6.12.10+deb13-amd64", "linux-image-6.1.0-56-amd64"]
    names += ["linux-image-6.11.0-rt-amd64", "linux-image-7.2.1-cloud-amd64"]
    monkeypatch.setattr(packaged, "sources_of", lambda _: [("deb a",)])
    monkeypatch.setattr(packaged, "repository_of", lambda *_: Mirror(tuple(names)))
    store = Store(tmp_path / "store")
    assert packaged.series("debian", store) == ["6.1", "6.9", "6.12"]
