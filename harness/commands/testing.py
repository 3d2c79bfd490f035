"""nvh test: run testcases and say what the kernel does."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness import paths, run_view, rundir, ui
from harness.errors import EXIT_OK, EXIT_USAGE, HarnessError, UsageError
from harness.guest import template as templates
from harness.guest.boot import Recipe
from harness.lab import Lab, Options
from harness.pool import budget
from harness.process import shell_line
from harness.qemu.snapshot import NotMigratable
from harness.report import bisection, matrix, summary
from harness.report.results import ResultsDir
from harness.report.table import counted, cut
from harness.run_reporter import exit_code, verdict_of
from harness.toml_table import Table
from harness.verdict.expectation import Catalogue, row_id
from harness.verdict.reports import load_reports

TESTCASES = "testcases"


def test(args: argparse.Namespace) -> int:
    """Run the selected testcases; the exit code is the run's verdict."""
    root = paths.source_tree()
    if args.list:
        return _list(root, args)
    options = Options(kernel=args.kernel, accel=args.accel, machine=args.machine)
    lab = Lab(options)
    with ui.progress() as shown:
        lab.say = shown.say
        # What is asked for wrongly is told before anything is fetched, built or written.
        workers = _workers(args.n, lab.machine.memory)
        arguments = _arguments(root, args)
        shown.say("looking for the tests")
        found = _collect(root, args, arguments)
        if workers > 1:
            arguments = ["-n", str(workers), "--dist", "worksteal", *arguments]
        if args.dry_run:
            folder = paths.results() / "DRY-RUN"
            print(shell_line(["pytest", f"--nvh-results={folder}", *arguments]))
            return EXIT_OK
        shown.say("checking kernel and images")
        recipe = lab.recipe()
        results = ResultsDir.create(paths.results(args.results))
        lab.results = results.path
        try:
            cold = args.isolation == "boot"
            booted = None if cold else _why_booted(lab, recipe, len(found.items))
            _make_images(lab, found.items)
        except BaseException:
            results.discard()  # unless a boot that failed left its logs there
            raise
    results.start_log()
    if ui.terminal.is_terminal:  # the live line that said so is gone
        line = f"accelerator {lab.accel.name}: {lab.accel.why}"  # nvh doctor has all of it
        print(cut(line, ui.Screen(sys.stdout).width) if sys.stdout.isatty() else line)
    print(
        f"kernel {lab.kernel.release} ({lab.kernel.origin}), machine {recipe.machine.name}, "
        f"{lab.accel.name}; results in {_shown(results.path)}",
        flush=True,
    )
    if booted:
        print(f"every test boots its guest: {booted}", flush=True)
    # The tests' own files: where pytest would have them, it removes what earlier sessions left
    # there, of whatever project, before it ends, after Ctrl-C as well.
    with rundir.rundir(of_guest=False) as scratch, contextlib.chdir(root):
        limit = f"--nvh-end={time.time() + args.max_time:.0f}"
        words = [f"--nvh-results={results.path}", f"--basetemp={scratch / 'tests'}", limit]
        words += arguments
        if found.own_words:
            status = pytest.main(words)
        else:
            with run_view.shown(results.path, workers=workers) as view:
                status = pytest.main(words, plugins=[view])
    return _exit_code(int(status), results.path)


def _why_booted(lab: Lab, recipe: Recipe, tests: int) -> str | None:
    """Make the template that most of the tests' guests come from; say why there is none."""
    reason = templates.why_not(recipe.machine)
    if reason is None:
        try:
            lab.template(recipe, clones=tests)
        except NotMigratable as error:
            reason = error.message
    return reason


def _make_images(lab: Lab, items: list[pytest.Item]) -> None:
    """Make what tests on other machines than the run's need, while progress can be seen."""
    markers = [item.get_closest_marker("machine") for item in items]
    for name in {str(marker.args[0]) for marker in markers if marker and marker.args}:
        with contextlib.suppress(HarnessError):  # the tests concerned tell it
            lab.recipe(lab.find_machine(name))


def selected(expression: str) -> list[str]:
    """Return the ids of the tests that -k selects; raise when that is none."""
    root = paths.source_tree()
    where = [str(root / TESTCASES), f"--rootdir={root}", "-p", "no:cacheprovider", "-q"]
    args = argparse.Namespace(k=expression, set=None, failed=None)
    return [item.nodeid for item in _collect(root, args, [*where, "-k", expression]).items]


@dataclass(eq=False)  # pluggy keeps plugins in sets
class _Collected:
    """What pytest found, noted as its plugin."""

    items: list[pytest.Item] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    #: What the harness itself says of a file that cannot be loaded.
    faults: list[HarnessError] = field(default_factory=list)
    interrupted: bool = False
    #: pytest was asked to speak for itself, or a test is to have the terminal.
    own_words: bool = False

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note the last word on a file that cannot be loaded."""
        if report.failed:
            lines = report.longreprtext.strip().splitlines() or ["pytest does not say why"]
            errors = [line.removeprefix("E ").strip() for line in lines if line.startswith("E ")]
            self.broken.append(f"{report.nodeid}: {(errors or lines)[-1]}")

    def pytest_exception_interact(self, call: pytest.CallInfo[object]) -> None:
        """Note why a report's TOML cannot be read, in the harness's words."""
        if call.excinfo is not None and isinstance(call.excinfo.value, HarnessError):
            self.faults.append(call.excinfo.value)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note the tests that are left after the selection."""
        self.items = list(session.items)
        asked = session.config.option
        self.own_words = asked.verbose >= 0 or asked.capture == "no" or asked.usepdb or asked.trace

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Note a user who has had enough; pytest ends in the same way when a file is broken."""
        self.interrupted = excinfo.type is KeyboardInterrupt


def _collect(root: Path, args: argparse.Namespace, arguments: list[str]) -> _Collected:
    """Return the tests that a run with these arguments would run; raise when that is none."""
    found, said = _Collected(), io.StringIO()
    with (
        contextlib.chdir(root),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        try:
            status = pytest.main([*arguments, "--collect-only"], plugins=[found])
        except ImportError as error:  # of -p PLUGIN
            raise UsageError(str(error)) from error
    if found.interrupted:
        raise KeyboardInterrupt
    if found.faults:
        raise found.faults[0]
    if found.broken:
        raise HarnessError(f"a testcase cannot be loaded: {found.broken[0]}")
    if status == pytest.ExitCode.USAGE_ERROR:
        if args.failed:
            _require(Path(args.failed))
        raise UsageError(_complaint(said.getvalue()))
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        where = f" of set {args.set}" if args.set else ""
        what = f"matches {args.k!r}" if args.k else "is selected"
        raise UsageError(f"no test{where} {what}", hint="nvh test --list shows them")
    if status != pytest.ExitCode.OK:
        last = said.getvalue().strip().splitlines()[-1:] or ["it said nothing"]
        raise HarnessError(f"pytest cannot collect the testcases: {last[0]}")
    return found


def _require(results: Path) -> None:
    """Raise UsageError where a test that failed is there no more.

    pytest itself names it without its parameters.
    """
    there = set(selected(""))
    gone = [test for test in _failed_ids(results) if test not in there]
    if gone:
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        hint = "removed or renamed since; nvh test -k NAME runs the others"
        raise UsageError(f"--failed {results}: no test is called {gone[0]}{more}", hint=hint)


def _complaint(said: str) -> str:
    """Return pytest's word on wrong usage."""
    lines = [line.removeprefix("ERROR: ") for line in said.splitlines()]
    for line in lines:
        if ": error: " in line:  # argparse's, below its usage
            return f"pytest: {line.partition(': error: ')[2]}"
    marked = [line.removeprefix("ERROR: ") for line in said.splitlines() if "ERROR: " in line]
    return marked[0] if marked else f"pytest refuses its arguments: {' '.join(lines)[:300]}"


#: The most tests at once, for each core.
_A_CORE = 4


def _workers(asked: str, memory: int) -> int:
    """Return how many tests run at once, for auto two a core: no more than the host carries.

    Tests wait more than they compute: for transfers, for pins to end, for deadlines.  With more
    than a few a core they miss the latter.
    """
    if asked != "auto" and not (asked.isascii() and asked.isdecimal() and int(asked)):
        raise UsageError(f"-n {asked}: neither a number from 1 on nor auto")
    cores = len(os.sched_getaffinity(0))
    wanted = 2 * cores if asked == "auto" else int(asked)
    possible, why = min(
        # Each worker has a guest under test and one that is getting ready.
        (max(1, budget(memory) // 2), "memory is short"),
        # A clone's RAM and NVDIMMs are in memory; those of a guest that is booted are files.
        (max(1, rundir.room()), "files of guests have no room, 1 GiB each"),
        (_A_CORE * cores, f"{_A_CORE} a core is the most"),
        key=lambda limit: limit[0],
    )
    if possible < wanted:
        ui.terminal.print(f"nvh: {counted(possible)} at once instead of {wanted}: {why}")
    return min(wanted, possible)


def _arguments(root: Path, args: argparse.Namespace) -> list[str]:
    """Return pytest's arguments, but for the results and the number of tests at once."""
    chosen = [
        *(_failed(root, Path(args.failed)) if args.failed else [str(root / TESTCASES)]),
        f"--rootdir={root}",
        *["-p", "no:cacheprovider"],
        "-v" if args.verbose else "-q",
        "--no-header",
        "--tb=short",
        "--show-capture=stdout",  # the rest is in the test's folder and in harness.log
        f"--nvh-accel={args.accel}",
        f"--nvh-machine={args.machine}",
        f"--nvh-isolation={args.isolation}",
        "--nvh-trusted",
        f"--nvh-max-test-time={args.max_test_time:g}",
    ]
    if args.dump_memory:
        chosen.append(f"--nvh-dump-memory={args.dump_memory}")
    if args.strict:
        chosen.append("--nvh-strict")
    if args.with_kernel:
        chosen.append("--nvh-with-kernel")
    if args.kernel:
        chosen.append(f"--nvh-kernel={args.kernel}")
    selected = _selection(root, args)
    if selected:
        chosen += ["-k", selected]
    return [*chosen, *args.pytest_args]


def _failed(root: Path, results: Path) -> list[str]:
    """Return the tests that failed in a run, or could not be judged."""
    failed = _failed_ids(results)
    if not failed:
        raise UsageError(f"no test of {results} failed")
    return [str(root / test) for test in failed]


def _failed_ids(results: Path) -> list[str]:
    try:
        tests = summary.load(results / "summary.json").tests
    except HarnessError as error:
        raise _no_run(results, error) from error
    return [one.test for one in tests if one.word in {"FAIL", "ERROR", "MISS"}]


def _no_run(results: Path, error: HarnessError) -> UsageError:
    """Return what to say of a folder without a run's summary: it may be one of many runs."""
    if (results / bisection.FILE).is_file():
        return UsageError(
            f"--failed {results}: a bisection, not a run",
            hint=f"name a run of it, below {results / 'steps'}",
        )
    if (results / matrix.FILE).is_file():
        runs = [one for one in matrix.load(results).combinations if one.results]
        runs.sort(key=lambda one: not one.exit_code)
        named = f", such as {results / runs[0].results}" if runs else ""
        return UsageError(
            f"--failed {results}: a matrix, not a run", hint=f"name one of its runs{named}"
        )
    return UsageError(
        f"--failed {results}: {error.message}", hint="the results of a run, such as results/latest"
    )


def _selection(root: Path, args: argparse.Namespace) -> str:
    """Return the -k expression of a set and of what was asked for by name."""
    if not args.set:
        return args.k or ""
    sets = Table.load(root / TESTCASES / "sets.toml")
    known = sets.names()
    if args.set not in known:
        raise UsageError(f"no set is called {args.set!r}", hint=f"known: {', '.join(known)}")
    rows = " or ".join(sets.strings(args.set))
    return f"({rows}) and ({args.k})" if args.k else rows


def _exit_code(status: int, results: Path) -> int:
    if status == pytest.ExitCode.USAGE_ERROR:
        return EXIT_USAGE
    return exit_code(status, verdict_of(results))


def _list(root: Path, args: argparse.Namespace) -> int:
    """Show the rows, with their tests, that a run with these options would run."""
    catalogue = Catalogue.load(root / TESTCASES / "catalogue")
    reports = {report.name: report for report in load_reports(paths.reports())}
    chosen_reports = []
    tests: dict[str, dict[str, None]] = {}
    for item in _collect(root, args, _arguments(root, args)).items:
        named = row_id(item.name)
        if named in reports:
            chosen_reports.append(reports[named])
            continue
        row = catalogue.of_test(item.name)
        if row is not None:
            tests.setdefault(row.id, {})[item.name.partition("[")[0]] = None
    chosen = args.k or args.set or args.pytest_args
    for row in sorted(catalogue, key=lambda row: (row.id[0], int(row.id[1:]))):
        if chosen and row.id not in tests:
            continue
        print(f"{row.id:4} {row.title}")
        print(f"     source: {'; '.join(row.source)}")
        if row.needs:
            print(f"     needs:  {'; '.join(row.needs)}")
        for name in tests.get(row.id, ()):
            print(f"     {name}")
    for report in chosen_reports:
        print(f"{report.name} {report.title}\n     source: {report.mail}")
    return EXIT_OK


def _shown(path: Path) -> str:
    """Return a path as the user would type it from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
