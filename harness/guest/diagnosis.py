"""Why a guest does not answer: who waits in its kernel, or which part of the way in is gone."""

from __future__ import annotations

import contextlib
import re
import threading
from typing import TYPE_CHECKING

from harness.errors import (
    GuestLost,
    GuestOutOfMemory,
    GuestUnreachable,
    HarnessError,
    HostStall,
)
from harness.guest.ssh import CommandTimeout

if TYPE_CHECKING:
    from harness.guest.guest import Guest

#: How long each way into a guest that is in trouble is tried, in seconds, before TCG's factor.
PATIENCE = 4.0
#: What a console says beyond the kernel's answer to sysrq-w, in bytes.
_NOISE = 512

#: Tasks in D state and those that wait for a page's last user; the latter sleep interruptibly.  One
#: program, because each costs a guest under TCG tens of milliseconds.
_STACKS = r"""perl -e '
sub all { local $/; open(my $f, "<", shift) or return ""; my $text = <$f>; $text // "" }
for my $t (glob "/proc/[0-9]*/task/[0-9]*") {
    my ($comm, $state) = all("$t/stat") =~ /\((.*)\) (\S)/s or next;
    my $stack = $state =~ /[DS]/ ? all("$t/stack") : next;
    next unless $state eq "D" || $stack =~ /break_(dax_)?layout/;
    print "$t $comm state $state wchan ", all("$t/wchan"), "\n$stack";
}'"""
_WAITER = re.compile(r"^/proc/(\d+)/task/\d+ (.+) state (\S) wchan (\S+)$", re.MULTILINE)

_WAY_IN = (
    "for i in /sys/class/net/*; do [ ! -e $i/device ] || "
    'echo "net $(cat $i/operstate) $(ip -4 -br addr show dev ${i##*/} | wc -w)"; done; '
    "pidof door dropbear >/dev/null && echo server"
)
_KILLED = re.compile(r"(?:Out of memory|Memory cgroup out of memory): (Killed process[^\n,]*)")


def stuck(guest: Guest) -> str:
    """Return state, wchan and stack of the tasks that wait, and have sysrq-w in dmesg."""
    command = f"echo w > /proc/sysrq-trigger; {_STACKS}"
    try:
        return guest.ssh.run(command, timeout=PATIENCE * guest.scale).stdout or "no task waits"
    except HarnessError:
        with contextlib.suppress(HarnessError):
            return guest.serial.run(command, timeout=PATIENCE * guest.scale)[1] or "no task waits"
    return "the guest does not answer"


def hung(guest: Guest, error: CommandTimeout) -> GuestLost:
    """Return what a command that did not end in time says of its guest.

    One in which tasks wait is hung; where none does, something runs and gets nowhere.
    """
    try:
        status = guest.vm.qmp.execute("query-status", timeout=2.0)
    except HarnessError as silence:
        return HostStall(f"host stall: {silence.message}; {error.message}")
    if not status.get("running", True):
        return CommandTimeout(f"hung: the guest is {status['status']}; {error.message}")
    position = guest.vm.console.position
    stacks = stuck(guest)
    noisy = guest.vm.console.position - position > _NOISE
    if gone := guest.vm.death():
        return gone if isinstance(gone, GuestLost) else error
    waiters = [f"{m[2]} ({m[1]}) state {m[3]} in {m[4]}" for m in _WAITER.finditer(stacks)]
    if waiters:
        what = f"hung: {'; '.join(waiters[:3])}"
    else:
        # One that floods its console may be too busy to answer.
        what = "no progress" if noisy or stacks == "no task waits" else f"hung: {stacks}"
        guest.vm.save_registers()
    return CommandTimeout(f"{what}: {error.message}", stacks=stacks)


def out_of_memory(guest: Guest, since: int) -> GuestOutOfMemory | None:
    """Say whom the kernel killed for lack of memory since a position of the console."""
    match = _KILLED.search(guest.vm.console.text(since))
    return GuestOutOfMemory(f"the guest is out of memory: {match[1]}") if match else None


def cut_off(guest: Guest, since: int) -> GuestLost | None:
    """Ask the serial shell which part of the way in is gone; None when nothing seems to be."""
    if error := out_of_memory(guest, since):
        return error
    try:
        said = guest.serial.run(_WAY_IN, timeout=PATIENCE * guest.scale)[1].split("\n")
    except HarnessError:
        return None  # it hangs as a whole, and that has a deadline of its own
    ways = [line.split() for line in said if line.startswith("net ")]
    if not any(state in {"up", "unknown"} and int(words) > 2 for _, state, words in ways):
        return GuestUnreachable("the guest's network is down", hint="its serial shell answers")
    if "server" not in said:
        return GuestUnreachable("the guest's SSH server is gone", hint="its serial shell answers")
    return None


def answers(guest: Guest) -> bool:
    """Whether the guest's end of the SSH connection says anything at all."""
    transport = guest.ssh.transport
    if transport is None:
        return False
    done = threading.Event()

    def ask() -> None:
        # paramiko waits for the answer, whatever it is, as long as the connection stands.
        with contextlib.suppress(Exception):
            transport.global_request("keepalive@openssh.com", wait=True)
            if transport.is_active():
                done.set()

    threading.Thread(target=ask, name="keepalive", daemon=True).start()
    return done.wait(PATIENCE * guest.scale)
