"""The workflows of continuous integration: what they call exists, and KVM is proven first."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import paths
from harness.cli import main

ROOT = paths.source_tree()
GITHUB = ROOT / ".github" / "workflows"
FILES = [GITHUB / "check.yml", GITHUB / "nightly.yml", ROOT / ".gitlab-ci.yml"]
#: What an image cache must not carry to another day or another processor.
VOLATILE = ("kernel-choice", "template", "accel")


def load(file: Path) -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load(file.read_text())
    return loaded


def jobs(file: Path) -> dict[str, dict[str, Any]]:
    """Return the jobs of a workflow with their shell lines under "lines"."""
    found = load(file)
    if "jobs" in found:
        return {
            name: {**job, "lines": [step["run"] for step in job["steps"] if "run" in step]}
            for name, job in found["jobs"].items()
        }
    default = found.get("default", {}).get("before_script", [])
    return {
        name: {**job, "lines": [*default, *job["script"]]}
        for name, job in found.items()
        if isinstance(job, dict) and "script" in job
    }


def commands(file: Path, job: str | None = None) -> Iterator[list[str]]:
    """Yield what the jobs of a workflow start, word by word."""
    for name, found in jobs(file).items():
        if job in (None, name):
            for line in "\n".join(found["lines"]).splitlines():
                # An expression of GitHub's is one word.
                words = shlex.split(re.sub(r"\$\{\{.*?\}\}", "EXPRESSION", line))
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    del words[0]
                if words:
                    yield words


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_workflow_is_what_its_service_reads(file: Path, tmp_path: Path) -> None:
    schema = "vendor.github-workflows" if file.parent == GITHUB else "vendor.gitlab-ci"
    broken = tmp_path / file.name
    broken.write_text(file.read_text().replace("\n    runs-on:", "\n    run-on:"))
    if file.parent != GITHUB:
        broken.write_text(file.read_text().replace("when: always", "when: ever"))
    for one, expected in ((file, 0), (broken, 1)):
        words = ["-m", "check_jsonschema", "--builtin-schema", schema, str(one)]
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == expected, done.stdout + done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_command_exists(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets is not None
    seen = set()
    for words in commands(file):
        program = Path(words[0]).name
        seen.add(program)
        if program == "make":
            assert set(words[1:]) <= set(targets[1].split())
        elif words[0].startswith(".ci/"):
            assert os.access(ROOT / words[0], os.X_OK)
        if program == "nvh" or words[0] == ".ci/nightly":
            command = words[1] if program == "nvh" else "matrix"  # which its arguments go to
            with pytest.raises(SystemExit) as ended:
                main([command, "--help"])
            assert ended.value.code == 0
            known = capsys.readouterr().out
            for option in (word for word in words[1:] if word.startswith("-")):
                assert re.search(rf"(^|[\s,\[]){re.escape(option)}\b", known), option
    assert "make" in seen


@pytest.mark.parametrize(
    ("file", "job"),
    [(FILES[0], "guests"), (FILES[1], "kernels"), (FILES[2], "guests"), (FILES[2], "nightly")],
    ids=lambda word: getattr(word, "name", word),
)
def test_kvm_is_proven_before_guests_are_tested(file: Path, job: str) -> None:
    lines = [" ".join(words) for words in commands(file, job)]
    proof = next(n for n, line in enumerate(lines) if "nvh doctor --accel kvm" in line)
    tests = [n for n, line in enumerate(lines) if re.search("make guest|nvh test|[.]ci/", line)]
    assert tests
    assert proof < min(tests)
    for line in lines:
        if "nvh test" in line:
            assert "--accel kvm" in line


def test_nights_have_a_schedule() -> None:
    # YAML 1.1 reads GitHub's key "on" as true.
    assert load(FILES[1])[True]["schedule"] == [{"cron": "17 2 * * *"}]
    rules = jobs(FILES[2])["nightly"]["rules"]
    assert {"if": '$CI_PIPELINE_SOURCE == "schedule"'} in rules
    for job in ("unit", "guests"):
        assert jobs(FILES[2])[job]["rules"] == [{"if": '$CI_PIPELINE_SOURCE != "schedule"'}]


@pytest.mark.parametrize("file", FILES[:2], ids=lambda file: file.name)
def test_caches_are_keyed_by_content_and_evidence_is_kept_on_github(file: Path) -> None:
    for job in load(file)["jobs"].values():
        steps = {step.get("name"): step for step in job["steps"]}
        for step in job["steps"]:
            assert re.fullmatch(r"[\w-]+/[\w-]+(/[\w-]+)?@v\d+", step.get("uses", "a/b@v1"))
        assert steps["Show the tests"]["if"] == "always()"
        if "Images" in steps:
            cached = steps["Images"]["with"]
            assert "hashFiles('guest-images/**'" in cached["key"]
            assert not any(word in cached["path"] for word in VOLATILE)
            assert steps["Keep the results"]["if"] == "always()"


def test_caches_are_keyed_by_content_and_evidence_is_kept_on_gitlab() -> None:
    for name, job in jobs(FILES[2]).items():
        assert job["artifacts"]["when"] == "always"
        assert job["artifacts"]["reports"]["junit"]
        for cache in job.get("cache", []) if name == "nightly" else ():
            assert not any(word in path for path in cache["paths"] for word in VOLATILE)
    images = load(FILES[2])[".images"]["cache"]
    assert all((ROOT / file).is_file() for file in images["key"]["files"])


def test_make_nightly_tests_the_kernels_that_it_is_given() -> None:
    done = subprocess.run(
        [
            "make",
            "-n",
            "--no-print-directory",
            "nightly",
            "KERNELS=debian:6.1 /a/linux",
            "ARGS=-k V1",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    last = done.stdout.splitlines()[-1]
    assert last.endswith("nvh matrix --kernel debian:6.1 --kernel /a/linux -k V1")


# .ci/nightly, with a stand-in for nvh


@dataclass(frozen=True)
class Checkout:
    """A checkout whose nvh does as it is told."""

    folder: Path

    def night(self, matrix: int, *, compare: int = 0, name: str = "n") -> tuple[int, list[str]]:
        """Run a night; return its exit code and what nvh was asked for."""
        calls = self.folder / "calls"
        calls.unlink(missing_ok=True)
        done = subprocess.run(
            [self.folder / ".ci" / "nightly", "--kernel", "debian:6.1"],
            env={**os.environ, "VENV": "venv", "M": str(matrix), "C": str(compare), "NAME": name},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.stderr == ""
        return done.returncode, calls.read_text().splitlines()

    @property
    def before(self) -> str:
        """Return which night is kept."""
        file = self.folder / "build" / "nightly-before" / "k" / "summary.json"
        return file.read_text().strip() if file.exists() else ""


NVH = """#!/bin/bash
echo "$*" >>calls
[[ $1 = compare ]] && exit "$C"
((M == 2)) && exit 2
mkdir -p "results/$NAME/k"
touch "results/$NAME/k/console.log"
printf '{\n "combinations": [\n  {\n   "exit_code": %s\n  }\n ],\n "exit_code": %s\n}\n' \
    "${OTHER:-$M}" "$M" >"results/$NAME/matrix.json"
echo "$NAME" >"results/$NAME/k/summary.json"
ln -sfn "$NAME" results/latest
exit "$M"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    for name, text in ((".ci/nightly", (ROOT / ".ci/nightly").read_text()), ("venv/bin/nvh", NVH)):
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
        file.chmod(0o755)
    return Checkout(tmp_path)


def test_a_night_with_a_failure_that_did_not_test_all_is_not_kept(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout.night(0, name="one")
    monkeypatch.setenv("OTHER", "125")
    assert checkout.night(1, name="two")[0] == 1
    assert checkout.before == "one"


def test_a_night_asks_for_kvm_and_is_held_against_the_one_before(checkout: Checkout) -> None:
    matrix = "matrix --accel kvm --kernel debian:6.1"
    assert checkout.night(0, name="one") == (0, [matrix])
    assert checkout.before == "one"
    assert not list(checkout.folder.glob("build/**/console.log"))
    code, calls = checkout.night(0, compare=1, name="two")
    assert (code, calls) == (1, [matrix, "compare build/nightly-before results/latest"])
    assert checkout.before == "two"


@pytest.mark.parametrize(
    ("matrix", "compare", "code", "kept"),
    [
        (0, 0, 0, "two"),
        (1, 0, 1, "two"),
        (1, 2, 1, "two"),
        (0, 2, 2, "two"),
        (125, 1, 125, "one"),  # what was not tested is still missed tomorrow
        (130, 0, 130, "one"),
        (2, 0, 2, "one"),
    ],
)
def test_what_a_night_ends_with(
    checkout: Checkout, matrix: int, compare: int, code: int, kept: str
) -> None:
    checkout.night(0, name="one")
    assert checkout.night(matrix, compare=compare, name="two")[0] == code
    assert checkout.before == kept
