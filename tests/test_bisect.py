"""A bisection over kernels and over commits, with stand-ins for runs."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import bisect_runs, paths
from harness.bisect import Verdict
from harness.cli import main
from harness.commands import bisect as command
from harness.commands.testing import selected
from harness.git_bisect import Worktree
from harness.images import packaged
from harness.report import bisection
from harness.report.record import program
from harness.report.results import owned
from tests import fake_repro
from tests.made_up_bundles import bundle_of
from tests.test_kbuild import tree

__all__ = ["tree"]  # a fixture

FAKE = Path(fake_repro.__file__)
#: As it is outside of these tests.
BUILD = bisect_runs.build
#: Seconds after which a bisection of stand-ins hangs, on a host that has much else to do.
LONG = 300


# Runs


@dataclass(frozen=True)
class Host:
    """Where bisections run, and what was started there."""

    folder: Path
    bundle: Path
    capfd: pytest.CaptureFixture[str]

    @property
    def starts(self) -> list[str]:
        log = self.folder / "starts"
        return [line.split()[1] for line in log.read_text().splitlines()] if log.exists() else []

    @property
    def latest(self) -> Path:
        return (self.folder / "results/latest").resolve()

    @property
    def kept(self) -> bisection.Bisection:
        return bisection.load(self.latest)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start nvh bisect as a process, to be interrupted or killed."""
        return subprocess.Popen(
            # A shell without job control lets what it starts with & ignore Ctrl-C.
            ["env", "--default-signal=INT", sys.executable, str(FAKE), "bisect", *words],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def begun(self, process: subprocess.Popen[str], kernel: str) -> None:
        """Wait until a kernel is being tested."""
        end = time.monotonic() + LONG
        while kernel not in self.starts:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)

    def run(self, *words: str) -> tuple[int, str, str]:
        return self.nvh(str(self.bundle), "--results", "results", *words)

    def nvh(self, *words: str) -> tuple[int, str, str]:
        self.capfd.readouterr()
        code = main(["bisect", *words])
        out, err = self.capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    def tree(self, *kernels: str) -> Path:
        """Make a git repository with a commit for each kernel, tagged with its place."""
        root = self.folder / "linux"
        root.mkdir()
        git(root, "init", "-q", "-b", "main")
        for number, kernel in enumerate(kernels, 1):
            (root / "kernel").write_text(f"{kernel}\n")
            git(root, "add", "kernel")
            git(root, "commit", "-q", "-m", f"{number}: {kernel}")
            git(root, "tag", f"v{number}")
        return root


def git(root: Path, *words: str) -> str:
    named = ("-c", "user.name=A Name", "-c", "user.email=a@b", "-C", str(root))
    done = subprocess.run(
        ["git", *named, *words], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout


@pytest.fixture
def host(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Host]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAKE_REPRO_LOG", str(tmp_path / "starts"))
    monkeypatch.setenv("NVH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(paths.source_tree()))
    for name in ("repro_argv", "testing_argv", "build", "prepare"):
        monkeypatch.setattr(bisect_runs, name, getattr(fake_repro, name))
    before = signal.getsignal(signal.SIGTERM)
    yield Host(tmp_path, bundle_of(tmp_path / "made"), capfd)
    signal.signal(signal.SIGTERM, before)


def kernels(*names: str) -> list[str]:
    """Return the options for these, in order; the ends are among them."""
    return [word for name in names for word in ("--kernel", name)]


# Kernels


def test_the_first_bad_kernel(host: Host) -> None:
    listed = kernels("good-1", "good-2", "good-3", "bad-4", "bad-5", "bad-6")
    code, out, _ = host.run("--good", "good-1", "--bad", "bad-6", *listed, "--accel", "tcg")
    assert code == 0
    assert host.starts == ["bad-6", "good-1", "good-3", "bad-4"]
    assert "the first bad kernel: bad-4\nthe last good kernel tried: good-3\n" in out
    assert f"bad      FAIL {fake_repro.MESSAGE}" in out
    assert "the kernel: WARNING in made_up" in out
    assert f"6.0-bad-4 {host.latest}/steps/04-bad-4/2026-run-" in out
    assert f"repro {host.bundle} --kernel bad-4 --accel tcg\n" in out
    assert (host.latest / "result.txt").read_text() in out
    assert (host.latest / "steps/04-bad-4/output.log").exists()
    kept = json.loads((host.latest / "bisect.json").read_text())
    assert (kept["first"], kept["exit_code"], kept["turn"]) == (["bad-4"], 0, "bad")
    assert [step["verdict"] for step in kept["steps"]] == ["bad", "good", "good", "bad"]
    # What is done stays done.
    assert host.nvh("--resume", "results/latest")[:2] == (
        0,
        (host.latest / "result.txt").read_text(),
    )
    assert len(host.starts) == 4


def test_the_first_fixed_kernel(host: Host) -> None:
    listed = kernels("bad-1", "bad-2", "good-3")
    code, out, _ = host.run("--good", "good-3", "--bad", "bad-1", *listed)
    assert code == 0
    assert "searching for the first fixed kernel from bad-1 to good-3" in out
    assert "the first fixed kernel: good-3\nthe last bad kernel tried: bad-2\n" in out
    assert "--kernel bad-2\n" in out  # the command that shows the symptom again


def test_what_cannot_be_tested_leaves_a_range(host: Host) -> None:
    listed = kernels("good-1", "dead-2", "other-3", "missing-4", "bad-5")
    code, out, _ = host.run("--good", "good-1", "--bad", "bad-5", *listed)
    assert code == 125
    assert "the first bad kernel is one of 4, the others could not be tested:\n    dead-2\n" in out
    assert "skipped  dead-2: MISS the kernel does not boot\n" in out
    assert "skipped  other-3: another symptom: FAIL copy: expected 1, seen 2\n" in out
    assert "skipped  missing-4: no mirror offers missing-4\n" in out
    assert f"\nbad      FAIL {fake_repro.MESSAGE}\n" in out
    assert f"\nagain    {program()} repro {host.bundle} --kernel bad-5\n" in out
    assert host.kept.first == ("dead-2", "other-3", "missing-4", "bad-5")


def test_one_run_of_a_race_is_enough(host: Host) -> None:
    listed = kernels("good-1", "race-2", "bad-3")
    code, out, _ = host.run("--good", "good-1", "--bad", "bad-3", *listed, "--repeat", "3")
    assert code == 0
    assert "the first bad kernel: race-2\n" in out
    assert "--repeat 3 --until-fail\n" in out
    assert "bad-3 3 " in (host.folder / "starts").read_text()


@pytest.mark.parametrize(
    ("good", "bad", "code", "said"),
    [
        ("good-1", "good-2", 1, "bad good-2 is not bad: PASS"),
        ("bad-1", "bad-2", 1, "good bad-1 is not good: FAIL map: expected OK"),
        ("good-1", "dead-2", 125, "bad dead-2 is not bad, it cannot be told: MISS the kernel"),
        ("good-1", "other-2", 125, "it cannot be told: another symptom: FAIL copy"),
    ],
)
def test_ends_that_are_not_what_was_said(
    host: Host, good: str, bad: str, code: int, said: str
) -> None:
    found, _, err = host.run("--good", good, "--bad", bad, *kernels(good, bad))
    assert found == code
    assert said in " ".join(err.split())
    assert ("goes on" in err) is (code == 125)


def test_an_end_that_could_not_be_tested_is_tried_again(host: Host) -> None:
    kernel = host.folder / "mine"
    kernel.write_text("dead")
    words = ("--good", "good-1", "--bad", "mine", *kernels("good-1", "mine"))
    assert host.run(*words)[0] == 125
    kernel.write_text("bad")
    assert host.nvh("--resume", "results/latest")[0] == 0
    assert host.starts == ["dead", "bad", "good-1"]


def test_a_test_without_a_bundle_defines_the_symptom_by_its_failure(host: Host) -> None:
    test = fake_repro.NODEID.partition("::")[2].partition("[")[0]
    words = ("--good", "good-1", "--bad", "race-3", *kernels("good-1", "bad-2", "race-3"))
    code, out, _ = host.nvh(selected(test)[0], "--results", "results", "--repeat", "2", *words)
    assert code == 0
    assert "symptom  that of its first failure on the bad one" in out
    log = (host.folder / "starts").read_text().splitlines()
    assert [line.split()[:2] for line in log] == [
        *(["test", "race-3"], ["test", "race-3"]),  # until it failed
        *(["repro", "good-1"], ["repro", "bad-2"]),
    ]
    assert host.kept.bundle.startswith(str(host.latest / "steps/01-race-3"))
    assert f"repro {host.kept.bundle} --kernel bad-2" in out


def test_ends_of_a_distribution_have_its_series_between_them(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases = {"debian:6.1": "6.1.0-56-amd64", "debian:sid": "7.2.13+deb14-amd64"}
    monkeypatch.setattr(
        command, "resolve", lambda name, *_, **__: SimpleNamespace(release=releases[name])
    )
    monkeypatch.setattr(packaged, "series", lambda *_: ["5.10", "6.1", "6.12", "7.0", "7.2"])
    code, out, err = host.run("--good", "debian:sid", "--bad", "debian:6.1")
    assert code == 1, err  # of the stand-in all kernels with other words are good
    said = "searching for the first fixed kernel from debian:6.1 to debian:sid among 4: "
    assert f"{said}debian:6.1 debian:6.12 debian:7.0 debian:sid;" in out


def test_a_file_of_kernels(host: Host) -> None:
    (host.folder / "list").write_text("# old ones\ngood-1\n\ngood-2  # fine\nbad-3\n")
    code, out, _ = host.run("--good", "good-1", "--bad", "bad-3", "--kernel-file", "list")
    assert (code, host.starts) == (0, ["bad-3", "good-1", "good-2"])
    assert "the first bad kernel: bad-3\n" in out


def test_an_interrupted_bisection_goes_on(host: Host) -> None:
    listed = kernels("good-1", "slow-2", "bad-3")
    words = ("--results", "results", "--good", "good-1", "--bad", "bad-3", *listed)
    process = host.start(str(host.bundle), *words)
    host.begun(process, "slow-2")
    code, _, err = host.nvh("--resume", "results/latest")
    assert code == 2
    assert "another nvh bisect is at work in" in err
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=LONG)
    assert process.returncode == 130
    assert f"interrupted: {program()} bisect --resume {host.latest} goes on" in " ".join(
        said.split()
    )
    (host.folder / "hurry").touch()
    code, out, _ = host.nvh("--resume", "results/latest")
    assert code == 0
    assert "the first bad kernel: bad-3\n" in out
    assert host.starts == ["bad-3", "good-1", "slow-2", "slow-2"]
    assert sorted(path.name for path in (host.latest / "steps").iterdir())[2:] == [
        *("03-slow-2", "03-slow-2-2"),
    ]


# Commits


def test_the_first_bad_commit(host: Host) -> None:
    linux = host.tree("good-1", "good-2", "bad-3", "bad-4", "bad-5")
    git(linux, "bisect", "start", "v5", "v2")  # a bisection of the user's own
    (linux / "kernel").write_text("being edited")
    before = git(linux, "status", "--branch") + git(linux, "bisect", "log")
    code, out, _ = host.run("--good", "v1", "--bad", "v5", "--tree", str(linux))
    assert code == 0
    hash_ = git(linux, "rev-parse", "v3").strip()
    assert f'the first bad commit: {hash_[:12]} ("3: bad-3"), A Name <a@b>, 20' in out
    assert "the last good commit tried: " in out
    assert '("2: good-2")' in out
    assert host.starts == ["bad-5", "good-1", "bad-3", "good-2"]
    assert f"--kernel {host.folder}/cache/store/built-bad-3\n" in out
    assert f"# first bad commit: [{hash_}]" in (host.latest / "git-bisect.log").read_text()
    # The user's are as they were, and nothing of ours is left.
    assert git(linux, "status", "--branch") + git(linux, "bisect", "log") == before
    assert (linux / "kernel").read_text() == "being edited"
    assert git(linux, "worktree", "list").count("\n") == 1
    assert not list((host.folder / "cache/build").glob("bisect-*-*"))


def test_the_commit_that_fixed_it(host: Host) -> None:
    linux = host.tree("bad-1", "bad-2", "good-3", "good-4")
    code, out, _ = host.run("--good", "v4", "--bad", "v1", "--tree", str(linux))
    assert code == 0
    assert "searching" in out
    assert "for the first fixed commit after v1, up to v4" in out
    assert '("3: good-3"), A Name' in out


def test_commits_that_do_not_build_or_boot_are_skipped(host: Host) -> None:
    linux = host.tree("good-1", "good-2", "broken-3", "dead-4", "bad-5", "bad-6")
    code, out, _ = host.run("--good", "v1", "--bad", "v6", "--tree", str(linux))
    assert code == 125
    hashes = {git(linux, "rev-parse", f"v{number}").strip() for number in (3, 4, 5)}
    assert set(host.kept.first) == hashes
    assert "the first bad commit is one of 3, the others could not be tested:" in out
    assert '("3: broken-3"): the kernel does not build: a.c:1: error: no' in out
    assert '("4: dead-4"): MISS the kernel does not boot' in out
    # git names it first; kernels are named in their order.
    evidence = out.partition("skipped ")[2]
    assert f"\nbad      FAIL {fake_repro.MESSAGE}\n" in evidence
    assert "a.c:1: error: no" not in evidence.partition("\ngood ")[2]
    built = f"{host.folder}/cache/store/built-bad-5"
    assert f"\nagain    {program()} repro {host.bundle} --kernel {built}\n" in evidence
    assert "only skipped commits left to test" in (host.latest / "git-bisect.log").read_text()


@pytest.mark.parametrize("lost", ["nothing", "worktree", "lock"])
def test_an_interrupted_search_of_commits_goes_on(host: Host, lost: str) -> None:
    linux = host.tree(*(f"good-{number}" for number in range(1, 6)), "slow-6", "bad-7", "bad-8")
    words = ("--results", "results", "--good", "v1", "--bad", "v8", "--tree", str(linux))
    process = host.start(str(host.bundle), *words)
    host.begun(process, "slow-6")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=LONG)
    assert process.returncode == 130
    assert host.kept.tree is not None
    worktree = Path(host.kept.tree.worktree)
    assert re.search(
        rf"worktree remove --force {worktree} && rm -r \S+ gives it up", " ".join(said.split())
    )
    if lost == "worktree":
        git(linux, "worktree", "remove", "--force", str(worktree))
    elif lost == "lock":  # of a git that was killed while it checked out
        place = git(worktree, "rev-parse", "--git-dir").strip()
        (Path(place) / "index.lock").touch()
    (host.folder / "hurry").touch()
    code, out, _ = host.nvh("--resume", "results/latest")
    assert code == 0
    assert '("7: bad-7"), A Name' in out
    # What had a verdict was not tried again.
    assert host.starts == ["bad-8", "good-1", "good-4", "slow-6", "slow-6", "bad-7"]
    assert git(linux, "worktree", "list").count("\n") == 1


def test_branches_that_part_before_the_repair(host: Host) -> None:
    linux = host.tree("bad-1", "bad-2")
    git(linux, "checkout", "-q", "-b", "other", "v1")
    (linux / "kernel").write_text("good-3\n")
    git(linux, "commit", "-q", "-a", "-m", "3: good-3")
    code, _, err = host.run("--good", "other", "--bad", "v2", "--tree", str(linux))
    assert code == 1
    assert "good and bad are on branches that part: The merge base" in " ".join(err.split())


def test_only_commits_that_touch_a_path(host: Host) -> None:
    linux = host.tree("good-1", "good-2")
    for number in range(5):
        (linux / "README").write_text(str(number))
        git(linux, "add", "README")
        git(linux, "commit", "-q", "-m", "no matter")
    (linux / "kernel").write_text("bad-3\n")
    git(linux, "commit", "-q", "-a", "-m", "3: bad-3")
    words = ("--good", "v1", "--bad", "main", "--tree", str(linux), "--", "kernel")
    code, out, _ = host.run(*words)
    assert code == 0
    assert '("3: bad-3"), A Name' in out
    assert host.starts == ["bad-3", "good-1", "good-2"]


def test_commits_are_built_with_what_is_left_to_do(
    host: Host,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through the real building of kernels, of a tree with as much of kbuild as it touches."""
    monkeypatch.setattr(bisect_runs, "build", BUILD)
    git(tree, "init", "-q", "-b", "main")
    for number, word in enumerate(("good-1", "good-2", "#error", "bad-4"), 1):
        (tree / "b.c").write_text(f"{word}\n")
        git(tree, "add", "-A")
        git(tree, "commit", "-q", "-m", word)
        git(tree, "tag", f"v{number}")
    (tree / "a.c").write_text("not committed\n")
    code, out, _ = host.run("--good", "v1", "--bad", "v4", "--tree", str(tree), "-j", "1")
    assert code == 125
    assert "the first bad commit is one of 2" in out
    assert "the kernel does not build: " in out
    assert "b.c:1:2: error: it says so" in host.kept.steps[-2].seen
    assert host.starts == ["bad-4", "good-1", "good-2"]
    (log,) = (host.folder / "cache/build").glob("work-*/objects-*/build.log")
    assert log.read_text().count("CC ") == 1  # of the last commit; a.c is compiled once
    last = host.kept.steps[-1]
    assert last.verdict is Verdict.GOOD
    assert b"not committed" not in (Path(last.built) / "arch/x86/boot/bzImage").read_bytes()


def test_a_place_for_a_worktree_is_one_bisections_own(host: Host) -> None:
    linux, base = host.tree("good-1"), host.folder / "cache/build/bisect-x"
    owners = [host.folder / "one", host.folder / "two"]
    for owner in owners:
        owner.mkdir()
    one, two = (Worktree.claim(linux, base, owner) for owner in owners)
    assert [place.path.name for place in (one, two)] == ["bisect-x-1", "bisect-x-2"]
    one.make("HEAD")
    owners[0].rmdir()  # its results were removed, and it cannot go on
    assert Worktree.claim(linux, base, owners[1]).path == one.path
    assert not one.path.exists()
    assert git(linux, "worktree", "list").count("\n") == 1
    two.remove()
    assert Worktree.claim(linux, base, owners[1]).path == two.path


# Usage


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["B", "--good", "a"], "--bad is missing"),
        (["--good", "a", "--bad", "b"], "BUNDLE_OR_TEST is missing"),
        (["B", "--good", "a", "--bad", "a"], "a cannot be both good and bad"),
        (["B", "--good", "a", "--bad", "b", "--repeat", "0"], "--repeat 0"),
        (["no/such.tar.zst", "--good", "a", "--bad", "b"], "no bundle at no/such.tar.zst"),
        (["B", "--good", "a", "--bad", "b", "--patch", "x"], "--patch without --tree ("),
        (["B", "--good", "a", "--bad", "b", "--config", "debug"], "--config without --tree ("),
        (["B", "--good", "a", "--bad", "b", "-j", "2"], "-j without --tree (commits are searched"),
        (["B", "--good", "a", "--bad", "b", "--", "mm"], "-- PATHS without --tree ("),
        (
            ["B", "--good", "a", "--bad", "b", "--tree", "T", "--kernel", "c"],
            "--kernel with --tree",
        ),
        (["B", "--good", "a", "--bad", "v1", "--tree", "T"], "has no commit a"),
        (["B", "--good", "v1", "--bad", "main", "--tree", "T"], "are one commit"),
        (["B", "--good", "v1", "--bad", "v2", "--tree", "."], "not a git repository"),
        (["B", "--good", "v1", "--bad", "v2", "--tree", "none"], "no kernel tree at"),
        (["B", "--good", "a", "--bad", "b", "--kernel-file", "none"], "no list of kernels at none"),
        (["--resume", "."], "--resume .: "),
        (["--resume", ".", "--repeat", "2"], "--resume stands alone"),
    ],
)
def test_wrong_usage_is_one_line(host: Host, words: list[str], said: str) -> None:
    linux = host.tree("good-1")
    names = {"B": str(host.bundle), "T": str(linux)}
    code, _, err = host.nvh(*(names.get(word, word) for word in words))
    assert code == 2
    assert said in " ".join(err.split())
    assert len(err.splitlines()) == 1
    assert not (host.folder / "results").exists()


def test_paths_that_no_commit_touches_are_told_before_anything_is_built(host: Host) -> None:
    linux = host.tree("good-1", "bad-2")
    words = (str(host.bundle), "--good", "HEAD~1", "--bad", "HEAD", "--tree", str(linux))
    code, _, err = host.nvh(*words, "--", "no/such/file")
    assert code == 2
    assert "no commit between the two touches no/such/file" in " ".join(err.split())
    assert not (host.folder / "results").exists()


def test_a_test_that_is_several_is_refused(host: Host) -> None:
    code, _, err = host.nvh("L5", "--good", "a", "--bad", "b")
    assert code == 2
    assert re.search(r"'L5' is \d+ tests: test_l5_", err)
    assert "name one of them" in err


def test_a_folder_has_one_owner(host: Host) -> None:
    host.run("--good", "good-1", "--bad", "bad-2", *kernels("good-1", "bad-2"))
    with owned(host.latest, "nvh bisect"):
        code, _, err = host.nvh("--resume", "results/latest")
    assert (code, "another nvh bisect is at work" in err) == (2, True)
