"""Runs of nvh test as a user starts them, on images of the user's and a cache of the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import pytest
from junitparser import JUnitXml

from harness import paths
from harness.guest.boot import Recipe
from harness.guest.template import Template
from harness.lab import Lab

Eventually = Callable[..., None]
#: Five tests, each of them a second or two of guest time.
CHEAP = "V10 or test_s6_map_sync_without_dax"
#: Makes a template of a machine's file.
BUILDER = """
import sys
from harness.lab import Lab, Options
lab = Lab(Options(accel="tcg", machine=sys.argv[1]), say=print)
template = lab.template(lab.recipe())
print(template.path, template.identity.host_public.strip())
"""


def nvh(
    *words: str, timeout: float = 300, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run nvh to its end as a user would; ``env`` is added to the environment."""
    return subprocess.run(
        [sys.executable, "-m", "harness", *words],
        cwd=paths.source_tree(),
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


@dataclass(frozen=True)
class Cache:
    """A cache directory of the test's own, with the images of the user's."""

    path: Path

    @property
    def temporary(self) -> Path:
        """Where temporary files go that are not a guest's; a run that ends leaves none."""
        return self.path.parent / "temporary"

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "NVH_CACHE": str(self.path), "TMPDIR": str(self.temporary)}

    def guests(self) -> list[int]:
        """Return the processes of guests whose images come from here."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                program, *words = (folder / "cmdline").read_bytes().split(b"\0")
                # Not its arguments: a QEMU without rights is handed files that are open already.
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"qemu" not in program or b"--version" in words:
                continue
            if f"NVH_CACHE={self.path}".encode() in variables:
                found.append(int(folder.name))
        return found

    def locked(self) -> list[str]:
        """Return the locks of the store that somebody holds, and what was left aside."""
        store = self.path / "store"
        found = [path.name for path in store.glob("aside/*")]
        for path in store.glob("locks/*"):
            try:
                filelock.FileLock(path).acquire(timeout=0).lock.release()
            except filelock.Timeout:
                found.append(path.name)
        return found


@pytest.fixture(scope="module")
def template(tcg_lab: Lab, recipe: Recipe) -> Template:
    return tcg_lab.template(recipe)


@pytest.fixture
def cache(template: Template, tmp_path: Path, eventually: Eventually) -> Iterator[Cache]:
    """The images are the user's, the locks are not; at the end no guest and no lock is left."""
    made = Cache(tmp_path / "cache")
    made.temporary.mkdir()
    (made.path / "store").mkdir(parents=True)
    for kind in template.path.parents[1].iterdir():
        if kind.name not in {"aside", "locks"}:
            (made.path / "store" / kind.name).symlink_to(kind)
    yield made
    eventually(lambda: not made.guests())
    assert made.locked() == []


@dataclass(frozen=True)
class Run:
    """An nvh test that goes on."""

    process: subprocess.Popen[str]
    results: Path
    cache: Cache

    def summary(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.results / "latest" / "summary.json").read_text())
        return loaded

    def verdicts(self) -> dict[str, str]:
        return {test["test"]: test["status"] for test in self.summary()["tests"]}

    def junit(self) -> JUnitXml:
        return JUnitXml.fromfile(str(self.results / "latest" / "junit.xml"))

    def end(self, seconds: float) -> str:
        """Wait for its end and return what it said."""
        out, _ = self.process.communicate(timeout=seconds)
        assert "Traceback" not in out, out
        return out


@pytest.fixture
def started(cache: Cache, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Start a run of some tests, two at once by default, in a process group as a shell does."""
    with contextlib.ExitStack() as stack:

        def start(
            tests: str,
            *words: str,
            workers: int = 2,
            before: Sequence[str] = (),
            into: Path | None = None,
        ) -> Run:
            results = into or tmp_path / "results"
            process = subprocess.Popen(
                [
                    *before,
                    *(sys.executable, "-m", "harness", "test", "--accel", "tcg"),
                    *("-n", str(workers), "-k", tests, "--results", str(results), *words),
                ],
                cwd=paths.source_tree(),
                env=cache.env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return Run(process, results, cache)

        yield start


Started = Callable[..., Run]
