"""Clones at once, each with a pattern of its own: nothing of one may show in another."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.figures import Figure
from harness.errors import HarnessError
from harness.guest import Guest
from harness.guest.clone import cloned
from harness.guest.template import Template
from harness.images.store import file_hash
from harness.lab import Lab

_WRITE = "yes {word} | head -c 4194304 > {path}/own && sync"
#: The checksum of a device-dax device's first 4 MiB, which cannot be read but only mapped.
_SUM = """perl -e '
open(F, "<", "{device}") or die "open: $!";
my $at = syscall(9, 0, 4194304, 1, 1, fileno(F), 0);
$at > 0 or die "mmap: $!";
print unpack("P4194304", pack("Q", $at))' >/run/mapped && sha256sum </run/mapped"""


def crosstalk(lab: Lab, base: Path, *, guests: int, rounds: int) -> Figure:
    """Run clones at once, round after round; return the seconds of each round.

    Raises HarnessError at the first sign of one guest in another, or of a written template.
    """
    template = lab.template(lab.recipe())
    before = checksum(template)
    seconds = []
    randoms: set[str] = set()
    with ThreadPoolExecutor(guests) as workers:
        for turn in range(rounds):
            begun = time.monotonic()
            # Nobody reads back before everybody has written.
            barrier = threading.Barrier(guests, timeout=300)
            seeds = range(turn * guests + 1, (turn + 1) * guests + 1)
            randoms.update(workers.map(partial(_one, template, barrier, base), seeds))
            seconds.append(time.monotonic() - begun)
    if len(randoms) != guests * rounds:
        raise HarnessError("two clones produced the same random bytes")
    if checksum(template) != before:
        raise HarnessError("a clone has written to its template")
    return Figure(f"{guests} clones at once, a round of DAX and DMA patterns", "s", tuple(seconds))


def checksum(template: Template) -> str:
    """Return a hash of all that a template is made of."""
    files = sorted(file for file in template.path.iterdir() if file.is_file())
    parts = [f"{file.name} {file_hash(file)}" for file in files if file.name != "manifest.json"]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _one(template: Template, barrier: threading.Barrier, base: Path, seed: int) -> str:
    folder = base / f"crosstalk-{seed}"
    folder.mkdir(parents=True)
    try:
        with cloned(template, folder) as guest:
            _dax(guest, folder.name, barrier)
            _dma(guest, folder.name, barrier, seed)
            return guest.run("head -c 32 /dev/urandom | sha256sum").stdout
    except BaseException:
        barrier.abort()
        raise


def _dax(guest: Guest, word: str, barrier: threading.Barrier) -> None:
    with guest.mounted(guest.namespace("fsdax0"), "ext4") as mount:
        if not mount.is_dax:
            raise HarnessError(f"{word}: the mount is not DAX")
        guest.run(_WRITE.format(word=word, path=mount.path))
        barrier.wait()
        said = guest.run(f"sha256sum {mount.path}/own").stdout.split()[0]
        wanted = (f"{word}\n".encode() * (4194304 // (len(word) + 1) + 1))[:4194304]
        if said != hashlib.sha256(wanted).hexdigest():
            raise HarnessError(f"{word}: the file holds something else")


def _dma(guest: Guest, word: str, barrier: threading.Barrier, seed: int) -> None:
    """Let the device write, wait for everybody's, and see that the memory is what it was."""
    address = guest.vfio("edu").address
    device = guest.namespace("devdax2m").device
    done = guest.workload(
        "vfio_map",  # waits for the device's completion before it compares
        *("--device", address, "--source", f"dax:{device}", "--size", "4M", "--dma-test"),
        *("--seed", str(seed)),
    )
    facts = done.facts
    if not (done.ok and facts.get("device_read") == facts.get("device_write") == "equal"):
        raise HarnessError(f"{word}: DMA went wrong: {done.failed} {facts}")
    written = guest.run(_SUM.format(device=device)).stdout
    barrier.wait()
    if guest.run(_SUM.format(device=device)).stdout != written:
        raise HarnessError(f"{word}: what the device wrote has changed")
