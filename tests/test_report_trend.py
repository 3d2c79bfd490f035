"""trend.html: nights in their order, what changed, and folders of any kind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness import cli, pages
from harness.report import trend
from harness.verdict.status import Status
from tests.made_up_results import hostile, record, write_matrix, write_run
from tests.test_report_page import check


def nights(folder: Path) -> Path:
    """Write three nights: a row fails in the second, and is known in the third."""
    good, bad = record("test_l1_x"), record("test_l1_x", Status.FAIL)
    other = record("test_v3_y", row="V3")
    for day, records in enumerate(
        [[good, other], [bad, other], [replace(bad, known="why"), other]], 1
    ):
        started = f"2026-01-0{day}T02:17:00+0000"
        # Their names say nothing of their order.
        write_run(folder / f"run-{9 - day}", records, started=started, kernel=f"6.12.{day}")
    return folder


def test_nights_stand_in_their_order(tmp_path: Path) -> None:
    (series,) = trend.load([nights(tmp_path)], tmp_path)
    assert [night.kernel for night in series.nights] == ["6.12.1", "6.12.2", "6.12.3"]
    assert [night.counts for night in series.nights] == [
        {"PASS": 2},
        {"FAIL": 1, "PASS": 1},
        {"KNOWN": 1, "PASS": 1},
    ]
    xs = [column.x for column in series.columns]
    assert xs == sorted(xs)
    for column in series.columns:  # one on the other, without a gap
        for (_, y, _), (_, above, height) in zip(column.parts, column.parts[1:], strict=False):
            assert abs(above + height - y) < 0.2
    newest, older = series.changes
    assert (newest[0].kernel, older[0].kernel) == ("6.12.3", "6.12.2")
    (change,) = older[1]
    assert (change.row, change.before, change.after) == ("L1", "PASS", "FAIL")
    assert change.tests == ("test_l1_x",)


def test_the_page_names_what_changed_and_leads_to_each_night(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = nights(tmp_path)
    pages.write_stored(folder / "run-7")
    assert cli.main(["trend", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'trend.html'}\n"
    found = check((folder / "trend.html").read_text())
    assert "3 runs" in found.words
    assert "2026-01-02 02:17" in found.words
    assert found.all("href") == ["run-7/report.html"]
    assert sum(tag == "rect" for tag, _ in found.tags) == 5


def test_a_matrix_is_a_series_for_each_kernel(tmp_path: Path) -> None:
    for day in (1, 2):
        folder = tmp_path / f"matrix-{day}"
        folder.mkdir()
        write_matrix(
            folder, {"debian:6.1": [record("test_l1_x")], "debian:sid": "it does not boot"}
        )
    (tmp_path / "latest").symlink_to("matrix-2")
    (series,) = trend.load([tmp_path], tmp_path)
    assert series.name == "debian:6.1 on default"
    assert len(series.nights) == 2
    assert series.changes == ()


def test_hostile_and_damaged_results(tmp_path: Path) -> None:
    good = replace(hostile(), status=Status.PASS)
    write_run(tmp_path / "a", [good], started="2026-01-01", kernel="</title><script>")
    write_run(tmp_path / "b", [hostile()], started="2026-01-02", finished=False)
    for name, text in (("c", "{"), ("d", json.dumps({"format": 1}))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(text)
    found = check(trend.write(tmp_path / "trend.html", [tmp_path]).read_text())
    assert "2 runs" in found.words
    assert "scripted" in found.words


def test_without_results_it_is_a_usage_error(tmp_path: Path) -> None:
    assert cli.main(["trend", str(tmp_path)]) == 2
    assert cli.main(["trend", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "trend.html").exists()
