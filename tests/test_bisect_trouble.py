"""What a bisection stops at, with no word on the kernel: it is the host that could not test it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import bisect_runs
from harness.bisect import Turn
from harness.errors import HostError
from harness.lab import Lab, Options
from harness.qemu import accel
from harness.report.bisection import Bisection
from harness.report.record import TestRecord, program
from harness.report.results import ResultsDir
from harness.verdict.status import Status
from tests.made_up_runs import Runs, runs
from tests.test_bisect import BUILD, Host, git, host, kernels
from tests.test_kbuild import PATCH, tree

__all__ = ["host", "runs", "tree"]  # fixtures

pytest_plugins = ["pytester"]

#: As they are outside of these tests.
PREPARE = bisect_runs.prepare

# The search


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        ("offline-2", "nvh: no kernel packages: Could not resolve 'deb' (a mirror)"),
        ("full-2", "KERNEL was not tested: MISS no room for a guest (see "),
        ("killed-2", "KERNEL was not tested: nvh was killed by signal 9 (see "),
        ("usage-2", "KERNEL was not tested: usage (see "),
        ("early-2", "KERNEL was not tested: early (see "),
        ("traceback-2", "KERNEL was not tested: "),
    ],
)
def test_trouble_of_the_host_says_nothing_of_a_kernel(host: Host, kernel: str, said: str) -> None:
    listed = kernels("good-1", kernel, "bad-3")
    code, _, err = host.run("--good", "good-1", "--bad", "bad-3", *listed)
    assert code == 125
    assert said.replace("KERNEL", kernel) in " ".join(err.split())
    assert f"{program()} bisect --resume {host.latest} goes on" in " ".join(err.split())
    assert sum(line.startswith("nvh: ") for line in err.splitlines()) == 1
    assert [step.kernel for step in host.kept.steps] == ["bad-3", "good-1"]
    (host.folder / "hurry").touch()
    latest = host.folder / "results/latest"
    stopped = host.latest
    latest.unlink()
    latest.symlink_to("another")
    code, out, _ = host.nvh("--resume", str(stopped))
    assert (code, "the first bad kernel: bad-3\n" in out) == (0, True)
    assert host.latest == stopped
    assert [(step.kernel, step.verdict) for step in host.kept.steps][2:] == [(kernel, "good")]


@pytest.mark.parametrize("kernel", ["offline-2", "full-2"])
def test_trouble_of_the_host_skips_no_commit(host: Host, kernel: str) -> None:
    linux = host.tree("good-1", kernel, "bad-3")
    words = ("--good", "v1", "--bad", "v3", "--tree", str(linux))
    assert host.run(*words)[0] == 125
    assert len(host.kept.steps) == 2
    assert host.kept.tree is not None
    assert "skip" not in git(Path(host.kept.tree.worktree), "bisect", "log")
    (host.folder / "hurry").touch()
    code, out, _ = host.nvh("--resume", "results/latest")
    assert (code, '("3: bad-3"), A Name' in out) == (0, True)


@pytest.mark.parametrize("lost", ["bundle", "patch"])
def test_what_was_given_and_is_gone_skips_no_commit(host: Host, lost: str) -> None:
    linux = host.tree("good-1", "full-2", "bad-3")
    patch, aside = host.folder / "a.patch", host.folder / "aside"
    patch.write_text(fake_patch())
    words = ("--good", "v1", "--bad", "v3", "--tree", str(linux), "--patch", str(patch))
    assert host.run(*words)[0] == 125
    (host.folder / "hurry").touch()
    path = {"bundle": host.bundle, "patch": patch}[lost]
    path.rename(aside)
    code, _, err = host.nvh("--resume", "results/latest")
    assert code == 125
    assert f"nvh: no {lost} at {path}" in " ".join(err.split())
    assert len(host.kept.steps) == 2
    aside.rename(path)
    assert host.nvh("--resume", "results/latest")[0] == 0


def fake_patch() -> str:
    """Return a patch that nobody applies."""
    return "--- a/README\n+++ b/README\n@@ -0,0 +1 @@\n+x\n"


def test_a_patch_that_does_not_apply_is_the_commits(
    host: Host, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bisect_runs, "build", BUILD)
    git(tree, "init", "-q", "-b", "main")
    for number, word in enumerate(("good-1", "other", "bad-3"), 1):
        (tree / "a.c").write_text("one\nother\nthree\n" if word == "other" else "one\ntwo\nthree\n")
        (tree / "b.c").write_text(f"{word}\n")
        git(tree, "add", "-A")
        git(tree, "commit", "-q", "-m", word)
        git(tree, "tag", f"v{number}")
    patch = host.folder / "a.patch"
    patch.write_text(PATCH)
    words = ("--good", "v1", "--bad", "v3", "--tree", str(tree), "--patch", str(patch), "-j", "1")
    code, out, _ = host.run(*words)
    assert code == 125
    assert "the first bad commit is one of 2" in out
    assert f"{patch} does not apply: " in host.kept.steps[-1].seen


# What tells a host's trouble from a kernel's


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ('HostError("no room", hint="make room")', True),
        ('harness.errors.HostFull("no room in /dev/shm")', True),
        ('harness.errors.HostStall("host stall: x")', True),
        ('harness.errors.ImageError("no packages")', True),
        ('LaunchError("QEMU refused to start: x")', True),
        ('harness.errors.OutOfTime("no end after 60 s")', False),
        ('GuestPanic("while booting")', False),
        ('harness.errors.UnfitKernel("it lacks DAX")', False),
        ('WorkloadError("no KTAP plan")', False),
    ],
)
def test_a_record_tells_what_is_the_hosts(
    runs: Runs, tmp_path: Path, error: str, told: bool
) -> None:
    results = ResultsDir.create(tmp_path / "kept").path
    made = f"import harness.errors\nmade = broken({error})\ndef test_v1_x(made): pass\n"
    ended = runs(made, f"--nvh-results={results}")
    (file,) = results.glob("tests/*/result.json")
    record = TestRecord.load(file)
    assert (record.status, record.of_host) == (Status.MISS, told), ended.output


def made_up(**changed: Any) -> Bisection:
    values = {"started": "", "given": "V1", "bundle": "", "good": "a", "bad": "b"}
    return Bisection(**{**values, "turn": Turn.BROKEN, **changed})


@pytest.mark.parametrize(
    ("changed", "machine"),
    [
        ({}, "default"),
        ({"bundle": "BUNDLE"}, "machine/small.toml"),
        ({"given": "BUNDLE"}, "machine/small.toml"),
        ({"bundle": "BUNDLE", "options": {"machine": "big", "accel": "tcg"}}, "big"),
    ],
)
def test_a_kernel_is_made_for_the_machine_of_its_run(
    host: Host, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], machine: str
) -> None:
    asked: list[Options] = []
    monkeypatch.setattr(Lab, "find_machine", lambda *_: None)
    monkeypatch.setattr(Lab, "images_of", lambda lab, _: asked.append(lab.options))
    values = {k: str(host.bundle) if v == "BUNDLE" else v for k, v in changed.items()}
    PREPARE(made_up(**values), "debian:6.1", print)
    (options,) = asked
    assert (options.kernel, options.machine.endswith(machine)) == ("debian:6.1", True)
    assert options.accel == ("tcg" if machine == "big" else "auto")


# KVM


@pytest.mark.parametrize("resumed", [False, True])
def test_kvm_that_is_not_there_ends_it_at_once(
    host: Host, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    monkeypatch.setattr(accel, "qemu_program", lambda: "/bin/false")
    monkeypatch.setattr(accel, "require_kvm", lambda _: None)
    linux = host.tree("good-1", "full-2", "bad-3")
    words = ["--good", "v1", "--bad", "v3", "--tree", str(linux), "--accel", "kvm"]
    if resumed:
        assert host.run(*words)[0] == 125
    before = host.starts

    def missing(_: str) -> None:
        raise HostError("KVM was asked for but there is no /dev/kvm")

    monkeypatch.setattr(accel, "require_kvm", missing)
    monkeypatch.setattr(bisect_runs, "Runs", lambda *_: pytest.fail("it went on"))
    code, _, err = host.nvh("--resume", "results/latest") if resumed else host.run(*words)
    assert code == 125
    assert "KVM was asked for but there is no /dev/kvm" in " ".join(err.split())
    assert host.starts == before
    assert resumed or not (host.folder / "results").exists()
    assert git(linux, "worktree", "list").count("\n") == (2 if resumed else 1)


def test_what_is_done_is_told_without_kvm(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "qemu_program", lambda: "/bin/false")
    monkeypatch.setattr(accel, "require_kvm", lambda _: None)
    listed = kernels("good-1", "bad-2")
    assert host.run("--good", "good-1", "--bad", "bad-2", *listed, "--accel", "kvm")[0] == 0
    monkeypatch.setattr(accel, "require_kvm", lambda _: pytest.fail("it was asked for"))
    assert host.nvh("--resume", "results/latest")[0] == 0
