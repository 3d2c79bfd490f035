"""nvh bisect: between which two kernels, or with which commit, a bug came or went."""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import bisect_runs, git_bisect, paths, ui
from harness.bisect import Turn
from harness.commands.repro import opened
from harness.commands.testing import selected
from harness.errors import EXIT_INTERRUPTED, HarnessError, NoTurn, UsageError
from harness.git_bisect import Worktree
from harness.images import fragment, packaged, patches
from harness.images.kernel import absolute, resolve
from harness.images.source import build_dir
from harness.images.store import Store, hash_of
from harness.lab import Lab, Options
from harness.process import shell_line
from harness.qemu import accel
from harness.report import bisection
from harness.report.bisection import Bisection, Tree
from harness.report.escape import one_line
from harness.report.record import program
from harness.report.results import make_folder, owned, point_again
from harness.verdict.known import version

#: What nvh repro is told too.
_OPTIONS = ("accel", "machine")
#: What may be given with --resume: everything else was given at the start.
_FREE = {"resume", "action", "refuse", "command_words"}


def bisect(args: argparse.Namespace) -> int:
    """Search, and say what was found; the exit code is 0 when that is one kernel or commit."""
    store = Lab(Options()).store
    with ui.progress() as shown:
        if args.resume:
            folder = _resumed(args)
        else:
            planned = _planned(args, store, shown.say)
            base = paths.results(args.results)
            folder = make_folder(base, prefix="bisect-")
            planned.save(folder)
        with owned(folder, "nvh bisect"):
            return _search(bisection.load(folder), folder, store, shown.say)


def _search(found: Bisection, folder: Path, store: Store, say: Callable[[str], None]) -> int:
    told = folder / bisection.RESULT
    if found.exit_code is not None and told.is_file():
        print(told.read_text(), end="")
        return found.exit_code
    point_again(folder)
    print(f"{_spoken(found)}; results in {folder}", flush=True)
    if found.tree is not None and not found.tree.worktree:
        path = Path(found.tree.path)
        base = build_dir(store) / f"bisect-{hash_of(str(path.resolve()))[:16]}"
        found = found.on(str(Worktree.claim(path, base, folder).path))
        found.save(folder)
    runs = bisect_runs.Runs(found, folder, store, say)
    try:
        found = runs.carry_out()
    except KeyboardInterrupt:
        ui.terminal.print(f"nvh: interrupted: {_go_on(runs.found, folder)}")
        return EXIT_INTERRUPTED
    except NoTurn:
        _give_up(runs.found, folder)
        raise
    except HarnessError:
        ui.terminal.print(_go_on(runs.found, folder))
        raise
    names = {step.kernel: step.name for step in found.steps}
    if found.tree is not None:
        for hash_ in found.first:
            commit = runs.commit(hash_)
            names[hash_] = f"{one_line(str(commit))}, {one_line(commit.author)}, {commit.date}"
        found = _give_up(found, folder)
    text = bisection.ending(found, folder, names, program())
    bisection.write_ending(folder, text)
    print(text, end="")
    assert found.exit_code is not None
    return found.exit_code


def _give_up(found: Bisection, folder: Path) -> Bisection:
    """Remove the worktree of a bisection that is over."""
    if found.tree is None:
        return found
    Worktree(Path(found.tree.path), Path(found.tree.worktree)).remove()
    found = found.on("")
    found.save(folder)
    return found


def _spoken(found: Bisection) -> str:
    """Say what is searched for, and among what."""
    old, new = (found.good, found.bad) if found.turn is Turn.BROKEN else (found.bad, found.good)
    if found.tree is not None:
        return f"searching {found.tree.path} for {found.what} after {old}, up to {new}"
    among = " ".join(found.kernels)
    return f"searching for {found.what} from {old} to {new} among {len(found.kernels)}: {among}"


def _go_on(found: Bisection, folder: Path) -> str:
    words = f"{shell_line([program(), 'bisect', '--resume', str(folder)])} goes on"
    if found.tree is None or not found.tree.worktree:
        return words
    tree = found.tree
    remove = shell_line(["git", "-C", tree.path, "worktree", "remove", "--force", tree.worktree])
    return f"{words}; {remove} && {shell_line(['rm', '-r', str(folder)])} gives it up"


def _resumed(args: argparse.Namespace) -> Path:
    given = [name for name, value in vars(args).items() if value and name not in _FREE]
    if given:
        raise UsageError("--resume stands alone: a bisection keeps what it was started with")
    folder = Path(args.resume).resolve()
    try:
        found = bisection.load(folder)
    except HarnessError as error:
        raise UsageError(
            f"--resume {args.resume}: {error.message}", hint="results/latest, or a bisect-* of it"
        ) from error
    if found.exit_code is None:  # another one is only told again
        _require(found.options.get("accel"))
    return folder


def _planned(args: argparse.Namespace, store: Store, say: Callable[[str], None]) -> Bisection:
    for name in ("test", "good", "bad"):
        if not getattr(args, name):
            what = "BUNDLE_OR_TEST" if name == "test" else f"--{name}"
            raise UsageError(f"{what} is missing", hint="nvh bisect --help has examples")
    if args.good == args.bad:
        raise UsageError(f"{args.good} cannot be both good and bad")
    repeat = 1 if args.repeat is None else args.repeat
    if repeat < 1:
        raise UsageError(f"--repeat {repeat}: not a number from 1 on")
    _require(args.accel)
    given, bundle = _symptom(args.test)
    options = {name: str(value) for name in _OPTIONS if (value := getattr(args, name))}
    kernels: tuple[str, ...] = ()
    tree = None
    if args.tree:
        tree, turn = _tree(args)
    else:
        kernels, turn = _kernels(args, store, say)
    return Bisection(
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        given=given,
        bundle=bundle,
        good=args.good,
        bad=args.bad,
        turn=turn,
        kernels=kernels,
        tree=tree,
        repeat=repeat,
        options=options,
    )


def _require(asked: str | None) -> None:
    """Raise HostError where KVM was asked for and is not there: no kernel can change that."""
    if asked == "kvm":
        accel.require_kvm(accel.qemu_program())


def _symptom(word: str) -> tuple[str, str]:
    """Return what was given, and the bundle of the symptom where that is known already."""
    path = Path(word)
    if path.exists():
        with tempfile.TemporaryDirectory(prefix="nvh-bisect-") as scratch:
            bundle = opened(path, Path(scratch))
        record = bundle.record
        seen = f"{record.word} {record.seen}" if record else "any failure: its run was killed"
        print(f"test     {one_line(bundle.nodeid)}\nsymptom  {one_line(seen)}")
        given = str(path.absolute())
        return given, given if record else ""
    if word.endswith(".tar.zst") or (word.startswith(("/", ".", "~")) and "::" not in word):
        raise UsageError(f"no bundle at {word}", hint="results/*/bundles/ has them")
    expression = word.partition("::")[2] or word
    found = selected(expression)
    if len(found) > 1:
        shown = ", ".join(one.partition("::")[2] for one in found[:3])
        raise UsageError(f"{word!r} is {len(found)} tests: {shown}, ...", hint="name one of them")
    print(f"test     {one_line(found[0])}\nsymptom  that of its first failure on the bad one")
    return expression, ""


# Packaged kernels


#: What is said of commits only, by its name here and as it is typed.
_OF_TREE = {"config": "--config", "patch": "--patch", "j": "-j", "command": "-- PATHS"}


def _kernels(
    args: argparse.Namespace, store: Store, say: Callable[[str], None]
) -> tuple[tuple[str, ...], Turn]:
    for name, typed in _OF_TREE.items():
        if getattr(args, name) not in (None, []):
            hint = "commits are searched with --tree LINUX; without it, kernels are, as they come"
            raise UsageError(f"{typed} without --tree", hint=hint)
    listed = list(args.kernels or [])
    if args.kernel_file:
        listed += _file(Path(args.kernel_file))

    def release_of(selector: str) -> tuple[int, ...]:
        return version(resolve(selector, store, progress=say).release)

    if not listed and args.good.partition(":")[0] == args.bad.partition(":")[0] != "":
        name = args.good.partition(":")[0]
        if packaged.SELECTOR.match(args.good) and packaged.SELECTOR.match(args.bad) and name:
            say(f"looking up which series {name} offers")
            ends = sorted((release_of(args.good)[:2], release_of(args.bad)[:2]))
            for series in packaged.series(name, store):
                if ends[0] < version(series) < ends[1]:
                    listed.append(f"{name}:{series}")
    return in_order(args.good, args.bad, listed, release_of)


def in_order(
    good: str, bad: str, listed: Sequence[str], release_of: Callable[[str], tuple[int, ...]]
) -> tuple[tuple[str, ...], Turn]:
    """Return the kernels to search, the oldest first, and what is searched for.

    A list with both ends in it says by its order which is the older one.  Of one without, the ends
    are put where their releases say.
    """
    kernels = list(dict.fromkeys(listed))
    if good in kernels and bad in kernels:
        at, other = kernels.index(good), kernels.index(bad)
        turn = Turn.BROKEN if at < other else Turn.FIXED
        return tuple(kernels[min(at, other) : max(at, other) + 1]), turn
    for one in (good, bad):
        if one in kernels[1:-1]:
            raise UsageError(f"{one} is in the middle of the list", hint="list both ends, or none")
    between = [kernel for kernel in kernels if kernel not in (good, bad)]
    if len(kernels) > 1 and len(between) < len(kernels):
        first = kernels[0] if kernels[0] in (good, bad) else None
        older = first or (bad if kernels[-1] == good else good)
    else:
        older = bad if release_of(bad) < release_of(good) else good
    newer = good if older == bad else bad
    return (older, *between, newer), Turn.BROKEN if older == good else Turn.FIXED


def _file(file: Path) -> list[str]:
    """Return the selectors of a file, one a line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"no list of kernels at {file}: {error}") from error
    words = [re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]
    return [absolute(word) for word in words if word]


# A tree


def _tree(args: argparse.Namespace) -> tuple[Tree, Turn]:
    if args.kernels or args.kernel_file:
        raise UsageError("--kernel with --tree: commits are searched, or kernels")
    if args.j is not None and args.j < 1:
        raise UsageError(f"-j {args.j}: not a number of jobs")
    path = Path(args.tree).expanduser().absolute()
    good, bad = git_bisect.find(path, args.good), git_bisect.find(path, args.bad)
    if good.hash == bad.hash:
        raise UsageError(f"{args.good} and {args.bad} are one commit: {good}")
    git_bisect.check_paths(path, good, bad, args.command)
    files = [Path(file).expanduser().absolute() for file in args.patch]
    for file in files:
        patches.read(file)
    fragment.find(args.config)
    ours = paths.guest_images() / "kernel"
    fragments = tuple(
        word if (ours / f"{word}.config").is_file() else str(Path(word).expanduser().absolute())
        for word in args.config
    )
    tree = Tree(
        path=str(path),
        worktree="",
        good=good.hash,
        bad=bad.hash,
        fragments=fragments,
        patches=tuple(map(str, files)),
        jobs=args.j,
        paths=tuple(args.command),
    )
    return tree, git_bisect.turn_between(path, good, bad)
