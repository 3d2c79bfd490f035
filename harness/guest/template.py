"""Templates: guests that were booted and provisioned once and saved, to be cloned at will."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import process
from harness.errors import ImageError
from harness.guest import provision
from harness.guest.boot import RAM, Recipe, booted, settings
from harness.guest.guest import Guest
from harness.guest.keys import Identity
from harness.guest.provision import NamespaceInfo
from harness.images.store import Store, file_hash, hash_of, in_use
from harness.qemu import argv, snapshot
from harness.qemu.argv import Boot, Memory, Wiring
from harness.qemu.snapshot import NotMigratable
from harness.spec import Machine

log = logging.getLogger(__name__)

#: Raise it when a template is made in another way from the same inputs.
_RECIPE = "7"
KIND = "template"
#: The kind of what is known not to be migratable; its one file says why.
REFUSED = "template-refused"
#: What the templates of a store may take before the longest unused go, in bytes: some twenty.
ROOM = 4 << 30
#: How long a guest may take to come to rest before it is saved, in seconds, before TCG's factor.
REST_DEADLINE = 5.0
STATE = "state"
_INFO = "info.json"
#: Descriptors that keep this process's templates in the store.
_used: list[int] = []
DMESG = "dmesg"
#: What a template's boot left to read.
EVIDENCE = ("console.log", DMESG, "qemu.sh")


@dataclass(frozen=True)
class Template:
    """A saved guest in the store."""

    recipe: Recipe
    path: Path
    identity: Identity
    facts: dict[str, Any]
    namespaces: dict[str, NamespaceInfo]
    workloads: dict[str, str]  # those in it -> sha256

    @property
    def nvdimms(self) -> dict[str, Path]:
        """The files of its NVDIMMs."""
        return {
            dimm.name: nvdimm_file(self.path, dimm.name) for dimm in self.recipe.machine.nvdimms
        }


def nvdimm_file(folder: Path, name: str) -> Path:
    """Return the file of an NVDIMM in a template."""
    return folder / f"{name}.nvdimm"


def why_not(machine: Machine) -> str | None:
    """Say why a machine cannot be cloned, None when nothing is known against it."""
    if machine.has_host_device:
        return "a device of the host cannot be saved"
    for dimm in machine.nvdimms:
        if dimm.path is not None:
            return f"NVDIMM {dimm.name} has a path of its own, which clones would share"
        if dimm.kind == "virtio-pmem":
            # hw/virtio/virtio-pmem.c has no vmsd (QEMU 7.2): its queue would be dead in a clone.
            return f"NVDIMM {dimm.name} is virtio-pmem, which has no migration state"
    if any(re.search(r"(file|filename|mem-path)=", word) for word in machine.qemu_args):
        return "qemu_args name a file of the host, which clones would share"
    return None


def key(recipe: Recipe) -> str:
    """Return the hash of exactly what a template depends on.

    The argument vector is part of it, with names in the place of this run's paths: it holds the
    accelerator, the guest's command line and whatever a machine becomes in this version.
    """
    vector = argv.build(
        recipe.machine,
        Boot(
            kernel=Path("kernel"),
            initramfs=Path("initramfs"),
            root=Path("root"),
            modules=Path("modules"),
            nvdimms={dimm.name: Path(dimm.name) for dimm in recipe.machine.nvdimms},
            append=recipe.append,
        ),
        accel=recipe.accel,
        wiring=Wiring(0, 1, 2),
        memory=Memory(Path(RAM), shared=True),
    )
    return hash_of(
        _RECIPE,
        recipe.images.digest,
        recipe.machine.digest,
        _program_hash(recipe.qemu),
        _host_cpu() if recipe.accel == "kvm" else "",
        settings(),
        " ".join(field.name for field in dataclasses.fields(NamespaceInfo)),
        *vector,
    )


@functools.cache
def _program_hash(program: str) -> str:
    """Return the hash of a program, read once in a process: a key is asked for by every test."""
    return file_hash(Path(program))


def _host_cpu() -> str:
    """Return what -cpu max stands for on this host."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    wanted = [line for line in lines if line.startswith(("model name", "flags", "microcode"))]
    return "\n".join([platform.release(), *wanted[:3]])


def get(
    recipe: Recipe,
    store: Store,
    *,
    prove: Callable[[Template], None],
    verify: Sequence[str] = ("*",),
    results: Path | None = None,
    say: Callable[[str], None] = log.info,
) -> Template:
    """Return the template of a recipe, made if it is not there or damaged.

    One process makes it, others wait.  ``prove`` starts a clone of a new one before it is
    published.  Raises snapshot.NotMigratable, for good once it has been found out, or whatever
    keeps the guest from booting: what that left goes to the ``results`` of a run or else to the
    cache.  A template stays in the store while its process lives.
    """
    identifier = key(recipe)
    refused = store.find(REFUSED, identifier)
    if refused is not None:
        raise NotMigratable((refused.path / "reason").read_text())

    def build(target: Path) -> None:
        say(f"making a template of {recipe.images.kernel.release} on {recipe.machine.name}")
        store.gc(ROOM, kind=KIND)
        _build(recipe, target, results, say)
        prove(load(recipe, target))

    def refuse(target: Path) -> None:
        (target / "reason").write_text(reason)

    try:
        entry = store.get(KIND, identifier, build, verify=verify)
    except NotMigratable as error:
        reason = error.message
        store.get(REFUSED, identifier, refuse)
        raise
    _used.append(in_use(entry.path))
    return load(recipe, entry.path)


def renew(recipe: Recipe, store: Store) -> bool:
    """Remove a template in which a workload is not as it is now; True when one was removed.

    A workload of another build is copied into each clone whose test needs it, which costs as much
    as the clone's start: nothing to one test, a third of the time to a whole catalogue.  A
    template that a running process uses stays.
    """
    entry = store.find(KIND, key(recipe))
    if entry is None:
        return False
    current = {file.name: file_hash(file) for file in _programs(recipe.workloads)}
    with contextlib.suppress(ImageError):
        if load(recipe, entry.path).workloads == current:
            return False
    return store.remove(entry)


def _programs(workloads: Path) -> list[Path]:
    """Return the workloads that a template has."""
    files = sorted(workloads.iterdir()) if workloads.is_dir() else []
    return [file for file in files if file.is_file() and os.access(file, os.X_OK)]


def load(recipe: Recipe, path: Path) -> Template:
    """Read a template's description; ImageError when it is none."""
    try:
        info = json.loads((path / _INFO).read_text())
        return Template(
            recipe=recipe,
            path=path,
            identity=Identity(**info["identity"]),
            facts=info["facts"],
            namespaces={name: NamespaceInfo(**item) for name, item in info["namespaces"].items()},
            workloads=info["workloads"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImageError(f"{path} is no template: {error}", hint="nvh image rm template") from error


def _build(recipe: Recipe, target: Path, results: Path | None, say: Callable[[str], None]) -> None:
    identity = Identity.generate()
    with booted(recipe, target, template=identity, results=results, say=say) as guest:
        assert guest.private is not None
        prepare(guest)
        (target / DMESG).write_text(guest.dmesg(), errors="replace")
        # What a clone's log holds is its own; WARN_ON_ONCE fires again.
        guest.run("dmesg -C; echo 1 > /sys/kernel/debug/clear_warn_once; true", check=False)
        _wait_for_resume(guest)
        snapshot.save(guest.vm, target / STATE)
        guest.vm.stop(grace=1.0)
        copy_sparse(guest.private / RAM, target / RAM)
        for dimm in recipe.machine.nvdimms:
            name = dimm.name
            copy_sparse(nvdimm_file(guest.private, name), nvdimm_file(target, name))
        info = {
            "identity": dataclasses.asdict(identity),
            "facts": guest.facts,
            "namespaces": {
                name: dataclasses.asdict(item) for name, item in guest.namespaces.items()
            },
            "workloads": guest.installed,
        }
    (target / _INFO).write_text(json.dumps(info))
    (target / _INFO).chmod(0o600)


def prepare(guest: Guest) -> None:
    """Do once what every clone would have to do: workloads, modules, warm caches."""
    for program in _programs(guest.workloads):
        guest.install(program.name)
    guest.run("modprobe -a vfio-pci ext4 xfs 2>/dev/null; sync; true", timeout=60.0)


#: Waits until resume has noted the devices' configuration, has the SSH port start the next server
#: and, when that one is warm, stops it until the clone's random generator is reseeded.
_SETTLE = """
pid=$(cat /run/nvh/door.pid)
for try in $(seq 600); do [ ! -p /run/nvh/resumed ] || break; sleep 0.05; done
kill -HUP $pid
for try in $(seq 600); do [ ! -e /run/nvh/warm ] || break; sleep 0.05; done
[ -p /run/nvh/resumed ] && [ -e /run/nvh/warm ] && kill -STOP "$pid"
"""


def _wait_for_resume(guest: Guest) -> None:
    """Leave the guest with an SSH server and a serial shell that wait for a clone's first words."""
    addresses = provision.pci_addresses(guest.vm)
    present = [addresses[device.name] for device in guest.machine.pci if not device.port]
    guest.vm.shell.sendall(f"/run/nvh/resume {' '.join(present)}\n".encode())
    guest.run(_SETTLE, timeout=90.0)
    guest.ssh.close()
    # The end of that session, and whatever else is on its way, would be each clone's to go through.
    deadline = REST_DEADLINE * guest.scale
    if not process.rests(guest.vm.child.pid, within=deadline):
        log.warning("the guest did not come to rest in %.0f s; it is saved as it is", deadline)
    guest.vm.check()


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file with its holes: what the guest never touched costs no disk."""
    cp = process.find("cp", package="coreutils")
    process.run([cp, "--sparse=always", str(source), str(target)], timeout=300.0)
    target.chmod(0o600)
