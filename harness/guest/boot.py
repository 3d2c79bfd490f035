"""A guest booted cold and made ready."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import process
from harness.errors import GuestClock, GuestHung, HarnessError, HostError
from harness.guest import clock, failed_boot, filesystem, provision
from harness.guest.guest import Guest, deadline_scale
from harness.guest.keys import Identity
from harness.guest.launch import started
from harness.guest.ssh import Result, Ssh
from harness.images.guest import GuestImages
from harness.images.initramfs import run_segment
from harness.qemu import argv
from harness.qemu.argv import GUEST_ADDRESS, GUEST_GATEWAY, Boot, Memory, Wiring
from harness.qemu.vm import Vm
from harness.rundir import rundir
from harness.spec import Machine

log = logging.getLogger(__name__)

#: How long a boot may take to the SSH server's start, in seconds, before TCG's factor: stock
#: kernels need 2 s under KVM and 8 s under TCG on an idle host.
BOOT_DEADLINE = 60.0

#: How many guests are booted until one has a clock that goes right.
_TRIES = 3

#: The file of a template's RAM.
RAM = "ram"

_READY = re.compile(rb"nvh-init: ready")

#: Modules that the devices of every machine need; kernels that have them built in skip them.
MODULES = (
    "pvpanic-mmio",
    "qemu_fw_cfg",  # tells QEMU where VMCOREINFO is, for a memory dump
    "i6300esb",
    "virtio_net",
    "virtio_rng",
    "nfit",
    "nd_pmem",
    "nd_btt",
    "virtio_pmem",
    "dax_pmem",
    "device_dax",
    "vfio_iommu_type1",
    "vfio_pci",
)


@dataclass(frozen=True)
class Recipe:
    """All that a boot depends on."""

    machine: Machine
    images: GuestImages
    accel: str
    qemu: str
    workloads: Path
    append: tuple[str, ...] = ()

    def argv(
        self,
        *,
        initramfs: Path,
        nvdimms: dict[str, Path],
        wiring: Wiring | None,
        memory: Memory | None = None,
    ) -> list[str]:
        """Return QEMU's argument vector."""
        boot = Boot(
            kernel=self.images.kernel.image,
            initramfs=initramfs,
            root=self.images.root,
            modules=self.images.modules,
            nvdimms=nvdimms,
            append=self.append,
        )
        return argv.build(
            self.machine, boot, accel=self.accel, qemu=self.qemu, wiring=wiring, memory=memory
        )


@contextlib.contextmanager
def booted(
    recipe: Recipe,
    folder: Path,
    *,
    provisioned: bool = True,
    template: Identity | None = None,
    lasting: bool = False,
    results: Path | None = None,
    nvdimms: Mapping[str, Path] | None = None,
    say: Callable[[str], None] = log.info,
) -> Iterator[Guest]:
    """Boot a guest for as long as the block lasts.

    ``folder`` takes console.log, qemu.stderr and qemu.sh; one that is ``lasting`` outlives the
    block, so that an error names it and not a copy of it, which goes to the ``results`` of a run or
    else to the cache.  With ``template``, the keys that its clones will have, the guest is one to
    be saved: its RAM is a file of its working directory, and the machine's PCI devices are left
    for its clones.  ``nvdimms`` are the files of a guest that is no more, namespaces and all;
    without them there are fresh ones.  A guest whose clock is not the host's is booted anew.
    Raises LaunchError (QEMU refuses), GuestPanic, GuestReset, GuestHung (no SSH server in time),
    GuestClock (no clock of several was right) or GuestLost (not as asked for).
    """
    for left in reversed(range(_TRIES)):
        with contextlib.ExitStack() as stack:
            once = _booted_once(
                recipe,
                folder,
                provisioned=provisioned,
                template=template,
                lasting=lasting,
                results=results,
                nvdimms=nvdimms,
                say=say,
            )
            try:
                guest = stack.enter_context(once)
            except GuestClock as error:
                if not left:
                    raise
                say(f"{error.message}; booting another")
                for name in ("console.log", "qemu.stderr"):  # else of both
                    (folder / name).unlink(missing_ok=True)
                continue
            yield guest
            return


@contextlib.contextmanager
def _booted_once(
    recipe: Recipe,
    folder: Path,
    *,
    provisioned: bool,
    template: Identity | None,
    lasting: bool,
    results: Path | None,
    nvdimms: Mapping[str, Path] | None,
    say: Callable[[str], None],
) -> Iterator[Guest]:
    with contextlib.ExitStack() as stack:
        private = stack.enter_context(rundir())
        identity = template or Identity.generate()
        memory = Memory(private / RAM, shared=True) if template else None
        initramfs = private / "initramfs"
        files = dict(nvdimms or prepare_nvdimms(recipe.machine, private))
        write_initramfs(recipe, identity, initramfs)
        write_script(recipe, folder / "qemu.sh")
        up = stack.enter_context(
            failed_boot.told(folder, recipe.images.kernel, lasting=lasting, results=results)
        )
        say(f"booting {recipe.images.kernel.release} on machine {recipe.machine.name}")
        begun = time.monotonic()
        vm = stack.enter_context(
            started(recipe, initramfs=initramfs, nvdimms=files, folder=folder, memory=memory)
        )
        with _room(vm):
            guest = connect(recipe, vm, identity, private)
            guest.nvdimms = files
            stack.callback(guest.ssh.close)
            ready = time.monotonic() - begun
            guest.ssh.connect(30.0 * guest.scale)
            first = clock.read(guest)
            answered = time.monotonic() - begun
            if provisioned:
                make_ready(guest, plugged=template is None, existing=nvdimms is not None)
                clock.compare(first, clock.read(guest))
        guest.facts["how"] = "boot"
        guest.facts["qemu_user"] = vm.user
        guest.facts["ready_seconds"] = round(ready, 3)
        guest.facts["ssh_seconds"] = round(answered, 3)
        guest.facts["provisioned_seconds"] = round(time.monotonic() - begun, 3)
        up.append(guest)
        yield guest


@contextlib.contextmanager
def _room(vm: Vm) -> Iterator[None]:
    """Tell a boot that fails while the disk of the guest's memory is full for just that.

    A disk's read into a page that cannot be had is an I/O error in the guest, and what its kernel
    makes of it is no fault of its own.
    """
    try:
        yield
    except HarnessError as error:
        if full := vm.full():
            raise full from error
        raise


def connect(recipe: Recipe, vm: Vm, identity: Identity, private: Path) -> Guest:
    """Wait until the guest's SSH server listens; return the guest, not yet logged in."""
    scale = deadline_scale(recipe.accel)
    if vm.console.wait(_READY, timeout=BOOT_DEADLINE * scale, check=vm.check) is None:
        said = [line for line in vm.console.text().splitlines() if line.strip()]
        raise GuestHung(
            f"the guest did not boot within {BOOT_DEADLINE * scale:.0f} s; its last line: "
            + (said[-1][:200] if said else "none, not even the kernel's first")
        )
    ssh = Ssh(vm.forwarded_port(), identity, check=vm.check)
    return Guest(
        machine=recipe.machine,
        accel=recipe.accel,
        vm=vm,
        ssh=ssh,
        workloads=recipe.workloads,
        private=private,
    )


def make_ready(guest: Guest, *, plugged: bool = True, existing: bool = False) -> None:
    """Make namespaces, bind devices and note what was proven.

    ``plugged`` False: devices behind a root port are not there yet; ``existing``: the namespaces
    are there already.
    """

    def run(command: str, *, timeout: float = 30.0, check: bool = True) -> Result:
        return guest.run(command, timeout=timeout, check=check)

    release = run("uname -r").stdout.strip()
    guest.facts["release"] = release
    guest.facts.update(provision.iommu_facts(guest.machine, run))
    made = provision.create_namespaces(guest.machine, run, existing=existing)
    guest.namespaces = made if existing else filesystem.make_all(guest.machine, made, run)
    provision.load_modules(guest.machine, run)
    guest.facts["namespaces"] = {
        name: f"{space.mode} {space.device} align {space.align} size {space.size}"
        for name, space in guest.namespaces.items()
    }
    guest.adopt(provision.bind_vfio(guest.machine, guest.vm, run, plugged=plugged))


def prepare_nvdimms(machine: Machine, folder: Path) -> dict[str, Path]:
    """Make the sparse files behind the NVDIMMs; those with a path of their own are checked."""
    files = {}
    for dimm in machine.nvdimms:
        path = dimm.path or folder / f"{dimm.name}.nvdimm"
        try:
            if dimm.path is None:
                with path.open("xb") as file:
                    file.truncate(dimm.size)
            elif not path.exists():
                raise HostError(f"{path} behind NVDIMM {dimm.name} does not exist")
            elif path.is_file() and path.stat().st_size < dimm.size:
                raise HostError(
                    f"{path} behind NVDIMM {dimm.name} is smaller than {dimm.size} bytes",
                    hint=f"truncate -s {dimm.size} {path}",
                )
            elif not os.access(path, os.R_OK | os.W_OK):
                raise HostError(f"{path} behind NVDIMM {dimm.name} cannot be read and written")
        except OSError as error:
            raise HostError(f"{path}: {error.strerror}") from error
        files[dimm.name] = path
    return files


def settings() -> str:
    """Return what the guest's init is told, as lines of sh."""
    values = {
        "NVH_ADDR": GUEST_ADDRESS,
        "NVH_GATEWAY": GUEST_GATEWAY,
        "NVH_MODULES": " ".join(MODULES),
    }
    return "".join(f'{key}="{value}"\n' for key, value in values.items())


def write_initramfs(recipe: Recipe, identity: Identity, target: Path) -> None:
    """Append the run's own keys and settings to the initramfs."""
    segment = run_segment(
        {
            "authorized_keys": identity.client_public.encode(),
            "host_key": identity.host_file,
            "boot.env": settings().encode(),
        }
    )
    try:
        with target.open("wb") as out:
            out.write(recipe.images.initramfs.read_bytes())
            out.write(segment)
    except OSError as error:
        raise HostError(f"{target}: {error.strerror}") from error


def write_script(recipe: Recipe, script: Path) -> None:
    """Write QEMU's argument vector as a script that boots the same guest on a terminal."""
    nvdimms = {
        dimm.name: dimm.path or Path(f"{dimm.name}.nvdimm") for dimm in recipe.machine.nvdimms
    }
    vector = recipe.argv(initramfs=recipe.images.initramfs, nvdimms=nvdimms, wiring=None)
    made = [
        f"truncate -s {dimm.size} {nvdimms[dimm.name]}\n"
        for dimm in recipe.machine.nvdimms
        if dimm.path is None
    ]
    script.write_text(
        "#!/bin/sh\n# Boots the guest of this run, with its console on the terminal "
        '(Ctrl-A X ends it).\nset -e\ncd "$(mktemp -d)"  # for its NVDIMMs\n'
        + "".join(made)
        + "exec "
        + _lines(vector)
        + "\n"
    )
    script.chmod(0o755)


def _lines(vector: Sequence[str]) -> str:
    """Return a shell command with one option a line."""
    text = ""
    for index, word in enumerate(vector):
        quoted = process.shell_line([word])
        text += quoted if index == 0 else (" \\\n    " if word.startswith("-") else " ") + quoted
    return text
