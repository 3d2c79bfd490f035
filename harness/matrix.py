"""A matrix of runs: every kernel on every machine, one after the other, each a process of its own.

What is done is kept in matrix.json after each step, so a matrix that was interrupted or killed goes
on where it was; what has no verdict is begun again.  A kernel that fails or does not boot does not
keep the next one from being tested.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from harness import process
from harness.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_UNTESTABLE,
    HarnessError,
    UsageError,
)
from harness.images.kernel import BZIMAGE
from harness.report import junit
from harness.report.escape import one_line
from harness.report.matrix import Combination, Matrix, State, summary_of

LOG = "output.log"
#: Seconds for a run that is interrupted to end its guests and to write its reports.
GRACE = 60.0

_SHARD = re.compile(r"([0-9]+)/([0-9]+)", re.ASCII)
_UNSAFE = re.compile(r"[^A-Za-z0-9_.+~-]+")
#: How much of a log's end is looked through for why its run failed.
_LAST = 1 << 16

ArgvOf = Callable[[Mapping[str, str], Combination, Path], list[str]]


def plan(kernels: Sequence[str], machines: Sequence[str]) -> tuple[Combination, ...]:
    """Return all combinations, each once, with a folder that no other has."""
    pairs = dict.fromkeys((kernel, machine) for kernel in kernels for machine in machines)
    found: dict[str, Combination] = {}
    for kernel, machine in pairs:
        folder = f"{_label(kernel)},{_label(machine.removesuffix('.toml'))}"
        if folder in found:  # /a/linux and /b/linux
            digest = hashlib.sha256(f"{kernel}\0{machine}".encode()).hexdigest()
            folder = f"{folder}-{digest[:8]}"
        found[folder] = Combination(kernel, machine, folder)
    return tuple(found.values())


def _label(selector: str) -> str:
    """Return the short name of a kernel or a machine: of a path its last telling part."""
    path = Path(selector)
    if path.is_absolute():
        selector = path.parents[3].name if path.parts[-4:] == BZIMAGE.parts else path.name
    return _UNSAFE.sub("-", selector).strip("-.") or "unnamed"


def shard_of(combinations: Sequence[Combination], shard: str) -> tuple[Combination, ...]:
    """Return every N-th combination from the I-th on, for "I/N"; UsageError for nonsense."""
    match = _SHARD.fullmatch(shard)
    number, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= of:
        raise UsageError(f"--shard {shard}: no such part", hint="such as 2/5, from 1/5 to 5/5")
    return tuple(combinations[number - 1 :: of])


def testing_argv(options: Mapping[str, str], combination: Combination, folder: Path) -> list[str]:
    """Return the command that tests a combination; ``folder`` is the matrix's."""
    # -P: another checkout in the working directory must not be taken for this one.
    words = [sys.executable, "-P", "-u", "-m", "harness.cli", "test"]
    words += ["--kernel", combination.kernel, "--machine", combination.machine]
    for name, value in options.items():
        words += [f"-{name}" if len(name) == 1 else f"--{name}", value]
    return [*words, "--results", str(folder / combination.folder)]


def check(matrix: Matrix, *, argv_of: ArgvOf) -> None:
    """Raise UsageError for a machine or a selection that no kernel can make right."""
    asked: dict[str, Combination] = {one.machine: one for one in matrix.combinations}
    for one in asked.values():
        argv = [*argv_of(matrix.options, one, Path("results")), "--dry-run"]
        done = process.run(argv, timeout=300.0, check=False)
        if done.status != EXIT_OK:
            error = UsageError if done.status != EXIT_UNTESTABLE else HarnessError
            raise error(_last_words(done.stderr or done.stdout))


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold a matrix's folder against other processes; UsageError when one is at work in it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another nvh matrix is at work in {folder}") from error
        yield
    finally:
        os.close(fd)


def carry_out(matrix: Matrix, folder: Path, *, argv_of: ArgvOf) -> Matrix:
    """Run what is not done and return the matrix as it is then, with its exit code.

    An interruption is passed on to the run that is at work, and ends the matrix.
    """
    matrix = _kept(matrix, folder)
    for index, one in enumerate(matrix.combinations):
        if not is_to_do(one):
            continue
        print(f"=== {one} ({index + 1} of {len(matrix.combinations)})", flush=True)
        matrix = _kept(
            matrix.replaced(
                index, state=State.RUNNING, exit_code=None, seconds=None, results="", why=""
            ),
            folder,
        )
        begun, status = time.monotonic(), EXIT_INTERRUPTED
        interrupted = False
        try:
            status = _run(argv_of(matrix.options, one, folder), folder / one.folder)
        except KeyboardInterrupt:
            interrupted = True
        except HarnessError as error:  # the program could not be started
            _log(folder / one.folder, f"nvh: {error}\n")
            status = error.exit_code
        outcome = _outcome(folder, one, status)
        matrix = matrix.replaced(index, seconds=round(time.monotonic() - begun, 3), **outcome)
        if interrupted:
            return _kept(matrix, folder, EXIT_INTERRUPTED)
        matrix = _kept(matrix, folder)
    return _kept(matrix, folder, verdict(matrix))


def is_to_do(one: Combination) -> bool:
    """Whether a matrix that goes on begins a combination: it never came to a verdict.

    A kernel that could not be fetched last night may be there now.
    """
    return one.state is not State.DONE or one.untested


def verdict(matrix: Matrix) -> int:
    """Return 1 when a kernel failed, else 125 when one could not be tested, else 0."""
    codes = {one.exit_code if one.state is State.DONE else None for one in matrix.combinations}
    if EXIT_FAILED in codes:
        return EXIT_FAILED
    return EXIT_OK if codes <= {EXIT_OK} else EXIT_UNTESTABLE


def _kept(matrix: Matrix, folder: Path, exit_code: int | None = None) -> Matrix:
    """Write matrix.json and the merged junit.xml; return the matrix as written."""
    matrix = matrix.ended(exit_code)
    matrix.save(folder)
    begun = [one for one in matrix.combinations if one.state is not State.WAITING]
    junit.write_merged(folder / "junit.xml", [_part(folder, one) for one in begun])
    return matrix


def _part(folder: Path, one: Combination) -> junit.Part:
    file = folder / one.results / "junit.xml"
    return junit.Part(
        name=str(one),
        label=one.label,
        file=file if one.results and file.exists() else None,
        properties={
            "matrix.kernel": one.kernel,
            "matrix.machine": one.machine,
            "matrix.state": one.state.value,
            "results": one.results,
        },
        problem=one.why or ("" if one.state is State.DONE else one.state.value),
    )


def _run(argv: Sequence[str], folder: Path) -> int:
    """Run a program with its output passed on and kept; return its status as Popen tells it."""
    folder.mkdir(exist_ok=True)
    # Of an earlier attempt that was interrupted; its results stay.
    (folder / "latest").unlink(missing_ok=True)
    with (
        (folder / LOG).open("wb") as log,
        process.running(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, grace=GRACE
        ) as child,
    ):
        assert child.stdout is not None
        passing = threading.Thread(target=_pass_on, args=(child.stdout, log), daemon=True)
        passing.start()
        try:
            return child.wait()
        finally:
            process.end(child, grace=GRACE)
            passing.join(5.0)  # what was said last; a grandchild may hold the pipe open


def _pass_on(source: IO[bytes], log: IO[bytes]) -> None:
    with contextlib.suppress(ValueError):  # the log is closed: nobody waits any more
        while chunk := os.read(source.fileno(), 1 << 16):
            log.write(chunk)
            log.flush()
            with contextlib.suppress(OSError):  # a closed pipe is no reason to stop testing
                sys.stdout.write(chunk.decode("utf-8", "replace"))
                sys.stdout.flush()


def _log(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / LOG).write_text(text, encoding="utf-8")


def _outcome(folder: Path, one: Combination, status: int) -> dict[str, object]:
    """Return what a run's end changes of its combination."""
    latest = folder / one.folder / "latest"
    results = f"{one.folder}/{latest.readlink()}" if latest.is_symlink() else ""
    found: dict[str, object] = {"state": State.DONE, "exit_code": status, "results": results}
    seen = summary_of(folder, Combination(one.kernel, one.machine, one.folder, results=results))
    said = _said(folder / one.folder / LOG)
    if status < 0:
        return found | {"state": State.INTERRUPTED, "why": f"it was killed by signal {-status}"}
    if status == EXIT_INTERRUPTED:
        return found | {"state": State.INTERRUPTED, "why": "it was interrupted"}
    if seen is None:
        # Without a summary nothing was judged, whatever the status says.
        code = EXIT_UNTESTABLE if status in (EXIT_OK, EXIT_FAILED) else status
        return found | {"exit_code": code, "results": "", "why": said}
    if not seen.finished:
        return found | {"state": State.INTERRUPTED, "why": f"it was cut short: {said}"}
    return found


def _said(log: Path) -> str:
    """Return why a run failed, from the end of its log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LAST))
            return _last_words(file.read().decode("utf-8", "replace"))
    except OSError as error:
        return f"it left no log: {error.strerror}"


def _last_words(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    complaints = [line.removeprefix("nvh: ") for line in lines if line.startswith("nvh: ")]
    return one_line((complaints or lines or ["it said nothing"])[-1], 500)
