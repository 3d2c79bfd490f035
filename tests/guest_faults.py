"""Testcases whose guests come to harm, for a run of its own: tests/test_faults_guest.py plays it.

Each notes when the fault was; what the run makes of it is in the run's records.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from harness.guest import Guest
from harness.verdict.expectation import Case
from tests import poke

#: What is not the oops's own business ends at once, as a workload does that notices nothing.
IN_BACKGROUND = ">/dev/null 2>&1 </dev/null &"
PIN = """perl -e '
open(F, "+<", "/mnt/fsdax0/pinned") or die "open: $!";
my $at = syscall(9, 0, 4096, 3, 1, fileno(F), 0);
unpack("P8", pack("Q", $at));
pipe(R, W);
syscall(278, fileno(W), pack("QQ", $at, 4096), 1, 0) > 0 or die "vmsplice: $!";
open(M, ">", "/run/pinned");
sleep 600' """
#: io_uring's buffers are long-term pins; vmsplice's are references.
LONG_PIN = """perl -e '
my $ring = syscall(425, 4, my $setup = "\\0" x 120);
$ring >= 0 or die "io_uring_setup: $!";
my $memory = "x" x 8192;
syscall(427, $ring, 0, pack("QQ", unpack("Q", pack("p", $memory)), 8192), 1) == 0
    or die "io_uring_register: $!";
open(M, ">", "/run/pinned");
sleep 600' """


def fault(case: Case) -> None:
    """Note that the fault is now."""
    case.expect("reached", "yes")
    case.fact("fault_at", time.time())


def test_f1_sound(guest: Guest, case: Case) -> None:
    case.expect("reached", guest.run("echo yes").stdout.strip())


def test_f2_sysrq_c(guest: Guest, case: Case) -> None:
    guest.run(f"(while :; do sync; done) {IN_BACKGROUND}")
    fault(case)
    guest.run("echo c > /proc/sysrq-trigger; sleep 60")


def test_f3_oops(guest: Guest, case: Case) -> None:
    poke.null_pointer(guest)
    fault(case)
    guest.run(f"{poke.CALL}; exit 0")


def test_f4_warning(guest: Guest, case: Case) -> None:
    poke.warning(guest)
    fault(case)
    guest.run(f"{poke.CALL}; exit 0")


@pytest.fixture
def oops_later(guest: Guest) -> Iterator[None]:
    """Let the kernel die a second after its log was read."""
    yield
    guest.run(f"(sleep 1; {poke.CALL}) {IN_BACKGROUND}")


def test_f5_late_oops(guest: Guest, case: Case, oops_later: None) -> None:
    poke.null_pointer(guest)
    fault(case)


def test_f6_words(guest: Guest, case: Case) -> None:
    fault(case)
    words = "[    9.123456] Kernel panic - not syncing: Fatal exception"
    guest.run(
        "echo 'Kernel panic - not syncing: only words' > /dev/kmsg; "
        f"echo '{words}' > /dev/console; sleep 1"
    )


def test_f7_d_state(guest: Guest, case: Case) -> None:
    device = guest.namespace("fsdax0").device
    guest.run(f"mount {device} /mnt && fsfreeze -f /mnt")
    fault(case)
    guest.run("touch /mnt/file", timeout=5)


def test_f8_s_state(guest: Guest, case: Case) -> None:
    with guest.mounted(guest.namespace("fsdax0"), "ext4") as mount:
        case.prove("the mount is DAX", mount.is_dax)
        guest.run(f"head -c 65536 /dev/zero > {mount.path}/pinned; sync")
        guest.run(
            f"{PIN} {IN_BACKGROUND}\n"
            "for try in $(seq 200); do [ ! -e /run/pinned ] || exit 0; sleep 0.05; done; exit 1"
        )
        fault(case)
        guest.run(f"truncate -s 0 {mount.path}/pinned", timeout=5)


def test_f9_soft_lockup(guest: Guest, case: Case) -> None:
    poke.soft_lockup(guest)
    fault(case)
    guest.run(poke.CALL, timeout=120)


def test_f10_all_spin(guest: Guest, case: Case) -> None:
    poke.spin(guest)
    each = f"for cpu in 0 1; do taskset -c $cpu {poke.CALL} & done; wait"
    fault(case)
    guest.run(each, timeout=120)


def test_f11_noise(guest: Guest, case: Case) -> None:
    fault(case)
    guest.run("while :; do echo noise > /dev/console; done", timeout=10)


def test_f12_qemu_stopped(guest: Guest, case: Case) -> None:
    fault(case)
    os.kill(guest.vm.child.pid, signal.SIGSTOP)
    guest.run("true", timeout=60)


def test_f13_qemu_killed(guest: Guest, case: Case) -> None:
    fault(case)
    os.kill(guest.vm.child.pid, signal.SIGKILL)
    guest.run("true", timeout=60)


@pytest.mark.machine("refused.toml")
def test_f14_qemu_refuses(guest: Guest, case: Case) -> None:
    raise AssertionError("there is no such guest")


def test_f15_triple_fault(guest: Guest, case: Case) -> None:
    guest.run("echo triple > /sys/kernel/reboot/type")
    fault(case)
    guest.run("echo b > /proc/sysrq-trigger; sleep 60")


def test_f16_network_down(guest: Guest, case: Case) -> None:
    guest.run("echo words-before > /dev/kmsg")
    fault(case)
    guest.run(
        "for i in /sys/class/net/*; do [ ! -e $i/device ] || ip link set ${i##*/} down; done; "
        "sleep 300",
        timeout=120,
    )


def test_f17_ssh_server_killed(guest: Guest, case: Case) -> None:
    guest.run("echo words-before > /dev/kmsg")
    fault(case)
    guest.run("pkill -9 door; pkill -9 dropbear; sleep 300", timeout=120)


def test_f18_out_of_memory(guest: Guest, case: Case) -> None:
    guest.run(
        "echo words-before > /dev/kmsg; head -c 400M /dev/zero > /dev/shm/ballast", timeout=120
    )
    fault(case)
    guest.run("tail /dev/zero", timeout=120)


def test_f19_loaded_host(load: int, guest: Guest, case: Case) -> None:
    fault(case)
    assert load
    guest.run("i=0; while [ $i -lt 3000 ]; do i=$((i + 1)); done; sleep 12", timeout=120)
    case.expect("reached", guest.run("echo yes").stdout.strip())


def test_f20_pins_left_behind(guest: Guest, case: Case) -> None:
    guest.run(f"{LONG_PIN} {IN_BACKGROUND}\nuntil [ -e /run/pinned ]; do sleep 0.05; done")
    fault(case)


@pytest.fixture
def load() -> Iterator[int]:
    """Keep every core of the host busy, and then some."""
    cores = len(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        for _ in range(2 * cores):
            busy = subprocess.Popen(["sh", "-c", "while :; do :; done"])
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        yield cores
