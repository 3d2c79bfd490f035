"""In which order the testcases run."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let begin first what sleeps or boots for long: the other workers have tests beside it."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
