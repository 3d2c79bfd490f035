"""What a result of a benchmark depends on: a result is kept as long as that stays as it is."""

from __future__ import annotations

from pathlib import Path

from harness.images.store import file_hash, hash_of

#: Made from the sources, or by running them.
_MADE = {"build", "__pycache__"}


def content(root: Path, *parts: str) -> str:
    """Return the hash of files and folders of a checkout, without what is made there."""
    files = sorted(
        path
        for part in parts
        for path in [root / part, *(root / part).rglob("*")]
        if path.is_file() and not _MADE & {*path.relative_to(root).parts}
    )
    return hash_of(*(f"{path.relative_to(root)} {file_hash(path)}" for path in files))
