"""The pytest plugin: fixtures for testcases, and a record of every test as it ends.

It hands a guest to each test, reads the kernel's log after it, and keeps what was seen.  Under
xdist the workers run tests and write each test's folder; the controller writes the reports.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import evidence
from harness.aftermath import Aftermath
from harness.errors import HarnessError, HostError, UnfitKernel
from harness.guest import Guest
from harness.lab import Lab, check_drivers
from harness.observe import Observer
from harness.pool import GuestPool, guest_pool
from harness.report.escape import printable
from harness.report.record import TestRecord
from harness.report.results import ResultsDir, append, write_atomic, write_json
from harness.run_bundles import about
from harness.run_options import add_options, wish_of
from harness.run_reporter import RECORD, UNWRITTEN, Reporter
from harness.run_state import (
    STATE,
    RunState,
    begin_bundle,
    end_bundle,
    is_catalogued,
    is_testcase,
    load_catalogue,
    own_row,
    row_of,
    run_state,
    runs_catalogue,
    worker_id,
)
from harness.steps import Steps
from harness.verdict.expectation import Case, NotProven
from harness.verdict.judge import (
    SPLAT,
    ComparedNothing,
    Splat,
    judge,
    of_the_host,
    says_all,
    yields_to_splat,
)
from harness.verdict.status import Status

pytest_plugins = ["harness.fixtures", "harness.interrupts"]

_ROW = re.compile(r"\b([A-Za-z])(\d{1,3})\b(?!\w)")

#: What of a traceback, or of a section of captured output, a terminal is shown, in characters.
_SHOWN = 1 << 16

_CASE = pytest.StashKey[Case]()
_OBSERVER = pytest.StashKey[Observer]()
_BEGUN = pytest.StashKey[float]()
_STEPS = pytest.StashKey[Steps]()
_NEXT = pytest.StashKey[pytest.Item | None]()
_OUTCOME = pytest.StashKey[tuple[Status, str, str]]()
_OF_HOST = pytest.StashKey[bool]()
_AFTERMATH = pytest.StashKey[Aftermath]()
#: Files of records that were written anew, for the next report to name.
_AMENDED = pytest.StashKey[list[Path]]()
_RECORDED = pytest.StashKey[threading.Event]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options; nvh test sets them."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and let -k take the catalogue's ids: V1 is that row alone, not V11."""
    config.addinivalue_line("markers", "isolation(level): clone, boot or shared")
    config.addinivalue_line("markers", "machine(name): another machine than the run's")
    config.addinivalue_line("markers", "kernel_args(*words): more of the guest's command line")
    keyword = config.getoption("keyword", "")
    if keyword and runs_catalogue(config):
        config.option.keyword = _ROW.sub(lambda match: f"test_{match[0].lower()}_", keyword)
    given = config.getoption("--nvh-results")
    if given and worker_id(config) is not None:
        # Without a log the run is still a run; without the directory it ends at its first test.
        with contextlib.suppress(HostError):
            ResultsDir.open(Path(given)).start_log()


# Fixtures


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Lab:
    """Kernel, images, machine and accelerator of the run."""
    return run_state(request.config).lab


@pytest.fixture(scope="session")
def guests(request: pytest.FixtureRequest) -> Iterator[GuestPool]:
    """Where guests come from."""
    state = run_state(request.config)
    folder = state.results.path / "guests" / (worker_id(request.config) or "main")
    folder.mkdir(parents=True)
    # Outlives the pool, which ends before the last test has its record.
    request.config.stash[_AFTERMATH] = Aftermath(folder)
    with guest_pool(state.lab, folder, evidence=state.results.path) as pool:
        yield pool


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    """The test's record: expect(), prove(), fact(), skip(), allow().

    ``case.prove(what, holds)`` comes first: what does not hold makes the test a MISS, and with
    ``enable="how to get it"`` a SKIP.  ``case.expect(what, seen)`` compares with the row of the
    catalogue that the test's name carries, ``right=`` in its place with a value of the test's own.
    """
    item = request.node
    row = row_of(item)
    if row is None and is_catalogued(item):
        raise pytest.UsageError(f"{item.nodeid}: its name carries no row of the catalogue")
    made = Case(row or own_row(item), echo=evidence.echo(item))
    request.node.stash[_CASE] = made
    return made


@pytest.fixture
def guest(request: pytest.FixtureRequest, guests: GuestPool) -> Iterator[Guest]:
    """A guest of the run's machine, with its namespaces made and its devices bound.

    It is a fresh clone unless the test is marked otherwise: ``isolation("boot")`` or
    ``isolation("shared")``, ``machine("NAME")``, ``kernel_args("WORD", ...)``.  A test that takes
    the fixture ``power_cycle`` as well gets one whose NVDIMMs outlive its QEMU.
    """
    wish = wish_of(request.node, request.config)
    if wish.machine is not None:
        check_machine(run_state(request.config).lab, wish.machine)
    following = request.node.stash.get(_NEXT, None)
    then = None
    if following is not None and "guest" in getattr(following, "fixturenames", ()):
        then = wish_of(following, request.config)
    recorded = request.node.stash[_RECORDED] = threading.Event()

    def keep(clone: Guest, end: Callable[[], None]) -> bool:
        def told(words: str) -> None:
            evidence.keep_logs(request.node, clone)
            _amend(request.node, words)

        return request.config.stash[_AFTERMATH].keep(clone, end, told, recorded)

    with guests.guest(wish, then, keep=keep) as given:
        observer = Observer(given, request.node.nodeid)
        request.node.stash[_OBSERVER] = observer
        given.note = evidence.echo(request.node)
        steps = request.node.stash[_STEPS]
        steps.waited("waits for its guest")
        given.begun, given.ended = _commands(request.node), steps.end
        observer.begin()
        yield given
        evidence.dump_memory(request.node, given)
    evidence.keep_logs(request.node, given)


@pytest.fixture
def power_cycle(
    request: pytest.FixtureRequest, guests: GuestPool, guest: Guest
) -> Iterator[Callable[[], Guest]]:
    """Cut the power: ``again = power_cycle()`` kills the guest's QEMU (SIGKILL) at once.

    ``again`` is booted on the same machine with the same NVDIMMs: whatever was in RAM, the page
    cache included, is gone, and so is the old guest.  It may be called again.  The kernel's log of
    all these guests is read for splats, each guest's files are in the test's folder, and QEMUs and
    NVDIMM files end with the test.
    """
    lives = [guest]

    def cycle() -> Guest:
        again = stack.enter_context(guests.power_cycled(lives[-1]))
        lives.append(again)
        again.note, again.begun, again.ended = lives[0].note, lives[0].begun, lives[0].ended
        request.node.stash[_OBSERVER].go_on(again)
        return again

    with contextlib.ExitStack() as stack:
        yield cycle
    for number, life in enumerate(lives[1:], 2):
        evidence.keep_logs(request.node, life, f"boot{number}-")


def _commands(item: pytest.Item) -> Callable[[str], None]:
    """Return what keeps each command of a test before the guest is told to run it."""
    file = run_state(item.config).results.test_dir(item.nodeid) / "commands"
    steps = item.stash[_STEPS]

    def begun(command: str) -> None:
        append(file, f"{command}\n")
        steps.begin(command)

    return begun


def _amend(item: pytest.Item, words: str) -> None:
    """Take back the verdict on a test whose guest's kernel complained when it was over."""
    observer, made = item.stash[_OBSERVER], item.stash.get(_CASE, None)
    late = observer.add(words, made.allowed if made else ())
    folder = run_state(item.config).results.test_dir(item.nodeid)
    if not late:
        if words.strip():  # what the bundle has of the guest's console is not all
            end_bundle(run_state(item.config), TestRecord.load(folder / "result.json"))
        return
    if item.stash.get(_OUTCOME, (Status.PASS,))[0] in (Status.PASS, Status.SKIP):
        titles = "; ".join(finding.title for finding in late)
        item.stash[_OUTCOME] = (Status.FAIL, f"{SPLAT}, after the test: {titles}", "")
    seconds = TestRecord.load(folder / "result.json").seconds
    record = replace(_record(item), seconds=seconds)
    record.save(folder)
    _begin_bundle(item)  # the one of a test that had passed is gone
    end_bundle(run_state(item.config), record)
    item.config.stash.setdefault(_AMENDED, []).append(folder / "result.json")


def check_machine(lab: Lab, name: str) -> None:
    """Skip a test whose own machine the kernel cannot drive: the run's other tests go on."""
    try:
        check_drivers(lab.kernel, lab.find_machine(name))
    except UnfitKernel as error:
        raise NotProven(error.message, status=Status.SKIP, hint=error.hint) from error


# Verdicts


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Run the test, then read the kernel's log: a splat fails the test whatever it returned."""
    ended: BaseException | None = None
    try:
        with _limited(item):
            outcome = yield
    except (Exception, pytest.skip.Exception) as error:
        ended = error
        if not yields_to_splat(error):
            raise
    finally:
        observer = item.stash.get(_OBSERVER, None)
        case = item.stash.get(_CASE, None)
        if observer is not None:
            observer.end(case.allowed if case else ())
    if observer is not None and observer.unexpected:
        titles = "; ".join(finding.title for finding in observer.unexpected)
        raise Splat(f"{SPLAT}: {titles}", hint=f"it ended with: {ended}" if ended else "")
    if ended is not None:
        raise ended
    if observer is not None:
        observer.check_logs()
        observer.check_pins(case.allowed if case else ())
    if case is not None and not case.expectations:
        raise ComparedNothing("it compared nothing")
    return outcome


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the end of a phase into one of the six words, and the last phase into a record."""
    style = item.config.getoption("tbstyle", "auto")
    if call.excinfo and is_testcase(item) and says_all(call.when, call.excinfo.value):
        # _complete() replaces what pytest would parse each file along a traceback for.
        item.config.option.tbstyle = "value"
    try:
        report = yield
    finally:
        item.config.option.tbstyle = style
    if is_testcase(item):
        try:
            _complete(report, item, call)
        except HostError as error:
            # Told by the controller; what is raised in here ends pytest with INTERNALERROR.
            report.user_properties.append((UNWRITTEN, str(error)))
    return report


def _complete(report: pytest.TestReport, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.excinfo is not None:
        status, message, hint = judge(call.when, call.excinfo.value)
        if _OUTCOME not in item.stash:
            item.stash[_OUTCOME] = (status, printable(message), printable(hint, _SHOWN))
            item.stash[_OF_HOST] = of_the_host(call.excinfo.value)
        words = printable(f"{status}: {message}" + (f" ({hint})" if hint else ""))
        known = _known(item) if status is Status.FAIL else ""
        if known:
            # As an expected failure: pytest counts it apart.
            report.outcome = "skipped"
            report.wasxfail = f"known issue {known}"
        if status is Status.SKIP:
            report.outcome = "skipped"
            report.longrepr = (str(item.path), item.location[1] or 0, words)
        elif says_all(call.when, call.excinfo.value):
            report.longrepr = words
        elif printable(report.longreprtext, _SHOWN) != report.longreprtext:
            report.longrepr = printable(report.longreprtext, _SHOWN)
    report.sections = [(name, printable(text, _SHOWN)) for name, text in report.sections]
    if call.when == "teardown":
        try:
            report.user_properties.append((RECORD, str(_save(item))))
        finally:
            if recorded := item.stash.get(_RECORDED, None):
                recorded.set()
        aftermath = item.config.stash.get(_AFTERMATH, None)
        if aftermath and item.stash.get(_NEXT, None) is None:
            aftermath.wait()
        amended = item.config.stash.setdefault(_AMENDED, [])
        while amended:
            report.user_properties.append((RECORD, str(amended.pop())))


def _save(item: pytest.Item) -> Path:
    """Write a test's record and its bundle; return the record's file."""
    record = _record(item)
    file = record.save(run_state(item.config).results.test_dir(item.nodeid))
    observer = item.stash.get(_OBSERVER, None)
    # A clone lives on: what it has left comes into the test's folder later.
    alone = wish_of(item, item.config).isolation != "shared"
    left = evidence.left_by(observer.guest) if observer and alone else {}
    end_bundle(run_state(item.config), record, left)
    return file


def _known(item: pytest.Item) -> str:
    """Return the id of the known issue that explains a test's failure, splats and all."""
    if not is_catalogued(item):
        return ""
    state = run_state(item.config)
    _, message, _ = item.stash[_OUTCOME]
    observer = item.stash.get(_OBSERVER, None)
    titles = [finding.title for finding in observer.unexpected] if observer else []
    made = item.stash.get(_CASE, None)
    mismatches = made.mismatches if made else ()
    # The message may merely repeat the splats, or all that a test has gathered.
    repeats = message.startswith(SPLAT) or message == printable("; ".join(mismatches))
    symptoms = [*titles, *mismatches, *([] if repeats else [message])]
    issue = state.known.explain(item.name, _release(state), symptoms)
    return issue.id if issue else ""


def _release(state: RunState) -> str:
    """Return the kernel's release; one that cannot be had has no known issue."""
    try:
        return state.lab.kernel.release
    except HarnessError:
        return ""


def _record(item: pytest.Item) -> TestRecord:
    """Write the test's folder and return its record."""
    state = run_state(item.config)
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
        stacks = getattr(observer.guest.broken, "stacks", "")
        if stacks:
            write_atomic(folder / "stacks.txt", stacks)
            excerpts["stacks"] = stacks
        if status is not Status.PASS:
            excerpts["dmesg"] = observer.dmesg
    sections = getattr(item, "_report_sections", [])
    output = "".join(text for _, kind, text in sections if kind != "log")  # that is harness.log
    if output:
        write_atomic(folder / "output.txt", output)
        excerpts["output"] = output
    row = row_of(item)
    seconds = time.time() - item.stash.get(_BEGUN, time.time())
    data = made.record if made else {}
    expected = state.known.expected(item.name, _release(state)) if row else ()
    if made is not None:
        write_json(folder / "facts.json", data)
    return TestRecord(
        nodeid=item.nodeid,
        status=status,
        seconds=seconds,
        started=item.stash.get(_BEGUN, 0.0),
        row=row.id if row else None,
        title=(row or own_row(item)).title,
        message=message,
        hint=hint,
        expectations=tuple(data.get("expectations", ())),
        proofs=tuple(data.get("proofs", ())),
        facts=facts,
        findings=tuple(findings),
        of_host=item.stash.get(_OF_HOST, False),
        known=_known(item) if status is Status.FAIL else "",
        fixed=tuple(issue.id for issue in expected) if status is Status.PASS else (),
        excerpts=excerpts,
        steps=item.stash[_STEPS].all() if _STEPS in item.stash else (),
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Note which test comes next: its guest is started while this one runs."""
    item.stash[_NEXT] = nextitem


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """Note when the test began, and begin its bundle; its guest's start counts to its time."""
    item.stash[_BEGUN] = time.time()
    item.stash[_STEPS] = Steps(item.stash[_BEGUN])
    if is_testcase(item):
        told = run_state(item.config).told
        told.test(item.nodeid)
        item.stash[_STEPS] = Steps(item.stash[_BEGUN], tell=told.say)
        _begin_bundle(item)
    with _limited(item):
        return (yield)


def _begin_bundle(item: pytest.Item) -> None:
    state = run_state(item.config)
    if is_catalogued(item):  # nvh repro runs the testcases of a checkout
        wish = wish_of(item, item.config)
        begin_bundle(state, about(item.nodeid, row_of(item), wish, state.lab))


def _limited(item: pytest.Item) -> contextlib.AbstractContextManager[None]:
    """Hold a testcase to the limits on its time and on the run's."""
    if not is_testcase(item):
        return contextlib.nullcontext()
    return run_state(item.config).limit.applied(time.time() - item.stash[_BEGUN])


# Reports, on the controller


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse, before anything boots, a testcase without a row or with markers that mean nothing."""
    for item in filter(is_testcase, items):
        wish_of(item, config)
    testcases = list(filter(is_catalogued, items))
    if not testcases:
        return
    try:
        # Not from the state: who only looks at the tests makes no results.
        catalogue = load_catalogue()
        for item in testcases:
            catalogue.of_test(item.name)
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give xdist's workers the controller's results directory."""
    node.workerinput["nvh_results"] = str(run_state(node.config).results.path)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the guests of tests that are over, where a run was cut short."""
    config = session.config
    if aftermath := config.stash.get(_AFTERMATH, None):
        aftermath.close()
    # Workers were given a directory before anybody knew whether there is a testcase.
    ours = STATE in config.stash and not config.getoption("--nvh-results")
    if ours and worker_id(config) is None and not run_state(config).records:
        run_state(config).results.discard()
        if not run_state(config).results.path.exists():
            del config.stash[STATE]


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Register the reporter where reports are written."""
    if worker_id(session.config) is None:
        plugins = session.config.pluginmanager
        plugins.register(Reporter(session.config), "nvh-reporter")
        terminal = plugins.get_plugin("terminalreporter")
        if terminal is not None:
            # Its lines about --full-trace; the reporter says in one what cut the run short.
            terminal._report_keyboardinterrupt = lambda: None
