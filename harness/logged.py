"""A run of nvh as a process of its own, with its output kept, and what its last words were."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from harness import process
from harness.report.escape import one_line

LOG = "output.log"
#: Seconds for a run that is interrupted to end its guests and to write its reports.
GRACE = 60.0
#: How much of a log's end is looked through for why its run failed.
_LAST = 1 << 16


def command(*words: str) -> list[str]:
    """Return the command that starts nvh, of this checkout."""
    # -P: another checkout in the working directory must not be taken for this one.
    return [sys.executable, "-P", "-u", "-m", "harness", *words]


def run(argv: Sequence[str], folder: Path, *, echo: bool = True) -> int:
    """Run a program with its output kept and, with ``echo``, passed on; return Popen's status."""
    folder.mkdir(exist_ok=True)
    # Of an earlier attempt that was interrupted; its results stay.
    (folder / "latest").unlink(missing_ok=True)
    with (
        (folder / LOG).open("wb") as log,
        process.running(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, grace=GRACE
        ) as child,
    ):
        assert child.stdout is not None
        passing = threading.Thread(target=_pass_on, args=(child.stdout, log, echo), daemon=True)
        passing.start()
        try:
            return child.wait()
        finally:
            process.end(child, grace=GRACE)
            passing.join(5.0)  # what was said last; a grandchild may hold the pipe open


def _pass_on(source: IO[bytes], log: IO[bytes], echo: bool) -> None:
    with contextlib.suppress(ValueError):  # the log is closed: nobody waits any more
        while chunk := os.read(source.fileno(), 1 << 16):
            log.write(chunk)
            log.flush()
            if echo:
                with contextlib.suppress(OSError):  # a closed pipe is no reason to stop testing
                    sys.stdout.write(chunk.decode("utf-8", "replace"))
                    sys.stdout.flush()


def write(folder: Path, text: str) -> None:
    """Write the log of a run that could not be started."""
    folder.mkdir(exist_ok=True)
    (folder / LOG).write_text(text, encoding="utf-8")


def said(folder: Path) -> str:
    """Return why a run failed, from the end of its log."""
    log = folder / LOG
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LAST))
            return last_words(file.read().decode("utf-8", "replace"))
    except OSError as error:
        return f"it left no log: {error.strerror}"


def last_words(said: str) -> str:
    """Return a program's complaint, else its last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    complaints = [line.removeprefix("nvh: ") for line in lines if line.startswith("nvh: ")]
    return one_line((complaints or lines or ["it said nothing"])[-1], 500)
