"""The reports of a run, written anew after each test, on xdist's controller or the only process."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from junitparser import TestCase

from harness import pages
from harness.doing import forget
from harness.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_UNTESTABLE, HarnessError, HostError
from harness.report import closing, junit, summary
from harness.report.escape import one_line
from harness.report.record import Made, TestRecord, boot_findings
from harness.run_state import STATE, RunState, end_bundle, run_state
from harness.run_view import RunView
from harness.ui import How, Screen, how, plain
from harness.verdict.expectation import row_id
from harness.verdict.status import Status

log = logging.getLogger(__name__)

#: The user properties of a report that carry, from a worker too, where its record lies and why none
#: could be written.
RECORD, UNWRITTEN = "nvh-record", "nvh-unwritten"


def _crashed(state: RunState, report: pytest.TestReport) -> TestRecord:
    """Return the record of a test whose worker died under it."""
    folder = state.results.test_dir(report.nodeid)
    named = row_id(report.nodeid) or ""
    row = state.catalogue[named] if named in state.catalogue else None  # noqa: SIM401 (no dict)
    output = folder / "output.txt"
    record = TestRecord(
        nodeid=report.nodeid,
        status=Status.MISS,
        seconds=0.0,
        row=row.id if row else None,
        title=row.title if row else "",
        message=f"the worker died: {one_line(str(report.longrepr))}",
        hint="harness.log ends with what it did last; was it killed for lack of memory?",
        excerpts={"output": output.read_text(errors="replace")} if output.exists() else {},
    )
    record.save(folder)
    end_bundle(state, record)
    return record


class Reporter:
    """Writes the reports after each test; on the controller only."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._view = RunView.of(config)
        self._why = ""  # the run was cut short
        self._cases: Made[TestCase] = Made()
        self._entries: Made[dict[str, Any]] = Made()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a test's record and write the reports anew; a full disk ends the run."""
        try:
            died = report.failed and report.when not in ("setup", "call", "teardown")
            if died and not self._why:  # xdist's report; a worker that Ctrl-C ended is none
                self._add(_crashed(run_state(self._config), report))
            for name, value in report.user_properties:
                if name == RECORD and report.when == "teardown":
                    self._add(TestRecord.load(Path(str(value))))
                elif name == UNWRITTEN:
                    raise HostError(str(value))
        except HostError as error:
            pytest.exit(str(error), returncode=EXIT_UNTESTABLE)

    def _add(self, record: TestRecord) -> None:
        records = run_state(self._config).records
        # A record that comes again holds what its guest said after the test.
        for index, known in enumerate(records):
            if known.nodeid == record.nodeid:
                records[index] = record
                break
        else:
            records.append(record)
        if self._view is not None:
            self._view.add(record)
        self._write()

    def _write(self, status: int | None = None) -> None:
        """Write the reports; ``status`` is what pytest ended with, None while it goes on."""
        state = run_state(self._config)
        if not state.properties:
            with contextlib.suppress(HarnessError):
                state.properties = dict(state.lab.properties())
        properties = dict(state.properties)
        titles = boot_findings(state.records)
        if titles:
            properties["boot_findings"] = "; ".join(titles)
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(state.started))
        path = state.results.path
        junit.write(
            path / "junit.xml", state.records, properties, started=started, made=self._cases
        )
        verdict = summary.verdict(state.records, strict=state.strict)
        summary.write(
            path / "summary.json",
            state.records,
            properties,
            started=started,
            seconds=None if status is None else time.time() - state.started,
            exit_code=None if status is None else exit_code(status, verdict),
            finished=status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED),
            options=state.options,
            made=self._entries,
        )

    def _write_page(self) -> None:
        """Write report.html; whatever keeps it from that costs no verdict."""
        state = run_state(self._config)
        if not state.records:
            return
        try:
            pages.write_run(
                state.results.path,
                state.records,
                again={one.nodeid: one.again(state.options) for one in state.records},
                known=state.known,
                catalogue=state.catalogue,
            )
        except Exception as error:  # a fault of the page is none of the run
            log.warning("no report.html: %r", error, exc_info=True)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Note what cut the run short."""
        plain = excinfo.type is KeyboardInterrupt
        why = "interrupted" if plain else one_line(str(excinfo.value), 1000)
        self._why = self._why or why

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, error: object) -> None:
        """Note a worker that Ctrl-C reached before it reached this process."""
        if error == "keyboard-interrupt":
            self._why = "interrupted"

    def pytest_internalerror(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Note that pytest or a plugin broke; where there is no view, pytest says it at length."""
        if self._view is not None:
            why = one_line(excinfo.exconly(), 500)
            self._why = f"pytest broke: {why}; see {self._view.results / closing.WORDS}"

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the reports for the last time."""
        if self._view is not None:
            self._view.stop()
            self._why = self._why or one_line(str(session.shouldfail or session.shouldstop or ""))
        if STATE in self._config.stash:
            forget(run_state(self._config).results.path)
            self._cases = Made()  # what is attached to a test may have come after it
            try:
                self._write(int(exitstatus))
            except HostError as error:
                self._why = self._why or str(error)
            self._write_page()
        if exitstatus not in set(pytest.ExitCode) - {pytest.ExitCode.INTERNAL_ERROR}:
            self.pytest_terminal_summary()  # pytest calls it for the others only

    def pytest_terminal_summary(self) -> None:
        """Print the table, and why there is no more of it."""
        out = sys.stdout if self._view is None else self._view.out
        if STATE in self._config.stash and run_state(self._config).records:
            state = run_state(self._config)
            print(file=out)
            closing.show(
                closing.Run(
                    state.records,
                    results=state.results.path,
                    seconds=time.time() - state.started,
                    options=state.options,
                    titles={issue.id: issue.title for issue in state.known},
                    groups=pages.groups(),
                ),
                out,
                console=Screen(out) if how(out) is How.LIVE else None,
                clean=plain,
            )
        if self._why:
            print(plain(f"nvh: {self._why}"), file=out, flush=True)


def exit_code(status: int, verdict: int) -> int:
    """Return a run's exit code from pytest's and from the verdict on its records."""
    if status == pytest.ExitCode.INTERRUPTED:
        return EXIT_INTERRUPTED
    if status == pytest.ExitCode.OK:
        return verdict
    if status == pytest.ExitCode.TESTS_FAILED and verdict != EXIT_OK:
        return verdict
    return EXIT_UNTESTABLE  # with TESTS_FAILED: something failed that has no record


def verdict_of(results: Path) -> int:
    """Return a run's exit code from its summary; 125 when it left none or an unfinished one."""
    try:
        return int(json.loads((results / "summary.json").read_text())["exit_code"])
    except (OSError, ValueError, KeyError, TypeError):
        return EXIT_UNTESTABLE
