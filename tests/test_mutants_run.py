"""Mutants in kernels: each is run once, and what was seen is kept."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from pathlib import Path

import pytest

from benchmarks import mutant, mutants
from benchmarks.content import content
from benchmarks.mutant import Mutant, Outcome, Verdict
from benchmarks.mutants import Bench
from harness import logged
from harness.errors import BuildError, UsageError
from harness.images import kbuild
from harness.images.store import Store
from harness.report import summary
from harness.report.record import TestRecord
from harness.report.results import make_folder
from harness.verdict.status import Status
from tests.made_up_mutants import (
    IN_V,
    KNOWN,
    V1,
    V3,
    book,
    made,
    outcome,
)


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The commands that were run beside tests, one a line; they do nothing."""
    said = tmp_path / "beside"
    said.touch()

    def command(*words: str) -> list[str]:
        if words[0] == "test":
            return ["nvh", *words]
        return ["sh", "-c", f'echo "$@" >>{said}', "nvh", *words]

    monkeypatch.setattr(logged, "command", command)
    return said


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: Path) -> Bench:
    monkeypatch.setattr(kbuild, "build", _build)
    folder = tmp_path / "results"
    folder.mkdir()
    return Bench(
        store=Store(tmp_path / "store"),
        folder=folder,
        setting="a hash",
        options=("-n", "1"),
        whole=False,
        again=False,
        say=lambda _: None,
    )


def _build(source: str, store: Store, **asked: object) -> kbuild.Built:
    files = asked["patch_files"]
    assert isinstance(files, list)
    assert source == "debian-source:6.12"
    if files and "broken" in files[0].name:
        raise BuildError("the kernel does not build: f.c:1: error: x")
    return kbuild.Built(Path("/store") / (files[0].stem if files else "unpatched"), "it", ())


Runs = list[tuple[str, str]]
ALL = "(test_v3_ and refused) or (test_v1_)"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Let a run be played: on a patched kernel V3 fails, and elsewhere it passes."""
    started: Runs = []

    def play(argv: list[str], folder: Path, *, echo: bool) -> int:
        kernel = Path(argv[argv.index("--kernel") + 1]).name
        selection = argv[argv.index("-k") + 1] if "-k" in argv else ""
        assert argv[argv.index("--results") + 1] == str(folder)
        started.append((kernel, selection))
        if kernel == "unbootable":
            (folder / "latest").unlink(missing_ok=True)
            (folder / "output.log").write_text("nvh: the guest's kernel panicked\n")
            return 125
        word = "PASS" if kernel == "unpatched" else "MISS" if kernel == "mute" else "FAIL"
        results = make_folder(folder)
        records = [
            TestRecord(IN_V + V1, Status.PASS, 0.1),
            TestRecord(IN_V + V3, Status(word), 0.1, message="map: expected EOPNOTSUPP, seen OK"),
        ]
        summary.write(
            results / "summary.json", records, {"kernel": "6.12", "accel": "tcg"},
            exit_code=1, finished=kernel != "cut",
        )  # fmt: skip
        return 1

    monkeypatch.setattr(logged, "run", play)
    return started


def named(name: str) -> Mutant:
    return made(name=name, patch=Path(f"{name}.patch"))


def test_each_mutant_is_run_once_and_the_kernel_without_it_once_for_all(
    bench: Bench, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [made(), named("second")]
    found = mutants.judge_all(bench, both)
    assert [found[one.name][0].verdict for one in both] == [Verdict.FOUND, Verdict.FOUND]
    assert runs == [(name, ALL) for name in ("unpatched", "short-pin", "second")]
    assert "1/2 short-pin: found; 1 failed of 2 tests" in capsys.readouterr().out
    again = mutants.judge_all(bench, both)
    assert [again[one.name][0] for one in both] == [found[one.name][0] for one in both]
    assert len(runs) == 3


def test_the_next_kernel_is_built_while_tests_run(bench: Bench, runs: Runs, beside: Path) -> None:
    both = [dataclasses.replace(one, fragments=("iommufd",)) for one in (made(), named("second"))]
    mutants.judge_all(bench, both)
    build = "kernel build debian-source:6.12 --config iommufd --patch {}.patch -j1"
    assert beside.read_text().splitlines() == [build.format("short-pin"), build.format("second")]
    mutants.judge_all(bench, both)
    assert len(beside.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"setting": "another hash"}, ["unpatched", "short-pin"]),
        ({"whole": True}, ["unpatched", "short-pin"]),
        ({"again": True}, ["unpatched", "short-pin"]),
        ({"options": ("-n", "2")}, []),
    ],
)
def test_what_changes_a_run_repeats_it(
    bench: Bench, runs: Runs, changed: dict[str, object], names: list[str]
) -> None:
    mutants.judge_all(bench, [made()])
    runs.clear()
    mutants.judge_all(Bench(**{**bench.__dict__, **changed}), [made(), made()])
    assert [kernel for kernel, _ in runs][: len(names) or None] == names
    assert [kernel for kernel, _ in runs].count("unpatched") == names.count("unpatched")


def test_a_further_mutant_runs_only_its_own_tests_without_the_patch(
    bench: Bench, runs: Runs
) -> None:
    mutants.judge_all(bench, [made()])
    other = made(name="other", patch=Path("other.patch"), passes=("V1", "V2"))
    mutants.judge_all(bench, [made(), other])
    assert runs[2:] == [("unpatched", "(test_v2_)"), ("other", f"{ALL} or (test_v2_)")]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("broken", "the kernel does not build: f.c:1: error: x"),
        ("unbootable", "the guest's kernel panicked"),
        ("mute", f"{V3} is MISS: map: expected EOPNOTSUPP, seen OK"),
        ("cut", "it left no log"),
    ],
)
def test_a_mutant_that_cannot_be_tested_does_not_end_the_others(
    bench: Bench, runs: Runs, name: str, why: str
) -> None:
    found = mutants.judge_all(bench, [named(name), made()])
    assert found[name][0].verdict is Verdict.UNTESTED
    assert why in found[name][0].problems[0]
    assert found["short-pin"][0].verdict is Verdict.FOUND
    runs.clear()
    mutants.judge_all(bench, [named(name)])
    again = {"broken": [], "mute": [("mute", "(test_v3_refused)")]}  # what was not judged
    assert runs == again.get(name, [(name, ALL)])


def test_an_interruption_ends_all(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logged, "run", lambda *_, **__: 130)
    with pytest.raises(KeyboardInterrupt):
        mutants.judge_all(bench, [made()])


def test_a_patch_that_does_not_apply_is_told_before_anything_is_built(tmp_path: Path) -> None:
    root = tmp_path / "source"
    root.mkdir()
    (root / "f.c").write_text("right\n")
    folder = tmp_path / "book"
    folder.mkdir()
    mutants.check_patches(mutant.load(book(folder)), root)
    assert (root / "f.c").read_text() == "right\n"
    (root / "f.c").write_text("something else\n")
    with pytest.raises(UsageError, match=r"short-pin.patch does not apply: f.c: .*FAILED"):
        mutants.check_patches(mutant.load(book(folder)), root)


def test_testcases_are_told_apart_by_what_is_in_them(tmp_path: Path) -> None:
    folder = tmp_path / "testcases" / "workloads"
    (folder / "build").mkdir(parents=True)
    (folder / "pin.c").write_text("int main;")
    before = content(tmp_path, "testcases")
    (folder / "build" / "pin").write_text("what was compiled does not count")
    assert content(tmp_path, "testcases") == before
    (tmp_path / "modules.toml").write_text("a file beside the folder")
    assert content(tmp_path, "testcases") == before
    assert content(tmp_path, "testcases", "modules.toml") != before
    (folder / "pin.c").write_text("int main();")
    assert content(tmp_path, "testcases") != before


def test_what_was_seen_is_read_again_and_a_damaged_file_is_not(tmp_path: Path) -> None:
    kept = outcome({IN_V + V3: KNOWN})
    kept.save(tmp_path)
    assert Outcome.load(tmp_path, "k") == kept
    assert Outcome.load(tmp_path, "another").tests == {}
    (tmp_path / "seen.json").write_text(json.dumps({"key": "k", "tests": []}))
    assert Outcome.load(tmp_path, "k").tests == {}


def test_wrong_words_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["mutants", "-k", "nothing-like-it"])
    assert mutants.main() == 2
    assert capsys.readouterr().err == (
        "nvh: no mutant is called 'nothing-like-it' (--list shows them)\n"
    )
