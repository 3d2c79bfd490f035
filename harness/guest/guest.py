"""A booted and provisioned guest, as testcases and the command line use it."""

from __future__ import annotations

import contextlib
import secrets
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import (
    GuestHung,
    GuestLost,
    GuestUnreachable,
    HarnessError,
    UsageError,
    WorkloadError,
)
from harness.guest import diagnosis, filesystem, ktap
from harness.guest.filesystem import Mount
from harness.guest.ktap import WorkloadResult
from harness.guest.provision import (
    NamespaceInfo,
    VfioInfo,
    await_device,
    pci_addresses,
    plug_in,
)
from harness.guest.serial_shell import SerialShell
from harness.guest.ssh import CommandTimeout, Result, Ssh, named
from harness.images.store import file_hash
from harness.qemu.vm import Vm
from harness.spec import Machine

#: How long a command may say nothing before the guest is asked whether it is there, in seconds,
#: before TCG's factor.
SILENCE = 5.0
#: What ssh(1) returns, and Ssh.run, when the connection ends before the command.
_NO_STATUS = 255
#: The exit status of a command that SIGKILL ended.
_SIGKILLED = 137
#: Where workloads live in the guest.
WORKLOADS = "/opt/nvh"


def deadline_scale(accel: str) -> float:
    """Return by how much deadlines stretch: TCG runs guest code some ten times slower than KVM."""
    return 3.0 if accel == "tcg" else 1.0


class Guest:
    """One running guest."""

    def __init__(
        self,
        *,
        machine: Machine,
        accel: str,
        vm: Vm,
        ssh: Ssh,
        workloads: Path,
        private: Path | None = None,
    ) -> None:
        self.machine = machine
        self.accel = accel
        self.vm = vm
        self.ssh = ssh
        #: What was proven about this guest when it was made ready.
        self.facts: dict[str, Any] = {}
        self.namespaces: dict[str, NamespaceInfo] = {}
        self.vfio_devices: dict[str, VfioInfo] = {}
        #: The host's directory of workload binaries.
        self.workloads = workloads
        #: The host's working directory of this guest: keys, NVDIMM files.
        self.private = private
        #: The host's files that keep what this guest writes to its NVDIMMs; a clone has none.
        self.nvdimms: Mapping[str, Path] = {}
        #: Workloads that are in the guest, each with the sha256 of its binary.
        self.installed: dict[str, str] = {}
        self._serial: SerialShell | None = None
        #: Namespaces whose file system is no longer as it was made.
        self._mounted: set[str] = set()
        #: What broke the guest for good; it is not used again.
        self.broken: HarnessError | None = None
        #: Of a clone: the log of the boot, which the guest itself no longer holds.
        self.log_before: Path | None = None
        self._marks = 0
        self._pinned = 0  # pages, when its last test ended
        self._spoken = 0  # the console's position when the last command began
        self.ssh.on_silence = self._listen
        self.ssh.patience = SILENCE * self.scale
        #: Takes what workloads print, as they end.
        self.note: Callable[[str], None] = lambda _: None
        #: Takes each command before it is run.
        self.begun: Callable[[str], None] = lambda _: None
        #: Told when a command is over, however it ended.
        self.ended: Callable[[], None] = lambda: None

    @property
    def scale(self) -> float:
        """By how much this guest's deadlines stretch."""
        return deadline_scale(self.accel)

    def run(self, command: str, *, timeout: float = 30.0, check: bool = True) -> Result:
        """Run a shell command as root.

        ``timeout`` is in seconds, stretched under TCG.  With ``check``, a status other than 0
        raises WorkloadError.  A guest that dies or hangs meanwhile raises what happened to it.
        """
        self.begun(command)
        self._spoken = self.vm.console.position
        try:
            done = self.ssh.run(command, timeout=timeout * self.scale)
            if done.status == _NO_STATUS and not self.ssh.connected:
                raise GuestLost(f"SSH broke during: {named(command)}")
        except GuestLost as error:
            known = self.broken
            self.broken = error
            if known is None:
                self.broken = self._explained(error)
            if self.broken is error:
                raise
            raise self.broken from error
        finally:
            self.ended()
        if done.status == _SIGKILLED and (oom := diagnosis.out_of_memory(self, self._spoken)):
            self.broken = oom
            raise oom
        if check and done.status != 0:
            words = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
            raise WorkloadError(f"{command!r} ended with status {done.status}: {words[-1]}")
        return done

    def _explained(self, error: GuestLost) -> GuestLost:
        """Return what is behind a command that was lost, as far as it can be found out."""
        if isinstance(error, CommandTimeout):
            return diagnosis.hung(self, error)
        if type(error) is GuestLost and self.vm.child.poll() is None:
            return diagnosis.cut_off(self, self._spoken) or error
        return error

    def _listen(self) -> None:
        """Find out whether a silent guest can be heard at all; raises what keeps it from that."""
        if not diagnosis.answers(self) and (error := diagnosis.cut_off(self, self._spoken)):
            raise error

    def workload(
        self, name: str, *options: str, timeout: float = 60.0, binary: Path | None = None
    ) -> WorkloadResult:
        """Run a workload and return what it observed; it is copied in when it is first used.

        ``binary`` is one of the host's that is not among the harness's own.
        Raises WorkloadError when it was started wrongly or did not speak KTAP to its end, and
        CommandTimeout, with the stacks of whoever is stuck, when it does not end.
        """
        self.install(name, binary)
        command = shlex.join([f"{WORKLOADS}/{name}", *options])
        self.note(f"$ {command}")
        done = self.run(command, timeout=timeout, check=False)
        self.note((done.stdout + done.stderr).rstrip())
        return ktap.parse(
            shlex.join([name, *options]), done.status, done.stdout, done.stderr, done.seconds
        )

    def install(self, name: str, binary: Path | None = None) -> None:
        """Copy a workload into the guest unless this very binary is there already."""
        binary = binary or self.workloads / name
        if not binary.is_file():
            raise WorkloadError(f"no workload {name} in {self.workloads}", hint="make workloads")
        digest = file_hash(binary)
        if self.installed.get(name) != digest:
            self.ssh.put(binary, f"{WORKLOADS}/{name}")
            self.installed[name] = digest

    def adopt(self, devices: Mapping[str, VfioInfo]) -> None:
        """Take over devices that were bound to vfio-pci, and note what they are."""
        self.vfio_devices.update(devices)
        self.facts["vfio"] = {
            name: f"{device.id} {device.address} group {device.group} {device.iommu}"
            for name, device in self.vfio_devices.items()
        }

    def namespace(self, name: str) -> NamespaceInfo:
        """Return the namespace on an NVDIMM of the machine file."""
        try:
            return self.namespaces[name]
        except KeyError:
            self.machine.nvdimm(name)
            raise UsageError(
                f"NVDIMM {name} of machine {self.machine.name} has no namespace"
            ) from None

    def vfio(self, name: str) -> VfioInfo:
        """Return a device that is bound to vfio-pci."""
        try:
            return self.vfio_devices[name]
        except KeyError:
            raise UsageError(
                f"machine {self.machine.name} has no vfio device {name!r}",
                hint="add a [[pci]] table with vfio = true",
            ) from None

    def plug(self, name: str) -> str:
        """Return the PCI address of a device that is on_demand; a clone is given it now."""
        device = next((d for d in self.machine.pci if d.name == name and d.on_demand), None)
        if device is None:
            raise UsageError(
                f"machine {self.machine.name} has no device {name!r} on demand",
                hint="add a [[pci]] table with port = true and on_demand = true",
            )
        # A guest that was booted has had it from the start.
        address = pci_addresses(self.vm).get(name) or plug_in(self.vm, [device])[0]
        await_device(self.run, address)
        return address

    @contextlib.contextmanager
    def mounted(
        self,
        namespace: NamespaceInfo,
        fstype: str,
        *,
        dax: str | None = "always",
        mkfs: Sequence[str] | None = (),
    ) -> Iterator[Mount]:
        """Mount a file system, made for this, and say what it is; it is unmounted after the block.

        ``dax`` is the mount option's value (always, never, inode), None for no option; ``mkfs``
        takes the place of the machine's options or filesystem.MKFS, None says that it is there
        already, from before a power cut.  Whether the mount really is DAX is told by ``is_dax``
        from statx(2) on a fresh file: ext4 and xfs mount with a mere warning, or fall back, where
        DAX is not to be had.
        """
        path = f"/mnt/{namespace.name}"
        command = filesystem.mount_command(fstype, namespace.device, path, dax)
        # modprobe(8) knows of soft dependencies; the kernel's own request comes too late.
        modprobe = f"[ -d /sys/module/{fstype} ] || modprobe -q {fstype}; "
        usual = filesystem.options(self.machine, namespace.name, fstype)
        words = tuple(mkfs or usual)
        if mkfs is None:
            command = modprobe + command
        # The one that provisioning made is as good as new, once.
        elif namespace.filesystem != fstype or words != usual or namespace.name in self._mounted:
            make = filesystem.make_command(fstype, namespace.device, words)
            command = f"{modprobe}{make} >&2 && {command}"
        self._mounted.add(namespace.name)
        done = self.run(command, timeout=60.0)
        mount = filesystem.read_mount(done.stdout, namespace, fstype, path, dax)
        try:
            yield mount
        finally:
            if self.broken is None:
                # Not lazily: a mount that cannot be undone is worth knowing about.
                with contextlib.suppress(WorkloadError):
                    self.run(filesystem.unmount_command(path), timeout=30.0)

    def cut_power(self) -> None:
        """Kill QEMU at once: what was not on an NVDIMM is gone."""
        self.vm.stop(grace=0)
        self.ssh.close()
        self.broken = GuestLost("its power was cut")

    @property
    def serial(self) -> SerialShell:
        """The root shell on the second serial line."""
        if self._serial is None:
            self._serial = SerialShell(self.vm.shell)
        return self._serial

    def mark(self, text: str) -> str:
        """Return a token from which on dmesg() gives the kernel's log.

        A clone's log begins with the clone: its first mark is the empty token.  Later ones are
        lines of our own in the log, and what WARN_ON_ONCE has spent is armed again.
        """
        self._marks += 1
        if self.log_before is not None and self._marks == 1:
            return ""
        token = secrets.token_hex(8)
        safe = "".join(c for c in text if c.isalnum() or c in "-_.:[]/ ")[:120]
        self.run(
            f"echo {shlex.quote(f'nvh: {safe} {token}')} > /dev/kmsg; "
            "echo 1 > /sys/kernel/debug/clear_warn_once 2>/dev/null; true",
            timeout=20.0,
        )
        return token

    def dmesg(self, since: str | None = None) -> str:
        """Return the kernel's log, from a mark on or whole.

        It comes through the serial shell where SSH is dead; where that is too, it is the console.
        """
        try:
            text = self._log("/run/nvh/log")
        except (GuestHung, WorkloadError):
            text = self.vm.console.text()
        return self._since(text, since)

    def ending(self, since: str | None, *, known: bool = False) -> tuple[str, int]:
        """Return the kernel's log from a mark on, and how many pins were left since the last time.

        Pages that were pinned and not unpinned, as nr_foll_pin_acquired and nr_foll_pin_released of
        /proc/vmstat count them (v5.7); none where the kernel or the guest does not tell.  Two
        seconds are given for them to go, unless it is ``known`` that they stay.  Raises what keeps
        the guest from telling.
        """
        text = self._log(f"/run/nvh/log pins {self._pinned}{' known' if known else ''}")
        said, mark, left = text.rpartition("pins left: ")
        before = self._pinned
        if mark and left.strip().lstrip("-").isdecimal():
            text, self._pinned = said, int(left)
        return self._since(text, since), self._pinned - before

    def _since(self, text: str, mark: str | None) -> str:
        """Return what follows a mark in a log; without one, what came before the clone, too."""
        if mark is None and self.log_before is not None:
            return self.log_before.read_text(errors="replace") + text
        if not mark or mark not in text:
            return text
        return text[text.index("\n", text.index(mark)) + 1 :] if "\n" in text else ""

    def only_the_kernels(self, text: str) -> str:
        """Return the lines of a log that the kernel itself wrote, all where that cannot be told.

        Any program can write "Kernel panic" into /dev/kmsg or /dev/console.
        """
        try:
            known = set(self._log("/run/nvh/log kernel").splitlines())
        except HarnessError:
            return text
        return "".join(f"{line}\n" for line in text.splitlines() if line in known)

    def _log(self, command: str) -> str:
        """Return what the log program says; it comes through the serial shell where SSH is dead."""
        # One that is broken has had its chance to answer.
        timeout = (5.0 if self.broken else 20.0) * self.scale
        if not isinstance(self.broken, GuestUnreachable):
            with contextlib.suppress(HarnessError):
                done = self.ssh.run(command, timeout=timeout)
                if done.status == 0:
                    return done.stdout
        status, text = self.serial.run(command, timeout=timeout)
        if status != 0:
            raise WorkloadError(f"{command} ended with status {status}")
        return text
