"""Where the harness finds its own files and where it keeps what it built."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from harness.errors import HostError


def source_tree() -> Path:
    """Return the root of the checkout, or the copy of it that a wheel brings."""
    package = Path(__file__).resolve().parent
    installed = package / "tree"
    return installed if installed.is_dir() else package.parent


def results(chosen: str | None = None) -> Path:
    """Return where results go: where the user says, else the checkout, else right here."""
    if chosen:
        return Path(chosen).absolute()
    tree = source_tree()
    installed = tree.parent == Path(__file__).resolve().parent
    return (Path.cwd() if installed else tree) / "results"


def guest_images() -> Path:
    """Return the directory that says what guests are made of."""
    return source_tree() / "guest-images"


def reports() -> Path:
    """Return where reports and reproducers lie: ``$NVH_REPORTS``, else in the checkout."""
    chosen = os.environ.get("NVH_REPORTS")
    return Path(chosen).absolute() if chosen else source_tree() / "testcases" / "reports"


def cache_dir() -> Path:
    """Return the cache: ``$NVH_CACHE``, else the user's cache directory; created for us alone.

    Raises HostError when it cannot be made.
    """
    chosen = os.environ.get("NVH_CACHE")
    path = Path(chosen) if chosen else Path(platformdirs.user_cache_dir("nvdimm-harness"))
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(
            f"no cache directory at {path}: {error.strerror}",
            hint="set NVH_CACHE to a directory on a file system with some GB free",
        ) from error
    return path.absolute()
