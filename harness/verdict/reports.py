"""Reports of bugs as testcases: a TOML file and a reproducer in C or shell, no Python.

A report says who claimed what, which guest it takes, what has to be proven of it, and what is
right; ``testcases/test_reports.py`` runs each.  Its name stands where a row's id does elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.guest.filesystem import MKFS
from harness.guest.ktap import facts_of
from harness.toml_table import Table
from harness.verdict.expectation import Row
from harness.verdict.known import check_conditions, holds

#: What a reproducer's end is called: "ok", or what was not.  It is what is right of a report that
#: names nothing else.
RESULT = "result"

_NAME = re.compile(r"[a-z][a-z0-9_]{2,39}")
#: One of the checkout's: a path would let a report of a bundle's choose QEMU's arguments.
_MACHINE = re.compile(r"(?:[a-z][a-z0-9_-]*)?")
_ROW_LIKE = re.compile(r"[a-z]\d+")
_ISOLATIONS = ("clone", "boot")


@dataclass(frozen=True)
class MountWish:
    """A file system that the reproducer finds mounted, and that is proven to be DAX."""

    nvdimm: str
    filesystem: str
    dax: str  # always, never, inode
    mkfs: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """One report."""

    name: str
    title: str
    mail: str
    claim: str
    machine: str  # "" is the run's
    kernels: tuple[str, ...]  # where its expectation holds, all of them: ">=5.8"
    kernel_args: tuple[str, ...]
    isolation: str
    mount: MountWish | None
    devices: tuple[str, ...]  # to be proven behind an IOMMU
    modules: tuple[str, ...]
    timeout: float  # seconds, stretched under TCG
    arguments: tuple[str, ...]
    script: Path | None  # None: a program of the report's name
    proof: Mapping[str, Any]  # facts without which nothing is said of the kernel
    right: Mapping[str, Any]
    allow: tuple[str, ...]  # splats that are provoked on purpose
    file: Path

    @property
    def row(self) -> Row:
        """The report as a row of the catalogue."""
        return Row(self.name, self.title, (self.mail,), (), self.right, self.file)

    def concerns(self, release: str) -> bool:
        """Whether its expectation is about a kernel."""
        return all(holds(condition, release) for condition in self.kernels)


def good_name(name: str) -> bool:
    """Whether a report can be called so: as a C file, a test's parameter and a word for -k."""
    return bool(_NAME.fullmatch(name)) and not _ROW_LIKE.fullmatch(name)


def load_reports(folder: Path) -> tuple[Report, ...]:
    """Read every report of a directory; SpecError names file, line, table and key."""
    return tuple(_read(file) for file in sorted(folder.glob("*.toml")))


def _read(file: Path) -> Report:
    root = Table.load(file)
    table = root.table("report")
    if table is None or not good_name(file.stem):
        why = "is missing" if table is None else f"{file.stem!r} is not a name (a-z, 0-9, _)"
        raise root.error("report", why)
    setup, run = root.table("setup"), root.table("run")
    script = file.with_suffix(".sh")
    report = Report(
        name=file.stem,
        title=table.string("title"),
        mail=table.string("mail"),
        claim=table.string("claim"),
        machine=table.string("machine", ""),
        kernels=check_conditions(table, "kernels"),
        kernel_args=table.strings("kernel_args"),
        isolation=table.choice("isolation", _ISOLATIONS, "clone"),
        mount=_mount(setup) if setup is not None else None,
        devices=setup.strings("devices") if setup is not None else (),
        modules=setup.strings("modules") if setup is not None else (),
        timeout=float(run.integer("timeout", 60, high=3600)) if run is not None else 60.0,
        arguments=run.strings("arguments") if run is not None else (),
        script=script if script.is_file() else None,
        proof=MappingProxyType(root.mapping("proof")),
        right=MappingProxyType(root.mapping("right") or {RESULT: "ok"}),
        allow=table.strings("allow"),
        file=file,
    )
    for read in (table, setup, run, root):
        if read is not None:
            read.done()
    if not _MACHINE.fullmatch(report.machine):
        raise table.error("machine", f"{report.machine!r} is not a machine's name")
    if not report.title.strip() or not report.mail.strip():
        raise table.error("title" if not report.title.strip() else "mail", "is empty")
    if report.script is None and not file.with_suffix(".c").is_file():
        raise root.error("report", f"has no reproducer: neither {file.stem}.sh nor {file.stem}.c")
    return report


def _mount(setup: Table) -> MountWish | None:
    table = setup.table("mount")
    if table is None:
        return None
    wish = MountWish(
        nvdimm=table.string("nvdimm", "fsdax0"),
        filesystem=table.choice("filesystem", sorted(MKFS), "ext4"),
        dax=table.choice("dax", ("always", "never", "inode"), "always"),
        mkfs=table.strings("mkfs"),
    )
    table.done()
    return wish


@dataclass(frozen=True)
class Said:
    """What a reproducer said: KTAP and facts as far as there are any, and how it ended."""

    result: str
    facts: Mapping[str, Any]
    skipped: str  # why it could not say anything
    bailed: str  # why it could not begin


_STEP = re.compile(r"(not )?ok \d+(?: -)?\s*(.*)")
_SKIPPED = re.compile(r"1\.\.0(?:\s+#\s*SKIP\s*(.*))?", re.IGNORECASE)


def heard(status: int, output: str) -> Said:
    """Read a reproducer's output: that of one program, or of several that a script ran."""
    failed, bailed, skipped = [], "", ""
    facts: dict[str, Any] = {}
    for raw in output.split("\n"):
        line = raw.strip()
        if line.startswith("Bail out!"):
            bailed = line.removeprefix("Bail out!").strip() or "it does not say why"
        elif match := _STEP.fullmatch(line):
            failed += [match[2].strip()] if match[1] else []
        elif match := _SKIPPED.fullmatch(line):
            skipped = (match[1] or "it does not say why").strip()
        else:
            facts.update(facts_of("the reproducer", line))
    return Said(_result(status, failed), MappingProxyType(facts), skipped, bailed)


def _result(status: int, failed: list[str]) -> str:
    if failed:
        return f"not ok: {'; '.join(failed)}"
    if status > 128:
        return f"ended by signal {status - 128}"
    return "ok" if status == 0 else f"status {status}"
