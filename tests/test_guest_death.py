"""How a guest ends, told for what it is, and with nothing left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import paramiko
import pytest

from harness import paths, rundir
from harness.errors import (
    GuestLost,
    GuestPanic,
    GuestReset,
    HarnessError,
    HostError,
    LaunchError,
)
from harness.guest import Guest
from harness.guest.boot import Recipe, booted
from harness.guest.clone import cloned
from harness.guest.keys import Identity
from harness.guest.ssh import CommandTimeout, Ssh
from harness.guest.template import Template
from harness.lab import Lab
from harness.qemu import dump

pytestmark = pytest.mark.guest

Eventually = Callable[[Callable[[], object]], None]


def runs(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@pytest.fixture(scope="module")
def template(tcg_lab: Lab, recipe: Recipe) -> Template:
    """What clones are made from; in the store after the first time."""
    return tcg_lab.template(recipe)


@contextlib.contextmanager
def nothing_left() -> Iterator[list[Guest]]:
    """Check, after the block, that nothing of the guests that it lists is left."""
    listed: list[Guest] = []
    threads = threading.active_count()
    yield listed
    assert listed
    for guest in listed:
        assert not runs(guest.vm.child.pid)
        assert guest.vm.child.returncode is not None  # reaped
        assert guest.private is None or not guest.private.exists()
    # paramiko's and the console's are gone; QMP's loop and the spawner stay.
    assert threading.active_count() <= threads + 2


@pytest.fixture
def victim(template: Template, tmp_path: Path) -> Iterator[Guest]:
    """A guest to kill, and the proof that nothing of it is left."""
    with nothing_left() as listed, cloned(template, tmp_path) as guest:
        listed.append(guest)
        yield guest


def test_a_panic_is_told_with_its_trace(victim: Guest) -> None:
    with pytest.raises(GuestPanic) as caught:
        victim.run("echo c > /proc/sysrq-trigger; sleep 300", timeout=60)
    assert "sysrq triggered crash" in caught.value.message
    assert "Call Trace:" in caught.value.trace
    assert "sysrq_handle_crash" in caught.value.trace
    assert victim.broken is caught.value
    begun = time.monotonic()
    with pytest.raises(GuestPanic):  # at once, not when the deadline is over
        victim.run("true", timeout=60)
    assert time.monotonic() - begun < 60


def test_the_memory_of_a_guest_that_panicked_is_kept_within_bounds(
    victim: Guest, tmp_path: Path
) -> None:
    victim.run(f"({PATTERN}) >/run/where 2>/dev/null </dev/null &")
    told = "for try in $(seq 100); do [ ! -s /run/where ] || exec cat /run/where; sleep 0.1; done"
    address = int(victim.run(told).stdout)
    uname = victim.run("uname -s; uname -n; uname -r; uname -v; uname -m").stdout.splitlines()
    with pytest.raises(GuestPanic):
        victim.run("echo c > /proc/sysrq-trigger; sleep 300", timeout=60)
    assert "RIP=" in (victim.vm.folder / "registers.txt").read_text()
    core = tmp_path / "vmcore"
    dump.save(victim.vm, core, limit=1 << 30)
    with core.open("rb") as file:
        assert file.read(12) == b"KDUMP   \6\0\0\0"  # makedumpfile's, which crash and drgn read
        names = [file.read(65).rstrip(b"\0").decode() for _ in uname]
        said = dump.vmcoreinfo(file)
        assert page(file, address) == b"a pattern " * 409 + b"a patt"
        file.seek(4096)
        base = int(said["NUMBER(phys_base)"])  # less than zero where the kernel moved down
        assert int.from_bytes(file.read(8), "little", signed=True) == base
    assert names == uname
    assert said["OSRELEASE"] == uname[2]
    assert core.stat().st_mode & 0o777 == 0o600
    with pytest.raises(HostError, match="larger than 1 MiB"):
        dump.save(victim.vm, tmp_path / "second", limit=1 << 20)
    assert sorted(path.name for path in tmp_path.glob("*") if "second" in path.name) == []


#: Fills a page of its own and says at which physical address that is.
PATTERN = """perl -e '
$| = 1;
my $buffer = "a pattern " x 1638;
my $page = (unpack("Q", pack("P", $buffer)) + 4095) & ~4095;
syscall(149, $page, 4096);
my $words = substr("a pattern " x 410, 0, 4096);
substr($buffer, $page - unpack("Q", pack("P", $buffer)), 4096) = $words;
open(M, "<", "/proc/self/pagemap") or die;
sysseek(M, $page / 4096 * 8, 0);
sysread(M, my $entry, 8);
print((unpack("Q", $entry) & ((1 << 55) - 1)) * 4096, "\\n");
sleep 600' """


def page(core: BinaryIO, address: int) -> bytes:
    """Return a page of a compressed dump; diskdump_mod.h of makedumpfile has the structures."""
    core.seek(428)
    block, sub_blocks, bitmap_blocks = struct.unpack("<III", core.read(12))
    half = bitmap_blocks * block // 2
    core.seek((1 + sub_blocks) * block + half)  # the second bitmap says what is in the dump
    bitmap = core.read(half)
    frame = address // block
    assert bitmap[frame // 8] >> frame % 8 & 1
    before = int.from_bytes(bitmap[: frame // 8], "little").bit_count()
    before += (bitmap[frame // 8] & ((1 << frame % 8) - 1)).bit_count()
    core.seek((1 + sub_blocks + bitmap_blocks) * block + 24 * before)
    offset, size, flags, _ = struct.unpack("<QIIQ", core.read(24))
    core.seek(offset)
    return zlib.decompress(core.read(size)) if flags & 1 else core.read(size)


@pytest.mark.parametrize(("key", "reason"), [("b", "guest-reset"), ("o", "guest-shutdown")])
def test_a_guest_that_ends_unasked(victim: Guest, key: str, reason: str) -> None:
    with pytest.raises(GuestReset, match=reason):
        victim.run(f"echo {key} > /proc/sysrq-trigger; sleep 300", timeout=60)
    assert victim.vm.child.wait(30) == 0


def test_a_killed_qemu_is_told_with_its_signal(victim: Guest) -> None:
    os.kill(victim.vm.child.pid, signal.SIGKILL)
    with pytest.raises(GuestLost, match="QEMU died with signal 9") as caught:
        victim.run("sleep 300", timeout=60)
    assert not isinstance(caught.value, GuestPanic | GuestReset)


def test_without_an_ssh_server_the_serial_shell_is_the_way_in(victim: Guest) -> None:
    victim.run("echo words-for-the-log > /dev/kmsg")
    victim.serial.run("pkill -9 dropbear", timeout=60)
    with pytest.raises(GuestLost):
        victim.run("true", timeout=10)
    assert "words-for-the-log" in victim.dmesg()
    assert victim.serial.run("echo here", timeout=60) == (0, "here\n")


def test_a_guest_that_looks_dead_but_is_not_gives_its_console(victim: Guest) -> None:
    victim.run("echo on-the-console > /dev/console")
    os.kill(victim.vm.child.pid, signal.SIGSTOP)
    try:
        with pytest.raises(HarnessError):
            victim.vm.qmp.execute("query-status", timeout=1)
    finally:
        os.kill(victim.vm.child.pid, signal.SIGCONT)
    victim.vm.qmp.execute("query-status", timeout=30)
    assert "on-the-console" in victim.vm.console.text()


@pytest.mark.parametrize("behind_its_opening", [False, True])
def test_a_guest_that_hangs_costs_a_command_its_deadline(
    victim: Guest, monkeypatch: pytest.MonkeyPatch, behind_its_opening: bool
) -> None:
    request = paramiko.Channel.exec_command

    def freeze(channel: paramiko.Channel, command: str) -> None:
        victim.vm.qmp.execute("stop")
        request(channel, command)

    if behind_its_opening:
        monkeypatch.setattr(paramiko.Channel, "exec_command", freeze)
    else:
        victim.vm.qmp.execute("stop")
    begun = time.monotonic()
    with pytest.raises(CommandTimeout, match="no end after 3 s: true"):
        victim.run("true", timeout=1)
    assert time.monotonic() - begun < 30
    assert isinstance(victim.broken, CommandTimeout)


def test_the_guest_refuses_another_key(victim: Guest, template: Template) -> None:
    other = Identity.generate()
    stranger = dataclasses.replace(
        template.identity,
        client_private=other.client_private,
        client_public=other.client_public,
    )
    with pytest.raises(GuestLost, match="Authentication"):
        Ssh(victim.ssh.port, stranger, check=victim.vm.check).connect(60)


def test_a_qemu_that_refuses_an_argument_is_quoted(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []
    monkeypatch.setattr(Ssh, "connect", lambda *_, **__: tried.append(_))
    machine = dataclasses.replace(recipe.machine, qemu_args=("-device", "nvh-no-such-device"))
    folders = tmp_path / "folders"
    folders.mkdir()
    monkeypatch.setattr(rundir, "_candidates", lambda: [folders])
    with (
        pytest.raises(LaunchError, match=r"nvh-no-such-device.* is not a valid device model name"),
        booted(dataclasses.replace(recipe, machine=machine), tmp_path),
    ):
        pass
    assert list(folders.iterdir()) == []
    assert tried == []


def test_a_kernel_without_a_root_says_so(recipe: Recipe, tmp_path: Path) -> None:
    """The guest's init has the last word, and the harness passes it on."""
    blind = dataclasses.replace(recipe, append=("modprobe.blacklist=virtio_blk",))
    empty = tmp_path / "no-root.img"
    empty.write_bytes(bytes(1 << 20))
    images = dataclasses.replace(recipe.images, root=empty)
    (tmp_path / "boot").mkdir()
    with (
        pytest.raises(GuestLost, match="the guest could not boot: ") as caught,
        booted(dataclasses.replace(blind, images=images), tmp_path / "boot", provisioned=False),
    ):
        pass
    assert "panic" not in caught.value.message


def test_a_cold_boot_leaves_nothing_but_its_evidence(recipe: Recipe, tmp_path: Path) -> None:
    with nothing_left() as listed, booted(recipe, tmp_path, provisioned=False) as guest:
        listed.append(guest)
        assert guest.private is not None
        assert guest.private.stat().st_mode & 0o777 == 0o700
        assert guest.run("id -un").stdout == "root\n"
    assert "Linux version" in (tmp_path / "console.log").read_text(errors="replace")
    script = tmp_path / "qemu.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", str(script)], check=True)


OWNER = """
import sys, tempfile
from pathlib import Path
from harness import rundir
from harness.guest.boot import booted
from harness.lab import Lab, Options
rundir._candidates = lambda: [Path(sys.argv[1])]  # no other test sweeps it
with tempfile.TemporaryDirectory() as folder:
    with booted(Lab(Options(accel="tcg")).recipe(), Path(folder), provisioned=False) as guest:
        print(guest.vm.child.pid, guest.private, flush=True)
        sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_qemu_dies_with_the_harness(
    recipe: Recipe,
    number: signal.Signals,
    eventually: Eventually,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert recipe  # the images are built before the time runs
    monkeypatch.setattr(rundir, "_candidates", lambda: [tmp_path])
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=paths.source_tree(),
    ) as owner:
        assert owner.stdout is not None
        pid, folder = owner.stdout.readline().split()
        assert runs(int(pid))
        owner.send_signal(number)
        owner.wait(60)
    eventually(lambda: not runs(int(pid)))
    if number == signal.SIGKILL:
        assert Path(folder).exists()
        rundir.sweep()  # as the next run does
    assert not Path(folder).exists()
