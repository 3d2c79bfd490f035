"""Measure, print medians, and write results/bench.json."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import classify, crosstalk, guests, peers, trivial
from benchmarks.figures import Figure, lines, ratio, record
from harness import paths, pool, ui
from harness.errors import HarnessError
from harness.lab import Lab, Options


def main() -> int:
    """Run the benchmarks; the exit code says whether they could be run, never how fast."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--kernel", metavar="K")
    parser.add_argument("--accel", choices=("auto", "kvm", "tcg"), default="auto")
    parser.add_argument("--runs", type=int, default=10, help="samples of each figure (10)")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of the cross-talk check")
    args = parser.parse_args()
    try:
        return _run(args)
    except HarnessError as error:
        return ui.complain(error)


def _run(args: argparse.Namespace) -> int:
    out = paths.source_tree() / "results" / "bench.json"
    out.parent.mkdir(exist_ok=True)
    with ui.progress() as shown:
        lab = Lab(Options(kernel=args.kernel, accel=args.accel), say=shown.say)
        lab.template(lab.recipe())
        about = {
            "host": f"{platform.release()}, {len(os.sched_getaffinity(0))} cores",
            "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "properties": lab.properties(),
        }
        with tempfile.TemporaryDirectory(prefix="nvh-bench-") as folder:
            figures = record(out, about, _measured(lab, Path(folder), args, shown))
    for line in lines(figures):
        print(line)
    print(f"written to {out}")
    return 0


def _measured(
    lab: Lab, folder: Path, args: argparse.Namespace, shown: ui.Progress
) -> Iterator[Figure]:
    shown.say("classifier")
    yield from classify.classifier(args.runs)
    shown.say("clones")
    clones = guests.clones(lab, folder / "clones", args.runs)
    yield from clones
    first = next(figure for figure in clones if "first SSH" in figure.name)
    shown.say("cold boots")
    boot, provisioned = guests.boots(lab, folder / "boots", args.runs)
    yield from (boot, provisioned)
    yield ratio("clone against a cold boot, unprovisioned", boot, first)
    yield ratio("clone against a cold boot of the same guest", provisioned, first, goal=15.0)
    shown.say("virtme-ng")
    peer = peers.virtme_ng(lab, args.runs)
    if peer is not None:
        yield peer
        yield ratio("clone against virtme-ng", peer, first, goal=10.0)
    for ahead in (0, pool.AHEAD):
        shown.say(f"trivial tests, {ahead} ahead")
        yield trivial.trivial_tests(
            folder / "trivial", args.runs, ahead=ahead, kernel=args.kernel, accel=args.accel
        )
    shown.say("a whole run of the first set")
    yield _whole_runs(args)
    shown.say("cross-talk")
    yield crosstalk.crosstalk(lab, folder, guests=8, rounds=args.rounds)


def _whole_runs(args: argparse.Namespace) -> Figure:
    """Time `nvh test` of the first set as a whole process, everything cached."""
    command = [sys.executable, "-m", "harness", "test", "--set", "first", "-n", "2"]
    if args.kernel:
        command += ["--kernel", args.kernel]
    samples = []
    for _ in range(args.runs):
        begun = time.monotonic()
        done = subprocess.run(
            command, cwd=paths.source_tree(), capture_output=True, text=True, check=False
        )
        if done.returncode not in (0, 1):
            raise HarnessError(f"nvh test failed: {done.stderr.strip() or done.stdout[-200:]}")
        samples.append(time.monotonic() - begun)
    return Figure("nvh test --set first -n 2, everything cached", "s", tuple(samples), 20.0)


if __name__ == "__main__":
    sys.exit(main())
