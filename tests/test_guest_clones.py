"""Templates, clones and the pool: private, fresh, proven to be the guest that was started."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.errors import (
    GuestClock,
    GuestHung,
    GuestLost,
    GuestPanic,
    HarnessError,
    HostStall,
    UsageError,
)
from harness.guest import Guest
from harness.guest import template as templates
from harness.guest.boot import Recipe
from harness.guest.clone import cloned, prove
from harness.guest.filesystem import MKFS, options
from harness.guest.ssh import CommandTimeout
from harness.guest.template import Template
from harness.images.store import Store, file_hash, in_use
from harness.lab import Lab, Options
from harness.observe import Observer
from harness.pool import GuestPool, Wish
from testcases.filesystems import ALIGNED, NAMES, NAMESPACE

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def template(tcg_lab: Lab, recipe: Recipe) -> Template:
    return tcg_lab.template(recipe)


@pytest.fixture
def pool(tcg_lab: Lab, tmp_path: Path) -> Iterator[GuestPool]:
    made = GuestPool(tcg_lab, tmp_path / "pool")
    yield made
    made.close()


def started(template: Template, folder: Path) -> Guest:
    """Return a clone's guest after its end, for what it noted."""
    folder.mkdir(parents=True)
    with cloned(template, folder) as guest:
        return guest


def checksums(template: Template) -> dict[str, str]:
    return {file.name: file_hash(file) for file in template.path.iterdir() if file.is_file()}


def test_a_file_system_that_is_there_is_used_once_and_for_no_other_options(
    template: Template, tmp_path: Path
) -> None:
    with cloned(template, tmp_path) as guest:
        space = guest.namespace("fsdax0")
        for fs in NAMES:  # what the testcases ask for is there
            assert options(guest.machine, NAMESPACE[fs], fs) == (*MKFS[fs], *ALIGNED[fs])
        # Nothing is left for the kernel to zero behind a test's back.
        groups = guest.run(f"dumpe2fs {space.device} 2>/dev/null | grep '^Group [0-9]'")
        assert groups.stdout.count("ITABLE_ZEROED") == groups.stdout.count("Group") > 0
        assert "RAID stride" in guest.run(f"tune2fs -l {space.device}").stdout
        uuids = [uuid(guest, space.device)]
        there = options(guest.machine, "fsdax0", "ext4")
        for mkfs in (there, there, (), ("-b", "4096")):
            with guest.mounted(space, "ext4", mkfs=mkfs):
                uuids.append(uuid(guest, space.device))
        assert uuids[0] == uuids[1]
        assert len(set(uuids)) == 4  # the others were made
        plain = ("-m", "reflink=0")
        with guest.mounted(guest.namespace("fsdax1"), "xfs", mkfs=plain) as mount:
            assert "sunit" not in mount.options


def uuid(guest: Guest, device: str) -> str:
    return guest.run(f"tune2fs -l {device} | grep UUID").stdout


def test_a_clone_is_private_and_its_template_is_never_written(
    template: Template, tmp_path: Path
) -> None:
    before = checksums(template)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with cloned(template, tmp_path / name) as guest:
            assert guest.run("ls /root/mine", check=False).status != 0
            guest.run("echo mine > /root/mine")
            device = guest.namespace("fsdax1").device
            assert guest.run(f"head -c 4 {device}").stdout != "mine"
            guest.run(f"echo mine | dd of={device} conv=fsync 2>/dev/null")
            assert guest.run(f"head -c 4 {device}").stdout == "mine"
    assert checksums(template) == before


def test_a_template_costs_what_its_guest_touched(template: Template) -> None:
    size = sum(file.stat().st_blocks * 512 for file in template.path.iterdir())
    apparent = sum(file.stat().st_size for file in template.path.iterdir())
    assert size < apparent / 4
    assert all(file.stat().st_mode & 0o077 == 0 for file in template.path.glob("info.json"))


def test_clones_share_no_random_bytes_and_know_the_time(template: Template, tmp_path: Path) -> None:
    seen = []
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        with cloned(template, folder) as guest:
            seen.append(guest.run("head -c 64 /dev/urandom | od -An -v -tx1").stdout)
            seen.append(guest.run("cat /proc/sys/kernel/random/uuid").stdout)
            before = time.time()
            said = float(guest.run("date +%s.%N").stdout)
            # As late as its waking was; under load that takes a while.
            assert (
                before - 2 - guest.facts["ssh_seconds"] < said < time.time() + 2
            )  # the command itself may take long
    assert len(set(seen)) == len(seen)


def test_the_serial_shell_goes_on_when_it_is_spoken_to(template: Template, tmp_path: Path) -> None:
    with cloned(template, tmp_path) as guest:
        assert guest.run("pgrep -x resume", check=False).status == 0
        with pytest.raises(GuestHung, match="serial shell did not end within 1 s"):
            guest.serial.run("sleep 5", timeout=1)
        assert guest.serial.run("echo here", timeout=60) == (0, "here\n")
        assert guest.run("pgrep -x resume", check=False).status == 1


def test_devices_without_migration_state_are_back(template: Template, tmp_path: Path) -> None:
    with cloned(template, tmp_path) as guest:
        edu = guest.vfio("edu")
        assert (edu.driver, edu.id) == ("vfio-pci", "1234:11e8")
        config = guest.run(f"od -An -tx4 -j16 -N4 /sys/bus/pci/devices/{edu.address}/config")
        assert int(config.stdout.strip(), 16) != 0  # BAR 0 is where it was
        done = guest.workload(
            "vfio_map", "--device", edu.address, "--source", "anon", "--size", "1M", "--dma-test"
        )
        assert done.facts["device_read"] == done.facts["device_write"] == "equal"
        # nvme forbids migration and is plugged in, once.
        nvme = "grep -l 0x010802 /sys/bus/pci/devices/*/class"
        assert guest.run(nvme, check=False).stdout == ""
        for _ in range(2):
            address = guest.plug("nvme0")
            assert guest.run(nvme).stdout == f"/sys/bus/pci/devices/{address}/class\n"
        with pytest.raises(UsageError, match="no device 'edu' on demand"):
            guest.plug("edu")


def test_ssh_to_another_guest_than_the_one_started_is_refused(
    template: Template,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reliability: Callable[..., None],
) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    with cloned(template, tmp_path / "first") as first:
        # The same template, so the same keys: only the nonce tells the two apart.
        port = first.ssh.port
        first.run("mkfifo -m 600 /run/nvh/foreign; mv /run/nvh/foreign /run/nvh/resumed")
        first.run("(echo a-nonce-of-its-own > /run/nvh/resumed) >/dev/null 2>&1 &")
        monkeypatch.setattr("harness.qemu.vm.Vm.forwarded_port", lambda _: port)
        begun = time.monotonic()
        with (
            pytest.raises(GuestLost, match="another guest") as caught,
            cloned(template, tmp_path / "second"),
        ):
            pass
        seconds = time.monotonic() - begun
        reliability("a foreign guest on the port", f"MISS: {caught.value.message}", seconds, 10)
        assert first.run("echo still there").stdout == "still there\n"


def test_a_damaged_template_is_made_again(
    recipe: Recipe, tmp_path: Path, reliability: Callable[..., None]
) -> None:
    store = Store(tmp_path / "store")
    made = templates.get(recipe, store, prove=prove)
    with (made.path / "ram").open("r+b") as ram:
        ram.seek(os.lseek(ram.fileno(), 0, os.SEEK_DATA) + 100)
        byte = ram.read(1)
        ram.seek(-1, os.SEEK_CUR)
        ram.write(bytes([byte[0] ^ 1]))
    said: list[str] = []
    begun = time.monotonic()
    again = templates.get(recipe, store, prove=prove, say=said.append)
    seconds = time.monotonic() - begun
    reliability("a damaged template", "it is made again, and said", seconds, 10)
    assert again.identity != made.identity
    assert any("template" in line for line in said)
    assert started(again, tmp_path / "clone").facts["how"] == "clone"
    assert store.gc(0, kind=templates.KIND) == []  # it is in use here
    assert again.path.is_dir()


def test_a_guest_whose_clock_goes_wrong_becomes_no_template(recipe: Recipe, tmp_path: Path) -> None:
    fast = dataclasses.replace(recipe, append=("tsc_early_khz=500000", "tsc=reliable"))
    store = Store(tmp_path / "store")
    said: list[str] = []
    with pytest.raises(GuestClock, match=r"clock went [\d.]+ s in the host's"):
        templates.get(fast, store, prove=prove, say=said.append)
    assert sum("booting another" in line for line in said) == 2
    assert list(store.entries()) == []


def test_workloads_of_another_build_make_a_template_anew(
    template: Template, recipe: Recipe, tmp_path: Path
) -> None:
    workloads = tmp_path / "workloads"
    workloads.mkdir()
    (workloads / "one").write_text("#!/bin/sh\n")
    (workloads / "one").chmod(0o755)
    (workloads / "notes").write_text("no program")
    ours = dataclasses.replace(recipe, workloads=workloads)
    store = Store(tmp_path / "store")

    def build(target: Path) -> None:
        info = json.loads((template.path / "info.json").read_text())
        info["workloads"] = {"one": file_hash(workloads / "one")}
        (target / "info.json").write_text(json.dumps(info))

    assert not templates.renew(ours, store)  # there is none
    entry = store.get(templates.KIND, templates.key(ours), build)
    assert not templates.renew(ours, store)
    (workloads / "one").write_text("#!/bin/sh -e\n")
    used = in_use(entry.path)
    assert not templates.renew(ours, store)
    os.close(used)
    assert templates.renew(ours, store)
    assert store.find(templates.KIND, templates.key(ours)) is None


def test_the_key_is_of_everything_that_a_template_depends_on(recipe: Recipe) -> None:
    base = templates.key(recipe)
    assert templates.key(recipe) == base
    machine = dataclasses.replace(recipe.machine, memory=recipe.machine.memory * 2)
    images = dataclasses.replace(recipe.images, digest="another")
    others = [
        dataclasses.replace(recipe, machine=machine),
        dataclasses.replace(recipe, images=images),
        dataclasses.replace(recipe, accel="kvm"),
        dataclasses.replace(recipe, append=("quiet",)),
        dataclasses.replace(recipe, qemu="/bin/true"),
    ]
    assert len({base, *(templates.key(other) for other in others)}) == len(others) + 1


def panic(guest: Guest) -> None:
    with pytest.raises(GuestPanic):
        guest.run("echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger")


def kill(guest: Guest) -> None:
    os.kill(guest.vm.child.pid, signal.SIGKILL)
    with pytest.raises(HarnessError):
        guest.run("true")


def flood(guest: Guest) -> None:
    guest.run("(yes noise > /dev/ttyS0) >/dev/null 2>&1 &")
    begun = guest.vm.console.position
    deadline = time.monotonic() + 60
    while guest.vm.console.position < begun + 1000:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def freeze(guest: Guest) -> None:
    """Stop its processors: a kernel that spins with interrupts off looks the same from outside."""
    guest.vm.qmp.execute("stop")
    with pytest.raises(GuestHung):
        guest.run("true", timeout=1)


def stop_qemu(guest: Guest) -> None:
    os.kill(guest.vm.child.pid, signal.SIGSTOP)
    with pytest.raises(HostStall):
        guest.run("true", timeout=1)


def sleep_for_ever(guest: Guest) -> None:
    """Leave a process in D state that holds a mount."""
    guest.run(
        f"mount {guest.namespace('fsdax0').device} /mnt && fsfreeze -f /mnt && "
        "(touch /mnt/file >/dev/null 2>&1 & echo $! > /tmp/pid) && "
        "until grep -q 'State:.D' /proc/$(cat /tmp/pid)/status; do sleep 0.05; done"
    )


@pytest.mark.parametrize("harm", [panic, kill, flood, freeze, stop_qemu, sleep_for_ever])
def test_what_a_clone_does_costs_only_that_clone(
    pool: GuestPool, harm: Callable[[Guest], None]
) -> None:
    with pool.guest(Wish(), then=Wish()) as victim:
        harm(victim)
        begun = time.monotonic()
    assert time.monotonic() - begun < 60  # it is not asked to end
    assert victim.vm.child.poll() is not None
    with pool.guest(Wish()) as fresh:
        assert fresh is not victim
        assert fresh.run("echo sound").stdout == "sound\n"


def test_a_test_whose_clone_hangs_is_over_within_its_deadlines(pool: GuestPool) -> None:
    """What the plugin reads of a guest after a test has deadlines too."""
    with pool.guest(Wish()) as victim:
        observer = Observer(victim, "hung")
        observer.begin()
        victim.vm.qmp.execute("stop")
        with pytest.raises(CommandTimeout):
            victim.run("true", timeout=1)
        begun = time.monotonic()
        observer.end(())
    assert time.monotonic() - begun < 60


def test_the_pool_hands_out_each_clone_once_and_ends_them_all(tcg_lab: Lab, tmp_path: Path) -> None:
    pool = GuestPool(tcg_lab, tmp_path / "pool")
    seen = []
    try:
        for _ in range(3):
            with pool.guest(Wish(), then=Wish()) as guest:
                seen.append(guest)
                guest.run("test ! -e /root/used && touch /root/used")
    finally:
        pool.close()
    assert len({guest.vm.child.pid for guest in seen}) == 3
    assert all(guest.vm.child.poll() is not None for guest in seen)
    # The one that nobody asked for is gone without a trace, folder and all.
    assert len(list((tmp_path / "pool").iterdir())) == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_warm_clone_that_is_lost_is_not_handed_out(
    pool: GuestPool, number: signal.Signals
) -> None:
    with pool.guest(Wish(), then=Wish()):
        deadline = time.monotonic() + 60
        while not pool.ready():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for warm in pool.waiting():
            os.kill(warm.vm.child.pid, number)
            if number == signal.SIGKILL:
                warm.vm.child.wait(10)
    with pool.guest(Wish()) as guest:
        assert guest.run("echo sound").stdout == "sound\n"


def test_isolation_levels(pool: GuestPool) -> None:
    with pool.guest(Wish("shared")) as first, pool.guest(Wish("shared")) as second:
        assert first is second
    with pool.guest(Wish("shared")) as again:
        assert again is first
    with pool.guest(Wish("boot", append=("nvh.own=1",))) as booted:
        assert booted.facts["how"] == "boot"
        assert "nvh.own=1" in booted.run("cat /proc/cmdline").stdout


def test_a_machine_that_cannot_be_cloned_is_booted_and_says_why(tmp_path: Path) -> None:
    backing = tmp_path / "own.nvdimm"
    with backing.open("wb") as file:
        file.truncate(130 << 20)
    machine = tmp_path / "own.toml"
    machine.write_text(
        f'[[nvdimm]]\nname = "own"\nsize = "130M"\npath = "{backing}"\n'
        '[nvdimm.namespace]\nmode = "fsdax"\n'
    )
    said: list[str] = []
    lab = Lab(Options(accel="tcg", machine=str(machine)))
    pool = GuestPool(lab, tmp_path / "pool", say=said.append)
    try:
        with pool.guest(Wish()) as guest:
            assert guest.facts["how"] == "boot"
    finally:
        pool.close()
    assert any("path of its own" in line for line in said)


def test_clones_at_once_do_not_see_each_other(template: Template, tmp_path: Path) -> None:
    written = threading.Barrier(4, timeout=120)

    def one(number: int) -> str:
        folder = tmp_path / str(number)
        folder.mkdir()
        with cloned(template, folder) as guest:
            device = guest.namespace("fsdax0").device
            guest.run(f"yes {number} | head -c 1048576 | dd of={device} conv=fsync 2>/dev/null")
            written.wait()  # nobody reads back before everybody has written
            return guest.run(f"head -c 1048576 {device} | sort -u").stdout.strip()

    with ThreadPoolExecutor(4) as workers:
        assert list(workers.map(one, range(4))) == ["0", "1", "2", "3"]


def test_a_seed_gives_a_clones_dma_a_pattern_of_its_own(template: Template, tmp_path: Path) -> None:
    with (
        cloned(template, tmp_path) as guest,
        guest.mounted(guest.namespace("fsdax0"), "ext4") as mount,
    ):
        seen = []
        for seed in ("1", "2", "1"):
            options = ("--device", guest.vfio("edu").address, "--size", "64K", "--seed", seed)
            guest.workload("vfio_map", *options, "--source", f"file:{mount.path}/file")
            seen.append(guest.run(f"sha256sum {mount.path}/file").stdout)
        assert seen[0] == seen[2] != seen[1]
        for seed in ("x", str(1 << 32)):
            done = guest.run(f"/opt/nvh/vfio_map --device x --seed {seed}", check=False)
            assert done.status == 2
            assert done.stdout.count("Bail out!") == 1


def test_kernel_arguments_get_a_template_of_their_own(pool: GuestPool, tcg_lab: Lab) -> None:
    wish = Wish(append=("nvh.own=1",))
    for _ in range(2):
        with pool.guest(wish) as guest:
            assert guest.facts["how"] == "clone"
            assert "nvh.own=1" in guest.run("cat /proc/cmdline").stdout
    made = [entry for entry in tcg_lab.store.entries() if entry.kind == templates.KIND]
    key = templates.key(tcg_lab.recipe(append=("nvh.own=1",)))
    assert key in {entry.key for entry in made}


def test_what_qemu_cannot_save_is_refused_once_and_for_all(tmp_path: Path) -> None:
    machine = tmp_path / "unmigratable.toml"
    # Without port = true an nvme is there when the state is taken in.
    machine.write_text('[[pci]]\nname = "nvme0"\ndevice = "nvme"\noptions = { serial = "x" }\n')
    said: list[str] = []
    lab = Lab(Options(accel="tcg", machine=str(machine)))
    for _ in range(2):
        pool = GuestPool(lab, tmp_path / f"pool-{len(said)}", say=said.append)
        try:
            with pool.guest(Wish()) as guest:
                assert guest.facts["how"] == "boot"
                assert "nvme" in guest.facts["why_boot"]
        finally:
            pool.close()
    assert len(said) == 2


@pytest.mark.parametrize("of_a_run", [True, False], ids=["a-run", "no-run"])
def test_a_boot_that_fails_leaves_its_console(
    tcg_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, of_a_run: bool
) -> None:
    broken = tcg_lab.recipe(append=("init=/nowhere", "rdinit=/nowhere"))
    monkeypatch.setenv("NVH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tcg_lab, "results", tmp_path if of_a_run else None)
    monkeypatch.setattr(tcg_lab, "store", Store(tmp_path / "store"))
    with pytest.raises(HarnessError, match=r"failed-boot/1/console\.log") as caught:
        tcg_lab.template(broken)
    kept = (tmp_path if of_a_run else tmp_path / "cache") / "failed-boot/1"
    assert "Linux version" in (kept / "console.log").read_text(errors="replace"), caught.value
    assert (kept / "qemu.sh").is_file()
    assert str(kept) in str(caught.value)
