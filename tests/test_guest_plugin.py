"""The harness as a stranger has it: a wheel in a virtual environment, a project of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import paths

pytestmark = pytest.mark.guest

#: What a wheel is made of.
SOURCES = (
    *("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "conftest.py"),
    *("harness", "guest-images", "testcases"),
)


def run(words: Sequence[str | Path], cwd: Path, *, seconds: float = 600) -> str:
    """Run a program away from this checkout and return what it said; it has to end well."""
    outside = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST", "PYTHON", "VIRTUAL_ENV"))
    }
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=outside,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{words}: {done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


@dataclass(frozen=True)
class Installed:
    """A virtual environment that has the wheel, and the wheel."""

    bin: Path
    wheel: Path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build the wheel from a copy of the checkout and install it, and nothing else of ours."""
    root = tmp_path_factory.mktemp("stranger")
    checkout, environment = root / "checkout", root / "venv"
    checkout.mkdir()
    left_out = shutil.ignore_patterns("__pycache__", "build", "tree", "*.pyc")
    for name in SOURCES:
        source = paths.source_tree() / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=left_out)
        else:
            shutil.copy(source, checkout)
    # A build that was not cleaned away: none of it belongs into the wheel.
    (checkout / "testcases/workloads/build").mkdir()
    (checkout / "testcases/workloads/build/stale").touch()
    run([sys.executable, "-m", "venv", environment], root)
    project = tomllib.loads((checkout / "pyproject.toml").read_text())
    pip: list[str | Path] = [
        environment / "bin/python",
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
    ]
    needed = [*project["build-system"]["requires"], "wheel", *project["project"]["dependencies"]]
    try:
        run([*pip, "install", "-q", "--retries", "1", *needed], root, seconds=900)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        last = re.findall(r"ERROR: (.*)", str(error)) or ["no end in time"]
        pytest.skip(f"pip has no index to install from: {last[-1]}")
    alone = ["--no-deps", "--no-index"]
    run([*pip, "wheel", "-q", *alone, "--no-build-isolation", "-w", root, "."], checkout)
    (wheel,) = root.glob("*.whl")
    shutil.rmtree(checkout)
    run([*pip, "install", "-q", *alone, wheel], root)
    run([*pip, "check"], root)
    return Installed(environment / "bin", wheel)


def snippets(language: str) -> list[str]:
    """Return the examples in docs/plugin.md: what is told there is what is tried here."""
    text = (paths.source_tree() / "docs" / "plugin.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_a_project_of_its_own(installed: Installed, tmp_path: Path) -> None:
    conftest, test_file, more = snippets("python")
    assert len(test_file.strip().splitlines()) <= 10
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_mine.py").write_text(test_file + more + MORE)
    (tmp_path / "map_sync.c").write_text(*snippets("c"))
    words: list[str | Path] = [
        installed.bin / "python",
        "-m",
        "pytest",
        "--strict-markers",
        "--nvh-accel=tcg",
    ]
    said = run(words, tmp_path, seconds=1500)
    assert "3 passed" in said
    latest = tmp_path / "results" / "latest"
    summary = json.loads((latest / "summary.json").read_text())
    assert [test["status"] for test in summary["tests"]] == ["PASS"] * 3
    assert (latest / "report.html").is_file()
    (output,) = latest.glob("tests/*the_rest*/output.txt")
    assert str(installed.bin.parent) in output.read_text()


MORE = '''

def test_the_rest(guest, machine, devdax, case):
    """The other fixtures, and where all this comes from."""
    import harness
    print(harness.__file__)
    case.expect("machine", machine.name, right="default")
    size = guest.run(f"cat /sys/bus/dax/devices/{devdax.device[5:]}/size").stdout
    case.expect("devdax", int(size), right=devdax.size)
'''


def test_the_commands_have_all_they_read(installed: Installed, tmp_path: Path) -> None:
    listed = run([installed.bin / "nvh", "test", "--list"], tmp_path)
    here = run([sys.executable, "-m", "harness", "test", "--list"], paths.source_tree())
    assert listed == here
    assert "default" in run([installed.bin / "nvh", "machine", "list"], tmp_path)
    words = ["test", "-k", "V3", "--accel", "tcg", "--dry-run"]
    assert f"--nvh-results={tmp_path}/results/" in run([installed.bin / "nvh", *words], tmp_path)


def test_the_wheel_holds_what_the_checkout_holds(installed: Installed, tmp_path: Path) -> None:
    shutil.unpack_archive(installed.wheel, tmp_path, "zip")
    tree = tmp_path / "harness" / "tree"
    for name in ("guest-images", "testcases"):
        ours = paths.source_tree() / name
        here, there = (
            {
                str(file.relative_to(folder))
                for file in folder.rglob("*")
                if file.is_file() and not {"__pycache__", "build"} & set(file.parts[-3:])
            }
            for folder in (ours, tree / name)
        )
        assert here == there
    assert not (tree / "testcases/workloads/build").exists()
