"""The reports of testcases/reports/: each is data, with a reproducer in C or shell."""

from __future__ import annotations

from typing import Any

import pytest

from harness import paths
from harness.guest import Guest
from harness.verdict.expectation import Case
from harness.verdict.reports import Report, load_reports
from testcases.report_steps import run_report


def parameter(report: Report) -> Any:
    """Return a report as a test's parameter, with the guest that it asks for."""
    marks = [pytest.mark.isolation(report.isolation)] if report.isolation != "clone" else []
    if report.machine:
        marks.append(pytest.mark.machine(report.machine))
    if report.kernel_args:
        marks.append(pytest.mark.kernel_args(*report.kernel_args))
    return pytest.param(report, id=report.name, marks=marks)


REPORTS = [parameter(report) for report in load_reports(paths.reports())]

if REPORTS:

    @pytest.mark.parametrize("report", REPORTS)
    def test_report(guest: Guest, case: Case, report: Report) -> None:
        """The kernel does what the report says is right."""
        run_report(guest, case, report)
