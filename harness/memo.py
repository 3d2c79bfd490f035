"""Answers that cost time, kept in the cache under all that they depend on."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any


def recall(file: Path) -> dict[str, Any]:
    """Return what was kept in a file; nothing where there is none, or another thing than that."""
    try:
        kept = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def keep(file: Path, answer: dict[str, Any]) -> None:
    """Keep an answer; one that cannot be kept is still an answer, and is asked for again."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as aside:
            json.dump(answer, aside)
        Path(aside.name).rename(file)
