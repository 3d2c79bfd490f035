"""QEMU's life as the harness sees it, with a stand-in for QEMU."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from qemu.qmp import QMPClient

from harness.errors import (
    GuestLockup,
    GuestLost,
    GuestPanic,
    GuestReset,
    HostError,
    HostFull,
    HostStall,
    LaunchError,
)
from harness.qemu import vm
from harness.qemu.argv import Wiring
from harness.qemu.vm import Vm

FAKE = Path(__file__).with_name("fake_qemu.py")

Launch = Callable[..., AbstractContextManager[Vm]]
#: The file of the stand-in's memory.
MAPPED = Path("/dev/shm/nvh-run-of-nobody/ram")


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Start a stand-in that plays a scenario."""

    def argv(wiring: Wiring) -> list[str]:
        return [
            sys.executable,
            str(FAKE),
            *["-chardev", f"socket,id=qmp,fd={wiring.qmp}"],
            *["-chardev", f"socket,id=console,fd={wiring.console}"],
            *["-chardev", f"socket,id=shell,fd={wiring.shell}"],
        ]

    @contextlib.contextmanager
    def launched(scenario: str, *, grace: float = 30.0) -> Iterator[Vm]:
        monkeypatch.setenv("FAKE_QEMU", scenario)
        before = len(list(Path("/proc/self/fd").iterdir()))
        with vm.launched(argv, folder=tmp_path, grace=grace, mapped=[MAPPED]) as started:
            if ";asked" in scenario:
                started.qmp.execute("query-status", timeout=30)
            yield started
        assert started.child.poll() is not None
        # QMP's event loop, made at the first start, keeps three.
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 3

    return launched


def death(machine: Vm) -> Exception:
    """Wait for what ends the guest."""
    deadline = time.monotonic() + 30
    while (error := machine.death()) is None:
        assert time.monotonic() < deadline, "nothing ended it"
        time.sleep(0.005)
    return error


def freeze(machine: Vm) -> None:
    """Stop QEMU's process and wait until each of its threads stands still."""
    os.kill(machine.child.pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{machine.child.pid}/task")
    deadline = time.monotonic() + 30
    while any(") T " not in (task / "stat").read_text() for task in tasks.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_living_guest(launch: Launch) -> None:
    with launch("greet;sleep:60") as machine:
        machine.check()
        assert machine.death() is None
        machine.qmp.execute("query-status", timeout=10)


def test_what_the_user_sets_of_glibc_comes_last(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    with launch("greet;sleep:60") as machine:
        variables = Path(f"/proc/{machine.child.pid}/environ").read_bytes()
    assert variables.count(b"GLIBC_TUNABLES=") == 1
    # Not cut at the colons, where glibc may have ended a value in place.
    assert variables.index(b"malloc.hugetlb=1") < variables.index(b"malloc.hugetlb=0")


def test_a_soft_stop_asks(launch: Launch) -> None:
    with launch("greet;sleep:60") as machine:
        pass
    assert machine.child.returncode == 0
    assert machine.death() is None  # it was asked to


def test_a_hard_stop_kills(launch: Launch) -> None:
    with launch("greet;ignore-term;sleep:60", grace=0.2) as machine:
        freeze(machine)  # it answers nothing any more
    assert machine.child.returncode == -signal.SIGKILL


def test_a_refusal_carries_the_last_words(launch: Launch, tmp_path: Path) -> None:
    with pytest.raises(LaunchError) as caught, launch("refuse:-device edo: not a device"):
        pass
    assert caught.value.message.startswith("QEMU refused to start: ")
    assert caught.value.message.endswith("qemu-system-x86_64: -device edo: not a device")
    assert "\n" not in caught.value.message
    assert "first words" in (tmp_path / "qemu.stderr").read_text()


def test_a_program_that_says_nothing_is_not_qemu(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm, "GREETING", 0.3)
    with pytest.raises(LaunchError, match="QEMU does not speak QMP"), launch("sleep:60"):
        pass


def test_a_qemu_that_dies_behind_its_greeting(launch: Launch) -> None:
    for _ in range(10):  # now in the handshake, now after it
        with contextlib.suppress(LaunchError), launch("greet;stderr:boom;exit:1") as machine:
            assert "boom" in str(death(machine))


def test_what_qmp_asserts_is_an_error_of_the_launch(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """qemu.qmp 0.0.3 asserts that QEMU still lives behind the handshake."""

    async def connect(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(QMPClient, "connect", connect)
    with pytest.raises(LaunchError, match="does not speak QMP"), launch("greet;sleep:60"):
        pass


def test_a_missing_qemu(tmp_path: Path) -> None:
    with (
        pytest.raises(LaunchError, match="No such file or directory"),
        vm.launched(lambda _: ["/nowhere/qemu"], folder=tmp_path),
    ):
        pass


def test_a_panic_is_told_with_its_trace(launch: Launch) -> None:
    trace = (
        "print:Call Trace:;print:Kernel panic - not syncing: sysrq triggered crash;"
        "print:---[ end Kernel panic - not syncing: sysrq triggered crash ]---"
    )
    with launch(f"greet;asked;{trace};event:GUEST_PANICKED;sleep:60") as machine:
        error = death(machine)
    assert isinstance(error, GuestPanic)
    assert error.message == "the guest's kernel panicked: sysrq triggered crash"
    assert "Call Trace:" in error.trace


def test_a_panic_that_a_busy_console_holds_back(launch: Launch) -> None:
    """panic() prints it when it goes on: the guest is continued for that."""
    words = "print:Kernel panic - not syncing: late;print:---[ end Kernel panic ]---"
    with launch(f"greet;asked;event:GUEST_PANICKED;asked;{words};sleep:60") as machine:
        error = death(machine)
    assert isinstance(error, GuestPanic)
    assert error.message == "the guest's kernel panicked: late"


def test_a_panic_that_says_nothing_at_all(launch: Launch) -> None:
    with launch("greet;asked;event:GUEST_PANICKED;sleep:60") as machine:
        assert str(death(machine)) == "the guest's kernel panicked: no message"


def test_a_panic_without_pvpanic(launch: Launch) -> None:
    scenario = "greet;asked;print:Kernel panic - not syncing: x;event:SHUTDOWN,guest-reset;exit:0"
    with launch(scenario) as machine:
        assert isinstance(death(machine), GuestPanic)


def test_who_prints_a_panic_does_not_end_the_guest(launch: Launch) -> None:
    with launch("greet;asked;print:Kernel panic - not syncing: only words;sleep:60") as machine:
        deadline = time.monotonic() + 30
        while "only words" not in machine.console.text():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert machine.death() is None


@pytest.mark.parametrize("reason", ["guest-reset", "guest-shutdown"])
def test_a_guest_that_ends_itself(launch: Launch, reason: str) -> None:
    with launch(f"greet;asked;print:bye;event:SHUTDOWN,{reason};exit:0") as machine:
        error = death(machine)
    assert type(error) is GuestReset
    assert reason in str(error)


def test_inits_own_words_come_first(launch: Launch) -> None:
    fatal = "print:nvh-init: FATAL: no root disk (CONFIG_VIRTIO_BLK=y)"
    with launch(f"greet;asked;{fatal};event:SHUTDOWN,guest-shutdown;exit:0") as machine:
        error = death(machine)
    assert type(error) is GuestLost
    assert str(error) == "the guest could not boot: no root disk (CONFIG_VIRTIO_BLK=y)"


@pytest.mark.parametrize(
    ("end", "how"), [("kill:9", "signal 9"), ("kill:6", "signal 6"), ("exit:3", "status 3")]
)
def test_a_qemu_that_dies_is_told_with_its_end_and_its_words(
    launch: Launch, end: str, how: str
) -> None:
    with launch(f"greet;asked;stderr:edu.c: assertion failed;{end}") as machine:
        error = death(machine)
    assert type(error) is GuestLost
    assert error.message == f"QEMU died with {how}: edu.c: assertion failed"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Say what is left of the disk that has the stand-in's memory, and of no other."""

    def left(size: int) -> None:
        real = shutil.disk_usage

        def usage(folder: Path) -> object:
            return real("/dev/shm")._replace(free=size) if folder == MAPPED.parent else real(folder)

        monkeypatch.setattr(shutil, "disk_usage", usage)

    return left


#: What QEMU does where a page of its guest's memory is not to be had: under TCG, and under KVM.
NO_PAGE = ("kill:7", "stderr:error: kvm run failed Bad address;event:STOP;sleep:60")


@pytest.mark.parametrize("end", NO_PAGE)
def test_a_full_disk_is_told_by_its_name(
    launch: Launch, disk: Callable[[int], None], end: str
) -> None:
    disk(1 << 20)
    with launch(f"greet;asked;{end}") as machine:
        error = death(machine)
    assert type(error) is HostFull
    assert error.message == "disk full: /dev/shm has no room for what the guest writes"
    assert "free space there" in str(error)


@pytest.mark.parametrize(
    ("end", "left", "told"),
    [
        (NO_PAGE[0], 1 << 30, "QEMU died with signal 7: it left no message"),
        (NO_PAGE[1], 1 << 30, "QEMU has stopped the guest: error: kvm run failed Bad address"),
        ("kill:9", 0, "QEMU died with signal 9: it left no message"),
    ],
)
def test_what_no_full_disk_explains(
    launch: Launch, disk: Callable[[int], None], end: str, left: int, told: str
) -> None:
    disk(left)
    with launch(f"greet;asked;{end}") as machine:
        error = death(machine)
    assert type(error) is GuestLost
    assert error.message == told


def test_a_disk_that_is_full_at_the_start(launch: Launch, disk: Callable[[int], None]) -> None:
    disk(0)
    with pytest.raises(HostFull, match="disk full: /dev/shm"), launch("kill:7"):
        pass


def test_a_qemu_that_stalls(launch: Launch) -> None:
    with launch("greet;sleep:60", grace=0.2) as machine:
        freeze(machine)
        with pytest.raises(HostError, match="did not answer"):
            machine.qmp.execute("query-status", timeout=0.3)


def test_a_qemu_that_somebody_stops_is_the_hosts_fault(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm, "STALL", 0.2)
    with launch("greet;sleep:60", grace=0.2) as machine:
        freeze(machine)
        assert machine.death() is None  # a debugger does so for a moment
        error = death(machine)
        assert isinstance(error, HostStall)
        assert "is stopped" in error.message
        os.kill(machine.child.pid, signal.SIGCONT)
        assert_running(machine)
        assert machine.death() is None


def assert_running(machine: Vm) -> None:
    deadline = time.monotonic() + 30
    while ") T " in Path(f"/proc/{machine.child.pid}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.005)


LOCKED = "RIP=ffffffff93d402f5 RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0\r\n"
IDLE = "RIP=ffffffff93e402f5 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n"
WORDS = "[   26.1] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [perl:261]"


@pytest.mark.parametrize(
    ("scenario", "registers", "said"),
    [
        (f"print:{WORDS}", (IDLE, LOCKED), "BUG: soft lockup - CPU#1 stuck for 26s! [perl:261]"),
        ("event:WATCHDOG", (LOCKED, LOCKED), "CPUs 0, 1 in the kernel with interrupts off"),
        ("event:WATCHDOG", (IDLE, IDLE), "no program has run"),
    ],
)
def test_a_lockup_is_told_with_registers(
    launch: Launch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scenario: str,
    registers: tuple[str, str],
    said: str,
) -> None:
    text = "".join(f"\r\nCPU#{n}\r\nRAX=0 RBX=0\r\n{line}" for n, line in enumerate(registers))
    monkeypatch.setenv("FAKE_QEMU_HMP", text)
    with launch(f"greet;asked;{scenario};sleep:60") as machine:
        error = death(machine)
        assert isinstance(error, GuestLockup)
        assert error.message.startswith(f"lockup: {said}")
        assert machine.death() is error
    assert "CPU#1" in (tmp_path / "registers.txt").read_text()


def test_who_prints_a_lockup_does_not_end_the_guest(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_QEMU_HMP", f"CPU#0\r\nRAX=0\r\n{IDLE}")
    with launch(f"greet;asked;print:{WORDS};sleep:60") as machine:
        deadline = time.monotonic() + 30
        while "soft lockup" not in machine.console.text():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert machine.death() is None


def test_a_command_after_the_end_is_an_error(launch: Launch) -> None:
    with launch("greet;asked;exit:0") as machine:
        machine.child.wait(30)
        with pytest.raises(HostError, match="query-status"):
            machine.qmp.execute("query-status", timeout=10)


def test_the_forwarded_port_is_the_one_that_qemu_tells(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = (
        "Hub -1 (net0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port\r\n"
        "  TCP[HOST_FORWARD]  20       127.0.0.1 34567       10.0.2.15    22     0     0\r\n"
    )
    monkeypatch.setenv("FAKE_QEMU_HMP", told)
    with launch("greet;sleep:60") as machine:
        assert machine.forwarded_port() == 34567


def test_without_a_forward_there_is_no_way_in(launch: Launch) -> None:
    with launch("greet;sleep:60") as machine, pytest.raises(LaunchError, match="does not forward"):
        machine.forwarded_port()
