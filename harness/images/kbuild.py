"""Building kernels for guests: lean, out of tree, again in seconds after a small change.

A build is named by what goes in: the source, the fragments of its configuration, the patches, the
compiler.  The same again is found in the store; anything else is built in the workspace of its
source, where make does what is left to do.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import paths, process
from harness.errors import BuildError, HostError, UnfitKernel
from harness.images import fragment, kconfig, modules, patches, source
from harness.images.advance import PERIOD, Advance
from harness.images.fragment import Fragment
from harness.images.kernel import BZIMAGE, ORIGIN
from harness.images.source import Source
from harness.images.store import Entry, Progress, Store, file_hash, hash_of, to_log
from harness.images.workspace import Workspace

KIND = "built-kernel"
_RECIPE = "1"
_ABOUT = "build.json"
#: For make: a first build with KASAN on one slow core takes an hour.
_DEADLINE = 4 * 3600.0
#: The same inputs give the same bytes, whoever builds them and whatever the environment holds.
_FIXED = (
    *("ARCH=x86_64", "CROSS_COMPILE=", "LLVM=", "CC=gcc", "LOCALVERSION="),
    *("KBUILD_BUILD_USER=nvh", "KBUILD_BUILD_HOST=nvh"),
    *("KBUILD_BUILD_VERSION=1", "KBUILD_BUILD_TIMESTAMP=1970-01-01"),
)
_CLEAN = {"MAKEFLAGS": "", "MFLAGS": "", "KCFLAGS": "", "KBUILD_OUTPUT": "", "LC_ALL": "C"}
_ERROR = re.compile(r"\berror:|undefined reference|No rule to make target|\*\*\* .*[.!]\s*Stop\.")


@dataclass(frozen=True)
class Built:
    """A kernel that was built: a directory as ``--kernel`` takes it."""

    path: Path
    origin: str  # source, fragments and patches in words
    unmet: tuple[str, ...]  # options that were asked for and are not so, with the reason


@dataclass(frozen=True)
class Order:
    """What a build is made of."""

    source: Source
    fragments: tuple[Fragment, ...]
    patches: tuple[Path, ...]

    @property
    def values(self) -> dict[str, str]:
        """What the configuration shall hold."""
        return fragment.merged(self.fragments)

    @property
    def origin(self) -> str:
        """Source, fragments and patches in words."""
        parts = [self.source.name, *(one.name for one in self.fragments)]
        return " + ".join([*parts, *(file.name for file in self.patches)])

    def key(self, compiler: str) -> str:
        """Return the hash of all inputs."""
        values = sorted(self.values.items())
        # What is in a patch counts, not where it lies.
        return hash_of(
            *(_RECIPE, compiler, *_FIXED, self.source.identity),
            fragment.text(dict(values)),
            *(file_hash(file) for file in self.patches),
        )


def build(
    selector: str,
    store: Store,
    *,
    fragments: Sequence[str] = (),
    patch_files: Sequence[Path] = (),
    jobs: int | None = None,
    progress: Progress = to_log,
) -> Built:
    """Return the kernel of a source (``debian-source:6.12`` or a tree), built if need be.

    Raises UsageError for what is asked wrongly (exit 2: a patch that does not apply too),
    BuildError when it does not compile and UnfitKernel when the result could not boot (exit 125).
    """
    chosen = tuple(fragment.find(fragments))
    files = tuple(file.expanduser().absolute() for file in patch_files)
    for file in files:
        patches.read(file)
    install_packages()
    order = Order(source.find(selector, store, progress=progress), chosen, files)
    workers = jobs or len(os.sched_getaffinity(0))

    def make(target: Path) -> None:
        _make(order, Workspace.of(order.source, store), target, workers, progress)

    entry = store.get(KIND, order.key(_compiler()), make, patience=_DEADLINE)
    return _built(entry)


def _built(entry: Entry) -> Built:
    about = json.loads((entry.path / _ABOUT).read_text())
    return Built(entry.path, about["origin"], tuple(about["unmet"]))


def install_packages() -> None:
    """Have the host packages that building a kernel needs: nothing else asks for them."""
    script = Path(paths.__file__).with_name("setup.sh")
    names = paths.guest_images() / "build-packages.txt"
    # Beside the script there need not be a directory that is the user's.
    env = {"NVH_SETUP_DIR": str(paths.cache_dir() / "build")}
    done = process.run([str(script), "packages", str(names)], timeout=900.0, check=False, env=env)
    if done.status != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("setup: ")]
        words = lines[-1].removeprefix("setup: ") if lines else done.stderr.strip()[-200:]
        raise HostError(words)


def _compiler() -> str:
    gcc = process.find("gcc", package="gcc")
    said = process.run([gcc, "--version"], timeout=30.0).stdout
    return said.partition("\n")[0]


def _make(order: Order, workspace: Workspace, target: Path, jobs: int, progress: Progress) -> None:
    with (
        workspace.locked(progress),
        tempfile.TemporaryDirectory(prefix="nvh-patch-") as scratch,
    ):
        patched = patches.apply(order.source.root, order.patches, Path(scratch))
        workspace.sync(order.source, patched, progress)
        objects = workspace.objects("\n".join(one.name for one in order.fragments))
        command = [
            *(process.find("make", package="make"), "-C", str(workspace.tree)),
            *(f"O={objects}", *_FIXED, f"-j{jobs}"),
        ]
        unmet = _configure(order, workspace, objects, command)
        modular = kconfig.parse((objects / ".config").read_text()).get("CONFIG_MODULES") == "y"
        goals = ["bzImage", "modules"] if modular else ["bzImage"]
        _compile([*command, *goals], objects / "build.log", workspace.tree, progress)
        _collect(objects, target)
        if modular:
            install = ["modules_install", f"INSTALL_MOD_PATH={target}", "INSTALL_MOD_STRIP=1"]
            _run([*command, *install], objects / "install.log", workspace.tree)
            modules.remove_links(target)
    (target / ORIGIN).write_text(f"{order.origin}\n")
    about = {"origin": order.origin, "unmet": unmet}
    (target / _ABOUT).write_text(json.dumps(about, indent=1))


def _configure(
    order: Order, workspace: Workspace, objects: Path, command: Sequence[str]
) -> list[str]:
    """Write .config with nothing but what was asked for; return what it could not have."""
    wanted = order.values
    seed = objects / "wanted.config"
    seed.write_text(fragment.text(wanted))
    goal = [*command, f"KCONFIG_ALLCONFIG={seed}", "allnoconfig"]
    _run(goal, objects / "config.log", workspace.tree)
    config = (objects / ".config").read_text()
    unmet = fragment.unmet(wanted, config)
    needed = [one for one in kconfig.lacking(kconfig.parse(config)) if one.option in unmet]
    said = fragment.why(unmet, workspace.tree, config)
    if needed:
        names = {one.option for one in needed}
        first = next(line for line in said if line.partition(" ")[0] in names)
        raise UnfitKernel(
            f"{order.source.name} could not boot in a guest: no {first}",
            hint="name other fragments, or a source with what guest-images/kernel asks for",
        )
    return said


def _run(command: Sequence[str], log: Path, tree: Path) -> None:
    done = process.run(command, timeout=_DEADLINE, check=False, env=_CLEAN)
    log.write_text(done.stdout + done.stderr)
    if done.status != 0:
        raise _failure(log, tree)


def _compile(command: Sequence[str], log: Path, tree: Path, progress: Progress) -> None:
    """Run make, telling now and then how far it is."""
    progress("compiling; the first build of a source takes some ten minutes")
    begun = told = time.monotonic()
    seen = steps = 0
    with log.open("wb") as out:
        child = process.spawn(command, stdout=out, stderr=subprocess.STDOUT, env=_CLEAN)
        try:
            while True:
                try:
                    status = child.wait(timeout=1.0)
                    break
                except subprocess.TimeoutExpired:
                    now = time.monotonic()
                if now - begun > _DEADLINE:
                    raise BuildError(f"make does not end in {_DEADLINE:.0f} s", hint=f"see {log}")
                if now - told > PERIOD:
                    told = now
                    with log.open("rb") as lines:  # a build with KASAN logs megabytes
                        lines.seek(seen)
                        fresh = lines.read()
                    seen, steps = seen + len(fresh), steps + fresh.count(b"\n")
                    progress(Advance("compiling", steps, unit="steps"))
        finally:
            process.end(child, grace=5.0)
    if status != 0:
        raise _failure(log, tree)


def _failure(log: Path, tree: Path) -> BuildError:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    telling = [line for line in lines if _ERROR.search(line)] or lines[-1:] or ["it said nothing"]
    first = [line.replace(f"{tree}/", "") for line in telling[:3]]
    return BuildError(f"the kernel does not build: {'; '.join(first)}", hint=f"see {log}")


def _collect(objects: Path, target: Path) -> None:
    """Copy what a boot and its reader need, as it lies in a kernel tree."""
    for name in (BZIMAGE, Path(".config"), Path("System.map")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(objects / name, target / name)
