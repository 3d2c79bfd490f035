"""nvh matrix and nvh compare: many kernels in one go, and one night against the one before."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from harness import matrix as runs
from harness import pages, paths
from harness.errors import EXIT_OK, HarnessError, UsageError
from harness.process import shell_line
from harness.qemu import accel
from harness.report import compare as comparison
from harness.report import matrix as kept
from harness.report import matrix_table
from harness.report.matrix import Matrix
from harness.report.results import make_folder, owned, point_again

#: What a matrix hands on to each nvh test, and which a resumed one has in its matrix.json.
_OPTIONS = ("accel", "k", "set", "n")


def matrix(args: argparse.Namespace) -> int:
    """Run every kernel on every machine; the exit code is the worst of all."""
    found = _resumed(args) if args.resume else _planned(args)
    if not found.combinations:
        print(f"shard {found.shard} has none of the combinations: nothing to do")
        return EXIT_OK
    if args.dry_run:
        return _dry_run(found, args)
    if found.options.get("accel") == "kvm":
        accel.require_kvm(accel.qemu_program())
    if not args.resume:
        runs.check(found, argv_of=runs.testing_argv)
    if args.resume:
        folder = Path(args.resume).resolve()
    else:
        folder = make_folder(paths.results(args.results), prefix="matrix-")
    with owned(folder, "nvh matrix"):
        if args.resume:
            found = kept.load(folder)  # as whoever held it before has left it
            point_again(folder)
        waiting = sum(map(runs.is_to_do, found.combinations))
        runs_to_do = "1 run" if waiting == 1 else f"{waiting} runs"
        print(f"{runs_to_do} to do; results in {folder}", flush=True)
        found = runs.carry_out(found, folder, argv_of=runs.testing_argv)
    matrix_table.show(found, folder)
    try:
        print(f"report: {pages.write_stored(folder)}", flush=True)
    except (HarnessError, OSError) as error:  # it costs no verdict
        print(f"no report: {error}", flush=True)
    assert found.exit_code is not None
    return found.exit_code


def _planned(args: argparse.Namespace) -> Matrix:
    combinations = runs.plan(args.kernels or ["default"], args.machines or ["default"])
    if args.shard:
        combinations = runs.shard_of(combinations, args.shard)
    given = {name: str(value) for name in _OPTIONS if (value := getattr(args, name)) is not None}
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return Matrix(started, given, args.shard or "", combinations)


def _resumed(args: argparse.Namespace) -> Matrix:
    """Return the matrix of a folder; what it was started with stays as it was."""
    for name in ("kernels", "machines", "shard", "results", *_OPTIONS):
        if getattr(args, name) is not None:
            option = {"kernels": "kernel", "machines": "machine"}.get(name, name)
            dashes = "-" if len(option) == 1 else "--"
            raise UsageError(
                f"{dashes}{option} with --resume: a matrix keeps what it was started with"
            )
    try:
        return kept.load(Path(args.resume))
    except HarnessError as error:
        raise UsageError(
            f"--resume {args.resume}: {error.message}", hint="results/latest, or a matrix-* of it"
        ) from error


def _dry_run(found: Matrix, args: argparse.Namespace) -> int:
    named = args.resume or paths.results(args.results) / "matrix-DRY-RUN"
    folder = Path(named).resolve()
    for one in found.combinations:
        if runs.is_to_do(one):
            print(shell_line(runs.testing_argv(found.options, one, folder)))
    return EXIT_OK


def compare(args: argparse.Namespace) -> int:
    """Hold two results against each other; the exit code is 1 when the new one is worse."""
    old, new = comparison.load(Path(args.old)), comparison.load(Path(args.new))
    found = comparison.differences(old, new)
    if args.json:
        print(json.dumps(comparison.as_dict(old, new, found), indent=1))
    else:
        print("\n".join(comparison.lines(old, new, found)))
    return comparison.exit_code(found)
