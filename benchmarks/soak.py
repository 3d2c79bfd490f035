"""Run the whole catalogue again and again, and name each test whose verdict differs.

A MISS is a harness or a host that failed: it differs, even if every run has it.  A loop that was
interrupted goes on with --resume, as long as neither the harness nor the kernel is another.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.content import content
from benchmarks.crosstalk import checksum
from benchmarks.figures import Figure, lines
from harness import paths, ui
from harness.errors import EXIT_FAILED, EXIT_OK, EXIT_UNTESTABLE, HarnessError, UsageError
from harness.images.store import hash_of
from harness.lab import Lab, Options
from harness.report.results import reading, write_json
from harness.verdict.status import Status

#: A test and what was said of it, the known issue with it.
Verdicts = Mapping[str, str]

FILE = "soak.json"
FORMAT = 1
#: What of a checkout decides what a run says.
_PARTS = ("harness", "guest-images", "testcases")


@dataclass
class Loop:
    """The runs of a loop, in their order."""

    folder: Path
    of: str  # the hash of all that the runs have in common
    runs: list[str] = field(default_factory=list)  # folders
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path, of: str) -> Loop:
        """Return a loop that was begun; UsageError when it is of something else."""
        with reading(folder / FILE, FORMAT, "soak") as values:
            loop = cls(folder, str(values["of"]), list(values["runs"]), list(values["seconds"]))
        if loop.of != of:
            raise UsageError(f"{folder} was begun with another harness, kernel or selection")
        return loop

    def add(self, run: Path, seconds: float) -> None:
        """Note a run that is whole."""
        self.runs.append(run.name)
        self.seconds.append(seconds)

    def save(self) -> None:
        """Keep what was run, with what differs."""
        values = {"format": FORMAT, "of": self.of, "runs": self.runs, "seconds": self.seconds}
        write_json(self.folder / FILE, {**values, "differing": differing(self.verdicts())})

    def verdicts(self) -> list[Verdicts]:
        """Return what each run said."""
        return [verdicts(self.folder / name / "summary.json") for name in self.runs]


def main() -> int:
    """Soak; status 1 when a verdict differed, or when a clone wrote to its template."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="runs of the whole (20)")
    parser.add_argument("--kernel", metavar="K")
    parser.add_argument("-k", metavar="EXPR", help="only these tests")
    parser.add_argument("-n", default="2", help="tests at once (2)")
    parser.add_argument(
        "--resume", metavar="FOLDER", type=Path, help="results/soak-* to go on with"
    )
    args = parser.parse_args()
    try:
        return _soak(args)
    except HarnessError as error:
        return ui.complain(error)


def _soak(args: argparse.Namespace) -> int:
    with ui.progress() as shown:
        lab = Lab(Options(kernel=args.kernel), say=shown.say)
        template = lab.template(lab.recipe())  # in use by this process: it stays
        before = checksum(template)
        of = hash_of(content(paths.source_tree(), *_PARTS), lab.kernel.digest, args.k or "")
    if args.resume:
        loop = Loop.load(args.resume.resolve(), of)
    else:
        stamp = time.strftime("soak-%Y-%m-%d-%H%M%S")
        loop = Loop(paths.source_tree() / "results" / stamp, of)
    command = [sys.executable, "-m", "harness", "test", "-n", args.n]
    command += ["--results", str(loop.folder)]
    command += ["--kernel", args.kernel] if args.kernel else []
    command += ["-k", args.k] if args.k else []
    latest = loop.folder / "latest"
    while len(loop.runs) < args.runs:
        number, last = len(loop.runs) + 1, latest.resolve()
        begun = time.monotonic()
        done = subprocess.run(
            command, cwd=paths.source_tree(), capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - begun
        judged = latest.resolve() != last  # or it ended before its first test
        if done.returncode not in (EXIT_OK, EXIT_FAILED, EXIT_UNTESTABLE) or not judged:
            raise HarnessError(
                f"run {number} failed: {(done.stderr or done.stdout).strip()[-300:]}"
            )
        loop.add(latest.resolve(), seconds)
        loop.save()  # after each run: whoever stops the loop keeps what it has shown
        seen = loop.verdicts()
        said = f"{counted(seen[-1])}; {len(differing(seen))} differ"
        print(f"run {number}: {seconds:.0f} s, {said}", flush=True)
    flaky = differing(loop.verdicts())
    for name, words in flaky.items():
        print(f"{name}: {'; '.join(f'{word} in {ranges(at)}' for word, at in words.items())}")
    written = checksum(template) != before
    print(f"the template {'was written to' if written else 'is what it was'}: {template.path.name}")
    goal = None if args.k else 300.0
    for line in lines([Figure("a run, everything cached", "s", tuple(loop.seconds), goal)]):
        print(line)
    return 1 if flaky or written else 0


def counted(seen: Verdicts) -> str:
    """Return how many tests of a run ended how."""
    counts = Counter("KNOWN" if " " in word else word for word in seen.values())
    return ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))


def verdicts(summary: Path) -> Verdicts:
    """Return each test's verdict of one run."""
    tests = json.loads(summary.read_text())["tests"]
    return {test["test"]: f"{test['status']} {test['known']}".strip() for test in tests}


def differing(runs: Sequence[Verdicts]) -> dict[str, dict[str, list[int]]]:
    """Return the tests that were not judged alike in all runs, and which runs said what."""
    found: dict[str, dict[str, list[int]]] = {}
    for name in sorted({name for run in runs for name in run}):
        seen: dict[str, list[int]] = {}
        for number, run in enumerate(runs, 1):
            seen.setdefault(run.get(name, "not run"), []).append(number)
        if len(seen) > 1 or Status.MISS in seen:
            found[name] = seen
    return found


def ranges(numbers: Iterable[int]) -> str:
    """Return ascending numbers as a person writes them: 1-3, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


if __name__ == "__main__":
    sys.exit(main())
