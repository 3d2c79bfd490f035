"""nvh test: run testcases and say what the kernel does."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import tomllib
from pathlib import Path

import pytest

from harness import paths, ui
from harness.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_UNTESTABLE, UsageError
from harness.guest import template as templates
from harness.lab import Lab, Options
from harness.pool import budget
from harness.process import shell_line
from harness.qemu.snapshot import NotMigratable
from harness.report.results import ResultsDir
from harness.toml_table import Table
from harness.verdict.expectation import Catalogue

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
        lab.machine  # noqa: B018 - a wrong machine file is told before anything is fetched
        _check_selection(root, args)
        if args.dry_run:
            print(
                shell_line(
                    [
                        "pytest",
                        *_arguments(root, args, root / "results" / "DRY-RUN", lab.machine.memory),
                    ]
                )
            )
            return EXIT_OK
        recipe = lab.recipe()
        if args.isolation == "clone" and templates.why_not(recipe.machine) is None:
            with contextlib.suppress(NotMigratable):
                lab.template(recipe)
    results = ResultsDir.create(Path(args.results) if args.results else root / "results")
    logging.basicConfig(
        filename=results.path / "harness.log",
        level=logging.DEBUG,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    print(
        f"kernel {lab.kernel.release} ({lab.kernel.origin}), machine {recipe.machine.name}, "
        f"{lab.accel.name} ({lab.accel.why})\nresults in {_shown(results.path)}",
        flush=True,
    )
    os.chdir(root)
    status = pytest.main(_arguments(root, args, results.path, recipe.machine.memory))
    return _exit_code(int(status), results.path, args.k)


def _check_selection(root: Path, args: argparse.Namespace) -> None:
    """Refuse an expression that selects nothing before anything is built or written."""
    if not args.k:
        return
    words = [str(root / TESTCASES), f"--rootdir={root}", "-p", "no:cacheprovider"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = pytest.main([*words, "-q", "--collect-only", "-k", args.k])
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise UsageError(f"no test matches {args.k!r}", hint="nvh test --list shows them")
    if status == pytest.ExitCode.USAGE_ERROR:
        words = [line for line in said.getvalue().splitlines() if line.startswith("ERROR")]
        raise UsageError(words[0].removeprefix("ERROR: ") if words else f"-k {args.k!r} is wrong")


def _workers(asked: str, memory: int) -> int:
    """Return how many tests run at once: no more than memory carries, for auto two a core.

    Tests wait more than they compute: for transfers, for pins to end, for deadlines.
    """
    if asked != "auto" and not asked.isdigit():
        raise UsageError(f"-n {asked}: neither a number nor auto")
    wanted = 2 * len(os.sched_getaffinity(0)) if asked == "auto" else max(1, int(asked))
    # Each worker has a guest under test and one that is getting ready.
    possible = max(1, budget(memory) // 2)
    if possible < wanted:
        print(f"{possible} tests at once instead of {wanted}: memory is short", flush=True)
    return min(wanted, possible)


def _arguments(root: Path, args: argparse.Namespace, results: Path, memory: int) -> list[str]:
    chosen = [
        str(root / TESTCASES),
        f"--rootdir={root}",
        *["-p", "no:cacheprovider"],
        "-q",
        "--no-header",
        "--tb=short",
        f"--nvh-results={results}",
        f"--nvh-accel={args.accel}",
        f"--nvh-machine={args.machine}",
        f"--nvh-isolation={args.isolation}",
        "--nvh-trusted",
    ]
    if args.strict:
        chosen.append("--nvh-strict")
    if args.kernel:
        chosen.append(f"--nvh-kernel={args.kernel}")
    selected = _selection(root, args)
    if selected:
        chosen += ["-k", selected]
    workers = _workers(args.n, memory)
    if workers > 1:
        chosen += ["-n", str(workers), "--dist", "worksteal"]
    return [*chosen, *args.pytest_args]


def _selection(root: Path, args: argparse.Namespace) -> str:
    """Return the -k expression of a set and of what was asked for by name."""
    if not args.set:
        return args.k or ""
    sets = Table.load(root / TESTCASES / "sets.toml")
    known = tomllib.loads((root / TESTCASES / "sets.toml").read_text())
    if args.set not in known:
        raise UsageError(f"no set is called {args.set!r}", hint=f"known: {', '.join(known)}")
    rows = " or ".join(sets.strings(args.set))
    return f"({rows}) and ({args.k})" if args.k else rows


def _exit_code(status: int, results: Path, selected: str | None) -> int:
    from harness.pytest_plugin import verdict_of  # noqa: PLC0415 - loaded by pytest before

    if status == pytest.ExitCode.INTERRUPTED:
        return EXIT_INTERRUPTED
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise UsageError(f"no test matches {selected!r}", hint="nvh test --list shows them")
    if status == pytest.ExitCode.USAGE_ERROR:
        return int(pytest.ExitCode.USAGE_ERROR.value) and 2
    if status == pytest.ExitCode.INTERNAL_ERROR:
        return EXIT_UNTESTABLE
    return verdict_of(results)


def _list(root: Path, args: argparse.Namespace) -> int:
    catalogue = Catalogue.load(root / TESTCASES / "catalogue")
    for row in sorted(catalogue, key=lambda row: (row.id[0], int(row.id[1:]))):
        print(f"{row.id:4} {row.title}")
        print(f"     source: {'; '.join(row.source)}")
        if row.needs:
            print(f"     needs:  {'; '.join(row.needs)}")
    if args.k:
        sys.stdout.flush()
    return EXIT_OK


def _shown(path: Path) -> str:
    """Return a path as the user would type it from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
