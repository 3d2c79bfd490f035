"""bisect.json: what was asked, what each kernel said, and the text that it ends with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.bisect import Turn, Verdict
from harness.process import shell_line
from harness.report.escape import one_line
from harness.report.results import reading, write_atomic, write_json

FORMAT = 1
FILE = "bisect.json"
LOG = "git-bisect.log"
RESULT = "result.txt"
#: Of the kernels that were skipped, shown at the end.
_SHOWN = 20


@dataclass(frozen=True)
class Step:
    """One kernel and what it said."""

    kernel: str  # a selector or a commit's hash
    name: str  # as a person calls it
    verdict: Verdict
    seen: str  # what the run saw, or why there was none
    folder: str  # relative to the bisection's
    seconds: float
    release: str = ""
    run: str = ""  # the results of the run that tells, relative to the bisection's folder
    findings: tuple[str, ...] = ()  # titles of the kernel's complaints
    built: str = ""  # where the kernel lies that was built of a commit

    def __str__(self) -> str:
        """Return it as it is told while the bisection goes on."""
        release = f" ({self.release})" if self.release else ""
        what = f"{one_line(self.name, 100)}{release}: {self.verdict}"
        return f"{what}: {one_line(self.seen, 200)} ({self.seconds:.0f} s, {self.folder})"


@dataclass(frozen=True)
class Tree:
    """A kernel tree whose commits are searched."""

    path: str
    worktree: str
    good: str  # commits' hashes
    bad: str
    fragments: tuple[str, ...] = ()
    patches: tuple[str, ...] = ()
    jobs: int | None = None
    paths: tuple[str, ...] = ()  # only commits that touch these


@dataclass(frozen=True)
class Bisection:
    """A bisection as far as it is."""

    started: str
    given: str  # a bundle, or an expression that selects one test
    bundle: str  # of the symptom that is looked for; "" until the bad end has shown one
    good: str
    bad: str
    turn: Turn
    kernels: tuple[str, ...] = ()  # from the oldest to the newest; () with a tree
    tree: Tree | None = None
    repeat: int = 1
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of nvh repro
    steps: tuple[Step, ...] = ()
    first: tuple[str, ...] = ()  # the first kernel of the new side, or all that may be it
    exit_code: int | None = None  # None while it goes on, and of a killed one

    @property
    def ends(self) -> tuple[tuple[str, Verdict], tuple[str, Verdict]]:
        """The two kernels that are tried first, the bad one before the good one."""
        good, bad = (self.tree.good, self.tree.bad) if self.tree else (self.good, self.bad)
        return (bad, Verdict.BAD), (good, Verdict.GOOD)

    @property
    def what(self) -> str:
        """What is searched for."""
        unit = "commit" if self.tree else "kernel"
        return f"the first {self.turn} {unit}"

    def step_of(self, kernel: str) -> Step | None:
        """Return what was said of a kernel, None when it was not tried."""
        return next((step for step in self.steps if step.kernel == kernel), None)

    def with_step(self, step: Step) -> Bisection:
        """Return the bisection with a further step."""
        return dataclasses.replace(self, steps=(*self.steps, step))

    def on(self, worktree: str) -> Bisection:
        """Return the bisection with its tree's worktree."""
        assert self.tree is not None
        tree = dataclasses.replace(self.tree, worktree=worktree)
        return dataclasses.replace(self, tree=tree)

    def save(self, folder: Path) -> None:
        """Write bisect.json, whole or not at all."""
        write_json(folder / FILE, {"format": FORMAT, **asdict(self)})


def load(folder: Path) -> Bisection:
    """Read the bisection of a folder; HostError when there is none."""
    file = folder / FILE
    with reading(file, FORMAT, "bisection") as values:
        del values["format"]
        return _read(values)


def _read(values: dict[str, Any]) -> Bisection:
    tree = values.pop("tree")
    steps = tuple(
        Step(**{**step, "verdict": Verdict(step["verdict"]), "findings": tuple(step["findings"])})
        for step in values.pop("steps")
    )
    values["kernels"], values["first"] = tuple(values["kernels"]), tuple(values["first"])
    values["turn"] = Turn(values["turn"])
    if tree is not None:
        lists = {key: tuple(value) for key, value in tree.items() if isinstance(value, list)}
        tree = Tree(**{**tree, **lists})
    return Bisection(tree=tree, steps=steps, **values)


def ending(found: Bisection, folder: Path, names: Mapping[str, str], nvh: str) -> str:
    """Return what a finished search is told with; ``names`` has more than steps have names for.

    The evidence is that of the two kernels beside the turn.
    """
    after = _after(found)
    before = _before(found)
    unit = "commit" if found.tree else "kernel"
    lines = [""]
    if len(found.first) == 1:
        lines += [f"{found.what}: {names.get(found.first[0], found.first[0])}"]
    else:
        lines += [f"{found.what} is one of {len(found.first)}, the others could not be tested:"]
        lines += [f"    {names.get(one, one)}" for one in found.first[:_SHOWN]]
        lines += ["    ..."] if len(found.first) > _SHOWN else []
    if before is not None:
        lines += [f"the last {before.verdict} {unit} tried: {one_line(before.name)}"]
    skipped = [step for step in found.steps if step.verdict is Verdict.SKIP]
    lines += [
        f"skipped  {one_line(step.name, 100)}: {one_line(step.seen, 200)}"
        for step in skipped[:_SHOWN]
    ]
    for step in filter(None, (before, after)):
        release = f" {step.release}" if step.release else ""
        lines += [f"{step.verdict:8} {one_line(step.seen, 500)}"]
        lines += [f"         the kernel: {one_line(title, 200)}" for title in step.findings]
        lines += [f"        {release} {folder / (step.run or step.folder)}"]
    showing = next((one for one in (after, before) if one and one.verdict is Verdict.BAD), None)
    if showing is not None:
        lines += [f"again    {again(found, showing, nvh)}"]
    if found.tree is not None:
        lines += [f"git log  {folder / LOG}"]
    return "\n".join(lines) + "\n"


def again(found: Bisection, step: Step, nvh: str) -> str:
    """Return the command that shows the symptom again."""
    words = [nvh, "repro", found.bundle or found.given, "--kernel", step.built or step.kernel]
    for name, value in found.options.items():
        words += [f"--{name}", value]
    if found.repeat > 1:
        words += ["--repeat", str(found.repeat), "--until-fail"]
    return shell_line(words)


def write_ending(folder: Path, text: str) -> None:
    """Keep the text that a bisection ended with."""
    write_atomic(folder / RESULT, text.lstrip("\n"))


def _after(found: Bisection) -> Step | None:
    """Return the step on the new side that lies nearest to the turn.

    Of those that may be the first it is the last kernel, but the first commit: git's order.
    """
    tried = filter(None, map(found.step_of, found.first))
    return next((step for step in tried if step.verdict is found.turn.new), None)


def _before(found: Bisection) -> Step | None:
    """Return the step on the old side that lies nearest to the turn."""
    old = [step for step in found.steps if step.verdict is found.turn.old]
    if found.tree is None:
        order = {kernel: at for at, kernel in enumerate(found.kernels)}
        old.sort(key=lambda step: order.get(step.kernel, -1))
    # Of commits git names nearer and nearer ones.
    return old[-1] if old else None
