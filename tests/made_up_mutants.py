"""Mutants that are made up, what was seen of them, and what a run of them left."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks import mutant
from benchmarks.mutant import Claim, Mutant, Outcome, Seen
from harness.verdict.status import Status

BOOK = """
[short-pin]
title = "VFIO pins without FOLL_LONGTERM"
undoes = "1. vfio"
passes = ["V1", "P1 fsdax"]
also = ["V21", "vfio_fsdax_pins"]
fails = { "V3 refused" = '^map: expected EOPNOTSUPP, seen OK', "V5" = 'EFAULT' }
"""
PATCH = "--- a/f.c\n+++ b/f.c\n@@ -1 +1 @@\n-right\n+wrong\n"
IN_V = "testcases/test_v_dax.py::"


def book(folder: Path, text: str = BOOK, patches: Mapping[str, str] | None = None) -> Path:
    (folder / mutant.BOOK).write_text(text)
    for name, patch in (patches or {"short-pin": PATCH}).items():
        (folder / f"{name}.patch").write_text(patch)
    return folder


def seen(word: str, *reasons: str, known: str = "") -> Seen:
    return Seen(Status(word), known, reasons)


OK = seen("PASS")
KNOWN = seen("FAIL", "returned_while_pinned", known="unmapped-pins")
WRONG = seen("FAIL", "map: expected EOPNOTSUPP, seen OK")


def made(**changes: object) -> Mutant:
    values: dict[str, object] = {
        "name": "short-pin",
        "title": "VFIO pins without FOLL_LONGTERM",
        "undoes": "",
        "patch": Path("short-pin.patch"),
        "fragments": mutant.FRAGMENTS,
        "fails": (Claim("V3 refused", re.compile("^map: expected EOPNOTSUPP")),),
        "passes": ("V1",),
        "also": ("V21",),
    }
    return Mutant(**(values | changes))  # type: ignore[arg-type]


def outcome(tests: Mapping[str, Seen], **changes: object) -> Outcome:
    about = {"kernel": "6.12.117-nvh (linux-source-6.12 + base)", "accel": "tcg"}
    values: dict[str, object] = {
        "key": "k", "seconds": 61.7, "about": about, "selections": ("x",), "tests": tests
    }  # fmt: skip
    return Outcome(**(values | changes))  # type: ignore[arg-type]


V1, V3, V3_XFS = "test_v1_anonymous[type1]", "test_v3_refused[ext4]", "test_v3_refused[xfs]"
