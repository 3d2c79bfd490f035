"""What a run tells of itself and of each test for the bundles of those that do not pass."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import __version__, paths, process
from harness.errors import HarnessError
from harness.images.kernel import Kernel
from harness.lab import Lab
from harness.pool import Wish
from harness.report import unbundle
from harness.report.bundle import SHARED, About, Setting
from harness.spec import load_machine
from harness.verdict.expectation import Row


def setting(config: pytest.Config, lab: Lab) -> Setting:
    """Return what all tests of a run share; a kernel or a QEMU that cannot be had is left out."""
    root = paths.source_tree()
    kernel, properties = None, {}
    with contextlib.suppress(HarnessError):
        kernel = lab.kernel
        properties = dict(lab.properties())
    selector = config.getoption("--nvh-kernel")
    included = bool(config.getoption("--nvh-with-kernel"))
    if kernel is not None and included:
        kernel, selector = _as_told(kernel, selector)
    return Setting(
        testcases=root / "testcases",
        reports=paths.reports(),
        workloads=lab.workloads,
        kernel=kernel,
        selector=selector,
        with_kernel=included,
        isolation=str(config.getoption("--nvh-isolation")),
        nvh=str(Path(sys.executable).with_name("nvh")),
        properties={**properties, "harness": _version()},
    )


def _as_told(kernel: Kernel, selector: str | None) -> tuple[Kernel, str | None]:
    """Return a kernel and its selector; one that lies in a bundle goes by what that says of it.

    Its path says nothing: nvh repro removes what it unpacked.
    """
    if kernel.image.parts[-4:-1] == (SHARED, "kernel", "boot"):
        with contextlib.suppress(HarnessError):
            told = unbundle.read(kernel.image.parents[3]).about.get("kernel")
            if isinstance(told, Mapping):
                word = told.get("selector")
                origin = str(told.get("origin", kernel.origin))
                return replace(kernel, origin=origin), None if word is None else str(word)
    return kernel, selector


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
