"""The end of a run: the tables, what was found, and what to type next."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from harness.report import closing
from harness.report.closing import Run
from harness.report.record import TestRecord
from harness.verdict.status import Status
from tests.made_up_results import judged

pytestmark = pytest.mark.usefixtures("nvh_on_path")

#: Escape sequences, a newline, marks of rich, text that turns round, wide characters.
EVIL = "\x1b[2J\x1b]0;owned\x07[bold]x[/bold]\n\u202egnp. \ud800 \u6f22\u5b57 " + "A" * 5000
GROUPS = {"V": "VFIO and iommufd map memory for DMA", "L": "layout changes under pins"}


def known(name: str) -> TestRecord:
    return judged(Status.FAIL, name, known="an-issue")


def told(run: Run, width: int | None = None) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, soft_wrap=True, force_terminal=True)
    closing.show(run, out, console=console if width else None)
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()


def test_a_few_tests_have_a_line_each_and_a_failure_the_way_back(tmp_path: Path) -> None:
    seen = ({"what": "map", "expected": "OK", "seen": "OK", "ok": True, "source": "s"},)
    records = [
        judged(Status.PASS, expectations=seen),
        judged(
            Status.FAIL,
            "test_v8_y",
            message="bad\n\x1b[31m",
            findings=({"kind": "warning", "title": "WARNING in f"},),
        ),
        judged(Status.MISS, "test_l1_z", hint="free some memory"),
    ]
    lines = told(Run(records, tmp_path, 3.0, options=["--kernel", "/b"]))
    assert lines[0].startswith("L1 test_l1_z       MISS ")
    assert lines[1] == "V3 test_v3_x[ext4] PASS     0.5 s  map: OK"
    assert lines[2] == "V8 test_v8_y       FAIL     0.5 s  bad"
    assert "  again:  nvh test -k test_v8_y --kernel /b" in lines
    assert f"  folder: {tmp_path}/tests/test_v.test_v8_y" in lines
    assert "  kernel: warning: WARNING in f" in lines
    assert "  hint:   free some memory" in lines
    assert f"1 PASS, 1 FAIL, 1 MISS in 3.0 s; results in {tmp_path}" in lines


def test_groups_by_verdicts_in_their_order(tmp_path: Path) -> None:
    records = [judged(Status.PASS, f"test_v{n}_x") for n in range(20)]
    records += [
        known("test_l6_a"),
        judged(Status.SKIP, "test_l1_b"),
        judged(Status.PASS, "test_x1_c"),
    ]
    records += [judged(Status.FAIL, "test_reports_x", row="vfio_bar_pins")] * 9
    lines = told(Run(records, tmp_path, 3.0, groups=GROUPS))
    head = next(line for line in lines if "PASS  FAIL  KNOWN  SKIP  seconds" in line)
    found = lines[lines.index(head) + 1 : lines.index(head) + 5]
    assert [line.split()[0] for line in found] == ["V", "L", "X", "mail"]
    assert found[0].split()[-5:] == ["20", "-", "-", "-", "10.0"]
    assert found[1].split()[-5:] == ["-", "-", "1", "1", "1.0"]
    assert found[3].split()[-5:] == ["-", "9", "-", "-", "4.5"]
    assert not any(line.startswith("V3 ") for line in lines)  # they are many


def test_known_issues_are_told_by_their_titles_and_rows(tmp_path: Path) -> None:
    records = [known("test_l10_a"), known("test_l6_a"), judged(Status.PASS, fixed=("gone",))]
    lines = told(Run(records, tmp_path, 3.0, titles={"an-issue": "It fails", "other": "It"}))
    at = lines.index("KNOWN an-issue: 2 tests, L6, L10")
    assert lines[at + 1].strip() == "It fails"
    assert "known issue gone no longer shows: test_v3_x[ext4]" in lines
    assert not any(line.startswith("next:") for line in lines)  # nothing to do, no page


def test_the_slowest_are_named_where_there_are_many(tmp_path: Path) -> None:
    records = [judged(Status.PASS, f"test_v{n}_x", seconds=float(n)) for n in range(8)]
    lines = told(Run(records, tmp_path, 3.0))
    at = lines.index("slowest")
    assert [line.split()[2] for line in lines[at + 1 : at + 6]] == [
        f"test_v{n}_x" for n in (7, 6, 5, 4, 3)
    ]
    assert "slowest" not in told(Run(records[1:], tmp_path, 3.0))


def test_what_to_type_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = tmp_path / "results" / "a b"
    (results / "bundles").mkdir(parents=True)
    (results / "report.html").touch()
    bad = judged(Status.FAIL, "test_v8_y")
    (results / bad.bundle).touch()
    lines = told(Run([judged(Status.PASS), bad], results, 3.0, options=["--kernel", "/b"]))
    again = "next:   nvh test --failed 'results/a b' --kernel /b"
    assert lines[-5:] == [
        "report: results/a b/report.html",
        "next:   nvh report 'results/a b' --open  # the page of this run",
        f"{again}  # 1 test again",
        f"{again} --with-kernel  # with bundles that hold the kernel, for elsewhere",
        f"next:   nvh repro 'results/a b/{bad.bundle}'  # the first failure, from its bundle",
    ]


def test_many_failures_are_no_wall_of_text(tmp_path: Path) -> None:
    records = [judged(Status.FAIL, f"test_v{n}_x", message=EVIL, hint=EVIL) for n in range(500)]
    lines = told(Run(records, tmp_path, 3.0))
    assert len(lines) < 100
    assert f"and 490 more: {tmp_path}/report.html has them all" in lines


def test_a_tests_own_fault_names_its_traceback(tmp_path: Path) -> None:
    run = Run([judged(Status.ERROR)], tmp_path, 3.0)
    assert not any("trace:" in line for line in told(run))
    (tmp_path / closing.WORDS).touch()
    assert f"  trace:  {tmp_path}/pytest.log" in told(run)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("many", [1, 30])
def test_hostile_titles_fit_the_width(tmp_path: Path, width: int, many: int) -> None:
    evil = judged(
        Status.FAIL,
        f"test_v8_y[{EVIL}]",
        message=EVIL,
        findings=({"kind": "warning", "title": EVIL},),
        facts={"guest": {"boot_findings": [EVIL]}},
    )
    named = judged(Status.PASS, f"test_l3_{EVIL}[ext4]", fixed=("gone",), row="L3")
    run = Run(
        [*([evil] * many), *([named] * many), known("test_l6_a")],
        tmp_path,
        3.0,
        titles={"an-issue": EVIL},
        groups=GROUPS,
    )
    text = "\n".join(told(run, width=width))
    assert not any(char in text for char in "\x1b\x07\r\u202e\ud800")
    assert "[bold]x[/bold]" in text
    # All but the commands, the paths and the failure's own line fit.
    table = [line for line in text.splitlines() if line[:3] in {"V8 ", "L3 ", "V V", "L l", "   "}]
    assert table
    assert all(cell_len(line) <= width for line in table)


def test_a_terminal_shows_marks_as_they_are(tmp_path: Path) -> None:
    run = Run([judged(Status.FAIL, message="[bold]x[/bold]\x1b[2J")], tmp_path, 1.0)
    text = "\n".join(told(run, width=100))
    assert "[bold]x[/bold]" in text
    assert "\x1b" not in text


def test_no_test_is_said(tmp_path: Path) -> None:
    assert told(Run([], tmp_path, 0.1)) == [f"no test ran in 0.1 s; results in {tmp_path}"]
