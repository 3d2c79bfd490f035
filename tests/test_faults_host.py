"""Faults of the host and of the harness, each played: named, cleaned up, earlier results intact."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import paths
from harness.guest.template import KIND
from harness.images.store import file_hash
from tests.real_runs import BUILDER, CHEAP, Cache, Eventually, Run, Started

pytestmark = pytest.mark.guest

Reliability = Callable[..., None]

SIGNALS = {"SIGINT": 130, "SIGTERM": 130, "SIGKILL": -9}


def first_result(run: Run) -> bool:
    return (run.results / "latest" / "summary.json").exists()  # the last to be written


def a_guest(run: Run) -> bool:
    return bool(run.cache.guests())


def at_once(run: Run) -> bool:
    """Its first lines of Python have run: it has said what a signal does."""
    status = Path(f"/proc/{run.process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def a_second_later(run: Run) -> bool:
    """Whatever it does then is interrupted: its own imports, or pytest's."""
    if begun := at_once(run):
        time.sleep(1.0)
    return begun


@pytest.mark.parametrize("moment", [at_once, a_second_later, a_guest, first_result])
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_leaves_nothing_behind(
    started: Started,
    eventually: Eventually,
    reliability: Reliability,
    name: str,
    moment: Callable[[Run], bool],
) -> None:
    run = started(CHEAP, workers=1)
    eventually(lambda: moment(run), seconds=240)
    begun = time.monotonic()
    run.process.send_signal(getattr(signal, name))
    out = run.end(120)
    eventually(lambda: not run.cache.guests(), seconds=60)
    seconds = time.monotonic() - begun
    assert run.process.returncode == SIGNALS[name], out
    assert run.cache.locked() == []
    for file in run.results.rglob("*.json"):
        json.loads(file.read_text())
    if moment is first_result:
        assert run.summary()["finished"] is False
        assert set(run.verdicts().values()) == {"PASS"}
        assert sum(suite.tests for suite in run.junit()) == len(run.verdicts())
    reliability(
        f"{name} to the harness, {moment.__name__.replace('_', ' ')}",
        f"exit status {run.process.returncode}: no QEMU, no lock left; results readable",
        seconds,
        2,
    )


@pytest.mark.parametrize("moment", [a_guest, first_result])
def test_workers_do_not_go_on_when_their_controller_is_told_to_end(
    started: Started,
    eventually: Eventually,
    reliability: Reliability,
    moment: Callable[[Run], bool],
) -> None:
    """As kill(1) and CI systems do; from a terminal the signal reaches all processes by itself."""
    run = started(CHEAP)
    eventually(lambda: moment(run), seconds=240)
    begun = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    out = run.end(120)
    eventually(lambda: not run.cache.guests(), seconds=60)
    seconds = time.monotonic() - begun
    assert run.process.returncode == 130, out
    assert run.cache.locked() == []
    # They were told: xdist alone kills them after 10 s, and nobody ends their guests in order.
    log = (run.results / "latest" / "harness.log").read_text()
    assert "the controller was interrupted" in log
    what = f"SIGTERM to the harness with two workers, {moment.__name__.replace('_', ' ')}"
    reliability(what, "exit status 130: no QEMU, no lock left; results readable", seconds, 2)


def test_the_controller_of_two_workers_is_killed(started: Started, eventually: Eventually) -> None:
    run = started(CHEAP)
    eventually(lambda: a_guest(run), seconds=240)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait(30)
    eventually(lambda: not run.cache.guests(), seconds=60)


@pytest.mark.parametrize("name", SIGNALS)
def test_what_was_being_made_is_not_half_published(
    cache: Cache, eventually: Eventually, tmp_path: Path, reliability: Reliability, name: str
) -> None:
    machine = tmp_path / "bare.toml"
    machine.write_text('[machine]\nmemory = "512M"\n')
    (cache.path / "store" / KIND).unlink()
    with subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(machine)],
        cwd=paths.source_tree(),
        env=cache.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as maker:
        eventually(cache.guests, seconds=120)
        begun = time.monotonic()
        maker.send_signal(getattr(signal, name))
        maker.wait(120)
    eventually(lambda: not cache.guests(), seconds=120)
    seconds = time.monotonic() - begun
    published = cache.path / "store" / KIND
    assert not published.exists() or list(published.iterdir()) == []
    subprocess.run(
        [sys.executable, "-m", "harness", "image", "gc"],
        cwd=paths.source_tree(),
        env=cache.env,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert cache.locked() == []
    said = "no QEMU, no lock left; nothing half made is published"
    reliability(f"{name} while a template is made", said, seconds, 2)


def small_disk(*folders: Path, size: str) -> list[str]:
    """Return what runs a command with small file systems of its own, without being root."""
    mounts = "".join(f"mount -t tmpfs -o size={size} none '{folder}' && " for folder in folders)
    who = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-rm"]
    if subprocess.run([*who, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("no name space of mounts to be had here")
    return [
        *who,
        "sh",
        "-c",
        f'{mounts}"$@"; code=$?; cp -r "$KEEP" "$KEPT" 2>/dev/null; exit $code',
        "sh",
    ]


def test_no_room_for_results(
    started: Started,
    eventually: Eventually,
    tmp_path: Path,
    reliability: Reliability,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    monkeypatch.setenv("KEEP", str(disk / "results"))
    monkeypatch.setenv("KEPT", str(kept))
    run = started(CHEAP, workers=1, before=small_disk(disk, size="64M"), into=disk / "results")
    inside = Path(f"/proc/{run.process.pid}/root{disk}")
    eventually((inside / "results" / "latest" / "junit.xml").exists, seconds=240)
    with pytest.raises(OSError, match="No space"):
        (inside / "filler").write_bytes(bytes(96 << 20))
    begun = time.monotonic()
    out = run.end(240)
    seconds = time.monotonic() - begun
    assert run.process.returncode == 125, out
    assert out.count("disk full: ") == 1, out
    left = dataclasses.replace(run, results=kept)
    verdicts = left.verdicts()
    assert set(verdicts.values()) <= {"PASS", "MISS"}
    assert "PASS" in verdicts.values()
    assert left.summary()["finished"] is False
    assert sum(suite.tests for suite in left.junit()) == len(verdicts)
    line = next(line for line in out.splitlines() if "disk full: " in line)
    told = line.replace(str(disk), "").partition(" (")[0]
    reliability("the disk of results and logs is full", f"exit status 125: {told}", seconds, 5)


def test_no_room_for_a_guests_files(
    started: Started, cache: Cache, reliability: Reliability
) -> None:
    before = small_disk(Path("/dev/shm"), cache.temporary, size="1M")
    begun = time.monotonic()
    run = started("test_s7", workers=1, before=before)
    out = run.end(240)
    assert run.process.returncode == 125
    words = "1 GiB free for a guest"
    assert words in " ".join(out.split())
    (record,) = run.summary()["tests"]
    assert record["status"] == "MISS"
    reliability(
        "no room for a guest's disks",
        f"MISS: {record['message'].replace(str(cache.temporary), '/tmp')}",
        time.monotonic() - begun,
        5,
    )


def test_a_disk_that_fills_under_a_guest(
    started: Started, eventually: Eventually, reliability: Reliability
) -> None:
    """A guest that is booted has files for NVDIMMs, full of holes."""
    memory = Path("/dev/shm")
    before = small_disk(memory, size="1100M")
    run = started("test_s7", "--isolation", "boot", workers=1, before=before)
    log = run.results / "latest" / "guests" / "main" / "1" / "console.log"
    eventually(lambda: log.exists() and b"nvh-init: ready" in log.read_bytes(), seconds=240)
    assert run.process.poll() is None
    begun = time.monotonic()
    with Path(f"/proc/{run.process.pid}/root{memory}/filler").open("wb") as filler:
        size = 0
        while free := shutil.disk_usage(filler.name).free:
            with contextlib.suppress(OSError):  # the guest was quicker
                os.posix_fallocate(filler.fileno(), size, free)
                size += free
    out = run.end(240)
    seconds = time.monotonic() - begun
    assert run.process.returncode == 125, out
    (record,) = run.summary()["tests"]
    assert record["status"] == "MISS"
    assert record["message"] == "disk full: /dev/shm has no room for what the guest writes"
    assert "free space there" in record["hint"]
    told = f"MISS: {record['message']}"
    reliability("the disk of a running guest's files fills", told, seconds, 5)


def boot_sector() -> bytes:
    """Return what QEMU takes for a Linux kernel, whose first instructions are a triple fault."""
    image = bytearray(64 << 10)
    image[0x1F1] = 4  # sectors of the part that runs in real mode
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x200:0x202] = b"\xeb\x66"  # jmp 0x268
    image[0x202:0x208] = b"HdrS" + (0x20C).to_bytes(2, "little")
    image[0x211] = 1  # loaded high
    image[0x22C:0x230] = (0x7FFFFFFF).to_bytes(4, "little")
    image[0x238:0x23C] = (2047).to_bytes(4, "little")
    image[0x20E:0x210] = (0x200).to_bytes(2, "little")  # its release is at 0x400
    image[0x400:0x40B] = b"6.99.0-loop"
    image[0x268:0x26E] = bytes.fromhex("0f011e000300"[:12])[:5] + b"\xcc"  # lidt [0x300]; int3
    return bytes(image)


def test_a_boot_loop(
    started: Started, cache: Cache, tmp_path: Path, reliability: Reliability
) -> None:
    """A kernel that never comes up is nothing to test: git bisect run skips it."""
    own_initramfs(cache)
    kernel = tmp_path / "bzImage"
    kernel.write_bytes(boot_sector())
    words = ("--kernel", str(kernel), "--isolation", "boot")
    run = started("test_s7", *words, workers=1)
    out = run.end(240)
    assert run.process.returncode == 125, out
    (record,) = run.summary()["tests"]
    assert record["status"] == "MISS"
    assert record["message"] == "unexpected reset: the guest ended unasked (guest-reset)"
    reliability("boot loop", f"MISS: {record['message']}", record["seconds"], 5)


PREPARE = """
import time
from harness.lab import Lab, Options
begun = time.monotonic()
said = []
images = Lab(Options(accel="tcg"), say=said.append).images
print(time.monotonic() - begun, images.initramfs, len(said))
"""


def prepare(cache: Cache, *, processes: int = 1) -> list[list[str]]:
    """Let processes prepare images at once; return seconds, path and how much each said."""
    asking = [
        subprocess.Popen(
            [sys.executable, "-c", PREPARE],
            cwd=paths.source_tree(),
            env=cache.env,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    return [asked.communicate(timeout=240)[0].split() for asked in asking]


def own_initramfs(cache: Cache) -> None:
    """Let a cache have an initramfs of its own, to be damaged or removed."""
    kind = cache.path / "store" / "initramfs"
    real = kind.resolve()
    kind.unlink()
    shutil.copytree(real, kind)


def test_a_flipped_byte_in_an_image(cache: Cache, reliability: Reliability) -> None:
    own_initramfs(cache)
    ((_, path, _),) = prepare(cache)
    image = Path(path)
    whole = file_hash(image)
    damaged = bytearray(image.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    image.chmod(0o600)
    image.write_bytes(damaged)
    ((seconds, again, said),) = prepare(cache)
    assert file_hash(Path(again)) == whole
    assert int(said) > 0
    reliability("a flipped byte in an image", "it is built again, and said", float(seconds), 10)


def test_of_two_that_need_an_image_one_builds_it(cache: Cache, reliability: Reliability) -> None:
    own_initramfs(cache)
    shutil.rmtree(cache.path / "store" / "initramfs")
    first, second = prepare(cache, processes=2)
    assert first[1] == second[1]
    assert sorted(int(said[2]) > 0 for said in (first, second)) == [False, True]
    seconds = max(float(first[0]), float(second[0]))
    reliability("two runs need one image", "one builds it, one waits", seconds, 10)


def test_the_report_of_a_killed_run_is_json(started: Started, eventually: Eventually) -> None:
    """Whatever moment SIGKILL comes at, a reader finds whole files."""
    run = started(CHEAP, workers=1)
    eventually(lambda: first_result(run), seconds=240)
    run.process.kill()
    run.end(120)
    for file in (run.results / "latest").rglob("*.json"):
        json.loads(file.read_text())
