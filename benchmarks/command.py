"""What the benchmarks that run tests for an hour have in common: one run, and an end in order."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from harness import logged, ui
from harness.errors import EXIT_INTERRUPTED, HarnessError
from harness.signals import interruptible


def carried_out(action: Callable[[], int], kept: str) -> int:
    """Return the exit code of an action; who interrupts it is told what is ``kept``."""
    # As of nvh: what was started for a run, make or a guest, ends with it.
    interruptible()
    try:
        return action()
    except HarnessError as error:
        return ui.complain(error)
    except KeyboardInterrupt:
        ui.terminal.print(f"nvh: interrupted; {kept}")
        return EXIT_INTERRUPTED


def nvh_test(folder: Path, *words: str) -> tuple[int, float, Path | None]:
    """Run nvh test into a folder; return its status, its seconds and the results, if it made any.

    Raises KeyboardInterrupt when the run was interrupted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    argv = logged.command("test", "--results", str(folder), *words)
    status = logged.run(argv, folder, echo=False)
    seconds = time.monotonic() - begun
    if status == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    latest = folder / "latest"
    return status, seconds, latest.resolve() if latest.is_symlink() else None
