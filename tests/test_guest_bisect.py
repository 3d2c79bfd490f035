"""A bisection with real guests: a lost wake-up that 6.1 has and 6.12 has not."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.bisect import Turn
from harness.report import bisection
from tests.real_runs import nvh

pytestmark = pytest.mark.guest


def test_the_first_fixed_kernel(tmp_path: Path) -> None:
    words = ["--good", "debian:6.12", "--bad", "debian:6.1", "--accel", "tcg"]
    words += ["--kernel", "debian:6.1", "--kernel", "debian:6.12", "--results", str(tmp_path)]
    done = nvh("bisect", "L5 and punch-odirect-write-ext4", *words, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the first fixed kernel: debian:6.12\n" in done.stdout
    found = bisection.load((tmp_path / "latest").resolve())
    assert (found.turn, found.first) == (Turn.FIXED, ("debian:6.12",))
    bad, good = found.steps
    seen = "KNOWN hung_in: expected none, seen 'punch: S in ext4_break_layouts, no pin held'"
    assert bad.seen == seen
    assert (bad.release[:4], good.release[:5]) == ("6.1.", "6.12.")
    assert Path(found.bundle).is_file()
