"""The files of a test that Jenkins and GitLab are told to keep with it in junit.xml.

Both look for ``[[ATTACHMENT|path]]`` in a test's system-out, with a path relative to the workspace
or to ``$CI_PROJECT_DIR``: Jenkins (JUnit Attachments) takes every such line, GitLab the first.
"""

from __future__ import annotations

import os
from pathlib import Path

from harness.report.record import TestRecord
from harness.verdict.status import Status

_MARK = "[[ATTACHMENT"
#: Of a test's folder, the best first: GitLab shows one only.
_FILES = ("output.txt", "dmesg", "console.log", "stacks.txt", "qemu.stderr", "facts.json")
#: What ends a path for one of them.
_ENDS = frozenset("[]|")


def lines(run: Path, record: TestRecord) -> list[str]:
    """Return a line for each file that is there; ``run`` is the run's folder.

    Only a test that is to be looked into has some: a night would upload thousands of others.
    """
    if record.status.good or record.status is Status.SKIP:
        return []
    names = sorted(_FILES, key=lambda name: name != "dmesg" or not record.findings)
    files = [run / record.folder / name for name in names]
    files.append(run / record.bundle)
    shown = [_seen_by_ci(file) for file in files if _has_content(file)]
    return [f"{_MARK}|{path}]]" for path in shown if _is_plain(path)]


def defused(text: str) -> str:
    """Return a guest's words without a mark of theirs: Jenkins would copy any file they name."""
    return text.replace(_MARK, "[ [ATTACHMENT")


def _has_content(file: Path) -> bool:
    try:
        return file.is_file() and file.stat().st_size > 0
    except OSError:
        return False


def _seen_by_ci(file: Path) -> str:
    """Return a path as the CI system takes it: relative to its workspace where it is below that."""
    base = os.environ.get("CI_PROJECT_DIR") or os.environ.get("WORKSPACE") or Path.cwd()
    file = file.resolve()
    try:
        return str(file.relative_to(Path(base).resolve()))
    except ValueError:
        return str(file)


def _is_plain(path: str) -> bool:
    return path.isprintable() and not _ENDS & set(path)
