"""docs/mutants.md: which mutants were found, by which tests, and what these said."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence

from benchmarks.mutant import Judgement, Mutant, Outcome, Verdict
from harness.report.escape import one_line
from harness.verdict.expectation import row_id

_HEAD = """\
# Mutants: proof that the tests can fail

Each line is a fault of our own (`guest-images/kernel/mutants/NAME.patch`), put alone into
{source} as `nvh kernel build` makes it. `make mutants` boots that kernel,
runs the tests that must find the fault and neighbours that must not mind it, and writes this page.
**Found** means: each test that must fail does so, for the reason that `mutants.toml` names, and not
as a known issue; every other test says what it says without the patch.
[CONTRIBUTING.md](../CONTRIBUTING.md) tells how to add one.

{when}, {kernel}, {accel}: {found} of {all} found. Seconds are those of the tests; building a mutant
takes a quarter of a minute.

| mutant | what it breaks | must fail | failed, and what the first one said | seconds | verdict |
| --- | --- | --- | --- | --- | --- |
"""
_UNDONE = "\n## Fixes of the reports that are undone\n\n"


def page(
    rows: Sequence[tuple[Mutant, Judgement, Outcome]], source: str, others: Sequence[str] = ()
) -> str:
    """Return the page; ``others`` are mutants that were not run."""
    about: Mapping[str, str] = next((ran.about for _, _, ran in rows if ran.about), {})
    head = _HEAD.format(
        source=source,
        when=time.strftime("%Y-%m-%d"),
        kernel=f"kernel {about.get('kernel', 'unknown').partition(' ')[0]}",
        accel=about.get("accel", "unknown accelerator"),
        found=sum(judgement.verdict is Verdict.FOUND for _, judgement, _ in rows),
        all=len(rows),
    )
    lines = [_line(one, judgement, ran) for one, judgement, ran in rows]
    undone = [f"* {one.undoes}: `{one.name}`\n" for one, _, _ in rows if one.undoes]
    problems = [
        f"* `{one.name}`: {_cell(problem, 400)}\n"
        for one, judgement, _ in rows
        for problem in judgement.problems
    ]
    told = ["\n## What was not as said\n\n", *problems] if problems else []
    left = [f"\nNot run: {', '.join(others)}.\n"] if others else []
    return "".join([head, *lines, *left, *([_UNDONE, *undone] if undone else []), *told])


def _line(one: Mutant, judgement: Judgement, ran: Outcome) -> str:
    cells = [
        f"`{one.name}`",
        _cell(one.title, 200),
        ", ".join(_cell(claim.tests, 80) for claim in one.fails),
        _failed(judgement, len(ran.tests)),
        f"{ran.seconds:.0f}",
        judgement.verdict.value,
    ]
    return f"| {' | '.join(cells)} |\n"


def _failed(judgement: Judgement, of: int) -> str:
    if not judgement.failed:
        return "nothing"
    rows = Counter(row_id(test) or test for test, _ in judgement.failed)
    counts = ", ".join(f"{row} {count}" for row, count in rows.items())
    test, message = judgement.failed[0]
    return f"{counts} of {of} tests; `{_cell(test, 80)}`: {_cell(message, 160)}"


def _cell(text: str, limit: int) -> str:
    """Return text that is one cell of a table, whatever is in it."""
    plain = one_line(text, limit).replace("\\", "\\\\").replace("|", "\\|")
    return plain.replace("<", "&lt;")
