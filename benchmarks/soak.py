"""Run the whole catalogue again and again, and name each test whose verdict differs.

A MISS is a harness or a host that failed: it differs, even if every run has it.  A loop that was
interrupted goes on with --resume, as long as neither the harness nor the kernel is another.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.command import carried_out, nvh_test
from benchmarks.content import content
from benchmarks.crosstalk import checksum
from benchmarks.figures import Figure, lines
from harness import logged, paths, ui
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
    digest: str  # of all that the runs have in common
    runs: list[str] = field(default_factory=list)  # folders
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> Loop:
        """Return a loop that was begun; UsageError where there is none."""
        if not (folder / FILE).is_file():
            raise UsageError(f"no soak was begun in {folder}", hint="name a results/soak-*")
        with reading(folder / FILE, FORMAT, "soak") as values:
            runs, seconds = list(values["runs"]), list(values["seconds"])
            return cls(folder, str(values["digest"]), runs, seconds)

    def check(self, digest: str) -> None:
        """Raise UsageError when the next run would be one of something else."""
        if self.digest != digest:
            raise UsageError(f"{self.folder} was begun with another harness, kernel or selection")

    def add(self, run: Path, seconds: float) -> None:
        """Note a run that is whole."""
        self.runs.append(run.name)
        self.seconds.append(seconds)

    def save(self, flaky: Mapping[str, object]) -> None:
        """Keep what was run, with what differs."""
        values = {"digest": self.digest, "runs": self.runs, "seconds": self.seconds}
        write_json(self.folder / FILE, {"format": FORMAT, **values, "differing": flaky})

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
    return carried_out(lambda: _soak(args), "--resume goes on")


def _soak(args: argparse.Namespace) -> int:
    root = paths.source_tree()
    loop = Loop.load(args.resume.resolve()) if args.resume else None
    with ui.progress() as shown:
        lab = Lab(Options(kernel=args.kernel), say=shown.say)
        template = lab.template(lab.recipe())  # in use by this process: it stays
        before = checksum(template)

    def digest() -> str:
        return hash_of(content(root, *_PARTS), lab.kernel.digest, args.k or "")

    if loop is None:
        loop = Loop(root / "results" / time.strftime("soak-%Y-%m-%d-%H%M%S"), digest())
    words = ["-n", args.n]
    words += ["--kernel", args.kernel] if args.kernel else []
    words += ["-k", args.k] if args.k else []
    seen = loop.verdicts()
    flaky = differing(seen)
    while len(loop.runs) < args.runs:
        loop.check(digest())
        status, seconds, results = nvh_test(loop.folder, *words)
        # There are no results when it ended before its first test.
        if status not in (EXIT_OK, EXIT_FAILED, EXIT_UNTESTABLE) or results is None:
            raise HarnessError(f"run {len(loop.runs) + 1} failed: {logged.said(loop.folder)}")
        loop.add(results, seconds)
        seen.append(verdicts(results / "summary.json"))
        flaky = differing(seen)
        loop.save(flaky)  # after each run: whoever stops the loop keeps what it has shown
        said = f"{counted(seen[-1])}; {len(flaky)} differ"
        print(f"run {len(loop.runs)}: {seconds:.0f} s, {said}", flush=True)
    for name, told in flaky.items():
        print(f"{name}: {'; '.join(f'{word} in {ranges(at)}' for word, at in told.items())}")
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
