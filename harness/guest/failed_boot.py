"""What a guest that did not come up left to read, kept where its error says."""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from harness import paths
from harness.errors import HarnessError
from harness.guest.guest import Guest
from harness.images import kconfig
from harness.images.kernel import Kernel

log = logging.getLogger(__name__)

NAME = "failed-boot"
#: How many the cache holds: nobody clears those up that belong to no run.
MOST = 5


@contextlib.contextmanager
def told(
    folder: Path, kernel: Kernel, *, lasting: bool, results: Path | None
) -> Iterator[list[Guest]]:
    """Keep what a guest that does not come up left in ``folder``, and let its error say where.

    The block's list takes the guest when it is up: what happens to it then is not a failed boot.
    """
    up: list[Guest] = []
    try:
        yield up
    except HarnessError as error:
        if not up:
            hints = [error.hint] if error.hint else []
            spoke = _spoke(folder / "console.log")
            with contextlib.suppress(HarnessError, OSError):
                # One that tells its configuration was held against the list before it was booted.
                if spoke and kernel.modules is None and kconfig.read(kernel) is None:
                    hints.append(
                        "the kernel came without modules: give its tree, or build in what "
                        "guest-images/kernel/required.toml lists"
                    )
            try:
                kept = folder if lasting else keep(folder, results)
                hints.append(f"see {kept / 'console.log' if spoke else kept}")
            except (HarnessError, OSError) as lost:
                log.warning("the logs of a boot that failed are lost: %s", lost)
            error.hint = "; ".join(hints) or None
        raise


def keep(folder: Path, results: Path | None) -> Path:
    """Copy a guest's folder to one of its own in a run's results; return that.

    Without results it goes to the cache, which keeps the last few.
    """
    base = (results or paths.cache_dir()) / NAME
    base.mkdir(exist_ok=True)
    kept = _fresh(base)
    # The rest is of the guest's size.
    left_out = shutil.ignore_patterns("ram", "*.nvdimm")
    shutil.copytree(folder, kept, ignore=left_out, dirs_exist_ok=True)
    if results is None:
        for number in _numbers(base)[:-MOST]:
            shutil.rmtree(base / str(number), ignore_errors=True)
    return kept


def _fresh(base: Path) -> Path:
    """Make the next numbered folder; other processes may be at the same."""
    for number in itertools.count(max(_numbers(base), default=0) + 1):
        with contextlib.suppress(FileExistsError):
            (base / str(number)).mkdir()
            break
    return base / str(number)


def _numbers(base: Path) -> list[int]:
    return sorted(int(path.name) for path in base.iterdir() if path.name.isdecimal())


def _spoke(console: Path) -> bool:
    """Whether anything but white space came over a guest's console."""
    try:
        return bool(console.read_bytes().strip())
    except OSError:
        return False
