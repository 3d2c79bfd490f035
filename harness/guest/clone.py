"""Clones: a template's guest going on in a QEMU of its own, copy-on-write."""

from __future__ import annotations

import contextlib
import logging
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.errors import GuestHung, GuestLost, ImageError
from harness.guest import launch
from harness.guest.boot import RAM, write_script
from harness.guest.guest import Guest
from harness.guest.provision import VfioInfo, await_device, pci_addresses, plug_in
from harness.guest.ssh import CommandTimeout, Ssh
from harness.guest.template import DMESG, STATE, Template, copy_sparse, nvdimm_file
from harness.qemu import snapshot
from harness.qemu.argv import Memory
from harness.qemu.vm import Vm
from harness.rundir import rundir

log = logging.getLogger(__name__)

#: How long a clone's guest may take to its first word, in seconds, before TCG's factor.
RESUME_DEADLINE = 20.0


@contextlib.contextmanager
def cloned(
    template: Template,
    folder: Path,
    *,
    own_nvdimms: bool = False,
    started: Callable[[Vm], None] = lambda _: None,
) -> Iterator[Guest]:
    """Run a clone for as long as the block lasts; it is killed without mercy then.

    ``folder`` takes console.log and qemu.stderr; ``started`` is told of QEMU as soon as it runs.
    RAM and NVDIMMs are private mappings of the template's files, which are never written; with
    ``own_nvdimms`` the clone writes files of its own, which outlive its QEMU in the block.  Raises
    LaunchError (QEMU refuses), NotMigratable (it does not take the state in), GuestHung (the guest
    does not go on) or GuestLost (its devices do not come back, SSH fails).
    """
    recipe = template.recipe
    with contextlib.ExitStack() as stack:
        try:
            state = snapshot.State((template.path / STATE).read_bytes())
        except OSError as error:
            raise ImageError(f"no state of {template.path}: {error.strerror}") from error
        stack.callback(state.close)
        memory = Memory(template.path / RAM, shared=False, own_nvdimms=own_nvdimms)
        own = _copies(template, stack.enter_context(rundir())) if own_nvdimms else {}
        write_script(recipe, folder / "qemu.sh")
        begun = time.monotonic()
        vm = stack.enter_context(
            launch.started(
                recipe,
                initramfs=recipe.images.initramfs,
                nvdimms=own or template.nvdimms,
                folder=folder,
                memory=memory,
                pass_fds=(state.descriptor,),
                grace=0,
            )
        )
        started(vm)
        greeted = time.monotonic() - begun
        snapshot.restore(vm, state)
        state.close()
        running = time.monotonic() - begun
        # A vfio device behind a root port is waited for in the guest; the others can come after
        # the session, which they would only slow down.
        late = [device for device in recipe.machine.pci if device.port and not device.on_demand]
        plug_in(vm, [device for device in late if device.vfio])
        nonce = _wake(template, vm)
        guest = Guest(
            machine=recipe.machine,
            accel=recipe.accel,
            vm=vm,
            ssh=Ssh(vm.forwarded_port(), template.identity, check=vm.check),
            workloads=recipe.workloads,
        )
        guest.nvdimms = own
        stack.callback(guest.ssh.close)
        guest.facts = {k: v for k, v in template.facts.items() if not k.endswith("_seconds")}
        guest.namespaces = dict(template.namespaces)
        guest.installed = dict(template.workloads)
        guest.log_before = template.path / DMESG
        guest.ssh.connect(30.0 * guest.scale)
        connected = time.monotonic() - begun
        guest.adopt(_resumed(guest, nonce))
        guest.facts["how"] = "clone"
        guest.facts["qemu_user"] = vm.user
        guest.facts["qmp_seconds"] = round(greeted, 3)
        guest.facts["running_seconds"] = round(running, 3)
        guest.facts["connected_seconds"] = round(connected, 3)
        guest.facts["ssh_seconds"] = round(time.monotonic() - begun, 3)
        for address in plug_in(vm, [device for device in late if not device.vfio]):
            await_device(guest.run, address)
        yield guest


def _copies(template: Template, folder: Path) -> dict[str, Path]:
    """Return NVDIMM files of a clone's own."""
    made = {name: nvdimm_file(folder, name) for name in template.nvdimms}
    for name, file in template.nvdimms.items():
        copy_sparse(file, made[name])
    return made


def prove(template: Template) -> None:
    """Start a clone of a template once; raises what keeps it from becoming a guest."""
    with tempfile.TemporaryDirectory(prefix="nvh-") as folder, cloned(template, Path(folder)):
        pass


def _wake(template: Template, vm: Vm) -> str:
    """Send the line that the guest has waited for since it was saved; return its nonce."""
    nonce = secrets.token_hex(16)
    addresses = pci_addresses(vm)
    wanted = [addresses[device.name] for device in template.recipe.machine.pci if device.vfio]
    words = [nonce, f"{time.time():.6f}", secrets.token_hex(32), *wanted]
    vm.shell.sendall((" ".join(words) + "\n").encode())
    return nonce


#: The shell reads it itself: under TCG a cat costs 30 ms.
_READ_ANSWER = "read -r answer </run/nvh/resumed; echo $answer"


def _resumed(guest: Guest, nonce: str) -> dict[str, VfioInfo]:
    """Read the guest's answer over SSH and return its vfio devices, each proven.

    The nonce proves that this is the guest whose own serial line it was sent to.
    """
    try:
        said = guest.run(_READ_ANSWER, timeout=RESUME_DEADLINE).stdout.split()
    except CommandTimeout as error:
        raise GuestHung("the clone did not go on") from error
    if not said or said[0] != nonce:
        raise GuestLost("SSH leads to another guest than the one that was started")
    named = {address: name for name, address in pci_addresses(guest.vm).items()}
    found = {}
    for word in said[1:]:
        address, _, rest = word.partition("=")
        driver, group, iommu, ident = (rest.split(",") + ["none"] * 4)[:4]
        name = named.get(address, address)
        if driver != "vfio-pci" or not group.isdigit() or iommu == "none":
            raise GuestLost(
                f"{name} ({address}) came back with driver {driver}, group {group}, IOMMU {iommu}"
            )
        found[name] = VfioInfo(name, address, ident, int(group), iommu, driver)
    for device in guest.machine.pci:
        if device.vfio and device.name not in found:
            raise GuestLost(f"{device.name} did not come back in the clone")
        if device.vfio and device.id not in (None, found[device.name].id):
            raise GuestLost(f"{device.name} is {found[device.name].id} and not {device.id}")
    return found
