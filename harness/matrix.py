"""A matrix of runs: every kernel on every machine, one after the other, each a process of its own.

What is done is kept in matrix.json after each step, so a matrix that was interrupted or killed goes
on where it was; what has no verdict is begun again.  A kernel that fails or does not boot does not
keep the next one from being tested.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness import logged, process
from harness.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_UNTESTABLE,
    HarnessError,
    UsageError,
)
from harness.images.kernel import BZIMAGE
from harness.images.packaged import DEB
from harness.report import junit
from harness.report.matrix import Combination, Matrix, State, summary_of
from harness.signals import came

_SHARD = re.compile(r"([0-9]+)/([0-9]+)", re.ASCII)
_UNSAFE = re.compile(r"[^A-Za-z0-9_.+~-]+")

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
    if selector.startswith(DEB):
        selector = selector.removeprefix(DEB).partition(",")[0]
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
    words = logged.command("test", "--kernel", combination.kernel, "--machine", combination.machine)
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
            raise error(logged.last_words(done.stderr or done.stdout))


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
            status = logged.run(argv_of(matrix.options, one, folder), folder / one.folder)
        except KeyboardInterrupt:
            interrupted = True
        except HarnessError as error:
            interrupted = came()  # and this is of its cleaning
            if not interrupted:  # the program could not be started
                logged.write(folder / one.folder, f"nvh: {error}\n")
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
        suites=file if one.results and file.exists() else None,
        properties={
            "matrix.kernel": one.kernel,
            "matrix.machine": one.machine,
            "matrix.state": one.state.value,
            "results": one.results,
        },
        problem=one.why or ("" if one.state is State.DONE else one.state.value),
    )


def _outcome(folder: Path, one: Combination, status: int) -> dict[str, object]:
    """Return what a run's end changes of its combination."""
    latest = folder / one.folder / "latest"
    results = f"{one.folder}/{latest.readlink()}" if latest.is_symlink() else ""
    found: dict[str, object] = {"state": State.DONE, "exit_code": status, "results": results}
    seen = summary_of(folder, Combination(one.kernel, one.machine, one.folder, results=results))
    said = logged.said(folder / one.folder)
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
