"""What a run tells of itself and of each test for the bundles of those that do not pass."""

from __future__ import annotations

import contextlib
import functools
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import __version__, paths, process
from harness.errors import HarnessError
from harness.lab import Lab
from harness.pool import Wish
from harness.report.bundle import About, Setting
from harness.spec import load_machine
from harness.verdict.expectation import Row


def setting(config: pytest.Config, lab: Lab) -> Setting:
    """Return what all tests of a run share; a kernel or a QEMU that cannot be had is left out."""
    root = paths.source_tree()
    kernel, properties = None, {}
    with contextlib.suppress(HarnessError):
        kernel = lab.kernel
        properties = dict(lab.properties())
    return Setting(
        testcases=root / "testcases",
        reports=paths.reports(),
        workloads=lab.workloads,
        kernel=kernel,
        selector=config.getoption("--nvh-kernel"),
        with_kernel=bool(config.getoption("--nvh-with-kernel")),
        isolation=str(config.getoption("--nvh-isolation")),
        nvh=str(Path(sys.executable).with_name("nvh")),
        properties={**properties, "harness": _version()},
    )


def about(nodeid: str, row: Row | None, wish: Wish, lab: Lab) -> About:
    """Return what is known of a test before its guest starts."""
    told: dict[str, Any] = {}
    if row is not None:
        told = {
            "id": row.id,
            "title": row.title,
            "source": list(row.source),
            "needs": list(row.needs),
            "right": dict(row.right),
        }
    selector = wish.machine or lab.options.machine
    name = text = digest = ""
    # A machine that cannot be read is the test's own to complain of.
    with contextlib.suppress(HarnessError, OSError):
        name, text, digest = _described(lab.machine_file(selector))
    return About(
        nodeid=nodeid,
        row=told,
        machine=name,
        machine_text=text,
        machine_digest=digest,
        own_machine=wish.machine is not None,
        kernel_args=wish.append,
    )


@functools.cache
def _described(file: Path) -> tuple[str, str, str]:
    """Return a machine's name, its file's text and its digest."""
    return file.stem, file.read_text(), load_machine(file).digest


def _version() -> str:
    """Return which harness this is: its commit too, where it is a checkout."""
    tree = paths.source_tree()
    words = ["git", "-C", str(tree), "describe", "--always", "--dirty"]
    try:
        if not (tree / ".git").exists():  # installed, maybe somewhere below another project's
            return __version__
        return f"{__version__} {process.run(words, timeout=20.0).stdout.strip()}"
    except HarnessError:
        return __version__
