"""A bisection carried out: each kernel made, tried by nvh repro as a process, and judged.

What was said is kept in bisect.json after each step.  An interrupted bisection goes on with the
kernel that it was at; one with a tree finds its worktree as it was, or makes another.  So does one
that the host kept from testing: only what a kernel is answerable for is said of it.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from pathlib import Path

from harness import bisect, git_bisect, logged
from harness.bisect import Verdict
from harness.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_UNTESTABLE,
    BuildError,
    HarnessError,
    KernelError,
    NoTurn,
    UsageError,
)
from harness.git_bisect import Commit, Worktree
from harness.images import fragment, kbuild, patches
from harness.images.store import Progress, Store
from harness.lab import Lab, Options
from harness.report import bisection, unbundle
from harness.report.bisection import Bisection, Step, Tree
from harness.report.escape import one_line
from harness.report.record import TestRecord
from harness.report.results import naming, write_atomic
from harness.report.summary import load as load_summary
from harness.verdict.status import Status

_UNSAFE = re.compile(r"[^A-Za-z0-9_.+~-]+")
_PASSED = (Status.PASS, Status.DONE)


def repro_argv(found: Bisection, kernel: str, results: Path) -> list[str]:
    """Return the command that tries a kernel with the bundle of the symptom."""
    words = ["repro", found.bundle or found.given, "--kernel", kernel]
    words += ["--repeat", str(found.repeat), "--until-fail"]
    return logged.command(*words, *_options(found), "--results", str(results))


def testing_argv(found: Bisection, kernel: str, results: Path) -> list[str]:
    """Return the command that runs the test once where there is no bundle of it yet."""
    words = ["test", "-k", found.given, "--kernel", kernel, "-n", "1"]
    return logged.command(*words, *_options(found), "--results", str(results))


def build(tree: Tree, store: Store, say: Progress) -> Path:
    """Build the kernel of what the worktree has, and return where it lies."""
    made = kbuild.build(
        tree.worktree,
        store,
        fragments=tree.fragments,
        patch_files=[Path(file) for file in tree.patches],
        jobs=tree.jobs,
        progress=say,
    )
    return made.path


def prepare(found: Bisection, kernel: str, say: Progress) -> None:
    """Have what a guest of a kernel is made of, as nvh repro does: here errors have a class.

    Raises KernelError for what is wrong with the kernel.
    """
    with tempfile.TemporaryDirectory(prefix="nvh-bisect-") as scratch:
        machine = found.options.get("machine") or _machine(found, Path(scratch))
        accel = found.options.get("accel", "auto")
        lab = Lab(Options(kernel=kernel, accel=accel, machine=machine), say=say)
        lab.images_of(lab.machine)


def _machine(found: Bisection, scratch: Path) -> str:
    path = _bundle(found)
    if path is None:
        return "default"
    folder = path if path.is_dir() else unbundle.unpack(path, scratch)
    return str(unbundle.read(folder).machine_file() or "default")


def _bundle(found: Bisection) -> Path | None:
    """Return the bundle to run: one that was given may be of a killed run, which knows no symptom.

    None where there is none yet, and the test is known by an expression.
    """
    word = found.bundle or found.given
    return Path(word) if word.startswith("/") else None


def _options(found: Bisection) -> list[str]:
    return [word for name, value in found.options.items() for word in (f"--{name}", value)]


class Runs:
    """A bisection at work in its folder; the caller holds the folder."""

    def __init__(self, found: Bisection, folder: Path, store: Store, say: Progress) -> None:
        self.found = found
        self.folder = folder
        self._store = store
        self._say = say

    def carry_out(self) -> Bisection:
        """Try the two ends, then search; return the bisection with its exit code.

        Raises NoTurn when an end does not say what was said of it, and HarnessError when an end,
        or what is needed for all, cannot be had.
        """
        tree = self.found.tree
        worktree = Worktree(Path(tree.path), Path(tree.worktree)) if tree else None
        if worktree is not None and not worktree.ready():
            self._say(f"checking out a worktree of {worktree.repository}")
            worktree.make(self.found.ends[0][0])
        for kernel, right in self.found.ends:
            self._end(worktree, kernel, right)
        first = self._commits(worktree) if worktree else self._kernels()
        code = EXIT_OK if len(first) == 1 else EXIT_UNTESTABLE
        self._keep(dataclasses.replace(self.found, first=first, exit_code=code))
        return self.found

    def _end(self, worktree: Worktree | None, kernel: str, right: Verdict) -> None:
        """See that good is good, and bad is bad."""
        step = self.found.step_of(kernel)
        if step is None:
            if worktree is not None and not worktree.bisecting():
                worktree.checkout(kernel)
            step = self._try(kernel, self._name(worktree, kernel))
        if step.verdict is right:
            return
        steps = tuple(one for one in self.found.steps if one.kernel != kernel)
        self._keep(dataclasses.replace(self.found, steps=steps))  # tried again when it goes on
        said = f"{right} {one_line(step.name, 100)} is not {right}"
        if step.verdict is Verdict.SKIP:
            raise HarnessError(
                f"{said}, it cannot be told: {step.seen}", hint=f"see {self._at(step)}"
            )
        hint = "more runs with --repeat, if it is a race" if right is Verdict.BAD else None
        raise NoTurn(f"{said}: {step.seen}; see {self._at(step)}", hint=hint)

    def _kernels(self) -> tuple[str, ...]:
        kernels, turn = self.found.kernels, self.found.turn
        while True:
            verdicts = {
                at: step.verdict
                for at, kernel in enumerate(kernels)
                if (step := self.found.step_of(kernel))
            }
            at = bisect.following(turn, verdicts, len(kernels))
            if at is None:
                break
            self._try(kernels[at], kernels[at])
        return tuple(kernels[at] for at in bisect.bounds(turn, verdicts, len(kernels)).candidates)

    def _commits(self, worktree: Worktree) -> tuple[str, ...]:
        found, tree = self.found, self.found.tree
        assert tree is not None
        turn = found.turn
        old, new = (tree.good, tree.bad) if turn.old is Verdict.GOOD else (tree.bad, tree.good)
        if not worktree.bisecting():
            worktree.start(turn, old, new, tree.paths)
        while not worktree.first():
            commit = worktree.head()
            step = self.found.step_of(commit) or self._try(commit, self._name(worktree, commit))
            left = worktree.mark(turn, commit, step.verdict)
            write_atomic(self.folder / bisection.LOG, worktree.log())
            if left:
                self._say(left)
        write_atomic(self.folder / bisection.LOG, worktree.log())
        return worktree.first()

    def _name(self, worktree: Worktree | None, kernel: str) -> str:
        return str(self.commit(kernel)) if worktree else kernel

    def commit(self, commit: str) -> Commit:
        """Return what the tree's git knows of a commit."""
        assert self.found.tree is not None
        return git_bisect.find(Path(self.found.tree.path), commit)

    def _keep(self, found: Bisection) -> None:
        self.found = found
        found.save(self.folder)

    def _at(self, step: Step) -> Path:
        return self.folder / (step.run or step.folder)

    # One kernel

    def _try(self, kernel: str, name: str) -> Step:
        """Make a kernel, run the test on it, note what it said.

        Raises HarnessError, with nothing noted, for what is not the kernel's.
        """
        self._check()
        folder = self._fresh(kernel[:12] if self.found.tree else kernel)
        begun = time.monotonic()
        built = ""
        try:
            if self.found.tree is not None:
                self._say(f"building {one_line(name, 100)}")
                built = _built(self.found.tree, self._store, self._say)
            self._say(f"preparing {one_line(name, 100)}")
            prepare(self.found, built or kernel, self._say)
        except (BuildError, KernelError) as error:
            logged.write(folder, f"nvh: {error}\n")
            said = Step(kernel, name, Verdict.SKIP, one_line(str(error), 500), "", 0.0)
        except UsageError as error:  # not of who asked for this bisection
            raise HarnessError(error.message, hint=error.hint) from error
        else:
            self._say(f"testing {one_line(name, 100)}; {folder / logged.LOG}")
            said = self._run(Step(kernel, name, Verdict.SKIP, "", "", 0.0, built=built), folder)
        where = str(folder.relative_to(self.folder))
        seconds = round(time.monotonic() - begun, 3)
        step = dataclasses.replace(said, folder=where, seconds=seconds)
        self._keep(self.found.with_step(step))
        print(f"step {len(self.found.steps)}: {step}", flush=True)
        return step

    def _check(self) -> None:
        """See that what was given at the start is still there."""
        path, tree = _bundle(self.found), self.found.tree
        if path is not None and not path.exists():
            raise HarnessError(f"no bundle at {path}", hint="put it back")
        try:
            fragment.find(tree.fragments if tree else ())
            for file in tree.patches if tree else ():
                patches.read(Path(file))
        except UsageError as error:
            raise HarnessError(error.message, hint="put it back") from error

    def _fresh(self, label: str) -> Path:
        """Make the folder of a step; that of an attempt that was interrupted stays as it is."""
        label = _UNSAFE.sub("-", label.rstrip("/").rpartition("/")[2]).strip("-.") or "kernel"
        stem = f"steps/{len(self.found.steps) + 1:02}-{label}"
        number = 1
        while True:
            path = self.folder / (stem if number == 1 else f"{stem}-{number}")
            with naming(path):
                try:
                    path.mkdir(parents=True)
                except FileExistsError:
                    number += 1
                    continue
            return path

    def _run(self, step: Step, folder: Path) -> Step:
        """Run the test and read what it left; what is looked for is known from the bad end on."""
        kernel = step.built or step.kernel
        if _bundle(self.found) is not None:
            status = _started(repro_argv(self.found, kernel, folder), folder)
            step = _judged(step, folder, self.folder, status)
        else:
            step = self._searched(step, folder, kernel)
        if step.verdict is Verdict.BAD and not self.found.bundle:
            left = sorted((self.folder / step.run).glob("bundles/*.tar.zst"))
            if not left:
                raise HarnessError(f"{self.folder / step.run} holds no bundle of the failure")
            self.found = dataclasses.replace(self.found, bundle=str(left[0]))
        return step

    def _searched(self, step: Step, folder: Path, kernel: str) -> Step:
        """Run a test that has no bundle until it fails: its failure is what is looked for."""
        for _ in range(self.found.repeat):
            status = _started(testing_argv(self.found, kernel, folder), folder)
            if Verdict.of(status) is not None:
                # Known failures do not make nvh test fail: what it wrote counts.
                word = next((record.status for _, record in reversed(_records(folder))), None)
                status = EXIT_FAILED if word is Status.FAIL else EXIT_UNTESTABLE
                status = EXIT_OK if word in _PASSED else status
            step = _judged(step, folder, self.folder, status)
            if step.verdict is not Verdict.GOOD:
                break
        return step


def _started(argv: list[str], folder: Path) -> int:
    status = logged.run(argv, folder, echo=False)
    if status == EXIT_INTERRUPTED:  # by a Ctrl-C or a SIGTERM of its own
        raise KeyboardInterrupt
    return status


def _built(tree: Tree, store: Store, say: Progress) -> str:
    try:
        return str(build(tree, store, say))
    except KernelError:
        raise
    except UsageError as error:  # what was given is there: a patch does not apply to this commit
        raise BuildError(error.message, hint=error.hint) from error


def _judged(step: Step, folder: Path, base: Path, status: int) -> Step:
    """Return a step with its verdict and evidence: a status counts with records that bear it.

    Raises HarnessError where it is not the kernel that kept the test from running.
    """
    verdict, records = Verdict.of(status), _records(folder)
    if status < 0:
        raise _untested(step, folder, f"nvh was killed by signal {-status}")
    passed = all(record.status in _PASSED for _, record in records)
    # What is wrong with the kernel was told by prepare(), or is by a record.
    if verdict is None or not records or passed is not (verdict is Verdict.GOOD):
        raise _untested(step, folder, logged.said(folder))
    for _, record in records:
        if verdict is Verdict.SKIP and record.of_host:
            raise _untested(step, folder, f"{record.word} {record.seen}")
    file, record = records[-1]
    seen = f"{record.word} {record.seen}".strip()
    if verdict is Verdict.SKIP and record.status is Status.FAIL:
        seen = f"another symptom: {seen}"
    elif verdict is Verdict.SKIP and record.status in _PASSED:
        seen = f"{logged.said(folder)}; the last run: {seen}"
    run = file.parents[2]
    titles = dict.fromkeys(str(finding.get("title", "")) for finding in record.findings)
    return dataclasses.replace(
        step,
        verdict=verdict,
        seen=seen,
        release=_release(run) or step.release,
        run=str(run.relative_to(base)),
        findings=tuple(title for title in titles if title),
    )


def _untested(step: Step, folder: Path, why: str) -> HarnessError:
    """Return what the search stops with: the next kernel would fare no better."""
    return HarnessError(
        f"{one_line(step.name, 100)} was not tested: {why}", hint=f"see {folder / logged.LOG}"
    )


def _records(folder: Path) -> list[tuple[Path, TestRecord]]:
    """Return a step's records, the newest last: with --until-fail it is the one that tells."""
    files = sorted(folder.glob("2*/tests/*/result.json"), key=lambda file: file.stat().st_mtime_ns)
    return [(file, TestRecord.load(file)) for file in files]


def _release(run: Path) -> str:
    try:
        return one_line(str(load_summary(run / "summary.json").properties.get("kernel", "")), 100)
    except HarnessError:
        return ""
