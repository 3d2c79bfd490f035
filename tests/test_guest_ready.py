"""A provisioned guest: what was promised of it is so, and it stays usable whatever is run in it."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import time
from pathlib import Path

import paramiko
import pytest

from harness.errors import GuestHung, GuestLost, UsageError, WorkloadError
from harness.guest import CommandTimeout, Guest
from harness.guest.keys import Identity
from harness.guest.ssh import OUTPUT_LIMIT, Ssh

pytestmark = pytest.mark.guest


# Provisioning


def test_each_namespace_is_what_the_machine_file_says(shared: Guest) -> None:
    for dimm in shared.machine.nvdimms:
        assert dimm.namespace is not None
        made = shared.namespace(dimm.name)
        assert made.mode == dimm.namespace.mode
        assert made.align == dimm.namespace.align
        # The info block and, with map=dev, 64 bytes for each page are taken out of the region.
        assert dimm.usable // 2 <= made.size <= dimm.usable
        assert made.size % made.align == 0
        kind = "pmem" if made.mode == "fsdax" else "dax"
        assert re.fullmatch(rf"/dev/{kind}[0-9.]+", made.device)
        test = "-b" if kind == "pmem" else "-c"
        assert shared.run(f"test {test} {made.device}", check=False).status == 0
    devices = [made.device for made in shared.namespaces.values()]
    assert len(set(devices)) == len(devices)


def test_each_namespace_lies_on_its_own_nvdimm(shared: Guest) -> None:
    """ndctl's region order can be the reverse of the -device order."""
    for dimm in shared.machine.nvdimms:
        region = shared.namespace(dimm.name).region
        size = shared.run(f"cat /sys/bus/nd/devices/{region}/size").stdout
        assert int(size) == dimm.usable


def test_edu_is_bound_to_vfio_behind_the_iommu(shared: Guest) -> None:
    edu = shared.vfio("edu")
    assert (edu.id, edu.driver) == ("1234:11e8", "vfio-pci")
    assert edu.iommu.startswith("dmar")
    path = f"/sys/bus/pci/devices/{edu.address}"
    seen = shared.run(
        f"basename $(readlink {path}/driver); basename $(readlink {path}/iommu_group); "
        f"cat {path}/device; ls {path}/iommu_group/devices; test -c /dev/vfio/{edu.group}"
    )
    assert seen.stdout.split() == ["vfio-pci", str(edu.group), "0x11e8", edu.address]


def test_preconditions_are_facts(shared: Guest) -> None:
    facts = shared.facts
    assert facts["release"] == shared.run("uname -r").stdout.strip()
    assert "dmar0" in facts["iommu"].split()
    assert "Enabled IRQ remapping" in facts["irq_remapping"]
    assert facts["namespaces"].keys() == {dimm.name for dimm in shared.machine.nvdimms}
    assert "1234:11e8" in facts["vfio"]["edu"]


def test_what_is_not_there_is_named(shared: Guest) -> None:
    with pytest.raises(UsageError, match="no NVDIMM 'pmem9'"):
        shared.namespace("pmem9")
    with pytest.raises(UsageError, match="no vfio device 'nvme0'"):
        shared.vfio("nvme0")


# Mounts


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
@pytest.mark.parametrize(("dax", "is_dax"), [("always", True), ("never", False)])
def test_a_mount_says_whether_it_is_dax(shared: Guest, fstype: str, dax: str, is_dax: bool) -> None:
    namespace = shared.namespace("fsdax0")
    with shared.mounted(namespace, fstype, dax=dax) as mount:
        assert mount.is_dax is is_dax
        assert (mount.fstype, mount.path) == (fstype, "/mnt/fsdax0")
        assert f"dax={dax}" in mount.options.split(",")
        shown = shared.run(f"findmnt -no FSTYPE,SOURCE {mount.path}").stdout.split()
        assert shown == [fstype, namespace.device]
        assert shared.run(f"ls -A {mount.path}").stdout.split() in ([], ["lost+found"])
    assert shared.run(f"findmnt {mount.path}", check=False).status == 1


def test_a_mount_is_undone_when_the_block_fails(shared: Guest) -> None:
    with (
        pytest.raises(KeyError),
        shared.mounted(shared.namespace("fsdax0"), "ext4") as mount,
    ):
        raise KeyError
    assert shared.run(f"findmnt {mount.path}", check=False).status == 1


def test_a_mount_that_is_refused_is_told(shared: Guest) -> None:
    # ext4 has no DAX with 1 KiB blocks and refuses the mount (ext4_fill_super).
    with (
        pytest.raises(WorkloadError, match="mount"),
        shared.mounted(shared.namespace("fsdax0"), "ext4", mkfs=("-b", "1024")),
    ):
        pass


# Commands over SSH


def test_status_output_and_errors_are_the_commands(shared: Guest) -> None:
    done = shared.run("echo out; echo err >&2; exit 7", check=False)
    assert (done.status, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_a_failure_is_told_with_its_last_words(shared: Guest) -> None:
    with pytest.raises(WorkloadError, match="ended with status 3: gone wrong"):
        shared.run("echo first; echo gone wrong >&2; exit 3")


def test_a_command_that_a_signal_ends(shared: Guest) -> None:
    assert shared.run("sh -c 'kill -9 $$'", check=False).status in (137, 128 + 9)


def test_input_and_bytes_arrive_as_they_are(shared: Guest) -> None:
    data = bytes(range(256)) * 4096
    done = shared.ssh.run("sha256sum", timeout=60, stdin=data)
    assert done.stdout.split()[0] == hashlib.sha256(data).hexdigest()


def test_a_command_may_be_longer_than_the_server_takes(shared: Guest) -> None:
    data = b"for the command, not for what brings it"
    done = shared.ssh.run(f"cat; {'true; ' * 20000} exit 9", timeout=60, stdin=data)
    assert (done.status, done.stdout) == (9, data.decode())


def test_a_command_that_outlives_its_deadline(shared: Guest) -> None:
    begun = time.monotonic()
    with pytest.raises(CommandTimeout, match="it said: still here"):
        shared.ssh.run("echo still here; sleep 300", timeout=10.0)
    assert 10.0 <= time.monotonic() - begun < 120
    assert shared.ssh.run("echo alive", timeout=30).stdout == "alive\n"


def test_a_background_process_does_not_hold_a_command(shared: Guest) -> None:
    done = shared.ssh.run("sleep 300 & echo $!", timeout=60)
    assert done.status == 0
    assert done.seconds < 60
    shared.run(f"kill {done.stdout.strip()}")


def test_endless_output_is_bounded_and_ended(shared: Guest) -> None:
    heard = 0

    def hear(chunk: bytes) -> None:
        nonlocal heard
        heard += len(chunk)

    with pytest.raises(CommandTimeout) as caught:
        shared.ssh.run("yes", timeout=5.0, on_stdout=hear)
    assert heard > 0
    assert len(caught.value.message) < 1000
    assert shared.ssh.run("echo alive", timeout=60).stdout == "alive\n"


def test_long_output_is_cut_and_its_end_awaited(shared: Guest) -> None:
    done = shared.ssh.run(f"head -c {OUTPUT_LIMIT + 100_000} /dev/zero; exit 5", timeout=120)
    assert done.status == 5
    assert len(done.stdout) == OUTPUT_LIMIT


# The serial shell


def test_the_serial_shell(shared: Guest) -> None:
    assert shared.serial.run("echo one; echo two >&2; false", timeout=60) == (1, "one\ntwo\n")
    assert shared.serial.run("(exit 42)", timeout=60) == (42, "")
    status, text = shared.serial.run("seq 20000", timeout=120)
    assert status == 0
    assert text.split() == [str(number) for number in range(1, 20001)]


def test_the_serial_shell_has_deadlines_and_goes_on_afterwards(shared: Guest) -> None:
    with pytest.raises(GuestHung, match="serial shell did not end within 1 s: sleep 5"):
        shared.serial.run("sleep 5", timeout=1)
    assert shared.serial.run("echo again", timeout=60) == (0, "again\n")


# The kernel's log


def test_dmesg_since_a_mark(shared: Guest) -> None:
    shared.run("echo before-the-mark > /dev/kmsg")
    token = shared.mark("tests/x.py::test[a'b\n$(reboot)]")
    shared.run("echo behind-the-mark > /dev/kmsg")
    text = shared.dmesg(token)
    assert "behind-the-mark" in text
    assert "before-the-mark" not in text
    assert "before-the-mark" in shared.dmesg()


# The way in


def test_another_host_key_is_refused(shared: Guest) -> None:
    stranger = Ssh(shared.ssh.port, Identity.generate(), check=shared.vm.check)
    with pytest.raises(GuestLost, match="Host key"):
        stranger.connect(60)
    assert not stranger.connected


def test_the_harness_key_is_the_only_way_in(shared: Guest) -> None:
    with paramiko.Transport(("127.0.0.1", shared.ssh.port)) as stranger:
        stranger.start_client(timeout=60)
        with pytest.raises(paramiko.BadAuthenticationType) as caught:
            stranger.auth_none("root")
        assert caught.value.allowed_types == ["publickey"]
        with pytest.raises(paramiko.AuthenticationException):
            stranger.auth_publickey("root", Identity.generate().client_key)


def test_a_server_that_died_while_it_waited_is_replaced(shared: Guest) -> None:
    shared.run(
        "kill -HUP $(cat /run/nvh/door.pid); "
        "until [ -e /run/nvh/warm ]; do sleep 0.05; done; pkill -9 -n -x dropbear"
    )
    with paramiko.Transport(("127.0.0.1", shared.ssh.port)) as client:
        client.start_client(timeout=60)
        assert client.get_remote_server_key().get_name() == "ssh-ed25519"
    assert shared.run("echo still here").stdout == "still here\n"


def test_the_ssh_port_leads_to_no_other(shared: Guest) -> None:
    transport = shared.ssh.transport
    assert transport is not None
    with pytest.raises(paramiko.ChannelException, match="prohibited"):
        transport.open_channel("direct-tcpip", ("127.0.0.1", 22), ("127.0.0.1", 1), timeout=60)


def listeners(pid: int) -> list[tuple[str, int]]:
    """Return address and port of each TCP socket on which a process listens."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if match := re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink())):
                inodes.add(match[1])
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                address, port = words[1].split(":")
                found.append((address, int(port, 16)))
    return found


def test_qemu_listens_on_the_loopback_only(shared: Guest) -> None:
    assert listeners(shared.vm.child.pid) == [("0100007F", shared.ssh.port)]


def test_the_guest_reaches_nothing_of_the_hosts(shared: Guest) -> None:
    def reaches(address: str, port: int) -> bool:
        command = f"timeout 5 bash -c 'exec 3<>/dev/tcp/{address}/{port}'"
        return shared.run(command, check=False).status == 0

    assert reaches("127.0.0.1", 22)  # the test's own tool works
    with socket.create_server(("0.0.0.0", 0)) as server:
        server.settimeout(0)
        port = server.getsockname()[1]
        for address in ("10.0.2.2", "10.0.2.3", own_address()):
            assert not reaches(address, port)
        with pytest.raises(BlockingIOError):
            server.accept()


def own_address() -> str:
    """Return an address of this host (nothing is sent to find it)."""
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
    ):
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return "127.0.0.1"
