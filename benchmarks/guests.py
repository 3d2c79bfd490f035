"""What a guest costs: cold boots, clones, the pool, memory."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from benchmarks.figures import Figure
from harness.guest.boot import booted
from harness.guest.clone import cloned
from harness.lab import Lab

_numbers = itertools.count(1)


def _folder(base: Path) -> Path:
    folder = base / str(next(_numbers))
    folder.mkdir(parents=True)
    return folder


def boots(lab: Lab, base: Path, runs: int) -> list[Figure]:
    """Boot cold to the first SSH command, and on to what a clone is: namespaces, vfio devices."""
    answered, ready = [], []
    for _ in range(runs):
        with booted(lab.recipe(), _folder(base)) as guest:
            answered.append(float(guest.facts["ssh_seconds"]))
            ready.append(float(guest.facts["provisioned_seconds"]))
    return [
        Figure("cold boot to the first SSH command", "s", tuple(answered), 8.0),
        Figure("cold boot to the same guest, provisioned", "s", tuple(ready)),
    ]


def clones(lab: Lab, base: Path, runs: int) -> list[Figure]:
    """Start clones; where their time goes, what they hold, and what it costs to end them."""
    template = lab.template(lab.recipe())
    keys = ("qmp_seconds", "running_seconds", "connected_seconds", "ssh_seconds")
    seconds: dict[str, list[float]] = {key: [] for key in keys}
    private, ends, again = [], [], []
    for _ in range(runs + 1):
        with cloned(template, _folder(base)) as guest:
            for key in keys:
                seconds[key].append(float(guest.facts[key]))
            begun = time.monotonic()
            guest.run("true")
            again.append(time.monotonic() - begun)
            private.append(private_memory(guest.vm.child.pid) / (1 << 20))
            begun = time.monotonic()
        ends.append(time.monotonic() - begun)
    # The first one warms the page cache with the template's files.
    goals = dict(zip(keys, (None, 0.15, None, 0.6), strict=True))
    names = dict(
        zip(
            keys,
            ("QEMU answers", "processors run", "SSH session open", "first SSH command answered"),
            strict=True,
        )
    )
    figures = [
        Figure(f"clone: {names[key]}", "s", tuple(seconds[key][1:]), goals[key]) for key in keys
    ]
    figures += [
        Figure("clone: a further SSH command", "s", tuple(again[1:])),
        Figure("clone: its end", "s", tuple(ends[1:])),
        Figure("clone: private memory, idle", "MiB", tuple(private[1:]), 100.0),
    ]
    return figures


def private_memory(pid: int) -> int:
    """Return the memory that is a process's own: what it copied on write, and its heap, in bytes.

    Not Private_Dirty: where one clone runs, the pages of the sealed copy that all clones of a
    process map are counted there, too.
    """
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    lines = [line.split() for line in text.splitlines()]
    return sum(int(words[1]) << 10 for words in lines if words[0] == "Anonymous:")
