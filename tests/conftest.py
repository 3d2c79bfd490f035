"""Fixtures that several of the harness's own tests share."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.guest import Guest
from harness.guest.boot import Recipe, booted
from harness.guest.guest import deadline_scale
from harness.lab import Lab, Options
from harness.qemu.console import Console
from harness.spec import Machine, load_machine
from tests.made_up_runs import runs
from tests.real_runs import cache, started, template

# A shell without job control starts what runs in the background with SIGINT ignored, and programs
# pass that on: the tests' own would then not be interrupted either.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

__all__ = ["cache", "runs", "started", "template"]  # fixtures


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the units first: they tell in seconds what a boot would take longer to tell."""
    items.sort(key=lambda item: item.get_closest_marker("guest") is not None)


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A child that computes without end."""
    with subprocess.Popen(["sh", "-c", "while :; do :; done"]) as child:
        yield child
        child.kill()


@pytest.fixture
def machine_of(tmp_path: Path) -> Callable[[str], Machine]:
    """Load a machine from the text of its file."""

    def load(text: str) -> Machine:
        file = tmp_path / "made.toml"
        file.write_text(text)
        return load_machine(file)

    return load


@pytest.fixture
def serial_line(tmp_path: Path) -> Iterator[tuple[Console, socket.socket]]:
    """A console and the end of its line that a guest would write to."""
    ours, theirs = socket.socketpair()
    console = Console(ours, tmp_path / "console.log")
    yield console, theirs
    theirs.close()
    console.close()


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait until a condition holds; for what another thread or process is about to do."""

    def wait(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not come true in time"
            time.sleep(0.005)

    return wait


@pytest.fixture
def nvh_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nvh be a command that the user's shell finds."""
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvh")


# Guests


@pytest.fixture(scope="session")
def tcg_lab() -> Lab:
    """What guests are made of, with $NVH_KERNEL, on the accelerator that every host has."""
    return Lab(Options(kernel=os.environ.get("NVH_KERNEL"), accel="tcg"))


@pytest.fixture(scope="session")
def recipe(tcg_lab: Lab) -> Recipe:
    """All that a boot of the default machine depends on."""
    return tcg_lab.recipe()


@pytest.fixture(scope="session")
def shared(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """One provisioned guest of the default machine for all tests that leave it sound."""
    with booted(recipe, tmp_path_factory.mktemp("shared")) as guest:
        yield guest


@pytest.fixture
def reliability() -> Callable[[str, str, float, int | None], None]:
    """Take a fault, the verdict, the seconds in between and the limit, for docs/reliability.md.

    In ``make reliability``, on a host with nothing else to do, a verdict that comes after its limit
    fails the test; in other runs a slow machine is no fault.
    """

    def note(fault: str, verdict: str, seconds: float, limit: int | None) -> None:
        file = os.environ.get("NVH_RELIABILITY")
        if not file:
            return
        with Path(file).open("a") as out:
            out.write(json.dumps([fault, verdict, seconds, limit]) + "\n")
        idle = os.getloadavg()[0] <= 2 * len(os.sched_getaffinity(0))
        if idle and limit is not None:
            allowed = limit * deadline_scale("tcg")  # the tests that note have no other guests
            assert seconds <= allowed, f"{fault}: {seconds:.1f} s, {allowed:g} are allowed"

    return note
