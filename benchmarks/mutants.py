"""Put one fault after the other into a kernel, and see whether the catalogue finds each of them."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import mutant
from benchmarks.command import carried_out, nvh_test
from benchmarks.content import content
from benchmarks.mutant import Judgement, Mutant, Outcome, Seen, Verdict
from benchmarks.mutants_page import page
from harness import logged, paths, process, ui
from harness.errors import EXIT_UNTESTABLE, HarnessError, UsageError
from harness.images import kbuild, patches, source
from harness.images.store import Progress, Store, file_hash, hash_of
from harness.lab import Lab, Options
from harness.report import stored
from harness.report.results import owned, write_atomic
from harness.signals import came

SOURCE = "debian-source:6.12"
#: The kernel without a patch, among the results.
UNPATCHED = "unpatched"

#: What of a checkout decides what is seen of a kernel; the mutants themselves do not.
_PARTS = (
    "harness",
    "testcases",
    *(f"guest-images/{part}" for part in ("init", "machines", "root", "modules.toml")),
)


@dataclass(frozen=True)
class Bench:
    """What is the same for all mutants of a run."""

    store: Store
    folder: Path
    setting: str  # the hash of what decides, beside the kernel, what is seen
    options: tuple[str, ...]  # of nvh test
    whole: bool
    again: bool
    say: Progress

    def selections(self, one: Mutant) -> tuple[str, ...]:
        """Return what is run on a mutant; all of the catalogue is the empty expression."""
        return ("",) if self.whole else one.selections

    def kernel(self, one: Mutant, *, patched: bool) -> Path:
        """Return a mutant's kernel, or the one without its patch; built where it is not there."""
        files = [one.patch] if patched else []
        return kbuild.build(
            SOURCE, self.store, fragments=one.fragments, patch_files=files, progress=self.say
        ).path

    @contextlib.contextmanager
    def built_beside(self, one: Mutant | None) -> Iterator[None]:
        """Build a mutant's kernel while the block runs: a guest that boots leaves a core free.

        What becomes of it is for kernel() to say.
        """
        if one is None:
            yield
            return
        words = [word for name in one.fragments for word in ("--config", name)]
        build = logged.command("kernel", "build", SOURCE, *words, "--patch", str(one.patch), "-j1")
        argv = [process.find("nice", package="coreutils"), "-n", "19", *build]
        log = self.folder / "beside.log"
        with (
            log.open("wb") as out,
            process.running(argv, stdout=out, stderr=out, grace=logged.GRACE) as child,
        ):
            yield
            if child.poll() is None:
                self.say(f"waiting for the kernel of {one.name}, see {log}")
                child.wait()

    def observe(
        self, name: str, kernel: Path, selections: Sequence[str], following: Mutant | None = None
    ) -> Outcome:
        """Return what tests say of a kernel, having run those that were not run before.

        While they run the kernel of the ``following`` mutant is built.
        """
        folder = self.folder / name
        # The name of a built kernel is the hash of its source, configuration and patches.
        key = hash_of("mutants-3", kernel.name, self.setting)
        before = Outcome(key, 0.0, {}, (), {}) if self.again else Outcome.load(folder, key)
        known = before.selections
        wanted = dict.fromkeys(selections)
        missing = [] if "" in known else [one for one in wanted if one not in known]
        if not missing and not before.unjudged:
            return before
        self.say(f"testing {name}")
        asked = [] if "" in missing else [f"({one})" for one in (*missing, *before.unjudged)]
        with self.built_beside(following):
            seconds, run = _run(folder, kernel, " or ".join(asked), self.options)
        tests = {record.nodeid: Seen.of(record) for record in run.records}
        fresh = Outcome(key, seconds, run.info.properties, tuple(missing), tests)
        found = before.with_run(fresh)
        found.save(folder)
        return found


def _run(
    folder: Path, kernel: Path, selection: str, options: Iterable[str]
) -> tuple[float, stored.StoredRun]:
    """Run tests on a kernel; HarnessError when they were not run to their end."""
    words = ["--kernel", str(kernel), *options]
    words += ["-k", selection] if selection else []
    _, seconds, results = nvh_test(folder, *words)
    run = stored.load_run(results) if results else None
    if run is None or not run.info.finished or not run.records:
        raise HarnessError(logged.said(folder), hint=f"see {folder / logged.LOG}")
    return seconds, run


def check_patches(mutants: Iterable[Mutant], root: Path) -> None:
    """Raise UsageError for a patch that does not apply, before anything is built."""
    for one in mutants:
        with tempfile.TemporaryDirectory(prefix="nvh-patch-") as scratch:
            patches.apply(root, [one.patch], Path(scratch))


def judge_all(bench: Bench, mutants: Sequence[Mutant]) -> dict[str, tuple[Judgement, Outcome]]:
    """Run and judge mutants one after the other, and say of each what became of it."""
    found: dict[str, tuple[Judgement, Outcome]] = {}
    plain: dict[tuple[str, ...], Outcome] = {}
    for number, one in enumerate(mutants, 1):
        try:
            if one.fragments not in plain:
                # Without their patches all are one kernel, which is run once.
                same = [other for other in mutants if other.fragments == one.fragments]
                name = "+".join([UNPATCHED, *one.fragments])
                selections = [words for other in same for words in bench.selections(other)]
                kernel = bench.kernel(one, patched=False)
                plain[one.fragments] = bench.observe(name, kernel, selections, one)
            kernel = bench.kernel(one, patched=True)
            following = mutants[number] if number < len(mutants) else None
            seen = bench.observe(one.name, kernel, bench.selections(one), following)
            judgement = mutant.judge(one, seen.tests, plain[one.fragments].tests)
        except UsageError:
            raise
        except HarnessError as error:
            if came():  # it is of an interrupt's cleaning
                raise
            seen = Outcome("", 0.0, {}, (), {})
            judgement = mutant.untested(str(error))
        found[one.name] = judgement, seen
        count = len(judgement.failed)
        print(
            f"{number}/{len(mutants)} {one.name}: {judgement.verdict.value}; "
            f"{count} failed of {len(seen.tests)} tests, {seen.seconds:.0f} s",
            flush=True,
        )
        for problem in judgement.problems:
            print(f"    {problem}", flush=True)
    return found


def main() -> int:
    """Make, run and judge mutants; status 1 when one was not found as said."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=__doc__)
    parser.add_argument("-k", metavar="WORDS", default="", help="only these: names, V, V3, ...")
    parser.add_argument("-n", default="2", help="tests at once (2)")
    parser.add_argument("--whole", action="store_true", help="run the whole catalogue on each")
    parser.add_argument("--again", action="store_true", help="repeat what is done")
    parser.add_argument("--page", action="store_true", help="write the page of these only, too")
    parser.add_argument("--list", action="store_true", help="show the mutants and run nothing")
    args = parser.parse_args()
    return carried_out(lambda: _main(args), "what is done is kept")


def _main(args: argparse.Namespace) -> int:
    root = paths.source_tree()
    every = mutant.load(paths.guest_images() / "kernel" / "mutants")
    picked = mutant.chosen(every, args.k)
    if not picked:
        raise UsageError(f"no mutant is called {args.k!r}", hint="--list shows them")
    if args.list:
        for one in picked:
            print(f"{one.name}: {one.title}")
            print(f"    must fail: {', '.join(claim.tests for claim in one.fails)}")
        return 0
    folder = root / "results" / "mutants"
    folder.mkdir(parents=True, exist_ok=True)
    with ui.progress() as shown, owned(folder, "run of mutants"):
        lab = Lab(Options())
        store = lab.store
        base = source.find(SOURCE, store, progress=shown.say)
        check_patches(picked, base.root)
        bench = Bench(
            store=store,
            folder=folder,
            setting=hash_of(content(root, *_PARTS), file_hash(Path(lab.qemu))),
            options=("-n", args.n),
            whole=args.whole,
            again=args.again,
            say=shown.say,
        )
        found = judge_all(bench, picked)
    if args.page or len(picked) == len(every):
        target = root / "docs" / "mutants.md"
        rows = [(one, *found[one.name]) for one in picked]
        others = [one.name for one in every if one not in picked]
        write_atomic(target, page(rows, base.name, others))
        print(f"written to {target}")
    verdicts = {judgement.verdict for judgement, _ in found.values()}
    if Verdict.UNTESTED in verdicts:
        return EXIT_UNTESTABLE
    return int(verdicts != {Verdict.FOUND})


if __name__ == "__main__":
    sys.exit(main())
