"""Guests for tests: a fresh clone for each, a cold boot or a shared guest where one is asked for.

The next clones are started, and their SSH sessions opened, while a test still runs and a core and
memory are free, so that a test rarely waits.  A clone is handed out once and killed afterwards.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from harness import cores, process, rundir
from harness.errors import GuestLost, HarnessError, UsageError
from harness.guest import Guest
from harness.guest import template as templates
from harness.guest.boot import Recipe, booted
from harness.guest.clone import cloned
from harness.guest.template import Template
from harness.lab import Lab
from harness.qemu.snapshot import NotMigratable
from harness.qemu.vm import Vm
from harness.verdict.classifier import classify

log = logging.getLogger(__name__)

ISOLATIONS = ("clone", "boot", "shared")

#: What a guest may cost the host beyond its machine's RAM, in bytes: QEMU and NVDIMM pages.
OVERHEAD = 512 << 20
#: How many clones are started ahead of the test that runs: while it sleeps or waits for a device,
#: there is time for a second one.
AHEAD = 2


@dataclass(frozen=True)
class Wish:
    """The guest that a test asks for."""

    isolation: str = "clone"
    machine: str | None = None  # None: the run's
    append: tuple[str, ...] = ()
    power_cycle: bool = False  # its NVDIMMs are to outlive its QEMU


#: Takes a clone and what ends it; True says that it will be ended.
Keep = Callable[[Guest, Callable[[], None]], bool]


class _Warm:
    """A clone on its way, or ready; one that nobody waits for yet starts when a core is free."""

    def __init__(self, template: Template, folder: Path, *, ahead: bool) -> None:
        self.template = template
        self.folder = folder
        self.stack = contextlib.ExitStack()
        self.guest: Future[Guest] = Future()
        self._vm: Vm | None = None  # its QEMU, as soon as that runs
        self.unwanted = False
        self._waited_for = threading.Event()
        if not ahead:
            self._waited_for.set()

    def begin(self) -> None:
        """Start it, on a thread; ``guest`` is it, or why there is none."""
        if not self.guest.set_running_or_notify_cancel():
            return
        try:
            self.guest.set_result(self._start())
        except BaseException as error:
            self.guest.set_exception(error)

    def _start(self) -> Guest:
        if not self._waited_for.is_set():
            cores.wait_for_room(self._waited_for.wait)
        if self.unwanted:
            raise GuestLost("nobody wants it any more")
        clone = cloned(self.template, self.folder, started=self._started)
        return self.stack.enter_context(clone)

    def _started(self, vm: Vm) -> None:
        self._vm = vm
        if self.unwanted:
            process.end(vm.child, grace=0)

    def wait(self) -> BaseException | None:
        """Wait until the clone is up; return what is wrong with it."""
        self._waited_for.set()
        try:
            return self.guest.exception() or self.guest.result().vm.death()
        except BaseException:  # an interrupt
            self.throw_away()
            raise

    def close(self) -> None:
        """End it, whose test is over; it is nobody else's."""
        self.unwanted = True
        self.stack.close()

    def throw_away(self, *, keep: bool = False) -> None:
        """End it at once, however far it has come; what it left to read goes too."""
        self.unwanted = True
        self._waited_for.set()
        self.guest.cancel()
        if self._vm is not None:
            process.end(self._vm.child, grace=0)  # whoever waits for it gives up
        with contextlib.suppress(Exception):  # what failed ahead of demand matters to nobody
            self.guest.exception()
        self.stack.close()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def memory_available() -> int:
    """Return what the host, and the control group that this runs in, can still give, in bytes."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) << 10
    with contextlib.suppress(OSError, ValueError):  # no limit is the word "max"
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return max(free, 0)


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
        self._ahead = ahead
        self._say = say
        self._numbers = itertools.count(1)
        #: By key: the template, why there is none, or the error that making it ended in.
        self._templates: dict[str, Template | str | HarnessError] = {}
        self._findings: dict[Path, list[str]] = {}
        self._warm: list[_Warm] = []
        #: Of guests whose NVDIMM files keep what they write.
        self._recipes: weakref.WeakKeyDictionary[Guest, Recipe] = weakref.WeakKeyDictionary()
        self._shared: dict[str, tuple[contextlib.ExitStack, Guest]] = {}
        # One more than start ahead: what a test waits for queues behind none of them.
        self._starter = ThreadPoolExecutor(max_workers=ahead + 1, thread_name_prefix="pool")
        rundir.sweep()

    @contextlib.contextmanager
    def guest(
        self, wish: Wish, then: Wish | None = None, *, keep: Keep = lambda _, __: False
    ) -> Iterator[Guest]:
        """Hand out a guest for as long as the block lasts.

        ``then`` is what will be asked for next: clones for it are started meanwhile.  ``keep`` is
        told of a clone whose block is over.
        """
        recipe = self._recipe(wish)
        if wish.isolation == "shared":
            shared = self._shared_guest(recipe)
            self._refill(then)
            yield shared
            return
        template = self._template(recipe) if wish.isolation == "clone" else "isolation boot"
        if isinstance(template, str):
            with self._booted(recipe, template) as guest:
                self._refill(then)
                yield guest
            return
        if wish.power_cycle:
            with self._cloned(template, own_nvdimms=True) as guest:
                self._recipes[guest] = recipe
                self._refill(then)
                yield guest
            return
        warm = self._take(template)
        with contextlib.ExitStack() as stack:
            stack.callback(warm.close)
            self._warm.remove(warm)
            clone = warm.guest.result()
            clone.facts["boot_findings"] = self._boot_findings(template.path)
            self._refill(then)
            yield clone
            if keep(clone, warm.close):
                stack.pop_all()

    @contextlib.contextmanager
    def power_cycled(self, guest: Guest) -> Iterator[Guest]:
        """Kill a guest's QEMU and boot its machine with the same NVDIMMs while the block lasts.

        The guest is one that was booted, or a clone that was wished for with ``power_cycle``; its
        files last as long as its own block, so this one lies within.
        """
        if guest not in self._recipes:
            raise UsageError(
                "this guest's NVDIMMs do not outlive its QEMU",
                hint="wish for it with power_cycle, and not for a shared one",
            )
        guest.cut_power()
        recipe = self._recipes[guest]
        with self._booted(recipe, "power cycle", nvdimms=guest.nvdimms) as again:
            yield again

    @contextlib.contextmanager
    def _booted(
        self, recipe: Recipe, why: str, *, nvdimms: Mapping[str, Path] | None = None
    ) -> Iterator[Guest]:
        folder = self._new_folder()
        with booted(recipe, folder, lasting=True, nvdimms=nvdimms) as guest:
            self._recipes[guest] = recipe
            (folder / "dmesg").write_text(guest.dmesg(), errors="replace")
            self._show(folder)
            guest.facts["boot_findings"] = self._boot_findings(folder)
            guest.facts["why_boot"] = why
            yield guest

    @contextlib.contextmanager
    def _cloned(self, template: Template, *, own_nvdimms: bool = False) -> Iterator[Guest]:
        """Run a clone that no warm one can stand in for."""
        folder = self._new_folder()
        with contextlib.ExitStack() as stack:
            try:
                clone = cloned(template, folder, own_nvdimms=own_nvdimms)
                guest = stack.enter_context(clone)
            except HarnessError as error:
                raise name_logs(error, folder) from None
            guest.facts["boot_findings"] = self._boot_findings(template.path)
            yield guest

    def _template(self, recipe: Recipe) -> Template | str:
        """Return the recipe's template, or why such a guest cannot be cloned.

        What making it ended in is remembered: a machine that does not boot costs its time once.
        """
        key = templates.key(recipe)
        if key not in self._templates:
            self._templates[key] = templates.why_not(recipe.machine) or self._make(recipe)
            found = self._templates[key]
            if isinstance(found, Template):
                self._show(found.path)
            elif isinstance(found, str):
                self._say(f"machine {recipe.machine.name} is booted for every test: {found}")
        found = self._templates[key]
        if isinstance(found, HarnessError):
            raise found
        return found

    def _make(self, recipe: Recipe) -> Template | str | HarnessError:
        try:
            return self._lab.template(recipe)
        except NotMigratable as error:
            return error.message
        except HarnessError as error:
            return error

    def _boot_findings(self, boot: Path) -> list[str]:
        """Return the titles of what the kernel complained of before any test ran."""
        if boot not in self._findings:
            lines = (boot / "dmesg").read_text(errors="replace").splitlines()
            self._findings[boot] = [finding.title for finding in classify(lines)]
        return self._findings[boot]

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

    def _take(self, template: Template) -> _Warm:
        """Return a clone that is up and sound, and the pool's until a test has it.

        One that failed while nobody had it costs no test: a fresh one is tried in its place.
        """
        usable = (warm for warm in self._warm if warm.template == template and not warm.unwanted)
        kept = next(usable, None)
        if kept is not None:
            trouble = kept.wait() or stuck(kept.guest.result().vm)
            if trouble is None:
                return kept
            log.warning("a clone failed before its test: %s (%s)", trouble, kept.folder)
            self._throw_away(kept, keep=True)
        fresh = self._start(template, ahead=False)
        trouble = fresh.wait()
        if trouble is not None:
            self._throw_away(fresh, keep=True)
            raise name_logs(trouble, fresh.folder)
        return fresh

    def _start(self, template: Template, *, ahead: bool) -> _Warm:
        warm = _Warm(template, self._new_folder(), ahead=ahead)
        # Known before it is there: an interrupt may come between any two lines.
        self._warm.append(warm)
        try:
            self._starter.submit(warm.begin)
        except BaseException:
            warm.unwanted = True
            raise
        return warm

    def _throw_away(self, warm: _Warm, *, keep: bool = False) -> None:
        warm.throw_away(keep=keep)
        self._warm.remove(warm)

    def _refill(self, then: Wish | None) -> None:
        """Start what comes next, if its template is there; what nobody will ask for goes."""
        template = None
        if then is not None and then.isolation == "clone" and not then.power_cycle:
            with contextlib.suppress(HarnessError):  # that test itself will say so
                template = self._templates.get(templates.key(self._recipe(then)))
        for warm in [one for one in self._warm if one.template != template or one.unwanted]:
            self._throw_away(warm)
        while isinstance(template, Template) and len(self._warm) < self._ahead:
            # Guests take their memory as they touch it: what runs already is counted as well.
            if budget(template.recipe.machine.memory) <= len(self._warm) + 1:
                break
            self._start(template, ahead=True)

    def _recipe(self, wish: Wish) -> Recipe:
        machine = self._lab.find_machine(wish.machine) if wish.machine else None
        return self._lab.recipe(machine, append=wish.append)

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
        if isinstance(template, str):
            guest = stack.enter_context(self._booted(recipe, template))
            self._recipes.pop(guest)  # its power is not one test's to cut
        else:
            guest = stack.enter_context(self._cloned(template))
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
        with contextlib.ExitStack() as stack:  # one that raises does not keep the rest
            stack.callback(self._starter.shutdown)
            for warm in self._warm:
                stack.callback(warm.throw_away)
            for shared, _ in self._shared.values():
                stack.callback(shared.close)
            self._warm.clear()
            self._shared.clear()
        remove_empty(self._folder)


def remove_empty(folder: Path) -> None:
    """Remove the folder of a pool's guests, and the one around it, if nothing is kept in them."""
    for path in (folder, folder.parent):
        with contextlib.suppress(OSError):
            path.rmdir()


def name_logs(error: BaseException, folder: Path) -> BaseException:
    """Let an error of a guest that did not come up say where its logs are; return it."""
    if isinstance(error, HarnessError):
        where = f"its logs are in {folder}"
        error.hint = f"{error.hint}; {where}" if error.hint else where
    return error


def stuck(vm: Vm) -> HarnessError | None:
    """Say what keeps a QEMU that lives from answering, None when nothing does."""
    try:
        vm.qmp.execute("query-status", timeout=5.0)
    except HarnessError as error:
        return error
    return None


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
    pool = GuestPool(lab, folder, evidence=evidence, ahead=AHEAD)
    try:
        yield pool
    finally:
        pool.close()
