"""Guests, templates and a lab that are made up, for the pool to decide about."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness.errors import GuestLost, HarnessError, HostError
from harness.guest.template import Template


class Child:
    """A QEMU that only runs or does not."""

    def __init__(self) -> None:
        self.gone = threading.Event()


class MadeUpVm:
    def __init__(self) -> None:
        self.child = Child()
        self.answers = True
        self.qmp = SimpleNamespace(execute=self._execute)

    def death(self) -> HarnessError | None:
        return GuestLost("QEMU died") if self.child.gone.is_set() else None

    def _execute(self, command: str, *, timeout: float) -> None:
        if not self.answers:
            raise HostError(f"QEMU did not answer {command} within {timeout:.0f} s")


class MadeUpGuest:
    def __init__(self, how: str, machine: str) -> None:
        self.vm = MadeUpVm()
        self.how = how
        self.machine = machine
        self.broken: HarnessError | None = None
        self.facts: dict[str, Any] = {}
        self.nvdimms = {"pmem": Path("of", str(id(self)))}
        self.answers = True

    def cut_power(self) -> None:
        self.vm.child.gone.set()

    def dmesg(self) -> str:
        return ""

    def run(self, _: str, *, timeout: float) -> None:
        if not self.answers:
            raise GuestLost(f"no end after {timeout:.0f} s")


@dataclass(frozen=True)
class MadeUpRecipe:
    machine: Any
    append: tuple[str, ...] = ()


@dataclass
class World:
    """What there is to start, and what was started."""

    folder: Path
    running: set[MadeUpGuest] = field(default_factory=set)
    started: list[MadeUpGuest] = field(default_factory=list)
    peak: int = 0
    made: list[str] = field(default_factory=list)  # machines whose template was asked for
    #: What the next clones raise instead of coming up, None for one that is sound.
    troubles: list[HarnessError | None] = field(default_factory=list)
    #: What making a machine's template raises.
    unmakable: dict[str, HarnessError] = field(default_factory=dict)
    gate: threading.Event = field(default_factory=threading.Event)  # clones come up while it is set
    overdue: bool = False  # one hung and was left to it
    end: Callable[[], None] = lambda: None  # called at the end of each guest

    def __post_init__(self) -> None:
        self.gate.set()

    @contextlib.contextmanager
    def guest(self, how: str, recipe: Any, started: Callable[[Any], None]) -> Iterator[MadeUpGuest]:
        trouble = self.troubles.pop(0) if how != "boot" and self.troubles else None
        guest = MadeUpGuest(how, recipe.machine.name)
        self.running.add(guest)
        self.started.append(guest)
        self.peak = max(self.peak, len(self.running))
        try:
            started(guest.vm)
            deadline = time.monotonic() + 5.0
            while not self.gate.wait(0.005):
                if guest.vm.child.gone.is_set():
                    raise GuestLost("QEMU died")
                if time.monotonic() > deadline:
                    self.overdue = True
                    raise GuestLost("nobody has ended it")
            if trouble is not None:
                raise trouble
            yield guest
        finally:
            guest.vm.child.gone.set()
            self.running.remove(guest)
            self.end()

    def cloned(
        self,
        template: Template,
        folder: Path,
        *,
        own_nvdimms: bool = False,
        started: Callable[[Any], None] = lambda _: None,
    ) -> contextlib.AbstractContextManager[MadeUpGuest]:
        (folder / "console.log").write_text("")
        how = "clone with NVDIMMs of its own" if own_nvdimms else "clone"
        return self.guest(how, template.recipe, started)

    @contextlib.contextmanager
    def booted(
        self, recipe: Any, folder: Path, *, lasting: bool, nvdimms: dict[str, Path] | None
    ) -> Iterator[MadeUpGuest]:
        assert lasting
        assert folder.is_dir()
        with self.guest("boot", recipe, lambda _: None) as guest:
            guest.nvdimms = nvdimms or guest.nvdimms
            yield guest

    # As a Lab

    machine = SimpleNamespace(name="default", memory=1 << 30)

    def find_machine(self, name: str) -> Any:
        return SimpleNamespace(name=name, memory=1 << 30)

    def recipe(self, machine: Any = None, *, append: tuple[str, ...] = ()) -> MadeUpRecipe:
        return MadeUpRecipe(machine or self.machine, append)

    def template(self, recipe: Any) -> Template:
        name = recipe.machine.name
        self.made.append(name)
        if name in self.unmakable:
            raise self.unmakable[name]
        path = self.folder / f"template-{name}"
        path.mkdir(exist_ok=True)
        (path / "dmesg").write_text("")
        identity: Any = None
        return Template(recipe, path, identity, {}, {}, {})


def end(child: Child, *, grace: float) -> None:
    assert grace == 0
    child.gone.set()
