"""The pytest plugin: fixtures for testcases, and a record of every test as it ends.

It hands a guest to each test, reads the kernel's log after it, and keeps what was seen.  Under
xdist the workers run tests and write each test's folder; the controller writes the reports.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness import paths
from harness.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_UNTESTABLE,
    GuestPanic,
    GuestReset,
    HarnessError,
    HostError,
)
from harness.guest import CommandTimeout, Guest
from harness.lab import Lab, Options
from harness.observe import Observer
from harness.pool import ISOLATIONS, GuestPool, Wish, guest_pool
from harness.report import junit, summary, table
from harness.report.escape import one_line, printable
from harness.report.record import TestRecord, boot_findings
from harness.report.results import ResultsDir, append, write_atomic, write_json
from harness.verdict.expectation import Case, Catalogue, Mismatch, NotProven, row_id
from harness.verdict.known import KnownIssues
from harness.verdict.status import Status

_ROW = re.compile(r"\b([A-Za-z])(\d{1,3})\b(?!\w)")


_SPLAT = "the kernel's log shows a fault"
#: The user properties of a report that carry, from a worker too, where its record lies and why none
#: could be written.
_RECORD, _UNWRITTEN = "nvh-record", "nvh-unwritten"


class Splat(AssertionError):
    """The kernel's log shows a fault that the test did not declare."""


class ComparedNothing(Exception):
    """A test ended well without a word about the kernel."""

    hint = "every way through a test takes it to a case.expect()"


@dataclass
class _State:
    """What this process knows of the run."""

    results: ResultsDir
    lab: Lab
    catalogue: Catalogue
    options: list[str]
    records: list[TestRecord] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    properties: dict[str, Any] = field(default_factory=dict)
    known: KnownIssues = field(default_factory=KnownIssues)
    strict: bool = False


_STATE = pytest.StashKey[_State]()
_CASE = pytest.StashKey[Case]()
_OBSERVER = pytest.StashKey[Observer]()
_BEGUN = pytest.StashKey[float]()
_OUTCOME = pytest.StashKey[tuple[Status, str, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options; nvh test sets them."""
    group = parser.getgroup("nvh", "nvdimm-harness")
    group.addoption("--nvh-kernel", metavar="K", help="bzImage, kernel tree or debian:6.1")
    group.addoption("--nvh-accel", metavar="A", default="auto", help="auto, kvm or tcg")
    group.addoption("--nvh-machine", metavar="M", default="default", help="name or .toml file")
    group.addoption(
        "--nvh-isolation",
        choices=ISOLATIONS,
        default="clone",
        help="what a test without a marker gets: a fresh clone, a cold boot or a shared guest",
    )
    group.addoption(
        "--nvh-strict", action="store_true", help="a known issue that no longer shows is a failure"
    )
    group.addoption("--nvh-trusted", action="store_true", help="images have just been verified")
    group.addoption("--nvh-results", metavar="DIR", help="an existing results directory")


def pytest_configure(config: pytest.Config) -> None:
    """Let -k take the catalogue's ids: V1 is that row alone, not V11."""
    config.addinivalue_line("markers", "isolation(level): clone, boot or shared")
    config.addinivalue_line("markers", "machine(name): another machine than the run's")
    config.addinivalue_line("markers", "kernel_args(*words): more of the guest's command line")
    keyword = config.getoption("keyword", "")
    if keyword:
        config.option.keyword = _ROW.sub(lambda match: f"test_{match[0].lower()}_", keyword)
    given = config.getoption("--nvh-results")
    if given and _worker(config) is not None:
        # Without a log the run is still a run; without the directory it ends at its first test.
        with contextlib.suppress(HostError):
            ResultsDir.open(Path(given)).start_log()


def _worker(config: pytest.Config) -> str | None:
    workerinput = getattr(config, "workerinput", None)
    return None if workerinput is None else str(workerinput["workerid"])


def _state(config: pytest.Config) -> _State:
    """Return this process's state, made when the first testcase needs it."""
    if _STATE not in config.stash:
        root = paths.source_tree()
        given = config.getoption("--nvh-results")
        if _worker(config) is not None:
            given = getattr(config, "workerinput", {})["nvh_results"]
        results = ResultsDir.open(Path(given)) if given else ResultsDir.create(root / "results")
        options = Options(
            kernel=config.getoption("--nvh-kernel"),
            accel=config.getoption("--nvh-accel"),
            machine=config.getoption("--nvh-machine"),
            trusted=bool(config.getoption("--nvh-trusted")),
        )
        config.stash[_STATE] = _State(
            results=results,
            lab=Lab(options),
            catalogue=Catalogue.load(root / "testcases" / "catalogue"),
            options=_again(config),
            known=KnownIssues.load(root / "testcases" / "known-issues.toml"),
            strict=bool(config.getoption("--nvh-strict")),
        )
    return config.stash[_STATE]


def _again(config: pytest.Config) -> list[str]:
    """Return the options with which the run is started again."""
    words = []
    defaults = {"kernel": None, "accel": "auto", "machine": "default", "isolation": "clone"}
    for name, default in defaults.items():
        given = config.getoption(f"--nvh-{name}")
        if given != default:
            words += [f"--{name}", str(given)]
    return [*words, "--strict"] if config.getoption("--nvh-strict") else words


def _is_testcase(item: pytest.Item) -> bool:
    return (paths.source_tree() / "testcases") in item.path.parents


# Fixtures


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Lab:
    """Kernel, images, machine and accelerator of the run."""
    return _state(request.config).lab


@pytest.fixture(scope="session")
def guests(request: pytest.FixtureRequest) -> Iterator[GuestPool]:
    """Where guests come from."""
    state = _state(request.config)
    folder = state.results.path / "guests" / (_worker(request.config) or "main")
    folder.mkdir(parents=True)
    with guest_pool(state.lab, folder, evidence=state.results.path) as pool:
        yield pool


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    """The test's record: expect(), prove(), fact(), skip(), allow()."""
    row = _state(request.config).catalogue.of_test(request.node.name)
    if row is None:
        raise pytest.UsageError(f"{request.node.nodeid}: its name carries no row of the catalogue")
    made = Case(row, echo=_echo(request.node))
    request.node.stash[_CASE] = made
    return made


@pytest.fixture
def guest(request: pytest.FixtureRequest, guests: GuestPool) -> Iterator[Guest]:
    """A guest of the run's machine, with its namespaces made and its devices bound.

    It is a fresh clone unless the test is marked otherwise: ``isolation("boot")`` or
    ``isolation("shared")``, ``machine("NAME")``, ``kernel_args("WORD", ...)``.
    """
    with guests.guest(_wish(request.node, request.config)) as given:
        observer = Observer(given, request.node.nodeid)
        request.node.stash[_OBSERVER] = observer
        given.note = _echo(request.node)
        observer.begin()
        yield given
    _keep_logs(request.node, given)


def _echo(item: pytest.Item) -> Callable[[str], None]:
    """Return what prints a test's words and keeps them at once: this process may be killed."""
    file = _state(item.config).results.test_dir(item.nodeid) / "output.txt"

    def echo(text: str) -> None:
        shown = printable(text, 1 << 16)
        print(shown)
        append(file, f"{shown}\n")

    return echo


def _keep_logs(item: pytest.Item, guest: Guest) -> None:
    """Move what a guest of the test's own left into the test's folder."""
    if guest.vm.child.poll() is None:
        return  # a shared guest goes on
    folder = _state(item.config).results.test_dir(item.nodeid)
    for file in guest.vm.folder.iterdir():
        target = f"guest-{file.name}" if file.name in {"console.log", "dmesg"} else file.name
        shutil.move(str(file), str(folder / target))
    with contextlib.suppress(OSError):
        guest.vm.folder.rmdir()


def _wish(item: pytest.Item, config: pytest.Config) -> Wish:
    def words(name: str) -> tuple[str, ...]:
        marker = item.get_closest_marker(name)
        return tuple(str(word) for word in marker.args) if marker else ()

    isolation = (words("isolation") or (str(config.getoption("--nvh-isolation")),))[0]
    if isolation not in ISOLATIONS:
        raise pytest.UsageError(f"{item.nodeid}: no isolation is called {isolation!r}")
    machine = words("machine")
    return Wish(isolation, machine[0] if machine else None, words("kernel_args"))


# Verdicts


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Run the test, then read the kernel's log: a splat fails the test whatever it returned."""
    try:
        outcome = yield
    finally:
        observer = item.stash.get(_OBSERVER, None)
        case = item.stash.get(_CASE, None)
        if observer is not None:
            observer.end(case.allowed if case else ())
    if observer is not None and observer.unexpected:
        titles = "; ".join(finding.title for finding in observer.unexpected)
        raise Splat(f"{_SPLAT}: {titles}")
    if case is not None and not case.expectations:
        raise ComparedNothing("it compared nothing")
    return outcome


def _judge(when: str, error: BaseException) -> tuple[Status, str, str]:
    """Return status, message and hint of an exception that ended a test."""
    hint = getattr(error, "hint", None) or ""
    message = error.message if isinstance(error, HarnessError) else str(error)
    first = (message.strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, NotProven):
        return error.status, first, hint
    if isinstance(error, pytest.skip.Exception):
        return Status.SKIP, first, hint
    if isinstance(error, Mismatch | Splat) or (
        when == "call" and isinstance(error, AssertionError)
    ):
        return Status.FAIL, first, hint
    if when == "call" and isinstance(error, GuestPanic | GuestReset | CommandTimeout):
        return Status.FAIL, first, hint
    if isinstance(error, HarnessError):
        return Status.MISS, first, hint
    named = "" if isinstance(error, ComparedNothing) else f"{type(error).__name__}: "
    return Status.ERROR, f"{named}{first}", hint


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the end of a phase into one of the six words, and the last phase into a record."""
    report = yield
    if _is_testcase(item):
        try:
            _complete(report, item, call)
        except HostError as error:
            # Told by the controller; what is raised in here ends pytest with INTERNALERROR.
            report.user_properties.append((_UNWRITTEN, str(error)))
    return report


def _complete(report: pytest.TestReport, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.excinfo is not None:
        status, message, hint = _judge(call.when, call.excinfo.value)
        if _OUTCOME not in item.stash:
            item.stash[_OUTCOME] = (status, message, hint)
        words = f"{status}: {message}" + (f" ({hint})" if hint else "")
        known = _known(item) if status is Status.FAIL else ""
        if known:
            # As an expected failure: pytest counts it apart.
            report.outcome = "skipped"
            report.wasxfail = f"known issue {known}"
        if status is Status.SKIP:
            report.outcome = "skipped"
            report.longrepr = (str(item.path), item.location[1] or 0, words)
        elif isinstance(call.excinfo.value, HarnessError | Mismatch | Splat | ComparedNothing):
            report.longrepr = words
    if call.when == "teardown":
        record = _record(item)
        folder = _state(item.config).results.test_dir(item.nodeid)
        record.save(folder)
        report.user_properties.append((_RECORD, str(folder / "result.json")))


def _known(item: pytest.Item) -> str:
    """Return the id of the known issue that explains a test's failure, splats and all."""
    state = _state(item.config)
    _, message, _ = item.stash[_OUTCOME]
    observer = item.stash.get(_OBSERVER, None)
    titles = [finding.title for finding in observer.unexpected] if observer else []
    # The message may merely repeat the splats.
    symptoms = [*titles, *([] if message.startswith(_SPLAT) else [message])]
    issue = state.known.explain(item.name, _release(state), symptoms)
    return issue.id if issue else ""


def _release(state: _State) -> str:
    """Return the kernel's release; a kernel that cannot be had has none, and no known issue."""
    try:
        return state.lab.kernel.release
    except HarnessError:
        return ""


def _record(item: pytest.Item) -> TestRecord:
    """Write the test's folder and return its record."""
    state = _state(item.config)
    folder = state.results.test_dir(item.nodeid)
    status, message, hint = item.stash.get(_OUTCOME, (Status.PASS, "", ""))
    made = item.stash.get(_CASE, None)
    observer = item.stash.get(_OBSERVER, None)
    findings = []
    excerpts: dict[str, str] = {}
    facts: dict[str, Any] = dict(made.facts) if made else {}
    if observer is not None:
        observer.save(folder)
        findings = [finding.as_dict() for finding in observer.unexpected]
        facts["guest"] = observer.guest.facts
        if status is not Status.PASS:
            excerpts["dmesg"] = observer.dmesg
    sections = getattr(item, "_report_sections", [])
    output = "".join(text for _, kind, text in sections if kind != "log")  # that is harness.log
    if output:
        write_atomic(folder / "output.txt", output)
        excerpts["output"] = output
    row = state.catalogue.of_test(item.name)
    seconds = time.time() - item.stash.get(_BEGUN, time.time())
    data = made.record if made else {}
    expected = state.known.concerning(item.name, _release(state))
    if made is not None:
        write_json(folder / "facts.json", data)
    return TestRecord(
        nodeid=item.nodeid,
        status=status,
        seconds=seconds,
        row=row.id if row else row_id(item.name),
        title=row.title if row else "",
        message=message,
        hint=hint,
        expectations=tuple(data.get("expectations", ())),
        proofs=tuple(data.get("proofs", ())),
        facts=facts,
        findings=tuple(findings),
        known=_known(item) if status is Status.FAIL else "",
        fixed=tuple(issue.id for issue in expected) if status is Status.PASS else (),
        excerpts=excerpts,
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note when the test began."""
    item.stash[_BEGUN] = time.time()


# Reports, on the controller


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a testcase whose name carries no row of the catalogue before anything boots."""
    names = [item.name for item in items if _is_testcase(item)]
    if not names:
        return
    try:
        # Not from the state: who only looks at the tests makes no results.
        catalogue = Catalogue.load(paths.source_tree() / "testcases" / "catalogue")
        for name in names:
            catalogue.of_test(name)
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give xdist's workers the controller's results directory."""
    node.workerinput["nvh_results"] = str(_state(node.config).results.path)


def _crashed(state: _State, report: pytest.TestReport) -> TestRecord:
    """Return the record of a test whose worker died under it."""
    folder = state.results.test_dir(report.nodeid)
    row = state.catalogue.of_test(report.nodeid)
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
    return record


class _Reporter:
    """Writes the reports after each test; on the controller only."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._why = ""  # the run was cut short

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a test's record and write the reports anew; a full disk ends the run."""
        try:
            died = report.failed and report.when not in ("setup", "call", "teardown")
            if died and not self._why:  # xdist's report; a worker that Ctrl-C ended is none
                self._add(_crashed(_state(self._config), report))
            for name, value in report.user_properties:
                if name == _RECORD and report.when == "teardown":
                    self._add(TestRecord.load(Path(str(value))))
                elif name == _UNWRITTEN:
                    raise HostError(str(value))
        except HostError as error:
            pytest.exit(str(error), returncode=EXIT_UNTESTABLE)

    def _add(self, record: TestRecord) -> None:
        _state(self._config).records.append(record)
        self._write()

    def _write(self, status: int | None = None) -> None:
        """Write the reports; ``status`` is what pytest ended with, None while it goes on."""
        state = _state(self._config)
        if not state.properties:
            with contextlib.suppress(HarnessError):
                state.properties = dict(state.lab.properties())
        properties = dict(state.properties)
        titles = boot_findings(state.records)
        if titles:
            properties["boot_findings"] = "; ".join(titles)
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(state.started))
        path = state.results.path
        junit.write(path / "junit.xml", state.records, properties, started=started)
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
        )

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

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Write the reports for the last time."""
        if _STATE in self._config.stash:
            try:
                self._write(int(exitstatus))
            except HostError as error:
                self._why = self._why or str(error)
        if exitstatus not in set(pytest.ExitCode) - {pytest.ExitCode.INTERNAL_ERROR}:
            self.pytest_terminal_summary()  # pytest calls it for the others only

    def pytest_terminal_summary(self) -> None:
        """Print the table, and why there is no more of it."""
        if _STATE in self._config.stash and _state(self._config).records:
            state = _state(self._config)
            print()
            table.show(
                state.records,
                results=state.results.path,
                seconds=time.time() - state.started,
                options=state.options,
            )
        if self._why:
            print(f"nvh: {self._why}", flush=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Register the reporter where reports are written."""
    if _worker(session.config) is None:
        plugins = session.config.pluginmanager
        plugins.register(_Reporter(session.config), "nvh-reporter")
        terminal = plugins.get_plugin("terminalreporter")
        if terminal is not None:
            # Its lines about --full-trace; the reporter says in one what cut the run short.
            terminal._report_keyboardinterrupt = lambda: None


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
