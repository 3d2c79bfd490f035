"""git bisect in a worktree of its own: the user's checkout and bisection are never touched.

git keeps HEAD, index and a bisection's state (refs/bisect/, BISECT_LOG) for each worktree apart.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock

from harness import process
from harness.bisect import Turn, Verdict
from harness.errors import HarnessError, NoTurn, UsageError

#: A checkout of Linux is 80,000 files.
_DEADLINE = 3600.0
#: git refuses "bad" as the name of the older side.
_TERMS = {
    Turn.BROKEN: {Verdict.GOOD: "good", Verdict.BAD: "bad", Verdict.SKIP: "skip"},
    Turn.FIXED: {Verdict.BAD: "broken", Verdict.GOOD: "fixed", Verdict.SKIP: "skip"},
}
#: What git bisect ends with (git-bisect(1), builtin/bisect--helper.c).
_ONLY_SKIPPED, _MERGE_BASE_TURNED = 2, 3
_FIRST = re.compile(r"^# first \w+ commit: \[([0-9a-f]{40,64})\]", re.MULTILINE)
_POSSIBLE = re.compile(r"^# possible first \w+ commit: \[([0-9a-f]{40,64})\]", re.MULTILINE)


@dataclass(frozen=True)
class Commit:
    """What is told of a commit."""

    hash: str
    subject: str
    author: str
    date: str
    parents: tuple[str, ...]

    def __str__(self) -> str:
        """Return it as kernel developers quote one."""
        return f'{self.hash[:12]} ("{self.subject}")'


def find(repository: Path, revision: str) -> Commit:
    """Return the commit that a user names; UsageError when there is none."""
    if not repository.is_dir():
        raise UsageError(f"no kernel tree at {repository}")
    inside = _git(repository, "rev-parse", "--git-dir")
    if inside.status != 0:
        raise UsageError(f"{repository}: {_complaint(inside)}", hint="--tree takes a git checkout")
    words = ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"]
    named = _git(repository, *words)
    if named.status != 0:
        raise UsageError(f"{repository} has no commit {revision}", hint="git fetch --tags, perhaps")
    form = "--format=%H%x00%s%x00%an <%ae>%x00%ad%x00%P"
    shown = _git(repository, "show", "-s", "--date=iso", form, named.stdout.strip(), check=True)
    hash_, subject, author, date, parents = shown.stdout.rstrip("\n").split("\0")
    return Commit(hash_, subject, author, date, tuple(parents.split()))


def check_paths(repository: Path, good: Commit, bad: Commit, paths: Sequence[str]) -> None:
    """Raise UsageError where no commit between two touches one of some paths."""
    words = ("rev-list", "-n1", f"{good.hash}...{bad.hash}", "--", *paths)
    if paths and not _git(repository, *words, check=True).stdout.strip():
        raise UsageError(f"no commit between the two touches {' '.join(paths)}")


def turn_between(repository: Path, good: Commit, bad: Commit) -> Turn:
    """Return what lies between two commits: where good is the newer one, a repair."""
    words = ("merge-base", "--is-ancestor", bad.hash, good.hash)
    return Turn.FIXED if _git(repository, *words).status == 0 else Turn.BROKEN


@dataclass(frozen=True)
class Worktree:
    """A checkout at ``path`` that belongs to a bisection of ``repository``."""

    repository: Path
    path: Path

    @classmethod
    def claim(cls, repository: Path, base: Path, owner: Path) -> Worktree:
        """Return the first place BASE-N that no other bisection of the repository has.

        It is the same one each time, so that objects built for an earlier bisection are there.
        ``owner`` is the bisection's folder; the place of one whose folder is gone is taken over.
        """
        base.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with filelock.FileLock(f"{base}.lock"):
            for number in itertools.count(1):
                found = cls(repository, base.with_name(f"{base.name}-{number}"))
                mark = found._owner
                if mark.is_file() and not Path(mark.read_text()).is_dir():
                    found.remove()
                if not mark.exists():
                    mark.write_text(str(owner))
                    return found
        raise AssertionError("counting ends")

    @property
    def _owner(self) -> Path:
        return self.path.with_name(f"{self.path.name}.owner")

    def ready(self) -> bool:
        """Whether it is there, without the lock of a git that was killed at work in it."""
        where = _git(self.path, "rev-parse", "--git-dir") if self.path.is_dir() else None
        # A directory that git did not make is that of whatever repository lies around it.
        if where is None or where.status != 0 or not (self.path / ".git").is_file():
            return False
        return not any((self.path / where.stdout.strip()).glob("*.lock"))

    def make(self, commit: str) -> None:
        """Check a commit out, into a place where nothing of use is."""
        self._clear()
        words = ("worktree", "add", "--detach", "--force", str(self.path), commit)
        _git(self.repository, *words, check=True)

    def remove(self) -> None:
        """Remove the checkout and what git knows of it; others may have the place."""
        self._clear()
        self._owner.unlink(missing_ok=True)

    def _clear(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        # Of this one only: git worktree prune would forget others of the user's.
        _git(self.repository, "worktree", "remove", "--force", "--force", str(self.path))

    def head(self) -> str:
        """Return the commit that is checked out."""
        return self._git("rev-parse", "HEAD").stdout.strip()

    def checkout(self, commit: str) -> None:
        """Have a commit in the checkout."""
        if self.head() != commit:
            self._git("checkout", "--quiet", "--force", "--detach", commit)

    def bisecting(self) -> bool:
        """Whether a bisection is under way here."""
        return _git(self.path, "bisect", "log").status == 0

    def start(self, turn: Turn, old: str, new: str, paths: Sequence[str]) -> None:
        """Begin; the first commit to test is checked out, unless the two are neighbours."""
        terms = _TERMS[turn]
        named = [f"--term-old={terms[turn.old]}", f"--term-new={terms[turn.new]}"]
        self._told("bisect", "start", *named, new, old, "--", *paths)

    def mark(self, turn: Turn, commit: str, verdict: Verdict) -> str:
        """Tell git a verdict; return what it says is left, and have the next one checked out."""
        return self._told("bisect", _TERMS[turn][verdict], commit)

    def first(self) -> tuple[str, ...]:
        """Return the first commit of the new side, or all that may be it; () while it goes on.

        Of several git names the one that is known to be of the new side before those skipped.
        """
        said = self.log()
        found = _FIRST.findall(said)
        return tuple(found[-1:] or dict.fromkeys(_POSSIBLE.findall(said)))

    def log(self) -> str:
        """Return git's own record of the bisection, as git bisect replay takes it."""
        return self._git("bisect", "log").stdout

    def _told(self, *words: str) -> str:
        done = _git(self.path, *words)
        if done.status == _MERGE_BASE_TURNED:
            raise NoTurn(f"good and bad are on branches that part: {' '.join(done.stderr.split())}")
        if done.status not in (0, _ONLY_SKIPPED):
            raise HarnessError(f"git bisect: {_complaint(done)}", hint=f"see {self.path}")
        left = [line for line in done.stdout.splitlines() if line.startswith("Bisecting: ")]
        return left[0].removeprefix("Bisecting: ") if left else ""

    def _git(self, *words: str) -> process.Completed:
        return _git(self.path, *words, check=True)


def _git(folder: Path, *words: str, check: bool = False) -> process.Completed:
    program = process.find("git", package="git")
    # Whoever calls nvh from a hook or from git bisect run has these set for a tree of his own.
    clear = ["env", "-u", "GIT_DIR", "-u", "GIT_WORK_TREE", "-u", "GIT_INDEX_FILE", "LC_ALL=C"]
    options = ["-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false"]
    argv = [*clear, program, "-C", str(folder), *options, *words]
    done = process.run(argv, timeout=_DEADLINE, check=False)
    if check and done.status != 0:
        raise HarnessError(f"git {words[0]}: {_complaint(done)}", hint=f"git -C {folder} says so")
    return done


def _complaint(done: process.Completed) -> str:
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("fatal: ", "error: "))]
    return (telling or lines or ["it said nothing"])[0].removeprefix("fatal: ")
