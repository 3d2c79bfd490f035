"""Real runs of pytest with the harness's plugin, on a catalogue, a kernel and guests of their own.

The fixture ``runs`` needs the plugin pytester, which a module asks for in its ``pytest_plugins``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import paths

#: Puts a source tree of the test's own under the plugin, and guests that only have a log.
CONFTEST = """
import contextlib, types
from pathlib import Path
import pytest
import harness.lab, harness.paths, harness.pytest_plugin

ROOT = Path(__file__).parent
FOLDER = ROOT / "the-guests"
FOLDER.mkdir(exist_ok=True)
(FOLDER / "console.log").write_text("all of the console\\n")
(FOLDER / "qemu.sh").write_text("exec qemu\\n")
(FOLDER / "qemu.stderr").write_text("")
harness.paths.source_tree = lambda: ROOT
harness.lab.Lab.kernel = types.SimpleNamespace(
    release="6.12.1", origin="made up", digest="0", image=ROOT / "conftest.py", modules=None,
    config=None,
)
harness.lab.Lab.properties = lambda self: {"kernel": "6.12.1"}
harness.pytest_plugin.check_machine = lambda lab, name: None
pytest_plugins = ["harness.pytest_plugin"]


class Console:
    position = 0
    log_lost = False

    words = "console\\n"

    def text(self, since=0, limit=0):
        return self.words


class Guest:
    facts = {"made": "up"}
    broken = None

    def __init__(self):
        self.log = ""
        self.pins = 0
        self.untold = self.killer = None
        self.last_words = "console\\n"
        child = types.SimpleNamespace(poll=lambda: None)
        self.vm = types.SimpleNamespace(
            console=Console(), death=lambda: None, folder=FOLDER, child=child
        )

    def mark(self, text):
        return "token"

    def dmesg(self, since=None):
        return self.log

    def ending(self, since, *, known=False):
        if self.untold:
            self.vm.console.words, self.vm.death = self.last_words, lambda: self.killer
            raise self.untold
        return self.dmesg(since) + f"pins that stay are known: {known}\\n", self.pins

    def only_the_kernels(self, text):
        return "" if "said by a program" in text else text


class Pool:
    @contextlib.contextmanager
    def guest(self, wish, then=None, *, keep=None):
        with (ROOT / "wishes").open("a") as file:
            file.write(f"{wish} then {then}\\n")
        yield Guest()


@pytest.fixture(scope="session")
def guests():
    return Pool()
"""

CATALOGUE = """
[V1]
title = "a made-up row"
source = ["a made-up source"]
[V1.right]
map = "OK"
[V11]
title = "another"
source = ["a made-up source"]
"""

KNOWN = """
[[issue]]
id = "made-up-issue"
title = "it fails"
tests = ["test_v1_known*"]
kernels = []
symptom = "expected OK, seen ENOSYS"
evidence = "made up"

[[issue]]
id = "made-up-pair"
title = "it fails with two symptoms, of which one alone is another failure"
tests = ["test_v1_pair*"]
kernels = []
symptom = "map: expected OK, seen ENOSYS|waits: expected true, seen false"
requires = "^waits: "
evidence = "made up"
"""

HEAD = """
import ast
from pathlib import Path
import pytest
from harness.errors import (
    GuestHung, GuestLost, GuestPanic, GuestReset, HostError, LaunchError, UsageError, WorkloadError,
)
from harness.guest import CommandTimeout

def broken(error):
    @pytest.fixture
    def fixture():
        raise error
    return fixture

def note_parses():
    parse, notes = ast.parse, Path("parsed").absolute()

    def noted(source, *words, **named):
        with notes.open("a") as file:
            print(str(source).splitlines()[:1], file=file)
        return parse(source, *words, **named)

    ast.parse = noted
"""

BUG = "[    9.1] BUG: KASAN: use-after-free in dax_layout_busy_page+0x1/0x2"


@dataclass(frozen=True)
class Run:
    """What a run left."""

    code: int
    output: str
    results: Path

    @property
    def summary(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.results / "latest" / "summary.json").read_text())
        return loaded

    @property
    def tests(self) -> dict[str, dict[str, Any]]:
        """Each test's entry, by the name behind test_v1_."""
        return {
            entry["test"].rpartition("::")[2].removeprefix("test_v1_"): entry
            for entry in self.summary["tests"]
        }

    @property
    def parsed(self) -> set[str]:
        """The first lines of what was parsed after a test had called note_parses()."""
        notes = self.results.with_name("parsed")
        return set(notes.read_text().splitlines()) if notes.exists() else set()

    def dmesg(self, name: str) -> str:
        """What was kept of the kernel's log, by the name behind test_v1_."""
        folder: str = self.tests[name]["folder"]
        return (self.results / "latest" / folder / "dmesg").read_text()


Runs = Callable[..., Run]


@pytest.fixture
def runs(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Run the plugin on testcases of the test's own."""
    monkeypatch.setenv("PYTHONPATH", str(paths.source_tree()))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeconftest(CONFTEST)
    pytester.makefile(".ini", pytest="[pytest]\njunit_family = xunit1\n")
    folder = pytester.mkdir("testcases")
    (folder / "catalogue").mkdir()
    (folder / "catalogue" / "v.toml").write_text(CATALOGUE)
    (folder / "known-issues.toml").write_text(KNOWN)

    def run(tests: str, *options: str) -> Run:
        (folder / "test_v.py").write_text(HEAD + tests)
        done = pytester.runpytest_subprocess(
            "testcases", "-q", "-p", "no:cacheprovider", *options, timeout=300
        )
        text = done.stdout.str() + done.stderr.str()
        return Run(int(done.ret), text, pytester.path / "results")

    return run
