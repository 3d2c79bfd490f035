"""Patches of kernel sources, applied to copies of just the files that they name."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from harness import process
from harness.errors import UsageError

#: The lines of a unified diff, and of git's extension of it, that name files.
_NAMES = re.compile(
    r"^(?:(?:---|\+\+\+) (?P<plain>[^\t\n]+)|diff --git (?P<old>\S+) (?P<new>\S+)$"
    r"|(?:rename|copy) (?:from|to) (?P<bare>.+)$)",
    re.MULTILINE,
)
_TIMEOUT = 60.0


def touched(text: str) -> set[str]:
    """Return the files that a patch (-p1) names: changed, made, removed, renamed."""
    found = set()
    for match in _NAMES.finditer(text):
        if match["bare"]:
            found.add(match["bare"].strip())
            continue
        for name in (match["plain"], match["old"], match["new"]):
            if name and name.strip() != "/dev/null":
                found.add(name.strip().partition("/")[2])
    return {name for name in found if name and _inside(name)}


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def read(file: Path) -> str:
    """Return a patch; UsageError when it is not there or is none."""
    try:
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UsageError(f"no patch at {file}: {error.strerror}") from error
    if not touched(text):
        raise UsageError(f"{file} holds no unified diff", hint="make one with git diff or diff -u")
    return text


def apply(root: Path, files: Iterable[Path], scratch: Path) -> Mapping[str, Path | None]:
    """Apply patches in order to copies below ``scratch``; None stands for a file that went.

    Raises UsageError when one does not apply; ``root`` is left as it is.
    """
    names: set[str] = set()
    for file in files:
        fresh = touched(read(file)) - names
        names |= fresh
        for name in fresh:
            if (root / name).is_file():
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, scratch / name)
        _apply(file, scratch)
    return {name: scratch / name if (scratch / name).is_file() else None for name in names}


def _apply(file: Path, scratch: Path) -> None:
    program = process.find("patch", package="patch")
    words = ["-p1", "--forward", "--batch", "--no-backup-if-mismatch", "--reject-file=-"]
    done = process.run(
        [program, *words, f"--directory={scratch}", f"--input={file.absolute()}"],
        timeout=_TIMEOUT,
        check=False,
        env={"LC_ALL": "C", "PATCH_GET": "0"},
    )
    if done.status == 0:
        return
    raise UsageError(
        f"{file} does not apply: {_complaint(done.stdout + done.stderr)}",
        hint="make it against this source; patches apply in the order in which they are given",
    )


def _complaint(said: str) -> str:
    """Return the file and what patch(1) says of it."""
    current = ""
    for line in said.splitlines():
        if line.startswith("patching file "):
            current = f"{line.removeprefix('patching file ')}: "
        elif "previously applied" in line:
            return f"{current}it is in this source already"
        elif "can't find file" in line:
            named = re.findall(r"^\|(?:---|\+\+\+) \w+/(\S+)", said, re.MULTILINE)
            return f"no file {named[0]}" if named else "it names a file that is not there"
        elif re.search(r"FAILED|\*{4} |git binary", line):
            return f"{current}{line.rpartition('****')[2].strip()}"
    return (said.strip().splitlines() or ["patch says nothing"])[-1]
