"""Guests for tests: a fresh clone for each, a cold boot or a shared guest where one is asked for.

The next clone is started, and its SSH session opened, while a test still runs, so that a test
rarely waits.  A clone is handed out once and killed afterwards.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from harness import rundir
from harness.errors import HarnessError
from harness.guest import Guest
from harness.guest import template as templates
from harness.guest.boot import Recipe, booted
from harness.guest.clone import cloned
from harness.guest.template import Template
from harness.lab import Lab
from harness.qemu.snapshot import NotMigratable

log = logging.getLogger(__name__)

ISOLATIONS = ("clone", "boot", "shared")

#: What a guest may cost the host beyond its machine's RAM, in bytes: QEMU and NVDIMM pages.
OVERHEAD = 512 << 20


@dataclass(frozen=True)
class Wish:
    """The guest that a test asks for."""

    isolation: str = "clone"
    machine: str | None = None  # None: the run's
    append: tuple[str, ...] = ()


@dataclass
class _Warm:
    """A clone on its way, or ready."""

    template: Template
    folder: Path
    stack: contextlib.ExitStack
    guest: Future[Guest]


def memory_available() -> int:
    """Return what the host can still give, in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def budget(machine_memory: int) -> int:
    """Return how many guests of a size the host's memory carries, at least one."""
    return max(1, memory_available() // (machine_memory + OVERHEAD))


class GuestPool:
    """Where a process's guests come from."""

    def __init__(
        self,
        lab: Lab,
        folder: Path,
        *,
        evidence: Path | None = None,
        ahead: int = 1,
        say: Callable[[str], None] = log.warning,
    ) -> None:
        self._lab = lab
        self._folder = folder
        self._evidence = evidence
        self._ahead = ahead if budget(lab.machine.memory) > ahead else 0
        self._say = say
        self._numbers = itertools.count(1)
        self._templates: dict[str, Template | None] = {}
        self._warm: list[_Warm] = []
        self._shared: dict[str, tuple[contextlib.ExitStack, Guest]] = {}
        self._starter = ThreadPoolExecutor(max_workers=max(ahead, 1), thread_name_prefix="pool")
        rundir.sweep()

    @contextlib.contextmanager
    def guest(self, wish: Wish) -> Iterator[Guest]:
        """Hand out a guest for as long as the block lasts."""
        machine = self._lab.find_machine(wish.machine) if wish.machine else None
        recipe = self._lab.recipe(machine, append=wish.append)
        if wish.isolation == "shared":
            yield self._shared_guest(recipe)
            return
        template = self._template(recipe) if wish.isolation == "clone" else None
        warm = None if template is None else self._take(template)
        if template is None or warm is None:
            folder = self._new_folder()
            with booted(recipe, folder) as guest:
                (folder / "dmesg").write_text(guest.dmesg(), errors="replace")
                self._show(folder)
                yield guest
            return
        try:
            self._refill(template)
            yield warm.guest.result()
        finally:
            warm.stack.close()

    def _template(self, recipe: Recipe) -> Template | None:
        """Return the recipe's template, None when such a guest cannot be cloned."""
        key = templates.key(recipe)
        if key not in self._templates:
            reason = templates.why_not(recipe.machine)
            try:
                self._templates[key] = None if reason else self._lab.template(recipe)
            except NotMigratable as error:
                reason = error.message
                self._templates[key] = None
            found = self._templates[key]
            if found is not None:
                self._show(found.path)
            if reason:
                self._say(f"machine {recipe.machine.name} is booted for every test: {reason}")
        return self._templates[key]

    def _show(self, boot: Path) -> None:
        """Copy what the first boot left to read to where the run's results are."""
        if self._evidence is None or (self._evidence / "console.log").exists():
            return
        for name in templates.EVIDENCE:
            with contextlib.suppress(OSError):
                aside = self._evidence / f".{name}.{os.getpid()}"
                shutil.copyfile(boot / name, aside)
                aside.chmod((boot / name).stat().st_mode & 0o777 | 0o600)
                aside.replace(self._evidence / name)

    def _take(self, template: Template) -> _Warm | None:
        """Return a clone that is up and sound; None when this machine turns out not to clone.

        One that failed while nobody had it costs no test: a fresh one is tried in its place.
        """
        while True:
            kept = next((warm for warm in self._warm if warm.template == template), None)
            if kept is not None:
                self._warm.remove(kept)
            warm = kept or self._start(template)
            try:
                death = warm.guest.result().vm.death()
                if death is None:
                    return warm
                log.warning("a clone died before its test: %s", death)
            except NotMigratable as error:
                self._forget(template, error.message)
                return None
            except HarnessError as error:
                if kept is None:
                    raise
                log.warning("a clone failed ahead of its test: %s", error)
            self._throw_away(warm)

    def _forget(self, template: Template, reason: str) -> None:
        self._templates[templates.key(template.recipe)] = None
        self._say(f"machine {template.recipe.machine.name} is booted for every test: {reason}")

    def _start(self, template: Template) -> _Warm:
        stack = contextlib.ExitStack()
        folder = self._new_folder()

        def start() -> Guest:
            return stack.enter_context(cloned(template, folder))

        return _Warm(template, folder, stack, self._starter.submit(start))

    def _refill(self, template: Template) -> None:
        for warm in [warm for warm in self._warm if warm.template != template]:
            self._warm.remove(warm)
            self._throw_away(warm)
        while len(self._warm) < self._ahead:
            self._warm.append(self._start(template))

    @staticmethod
    def _throw_away(warm: _Warm) -> None:
        with contextlib.suppress(Exception):  # what failed ahead of demand matters to nobody
            warm.guest.result()
        warm.stack.close()
        shutil.rmtree(warm.folder, ignore_errors=True)

    def _shared_guest(self, recipe: Recipe) -> Guest:
        """Return the recipe's shared guest, another one when it broke."""
        key = templates.key(recipe)
        if key in self._shared:
            stack, guest = self._shared[key]
            if sound(guest):
                return guest
            del self._shared[key]
            stack.close()
        stack = contextlib.ExitStack()
        template = self._template(recipe)
        if template is None:
            guest = stack.enter_context(booted(recipe, self._new_folder()))
        else:
            guest = stack.enter_context(cloned(template, self._new_folder()))
        self._shared[key] = (stack, guest)
        return guest

    def _new_folder(self) -> Path:
        folder = self._folder / str(next(self._numbers))
        folder.mkdir(parents=True)
        return folder

    def ready(self) -> bool:
        """Whether every clone that was started ahead is up (or failed)."""
        return all(warm.guest.done() for warm in self._warm)

    def waiting(self) -> list[Guest]:
        """Return the clones that are up and wait for a test."""
        done = [warm.guest for warm in self._warm if warm.guest.done()]
        return [guest.result() for guest in done if guest.exception() is None]

    def close(self) -> None:
        """End every guest."""
        for warm in self._warm:
            self._throw_away(warm)
        self._warm.clear()
        for stack, _ in self._shared.values():
            stack.close()
        self._shared.clear()
        self._starter.shutdown()
        for folder in (self._folder, self._folder.parent):
            with contextlib.suppress(OSError):
                folder.rmdir()  # nothing in it was worth keeping


def sound(guest: Guest) -> bool:
    """Whether a guest can be given another test."""
    if guest.broken is not None or guest.vm.death() is not None:
        return False
    try:
        guest.run("true", timeout=10.0)
    except HarnessError as error:
        log.warning("the shared guest is replaced: %s", error)
        return False
    return True


@contextlib.contextmanager
def guest_pool(lab: Lab, folder: Path, *, evidence: Path | None = None) -> Iterator[GuestPool]:
    """Hand out guests for as long as the block lasts.

    ``folder`` takes a folder for each guest, ``evidence`` what the first boot left to read.
    """
    pool = GuestPool(lab, folder, evidence=evidence)
    try:
        yield pool
    finally:
        pool.close()
