"""report.html of a run that has just ended, or of stored results."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness import paths
from harness.errors import HarnessError
from harness.report import html, stored
from harness.report.page import run_view
from harness.report.record import PAGE, TestRecord
from harness.report.stored import StoredRun
from harness.report.views import Views
from harness.verdict.expectation import Catalogue, Row
from harness.verdict.known import KnownIssue, KnownIssues
from harness.verdict.reports import load_reports


def write_run(
    folder: Path,
    records: Sequence[TestRecord],
    *,
    again: Mapping[str, str],
    known: Iterable[KnownIssue],
    catalogue: Iterable[Row],
) -> Path:
    """Write the page of a run from the records that are at hand; the rest is in its summary."""
    run = stored.load_run(folder, read_records=False)
    return _write(folder, [replace(run, records=tuple(records), again=again)], known, catalogue)


def write_stored(folder: Path) -> Path:
    """Write the page of a run's or a matrix's folder; UsageError where there is no result."""
    catalogue: list[Row] = []
    # Results speak for themselves where the checkout that made them is another one.
    with contextlib.suppress(HarnessError, OSError):
        catalogue += Catalogue.load(paths.source_tree() / "testcases" / "catalogue")
        catalogue += [report.row for report in load_reports(paths.reports())]
    return _write(folder, stored.load(folder), known_issues(), catalogue)


def known_issues() -> list[KnownIssue]:
    """Return the checkout's known issues, none where there is no list that can be read."""
    found: list[KnownIssue] = []
    with contextlib.suppress(HarnessError, OSError):
        found += KnownIssues.load(paths.source_tree() / "testcases" / "known-issues.toml")
    return found


def groups() -> Mapping[str, str]:
    """Return the titles of the groups of rows, by their letters."""
    return _views().groups


def _views() -> Views:
    with contextlib.suppress(HarnessError, OSError):
        return Views.load(paths.source_tree() / "testcases" / "views.toml")
    return Views()


def _write(
    folder: Path,
    runs: Sequence[StoredRun],
    known: Iterable[KnownIssue],
    catalogue: Iterable[Row],
) -> Path:
    views = _views()
    issues = {issue.id: issue for issue in known}
    of = sum(len(run.records) for run in runs)
    return html.write(
        folder / PAGE,
        [run_view(run.info, run.records, again=run.again, issues=issues, of=of) for run in runs],
        views,
        catalogue={row.id: (row.source, row.needs) for row in catalogue},
    )
