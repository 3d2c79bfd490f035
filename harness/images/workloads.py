"""The programs that run in guests, built where nobody has run their Makefile: once for all."""

from __future__ import annotations

import os
import re
from pathlib import Path

from harness import paths, process
from harness.errors import ImageError, UsageError
from harness.images.store import Progress, Store, hash_of

KIND = "workloads"
PROGRAM = "program"
_COMPLAINT = re.compile(r"\berror\b|undefined reference", re.IGNORECASE)
_CFLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-static")
#: Forty small static programs; a slow core needs a minute.
_DEADLINE = 900.0
#: What the environment may say to the Makefile.
_HEARD = ("CC", "CFLAGS", "LDFLAGS")
#: Not as a part of whatever make this runs below.
_CLEAN = {"MAKEFLAGS": "", "MFLAGS": "", "MAKELEVEL": "0"}


def folder() -> Path:
    """Return the directory of the sources and of their Makefile."""
    return paths.source_tree() / "testcases" / "workloads"


def made() -> Path | None:
    """Return where the Makefile put the programs; None where they are not those of the sources."""
    there = folder() / "build"
    if not folder().is_dir():  # there is nothing to build
        return there
    if not there.is_dir():
        return None
    asked = [*_make(there), "-q"]
    return there if process.run(asked, timeout=60.0, env=_CLEAN, check=False).status == 0 else None


def _said() -> list[str]:
    return [f"{name}={os.environ[name]}" for name in _HEARD if name in os.environ]


def _make(target: Path) -> list[str]:
    """Return the command that makes the programs in a directory."""
    words = ["-C", str(folder()), f"BUILD={target}", f"REPORTS={paths.reports()}", *_said()]
    return [process.find("make", package="make"), *words]


def built(store: Store, *, progress: Progress) -> Path:
    """Return a directory with every workload and every report's reproducer.

    It is named by the sources and the compiler.  Raises ImageError with the compiler's words.
    """
    sources = sorted([*folder().glob("*.[ch]"), folder() / "Makefile"])
    sources += sorted(paths.reports().glob("*.c"))
    compiler = process.find(os.environ.get("CC", "cc"), package="gcc libc6-dev")
    version = process.run([compiler, "--version"], timeout=30.0).stdout
    texts = [part for file in sources for part in (file.name.encode(), file.read_bytes())]

    def build(target: Path) -> None:
        progress("building the workloads; takes half a minute")
        jobs = len(os.sched_getaffinity(0))
        argv = [*_make(target), "-s", f"-j{jobs}"]
        done = process.run(argv, timeout=_DEADLINE, env=_CLEAN, check=False)
        if done.status != 0:
            why = _why(done.stderr)
            raise ImageError(f"the workloads were not built: {why}", hint=f"see make -C {folder()}")

    return store.get(KIND, hash_of(*texts, version, *_said()), build).path


def compiled(source: Path, common: Path, store: Store) -> Path:
    """Return the program of one C file that is none of ours, linked with what ours have in common.

    ``common`` is the directory where ours were built.  Raises UsageError where there is no such
    file, ImageError with the compiler's words.
    """
    if not source.is_file():
        raise UsageError(f"no program's source at {source}")
    # A program has an executable beside its object.
    objects = [file for file in sorted(common.glob("*.o")) if not file.with_suffix("").exists()]
    argv = [process.find("gcc", package="gcc libc6-dev"), *_CFLAGS, f"-I{folder()}", str(source)]
    argv += [*map(str, objects), "-o"]
    inputs = [file.read_bytes() for file in (source, *sorted(folder().glob("*.h")), *objects)]

    def build(target: Path) -> None:
        done = process.run([*argv, str(target / source.stem)], timeout=120.0, check=False)
        if done.status != 0:
            raise ImageError(f"{source.name} does not compile: {_why(done.stderr)}")

    return store.get(PROGRAM, hash_of(*inputs, *_CFLAGS, source.name), build).path / source.stem


def _why(said: str) -> str:
    """Return the line in which compiler, linker or make first complain."""
    lines = said.strip().splitlines() or ["nothing was said"]
    return next((line for line in lines if _COMPLAINT.search(line)), lines[0])
