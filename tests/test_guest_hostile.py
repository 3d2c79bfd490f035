"""A guest that floods and that tries the network."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.guest import CommandTimeout, Guest
from harness.guest.boot import Recipe
from harness.guest.clone import cloned
from harness.guest.ssh import OUTPUT_LIMIT
from harness.lab import Lab
from harness.observe import Observer

pytestmark = pytest.mark.guest

GIB_OF_A = "head -c 1G /dev/zero | tr '\\0' A"


@pytest.fixture(scope="module")
def guest(
    tcg_lab: Lab, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guest]:
    folder = tmp_path_factory.mktemp("hostile")
    with cloned(tcg_lab.template(recipe), folder) as made:
        yield made


def grown() -> int:
    """Return the most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_a_line_of_a_gibibyte_in_a_commands_output(guest: Guest) -> None:
    before, heard = grown(), 0

    def hear(chunk: bytes) -> None:
        nonlocal heard
        heard += len(chunk)
        if heard > enough:
            raise BrokenPipeError

    enough = 12 * OUTPUT_LIMIT  # the rest would take minutes without KVM
    with contextlib.suppress(CommandTimeout, BrokenPipeError):
        guest.ssh.run(GIB_OF_A, timeout=240.0, on_stdout=hear)
    assert heard > enough
    assert grown() - before < 8 * OUTPUT_LIMIT
    assert guest.run("echo alive").stdout == "alive\n"


def test_a_line_of_a_gibibyte_on_the_console_and_in_the_kernels_log(
    guest: Guest, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    before, position = grown(), guest.vm.console.position
    observer = Observer(guest, "x")
    observer.begin()
    # The kernel cuts a line of its log; the console takes what it is given.
    to_console, to_log = f"({GIB_OF_A} > /dev/ttyS0)", f"{GIB_OF_A} | head -c 64K > /dev/kmsg"
    guest.run(f"{to_console} > /dev/null 2>&1 & {to_log}", check=False)
    eventually(lambda: guest.vm.console.position - position > 1 << 16, seconds=120)
    guest.run("pkill -x tr; echo; printf '\\033[2J\\000]]>\\n' > /dev/kmsg")
    observer.end(())
    observer.save(tmp_path)
    assert max(file.stat().st_size for file in tmp_path.iterdir()) < 8 << 20
    assert grown() - before < 64 << 20
    assert guest.run("echo alive").stdout == "alive\n"


def test_the_guest_sends_nothing_to_the_host(guest: Guest) -> None:
    """UDP and name servers; TCP is tried in test_guest_ready."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("0.0.0.0", 0))
        listener.setblocking(False)
        port = listener.getsockname()[1]
        # A question for example.org to slirp's own name server, and to the host by its names.
        question = (
            r"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
            r"\x07example\x03org\x00\x00\x01\x00\x01"
        )
        tries = "; ".join(
            f"printf '{question}' > /dev/udp/{address}"
            for address in (f"10.0.2.2/{port}", f"10.0.2.3/{port}", f"255.255.255.255/{port}")
        )
        asked = f"exec 3<>/dev/udp/10.0.2.3/53; printf '{question}' >&3; "
        asked += "timeout 4 head -c 1 <&3 | wc -c"
        done = guest.run(f'bash -c "{tries}" 2>/dev/null; bash -c "{asked}"', check=False)
        assert done.stdout.split() == ["0"]
        with pytest.raises(BlockingIOError):
            listener.recv(1)
    # What a router would have told it by now: a way out by IPv6.
    routes = guest.run("ip -6 addr show scope site; ip -6 addr show scope global; ip -6 route")
    assert "default" not in routes.stdout
    assert "inet6" not in routes.stdout
