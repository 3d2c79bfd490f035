"""A bundle: what is needed to run one test again, on another machine and years later.

``bundles/NAME/`` of a run is begun before the test's guest starts, so that a harness that is killed
leaves it; a test that passes takes its own away.  What all tests of a run share (sources, programs,
the kernel's configuration) is laid down once, in ``bundles/.shared/``: a bundle under way only
points there.  One that stays gets it by hard links, the test's evidence, and an archive beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import process
from harness.errors import HostError
from harness.images.kernel import Kernel
from harness.images.modules import ModuleTree
from harness.images.store import file_hash
from harness.report.escape import one_line, slug
from harness.report.record import TestRecord
from harness.report.results import naming, write_atomic, write_json
from harness.verdict.status import Status

FORMAT = 1
SHARED = "shared"
EVIDENCE = "evidence"
#: What is packed of one log: a guest makes it as long as it likes.
EVIDENCE_LIMIT = 8 << 20
#: Files of the test cases that tell what a test does: no caches, no objects.
_SOURCES = ("*.py", "*.toml", "catalogue/*.toml", "workloads/*.[ch]", "workloads/Makefile")
_COMPRESS_TIMEOUT = 600.0

#: A test that ended so keeps its bundle.  That goes for a known issue, too: a failure with a cause
#: that is written down is just what its maintainers want to see for themselves.
KEPT = (Status.FAIL, Status.ERROR, Status.MISS)

_REPRO = """\
#!/bin/sh
# Runs just this test again and says whether the same symptom shows:
#     ./repro.sh [--kernel K] [--repeat N] [--until-fail]
# Exit status: 1 it shows, 0 it does not, 125 that could not be told.  NVH names the nvh to use.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd) || exit 125
nvh=${{NVH:-$(command -v nvh || echo {nvh})}}
if [ ! -x "$nvh" ]; then
    echo "repro.sh: no nvh: run make setup in nvdimm-harness, set NVH to its .venv/bin/nvh" >&2
    exit 125
fi
exec "$nvh" repro "$here" "$@"
"""


@dataclass(frozen=True)
class Setting:
    """What all tests of a run have in common."""

    testcases: Path  # the directory
    reports: Path
    workloads: Path  # binaries
    kernel: Kernel | None = None
    selector: str | None = None  # what the user called the kernel
    with_kernel: bool = False
    isolation: str = "clone"
    nvh: str = "nvh"
    properties: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class About:
    """One test, as it is known before its guest starts."""

    nodeid: str
    row: Mapping[str, Any] = field(default_factory=dict)  # id, title, source, right
    machine: str = ""
    machine_text: str = ""  # of the machine's file
    machine_digest: str = ""
    own_machine: bool = False  # the test asks for it by a marker; else it is the run's
    kernel_args: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The bundle's directory and archive."""
        return slug(self.nodeid)


class Bundles:
    """The bundles of one run."""

    def __init__(self, results: Path, setting: Callable[[], Setting]) -> None:
        self._results = results
        self._folder = results / "bundles"
        self._make = setting
        self._setting: Setting | None = None
        self._kernel: dict[str, Any] = {}

    def begin(self, about: About) -> Path:
        """Lay a test's bundle down as far as it is known before its guest starts."""
        shared = self._shared()
        setting = self._setting
        assert setting is not None
        folder = self._folder / about.name
        with naming(folder), _whole(folder) as made:
            (made / SHARED).symlink_to(f"../{shared.name}")
            values = {
                "format": FORMAT,
                "test": about.nodeid,
                "row": dict(about.row),
                "machine": {
                    "name": about.machine,
                    "digest": about.machine_digest,
                    "own": about.own_machine,
                },
                "kernel_args": list(about.kernel_args),
                "isolation": setting.isolation,
                "kernel": self._kernel,
                "run": {str(key): str(value) for key, value in setting.properties.items()},
            }
            # Not synced: this is for a harness that is killed, and it costs every test its time.
            write_json(made / "bundle.json", values, sync=False)
            if about.machine_text:
                (made / "machine").mkdir()
                (made / "machine" / f"{about.machine}.toml").write_text(about.machine_text)
            (made / "README").write_text(_readme(values, None))
            (made / "repro.sh").write_text(_REPRO.format(nvh=shlex.quote(setting.nvh)))
            (made / "repro.sh").chmod(0o755)
        return folder

    def end(self, record: TestRecord, more: Mapping[str, Path] | None = None) -> Path | None:
        """Complete and pack the bundle of a test that did not pass; remove that of one that did.

        ``more`` is evidence that is not in the test's folder yet: its guest may live on.
        """
        folder = self._folder / slug(record.nodeid)
        if not (folder / "bundle.json").is_file():
            return None
        if record.status not in KEPT:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        with naming(folder):
            self._collect(record, folder, more or {})
            values = json.loads((folder / "bundle.json").read_text())
        write_atomic(folder / "README", _readme(values, record))
        pack(folder)
        return folder

    def _shared(self) -> Path:
        """Return the directory of what all tests share, made by whichever process comes first."""
        if self._setting is None:
            setting = self._make()
            self._kernel = kernel_facts(setting)  # once: the image is hashed
            self._setting = setting
        target = self._folder / f".{SHARED}"
        if target.is_dir():
            return target
        try:
            with naming(target), _whole(target, replace=False) as made:
                _lay_down(self._setting, made)
        except HostError:
            if not target.is_dir():  # another process was quicker
                raise
        return target

    def _collect(self, record: TestRecord, folder: Path, more: Mapping[str, Path]) -> None:
        """Give a bundle parts of its own in the place of the link, and what the test left."""
        tests = self._results / record.folder
        evidence = folder / EVIDENCE
        with _whole(evidence) as made:
            files = {file.name: file for file in tests.iterdir()} if tests.is_dir() else {}
            for name, file in sorted({**more, **files}.items()):
                if file.is_file() and not file.is_symlink():
                    _copy_tail(file, made / name)
            for name in ("console.log", "dmesg", "qemu.sh"):  # of the boot that clones come from
                if (self._results / name).is_file():
                    _copy_tail(self._results / name, made / f"boot-{name}")
        link = folder / SHARED
        if link.is_symlink():
            telling = [evidence / "commands", evidence / "output.txt"]
            telling += (link / "testcases/reports").glob(f"{record.row}.sh")
            # A report's program is called as it is; its guest may not have come to run it.
            said = "\n".join([record.row or "", *map(_text, telling)])
            with _whole(link) as made:
                _link_tree(link.resolve(), made, lambda path: _wanted(path, said))


@contextlib.contextmanager
def _whole(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a directory to fill: it becomes ``target`` when that is done, or it is removed.

    So there is no half of a file, however soon the harness is interrupted.
    """
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        if target.is_symlink():
            target.unlink()
        elif replace:
            shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def kernel_facts(setting: Setting) -> dict[str, Any]:
    """Return what tells a kernel from another, and where to get it."""
    kernel = setting.kernel
    if kernel is None:
        return {"selector": setting.selector}
    return {
        "selector": setting.selector,
        "release": kernel.release,
        "origin": kernel.origin,
        "digest": kernel.digest,
        "image_sha256": file_hash(kernel.image),
        "included": setting.with_kernel,
    }


def pack(folder: Path) -> Path:
    """Write FOLDER.tar.zst beside a bundle, whole or not at all."""
    target = folder.with_name(f"{folder.name}.tar.zst")
    tar = folder.with_name(f".{folder.name}.{os.getpid()}.tar")
    try:
        with naming(tar), tarfile.open(tar, "w", dereference=True) as archive:
            archive.add(folder, folder.name, filter=_anonymous)
        # Programs that are linked statically share their libc: a long window finds it.
        words = ["zstd", "-q", "-f", "--long=24", "-o", f"{tar}.zst", str(tar)]
        process.run(words, timeout=_COMPRESS_TIMEOUT)
        with naming(target):
            Path(f"{tar}.zst").replace(target)
    finally:
        for left in (tar, Path(f"{tar}.zst")):
            with contextlib.suppress(OSError):
                left.unlink()
    return target


def _lay_down(setting: Setting, target: Path) -> None:
    """Copy what all tests share: copies, for the sources are edited while results are kept."""
    cases = target / "testcases"
    for pattern in _SOURCES:
        for file in setting.testcases.glob(pattern):
            _copy(file, cases / file.relative_to(setting.testcases))
    if setting.reports.is_dir():
        for file in setting.reports.iterdir():
            if file.suffix in (".toml", ".c", ".h", ".sh") and file.is_file():
                _copy(file, cases / "reports" / file.name)
    if setting.workloads.is_dir():
        for file in setting.workloads.iterdir():
            if file.is_file() and os.access(file, os.X_OK):
                _copy(file, target / "programs" / file.name)
    kernel = setting.kernel
    if kernel is not None and kernel.config is not None:
        _copy(kernel.config, target / "kernel.config")
    if kernel is not None and setting.with_kernel:
        # As it would be installed: nvh finds the modules beside the image.
        _copy(kernel.image, target / "kernel/boot" / f"vmlinuz-{kernel.release}")
        if kernel.modules is not None:
            _copy_modules(kernel.modules, target / "kernel/lib/modules" / kernel.release)


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(file, target)


def _copy_modules(tree: Path, target: Path) -> None:
    """Copy what a guest gets of a kernel's modules; a module that is a link as what it leads to.

    Beside them an installed kernel has ``build`` and ``source``: links to all of its tree or to
    nowhere, or the headers themselves.
    """
    listed = [tree / path for path in ModuleTree(tree).files.values()]
    for file in (*listed, *tree.glob("modules.*")):
        if file.is_file():
            _copy(file, target / file.relative_to(tree))


def _copy_tail(file: Path, target: Path) -> None:
    """Copy a log, of one that is too long its end."""
    size = file.stat().st_size
    if size <= EVIDENCE_LIMIT:
        shutil.copyfile(file, target)
        return
    with file.open("rb") as source, target.open("wb") as out:
        source.seek(size - EVIDENCE_LIMIT)
        out.write(f"[the first {size - EVIDENCE_LIMIT} bytes are left out]\n".encode())
        shutil.copyfileobj(source, out)


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _wanted(path: Path, said: str) -> bool:
    """Whether a shared file belongs into a bundle: of the programs those that were spoken of."""
    if path.parts[0] != "programs":
        return True
    return re.search(rf"\b{re.escape(path.name)}\b", said) is not None


def _link_tree(source: Path, target: Path, wanted: Callable[[Path], bool]) -> None:
    """Make a directory whose files are those of another."""
    for folder, _, names in os.walk(source):
        for name in names:
            file = Path(folder) / name
            path = file.relative_to(source)
            if wanted(path):
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                os.link(file, target / path)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out who made the archive, and whatever is no file and no directory."""
    if not (member.isreg() or member.isdir()):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member


def _listed(label: str, items: Sequence[str]) -> list[str]:
    """Return a line for each item, the first one with the label."""
    return [f"{'' if n else label:10}{one_line(item, 500)}" for n, item in enumerate(items)]


def _readme(values: Mapping[str, Any], record: TestRecord | None) -> str:
    """Return what a person reads first."""
    kernel, row, machine = values["kernel"], values["row"], values["machine"]
    test = values["test"]
    lines = [one_line(f"{row.get('id') or ''} {row.get('title') or test}", 500), ""]
    lines += [f"test      {one_line(test, 500)}"]
    if record is None:
        lines += ["verdict   none: the run was ended while the test ran, or the test still runs;"]
        lines += [f"          what it said until then lies in ../../tests/{slug(test)}/"]
    else:
        verdict = one_line(f"{record.word} {record.known}")
        lines += [f"verdict   {verdict}: {one_line(record.message, 1000)}"]
        lines += _listed("kernel's", [str(item.get("title")) for item in record.findings])
    right = row.get("right") or {}
    lines += _listed("right", [f"{key}: {json.dumps(right[key], default=repr)}" for key in right])
    lines += _listed("source", [str(source) for source in row.get("source", ())])
    lines += [f"machine   {machine['name']} (machine/{machine['name']}.toml)"]
    if "release" in kernel:
        lines += [
            f"kernel    {one_line(kernel['release'])}",
            f"  from    {one_line(kernel['origin'])}",
        ]
        lines += [f"  image   sha256 {kernel['image_sha256']}"]
        where = "shared/kernel/, image and modules" if kernel["included"] else _where(kernel)
        lines += [f"  get it  {where}", "  config  shared/kernel.config, where the kernel has one"]
    lines += ["", "Run it again:", ""]
    lines += ["    ./repro.sh                  # on the kernel above, where it can be had"]
    lines += ["    ./repro.sh --kernel ~/linux # on another"]
    lines += ["    git bisect run sh -c 'make -j8 bzImage modules || exit 125;"]
    lines += ["                          exec .../repro.sh --kernel . --repeat 5'"]
    lines += [
        "",
        "It needs a checkout of nvdimm-harness; NVH=.../.venv/bin/nvh names it.  Exit status: 1",
    ]
    lines += ["the same symptom shows, 0 it does not show, 125 that could not be told.", ""]
    lines += ["What lies here:", ""]
    lines += ["    bundle.json       the test, its expectation, machine, kernel and run"]
    lines += ["    machine/          the machine's file: NVDIMMs, namespaces, IOMMU, devices"]
    lines += ["    shared/testcases/ the test, the catalogue, and the sources of the programs"]
    lines += ["    shared/programs/  what ran in the guest, as it ran there"]
    lines += [
        "    evidence/         result.json, facts.json, output.txt, the commands, the kernel's log"
    ]
    lines += [
        "                      and console while the test ran, guest-console.log and boot-* whole,"
    ]
    lines += ["                      qemu.sh and boot-qemu.sh: QEMU's command line"]
    return "\n".join(lines) + "\n"


def _where(kernel: Mapping[str, Any]) -> str:
    """Say where a kernel can be had that the bundle does not hold."""
    selector = kernel.get("selector")
    named = "nvh's default" if selector is None else f"--kernel {shlex.quote(str(selector))}"
    return one_line(f"{named}; nvh test --with-kernel puts the kernel itself into bundles")
