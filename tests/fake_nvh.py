#!/usr/bin/env python3
"""Stands in for nvh test where a test is about a matrix of runs.

The kernel's name is the scenario: what its tests say, separated by commas (PASS,FAIL,KNOWN), or
none (nothing could be tested), slow (it waits to be ended), killed, cut (short).  Each start is a
line in $FAKE_NVH_LOG.  Run as a program it is nvh itself, with this in the place of nvh test.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from harness import matrix
from harness.errors import EXIT_INTERRUPTED, EXIT_UNTESTABLE, EXIT_USAGE
from harness.report import junit, summary
from harness.report.matrix import Combination
from harness.report.record import TestRecord
from harness.report.results import make_folder
from harness.verdict.status import Status

PLAYED = "play"
_real = matrix.testing_argv


def argv_of(options: Mapping[str, str], combination: Combination, folder: Path) -> list[str]:
    """Return the command that nvh matrix would start, with this program in its place."""
    real = _real(options, combination, folder)
    return [sys.executable, "-u", __file__, PLAYED, *real[real.index("test") + 1 :]]


def play(words: list[str]) -> int:
    """Do as nvh test does."""
    parser = argparse.ArgumentParser()
    for option in ("--kernel", "--machine", "--results", "--accel", "--set", "-k", "-n"):
        parser.add_argument(option)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args(words)
    if args.k == "V99":
        print("nvh: no test matches 'V99'", file=sys.stderr)
        return EXIT_USAGE
    if args.dry_run:
        return 0
    with Path(os.environ["FAKE_NVH_LOG"]).open("a") as log:
        log.write(f"{args.kernel} {args.machine} {args.k}\n")
    print(f"testing {args.kernel}")
    if args.kernel == "none":
        print("nvh: the guest's kernel panicked: no init", file=sys.stderr)
        return EXIT_UNTESTABLE
    return _judged(args.kernel, args.machine, make_folder(Path(args.results)))


def _judged(kernel: str, machine: str, results: Path) -> int:
    words = [word for word in kernel.split(",") if word.isupper()] or ["PASS"]
    records = [_record(f"test_v{row}_x", word) for row, word in enumerate(words, 1)]
    properties = {"kernel": f"6.0-{kernel}", "machine": machine, "accel": "tcg"}
    junit.write(results / "junit.xml", records, properties)
    file = results / "summary.json"
    slow = "slow" in kernel and not Path(os.environ["FAKE_NVH_LOG"]).with_name("hurry").exists()
    if not slow:
        summary.write(file, records, properties)
    else:
        try:
            summary.write(file, records, properties)  # who sees it interrupts us
            time.sleep(60)
        except KeyboardInterrupt:
            summary.write(file, records, properties, exit_code=EXIT_INTERRUPTED)
            print("nvh: interrupted")
            return EXIT_INTERRUPTED
    if kernel == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kernel == "cut":
        summary.write(file, records, properties, exit_code=EXIT_UNTESTABLE)
        print("nvh: disk full")
        return EXIT_UNTESTABLE
    code = summary.verdict(records)
    summary.write(file, records, properties, exit_code=code, finished=True)
    return code


def _record(name: str, word: str) -> TestRecord:
    known = "an-issue" if word == "KNOWN" else ""
    return TestRecord(
        nodeid=f"testcases/test_v.py::{name}",
        status=Status.FAIL if known else Status(word),
        seconds=0.1,
        row=name.split("_")[1].upper(),
        message="" if word == "PASS" else "map: expected OK, seen ENOSYS",
        known=known,
    )


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    if sys.argv[1:2] == [PLAYED]:
        signal.signal(signal.SIGTERM, _terminate)
        sys.exit(play(sys.argv[2:]))
    from harness import cli  # half a second that a stand-in does not need

    matrix.testing_argv = argv_of
    sys.exit(cli.main())
