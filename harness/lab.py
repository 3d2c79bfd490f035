"""What a run needs, made once: kernel, images, machine and accelerator, and the guests from them.

The pytest plugin and the command line both stand on this; neither boots anything by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness import paths
from harness.errors import UnfitKernel
from harness.guest import template
from harness.guest.boot import Recipe
from harness.guest.clone import prove
from harness.guest.template import Template
from harness.images import config_problems, workloads
from harness.images.guest import GuestImages, prepare
from harness.images.kernel import Kernel, resolve
from harness.images.store import Store, to_log
from harness.qemu import accel
from harness.qemu.accel import Accel
from harness.spec import Machine, load_machine, machine_file

log = logging.getLogger(__name__)

#: For so many clones a template is made anew rather than workloads copied into each: under TCG a
#: copy costs half a second of processor time, the template some ten.
_MANY_CLONES = 30


@dataclass(frozen=True)
class Options:
    """What the user chose."""

    kernel: str | None = None
    accel: str = "auto"
    machine: str = "default"
    #: Images were verified by whoever started this process.
    trusted: bool = False
    #: Another directory of workload binaries than the Makefile's.
    workloads: Path | None = None


def groups_of(machine: Machine) -> tuple[str, ...]:
    """Return the tables of required.toml that a machine needs."""
    groups = ["boot"]
    groups += ["nvdimm"] if any(dimm.namespace for dimm in machine.nvdimms) else []
    groups += ["virtio-pmem"] if any(dimm.kind == "virtio-pmem" for dimm in machine.nvdimms) else []
    groups += ["vfio"] if any(device.vfio for device in machine.pci) else []
    groups += [machine.iommu] if machine.iommu != "none" else []
    return tuple(groups)


def check_drivers(kernel: Kernel, machine: Machine) -> None:
    """Raise UnfitKernel, with the lines to set, when a kernel cannot drive a machine.

    A kernel that does not tell its configuration passes: its console says what is missing.
    """
    missing = config_problems(kernel, groups=groups_of(machine))
    if missing:
        lines = " ".join(str(problem).partition(" ")[0] for problem in missing)
        raise UnfitKernel(
            f"kernel {kernel.release} lacks what machine {machine.name} needs",
            hint=f"set {lines} in its .config",
        )


class Lab:
    """Everything that guests are made of, each part made when it is first asked for."""

    def __init__(
        self,
        options: Options,
        *,
        say: Callable[[str], None] = to_log,
        note: Callable[[str], None] | None = None,
    ) -> None:
        """``say`` is told what takes its time, ``note`` (the same, if not given) what was found."""
        self.options = options
        #: Of the run that this is for, if it is for one: boots that fail leave their logs there.
        self.results: Path | None = None
        self.say = say
        self._note = note
        self._images: dict[tuple[str, ...], GuestImages] = {}

    @cached_property
    def store(self) -> Store:
        """The store of images under the cache directory."""
        return Store(paths.cache_dir() / "store")

    @cached_property
    def machine(self) -> Machine:
        """The machine that was asked for."""
        return self.find_machine(self.options.machine)

    def find_machine(self, selector: str) -> Machine:
        """Return a machine by name or file."""
        return load_machine(self.machine_file(selector))

    def machine_file(self, selector: str) -> Path:
        """Return the file that describes a machine."""
        return machine_file(selector, folder=paths.source_tree() / "guest-images" / "machines")

    @cached_property
    def kernel(self) -> Kernel:
        """The kernel under test."""
        if self.options.accel == "kvm" and not self.options.trusted:
            accel.require_kvm(self.qemu)  # before anything is fetched
        kernel = resolve(self.options.kernel, self.store, progress=self.say)
        check_drivers(kernel, self.machine)
        return kernel

    @property
    def images(self) -> GuestImages:
        """The software of the run's machine."""
        return self.images_of(self.machine)

    def images_of(self, machine: Machine) -> GuestImages:
        """Return a machine's software: its root image may hold more than that of the run's."""
        packages = tuple(sorted(machine.packages))
        if packages not in self._images:
            # Whoever started this process has verified those of the run's own machine.
            trusted = self.options.trusted and machine == self.machine
            self._images[packages] = prepare(
                self.kernel, self.store, packages=packages, progress=self.say, verify=not trusted
            )
        return self._images[packages]

    @cached_property
    def qemu(self) -> str:
        """QEMU's path."""
        return accel.qemu_program()

    @cached_property
    def accel(self) -> Accel:
        """The accelerator, proven."""
        if self.options.accel == "tcg":
            return Accel("tcg", "asked for")  # no kernel is needed to know that
        chosen = accel.choose(
            self.options.accel,
            kernel=self.kernel.image,
            digest=self.kernel.digest,
            qemu=self.qemu,
            cache=paths.cache_dir(),
        )
        (self._note or self.say)(f"accelerator {chosen.name}: {chosen.why}")
        return chosen

    @cached_property
    def workloads(self) -> Path:
        """Where the workloads' binaries are: as was asked for, or where the Makefile put them.

        Where it has not been run since the sources changed they are built into the store.
        """
        if self.options.workloads:
            return self.options.workloads
        return workloads.made() or workloads.built(self.store, progress=self.say)

    def recipe(self, machine: Machine | None = None, *, append: tuple[str, ...] = ()) -> Recipe:
        """Return all that a boot depends on."""
        machine = machine or self.machine
        return Recipe(
            machine=machine,
            images=self.images_of(machine),
            accel=self.accel.name,
            qemu=self.qemu,
            workloads=self.workloads,
            append=append,
        )

    def template(self, recipe: Recipe, *, clones: int = 1) -> Template:
        """Return the template of a recipe, made if it is not there.

        For many ``clones`` it is made anew when a workload in it is of another build.
        """
        if clones >= _MANY_CLONES and template.renew(recipe, self.store):
            self.say("the template has workloads of another build")
        # Whoever started this process has verified the template of the run's own machine alone.
        trusted = self.options.trusted and recipe == self.recipe()
        return template.get(
            recipe,
            self.store,
            prove=prove,
            verify=() if trusted else ("*",),
            results=self.results,
            say=self.say,
        )

    def properties(self) -> dict[str, str]:
        """Return what identifies a run: it goes into every report."""
        return {
            "kernel": self.kernel.release,
            "kernel.origin": self.kernel.origin,
            "kernel.digest": self.kernel.digest,
            "qemu": accel.qemu_version(self.qemu),
            "accel": self.accel.name,
            "accel.why": self.accel.why,
            "machine": self.machine.name,
            "machine.digest": self.machine.digest,
            "images.digest": self.images.digest,
        }
