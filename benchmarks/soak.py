"""Run the whole catalogue again and again, and name each test whose verdict differs.

A MISS is a harness or a host that failed: it differs, even if every run has it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.crosstalk import checksum
from benchmarks.figures import Figure, lines
from harness import paths, ui
from harness.errors import EXIT_FAILED, EXIT_OK, EXIT_UNTESTABLE, HarnessError
from harness.lab import Lab, Options
from harness.report.results import write_json
from harness.verdict.status import Status

#: A test and what was said of it, the known issue with it.
Verdicts = Mapping[str, str]


def main() -> int:
    """Soak; status 1 when a verdict differed, or when a clone wrote to its template."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="runs of the whole (20)")
    parser.add_argument("--kernel", metavar="K")
    parser.add_argument("-k", metavar="EXPR", help="only these tests")
    parser.add_argument("-n", default="2", help="tests at once (2)")
    args = parser.parse_args()
    try:
        return _soak(args)
    except HarnessError as error:
        return ui.complain(error)


def _soak(args: argparse.Namespace) -> int:
    out = paths.source_tree() / "results" / time.strftime("soak-%Y-%m-%d-%H%M%S")
    command = [sys.executable, "-m", "harness", "test", "-n", args.n, "--results", str(out)]
    command += ["--kernel", args.kernel] if args.kernel else []
    command += ["-k", args.k] if args.k else []
    with ui.progress() as shown:
        lab = Lab(Options(kernel=args.kernel), say=shown.say)
        template = lab.template(lab.recipe())  # in use by this process: it stays
        before = checksum(template)
    runs: list[Verdicts] = []
    seconds: list[float] = []
    for number in range(1, args.runs + 1):
        latest = (out / "latest").resolve()
        begun = time.monotonic()
        done = subprocess.run(
            command, cwd=paths.source_tree(), capture_output=True, text=True, check=False
        )
        seconds.append(time.monotonic() - begun)
        judged = (out / "latest").resolve() != latest  # or it ended before its first test
        if done.returncode not in (EXIT_OK, EXIT_FAILED, EXIT_UNTESTABLE) or not judged:
            raise HarnessError(
                f"run {number} failed: {(done.stderr or done.stdout).strip()[-300:]}"
            )
        runs.append(verdicts(out / "latest" / "summary.json"))
        flaky = differing(runs)
        counts = Counter(runs[-1].values())
        said = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
        print(f"run {number}: {seconds[-1]:.0f} s, {said}; {len(flaky)} differ", flush=True)
        # After each run: whoever stops the loop keeps what it has shown.
        write_json(out / "soak.json", {"runs": number, "seconds": seconds, "differing": flaky})
    for name, seen in flaky.items():
        print(f"{name}: {'; '.join(f'{word} in {ranges(at)}' for word, at in seen.items())}")
    written = checksum(template) != before
    print(f"the template {'was written to' if written else 'is what it was'}: {template.path.name}")
    whole = Figure("a run, everything cached", "s", tuple(seconds), None if args.k else 300.0)
    for line in lines([whole]):
        print(line)
    return 1 if flaky or written else 0


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
