"""Play every fault of guests and hosts once and write docs/reliability.md from what was told."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import paths, ui
from harness.errors import HarnessError
from harness.guest.guest import deadline_scale
from harness.lab import Lab, Options
from harness.observe import Observer
from harness.pool import Wish, guest_pool
from harness.report.escape import one_line

#: The tests that play them; each notes fault, verdict, seconds and limit.
TESTS = ("tests/test_faults_guest.py", "tests/test_faults_host.py")
#: Where more are played, among others.
MORE = (
    "tests/test_guest_clones.py::test_ssh_to_another_guest_than_the_one_started_is_refused",
    "tests/test_guest_clones.py::test_a_damaged_template_is_made_again",
)
ACCEL = "tcg"
#: Guests in which nothing happens, of whom nothing is to be said.
CLONES, BOOTS = 100, 20
_HEAD = """\
# Reliability

What the harness says when a guest or the host fails, and how soon. `make reliability` plays each
fault once, for real, and writes this page; the tests that it runs fail when a verdict is another
(in `make check`, too), or late on a host without other load:
{tests}. Seconds are from the fault to the record on disk;
limits are those without KVM, three times KVM's. FAIL is the kernel's fault, MISS the harness's or
the host's, and MISS is never green. A reset during a test is FAIL; a kernel that never comes up is
MISS: there was nothing to test, and `git bisect run` skips the 125 that such a run ends with.

{when}: {kernel}, {qemu}, {accel}, {host}.

| fault | verdict | seconds | limit |
| --- | --- | --- | --- |
"""


def false_alarms(lab: Lab, folder: Path, clones: int = CLONES, boots: int = BOOTS) -> list[str]:
    """Return what was said of guests in which nothing happens: clones, then cold boots."""
    wishes = [Wish("clone")] * clones + [Wish("boot")] * boots
    alarms: list[str] = []
    with guest_pool(lab, folder) as pool:
        for wish, following in zip(wishes, [*wishes[1:], None], strict=True):
            try:
                with pool.guest(wish, following) as guest:
                    observer = Observer(guest, "nothing")
                    observer.begin()
                    guest.run("true")
                    observer.end(())
                    alarms += [finding.title for finding in observer.unexpected]
                    if wish.isolation == "boot":
                        alarms += guest.facts["boot_findings"]
            except HarnessError as error:
                alarms.append(error.message)
    return alarms


def page(rows: Sequence[Sequence[Any]], head: str, scale: float) -> str:
    """Return the page for rows of fault, verdict, seconds and the limit under KVM."""
    lines = [head]
    for fault, verdict, seconds, limit in rows:
        cells = [one_line(str(fault)), one_line(str(verdict), 300), f"{seconds:.1f}"]
        late = limit is not None and seconds > limit * scale
        allowed = "-" if limit is None else f"{limit * scale:g}{' MISSED' if late else ''}"
        text = " | ".join(cell.replace("|", "\\|") for cell in [*cells, allowed])
        lines.append(f"| {text} |\n")
    return "".join(lines)


def other_kernels(rows: Mapping[str, Sequence[Sequence[Any]]]) -> str:
    """Return the page's part on further kernels: the faults' rows of each."""
    played = {name: {str(row[0]): row for row in rows[name]} for name in rows}
    faults = list(dict.fromkeys(fault for one in played.values() for fault in one))
    lines = ["\nGuests' faults on other kernels, verdict and seconds (`--also`):\n\n"]
    lines += [f"| fault | {' | '.join(rows)} |\n", f"| ---{' | ---' * len(rows)} |\n"]
    for fault in faults:
        cells = [one_line(fault)]
        for one in played.values():
            row = one.get(fault)  # a test that fails notes none
            told = f"{str(row[1]).partition(':')[0]} {row[2]:.1f}" if row else "another verdict"
            cells.append(told)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return "".join(lines)


def _played(tests: Sequence[str], kernel: str | None) -> tuple[int, list[list[Any]]]:
    """Run tests that play faults; return pytest's status and what they noted."""
    chosen = {"NVH_KERNEL": kernel} if kernel else {}
    with tempfile.TemporaryDirectory(prefix="nvh-") as folder:
        noted = Path(folder) / "rows"
        noted.touch()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *tests, "-q", "-p", "no:cacheprovider"],
            cwd=paths.source_tree(),
            env={**os.environ, **chosen, "NVH_RELIABILITY": str(noted)},
            check=False,
        )
        return done.returncode, [json.loads(line) for line in noted.read_text().splitlines()]


def main() -> int:
    """Play the faults; the exit code is that of the tests."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__)
    parser.add_argument(
        "--also", metavar="K", action="append", default=[], help="a further kernel, guests' faults"
    )
    try:
        return _run(parser.parse_args().also)
    except HarnessError as error:
        return ui.complain(error)


def _run(also: Sequence[str]) -> int:
    root = paths.source_tree()
    with ui.progress() as shown, tempfile.TemporaryDirectory(prefix="nvh-") as folder:
        lab = Lab(Options(accel=ACCEL), say=shown.say)
        about = lab.properties()
        shown.say(f"{CLONES} clones and {BOOTS} boots in which nothing happens")
        alarms = false_alarms(lab, Path(folder))
    status, rows = _played([*TESTS, *MORE], None)
    others: dict[str, list[list[Any]]] = {}
    for kernel in also:
        failed, noted = _played(TESTS[:1], kernel)
        others[Lab(Options(kernel=kernel, accel=ACCEL)).kernel.release] = noted
        status = status or failed
    head = _HEAD.format(
        tests=", ".join(f"`{test}`" for test in TESTS),
        when=time.strftime("%Y-%m-%d"),
        kernel=f"kernel {about['kernel']}",
        qemu=f"QEMU {about['qemu']}",
        accel=about["accel"],
        host=f"{len(os.sched_getaffinity(0))} cores",
    )
    target = root / "docs" / "reliability.md"
    told = f"; of {len(alarms)} something was said:" if alarms else ": not one false alarm."
    lines = [f"\n{CLONES} clones and {BOOTS} cold boots in which nothing happens{told}\n"]
    lines += [f"\n* {one_line(alarm, 200)}\n" for alarm in alarms]
    lines += [other_kernels(others)] if others else []
    target.write_text(page(rows, head, deadline_scale(ACCEL)) + "".join(lines))
    print(f"written to {target}")
    return status or int(bool(alarms))


if __name__ == "__main__":
    sys.exit(main())
