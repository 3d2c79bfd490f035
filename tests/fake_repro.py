#!/usr/bin/env python3
"""Stands in for nvh repro and nvh test where a test is about a bisection.

A kernel is a word, or a file that holds it: good, bad, other (another symptom), dead (it does not
boot), missing (nobody offers it), race (good but for its second run), slow (good; it waits to be
ended).  Good, too, once the host is well: offline (no mirror answers), full (no room for a guest),
killed, usage, traceback (bad's status, and nothing to show for it), early (no record).  It is, and
nothing is slow, as soon as there is a file hurry beside $FAKE_REPRO_LOG.  What follows a dash is
only a name.  Each start is a line in that log.  Run as a program it is nvh itself, with this in the
place of nvh repro, nvh test and the making of kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.images.store import Progress, Store
    from harness.report.bisection import Bisection, Tree

PLAYED = "play"
NODEID = "testcases/test_v_dax.py::test_v3_fsdax_is_refused[ext4]"
MESSAGE = "map: expected OK, seen ENOSYS"
_SAID = {
    "bad": MESSAGE,
    "other": "copy: expected 1, seen 2",
    "dead": "the kernel does not boot",
    "full": "no room for a guest",
}


def repro_argv(found: Bisection, kernel: str, results: Path) -> list[str]:
    """Return the command that nvh bisect would start, with this program in its place."""
    real = bisect_runs_repro(found, kernel, results)
    return [sys.executable, "-u", __file__, PLAYED, *real[real.index("repro") :]]


def testing_argv(found: Bisection, kernel: str, results: Path) -> list[str]:
    """Return the command of nvh test, likewise."""
    real = bisect_runs_testing(found, kernel, results)
    return [sys.executable, "-u", __file__, PLAYED, *real[real.index("test") :]]


def build(tree: Tree, store: Store, say: Progress) -> Path:
    """Take a file of the worktree for the kernel that is built of it."""
    text = (Path(tree.worktree) / "kernel").read_text().strip()
    if text.startswith("broken"):
        raise errors.BuildError("the kernel does not build: a.c:1: error: no")
    made = store.root / f"built-{text}"
    made.write_text(text)
    return made


def prepare(found: Bisection, kernel: str, say: Progress) -> None:
    """Find a kernel, or say why not."""
    del found, say
    word = _kernel(Path(kernel)).partition("-")[0]
    if word == "missing":
        raise errors.KernelError(f"no mirror offers {kernel}")
    if word == "offline" and not _well():
        raise errors.ImageError("no kernel packages: Could not resolve 'deb'", hint="a mirror")


def play(words: list[str]) -> int:
    """Do as nvh repro and nvh test do."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("bundle", nargs="?")
    for option in ("--kernel", "--machine", "--results", "--accel", "-k", "-n"):
        parser.add_argument(option)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--until-fail", action="store_true")
    args = parser.parse_args(words)
    kernel = _kernel(Path(args.kernel))
    word = kernel.partition("-")[0]
    log = Path(os.environ["FAKE_REPRO_LOG"])
    before = log.read_text().count("\n") if log.exists() else 0
    with log.open("a") as file:
        file.write(f"{args.command} {kernel} {args.repeat} {args.machine} {args.accel}\n")
    if word == "slow" and not _well():
        try:
            time.sleep(120)
        except KeyboardInterrupt:
            return 130
    if word in ("killed", "usage", "early") and not _well():
        print(f"nvh: {word}")
        if word == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 if word == "usage" else 125
    results = Path(args.results)
    for number in range(1, args.repeat + 1):
        shown = word if word in _SAID and not (word == "full" and _well()) else "good"
        if word == "race" and (number == 2 or (args.command == "test" and before)):
            shown = "bad"
        _record(results / f"2026-run-{number + before}", kernel, shown, args.command == "test")
        if shown != "good":
            return 1 if shown == "bad" else 125
    return 1 if word == "traceback" and not _well() else 0


def _well() -> bool:
    return Path(os.environ["FAKE_REPRO_LOG"]).with_name("hurry").exists()


def _kernel(given: Path) -> str:
    """Return what a kernel says; of one that was built, the end of the image."""
    if given.is_dir():
        given /= "arch/x86/boot/bzImage"
    said = given.read_bytes().splitlines()[-1].decode() if given.is_file() else str(given)
    return said.strip()


def _record(run: Path, kernel: str, shown: str, bundle: bool) -> None:
    folder = run / "tests/a-test"
    folder.mkdir(parents=True)
    record = {
        "format": 1,
        "nodeid": NODEID,
        "status": {"good": "PASS", "dead": "MISS", "full": "MISS"}.get(shown, "FAIL"),
        "seconds": 0.1,
        "message": _SAID.get(shown, ""),
        "of_host": shown == "full",
        "findings": [{"title": "WARNING in made_up"}] if shown == "bad" else [],
    }
    (folder / "result.json").write_text(json.dumps(record))
    summary = {
        "format": 1,
        "started": "",
        "finished": True,
        "seconds": 1.0,
        "exit_code": 0,
        "properties": {"kernel": f"6.0-{kernel}"},
        "tests": [],
    }
    (run / "summary.json").write_text(json.dumps(summary))
    if bundle and shown == "bad":
        (run / "bundles").mkdir()
        (run / "bundles/a-test.tar.zst").write_text("")


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__" and sys.argv[1:2] == [PLAYED]:
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(play(sys.argv[2:]))

from harness import bisect_runs, errors  # noqa: E402 - half a second that a stand-in does not need

bisect_runs_repro, bisect_runs_testing = bisect_runs.repro_argv, bisect_runs.testing_argv

if __name__ == "__main__":
    from harness import cli

    bisect_runs.repro_argv = repro_argv
    bisect_runs.testing_argv = testing_argv
    bisect_runs.build, bisect_runs.prepare = build, prepare
    sys.exit(cli.main())
