"""nvh repro: run a bundle's test again and say whether the same symptom shows."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import pages, paths, ui
from harness.errors import HarnessError, KernelError, UnfitKernel, UsageError
from harness.images.kernel import Kernel
from harness.images.store import file_hash
from harness.lab import Lab, Options
from harness.report import symptom, unbundle
from harness.report.escape import one_line
from harness.report.record import PAGE, TestRecord, program
from harness.report.results import ResultsDir, write_atomic, write_json
from harness.report.stored import SUMMARY
from harness.report.symptom import Shows
from harness.report.unbundle import Bundle


@dataclass(frozen=True)
class _Plan:
    """How a bundle's test is run here."""

    nodeid: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    again: str  # the command that does it once more


def repro(args: argparse.Namespace) -> int:
    """Run it as often as asked; 1 the symptom shows, 0 it does not, 125 nobody can tell."""
    if args.repeat < 1:
        raise UsageError(f"--repeat {args.repeat}: not a number from 1 on")
    given = Path(args.bundle).absolute()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nvh-repro-")))
        bundle = opened(given, scratch)
        plan = _plan(bundle, args, scratch)
        results = paths.results(args.results)
        shown: list[Shows] = []
        for number in range(1, args.repeat + 1):
            folder = ResultsDir.create(results)
            record = _run(plan, folder)
            shown.append(symptom.compare(bundle.record, record))
            seen = f"{record.word} {record.seen}".strip()
            print(f"run {number}: {seen}: {shown[-1]} ({folder.path / record.folder})", flush=True)
            if args.until_fail and shown[-1] is Shows.SAME:
                break
    print(_verdict(shown), flush=True)
    return symptom.exit_code(shown)


def opened(given: Path, scratch: Path) -> Bundle:
    """Read a bundle: its directory, or its archive, which is unpacked into ``scratch``."""
    if not given.exists():
        raise UsageError(f"no bundle at {given}", hint="results/*/bundles/ has them")
    return unbundle.read(given if given.is_dir() else unbundle.unpack(given, scratch))


def _plan(bundle: Bundle, args: argparse.Namespace, scratch: Path) -> _Plan:
    """Say what is run, and what differs from the bundle's run."""
    root = paths.source_tree()
    print(f"test     {one_line(bundle.nodeid)}")
    if bundle.record is None:
        print("symptom  unknown: its run was killed; any failure is taken for it")
    else:
        print(f"symptom  {bundle.record.word}: {bundle.record.seen}")
    if not (root / bundle.nodeid.partition("::")[0]).is_file():
        raise HarnessError(
            f"{one_line(bundle.nodeid)} is not in this checkout",
            hint=f"the bundle was made by harness {_told(bundle, 'run', 'harness')}",
        )
    same = unbundle.code_digest(bundle.testcases, bundle.nodeid) == unbundle.code_digest(
        root / "testcases", bundle.nodeid
    )
    kernel, said = (args.kernel, args.kernel) if args.kernel else bundle.kernel()
    own = not args.kernel and kernel is not None and Path(kernel).is_relative_to(bundle.folder)
    machine = args.machine or str(bundle.machine_file() or "default")
    lab = Lab(Options(kernel=kernel, accel=args.accel, machine=machine))
    with ui.progress() as shown:
        lab.say = shown.say
        try:
            lab.recipe()
        except KernelError as error:  # of a bisection's: skipped, and not "bad"
            raise UnfitKernel(error.message, hint=error.hint) from error
    print(f"kernel   {lab.kernel.release} ({said}){_other(bundle, lab.kernel)}", flush=True)
    programs = scratch / "programs"
    programs.mkdir()
    for file in sorted(lab.workloads.iterdir()) if lab.workloads.is_dir() else ():
        (programs / file.name).symlink_to(file)
    for name, file in bundle.programs().items():
        if same or name == bundle.report:
            (programs / name).unlink(missing_ok=True)
            (programs / name).symlink_to(file.resolve())
    if not same:
        print(
            "         this checkout's test differs from the bundle's; it runs with its own programs"
        )
    chosen = [
        str(root / bundle.nodeid),
        f"--rootdir={root}",
        *("-p", "no:cacheprovider", "-q", "--no-header", "--tb=short", "--show-capture=stdout"),
        f"--nvh-accel={args.accel}",
        f"--nvh-machine={machine}",
        f"--nvh-isolation={_isolation(bundle)}",
        f"--nvh-workloads={programs}",
        f"--basetemp={scratch / 'tests'}",
        "--nvh-trusted",
    ]
    chosen += [f"--nvh-kernel={kernel}"] if kernel else []
    # A bundle made of this one would have nowhere else to get the kernel from.
    chosen += ["--nvh-with-kernel"] if args.with_kernel or own else []
    reports = bundle.testcases / "reports"
    environment = {"NVH_REPORTS": str(reports.resolve())} if bundle.report else {}
    return _Plan(bundle.nodeid, tuple(chosen), environment, _again(args))


def _again(args: argparse.Namespace) -> str:
    words = [program(), "repro", str(Path(args.bundle).absolute())]
    words += ["--kernel", args.kernel] if args.kernel else []
    words += ["--machine", args.machine] if args.machine else []
    words += ["--accel", args.accel] if args.accel != "auto" else []
    return shlex.join([*words, "--with-kernel"] if args.with_kernel else words)


def _isolation(bundle: Bundle) -> str:
    word = str(bundle.about.get("isolation"))
    return word if word in ("clone", "boot") else "clone"


def _told(bundle: Bundle, table: str, key: str) -> str:
    values = bundle.about.get(table)
    return one_line(str(values.get(key, ""))) if isinstance(values, dict) else ""


def _other(bundle: Bundle, kernel: Kernel) -> str:
    """Say that a kernel is not the bundle's."""
    was, image = _told(bundle, "kernel", "release"), _told(bundle, "kernel", "image_sha256")
    if was and was != kernel.release:
        return f"; the bundle's was {was}"
    if image and image != file_hash(kernel.image):
        return "; another build than the bundle's"
    return ""


def _run(plan: _Plan, results: ResultsDir) -> TestRecord:
    """Run the test once; what pytest says of it goes into the results."""
    said = io.StringIO()
    with (
        _environment(plan.environment),
        contextlib.chdir(paths.source_tree()),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        status = pytest.main([*plan.arguments, f"--nvh-results={results.path}"])
    write_atomic(results.path / "pytest.log", _renamed(plan, results, said.getvalue()))
    bundles = results.path / "bundles"
    if not any(bundles.glob("[!.]*")):
        shutil.rmtree(bundles, ignore_errors=True)  # what they would share: maybe a kernel a run
    if status == pytest.ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    found = sorted(results.path.glob("tests/*/result.json"))
    if len(found) != 1:
        last = (said.getvalue().strip().splitlines() or ["it said nothing"])[-1]
        raise HarnessError(
            f"the test did not run: {one_line(last)}", hint=f"see {results.path / 'pytest.log'}"
        )
    return TestRecord.load(found[0])


def _renamed(plan: _Plan, results: ResultsDir, said: str) -> str:
    """Let results name nvh repro as what runs the test again; return what was said, likewise.

    nvh test has neither the bundle's programs nor its report, and what was unpacked is soon gone.
    """
    file = results.path / SUMMARY
    if not file.is_file():
        return said
    values = json.loads(file.read_text())
    for entry in values["tests"]:
        said = said.replace(entry["again"], plan.again)
        entry["again"] = plan.again
    write_json(file, values)
    if (results.path / PAGE).is_file():
        with contextlib.suppress(HarnessError, OSError), _environment(plan.environment):
            pages.write_stored(results.path)
    return re.sub(r"(?m)^next: .* test --failed .*\n?", "", said)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _verdict(shown: list[Shows]) -> str:
    counts = [f"{shown.count(word)} {word}" for word in Shows if word in shown]
    if len(set(shown)) == 1:
        return f"{shown[0]}" + (f" in {len(shown)} runs" if len(shown) > 1 else "")
    return f"of {len(shown)} runs: {', '.join(counts)}"
