"""What a process knows of a run of testcases: the same for pytest's hooks and for the reports."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness import paths
from harness.doing import Told
from harness.errors import HarnessError
from harness.images.store import to_log
from harness.lab import Lab, Options
from harness.report.bundle import About, Bundles
from harness.report.record import TestRecord
from harness.report.results import ResultsDir
from harness.run_bundles import setting
from harness.time_limit import OF_RUN, OF_TEST, TimeLimit
from harness.verdict.expectation import Catalogue, Row
from harness.verdict.known import KnownIssues
from harness.verdict.reports import load_reports

log = logging.getLogger(__name__)


@dataclass
class RunState:
    """What this process knows of the run."""

    results: ResultsDir
    lab: Lab
    told: Told
    catalogue: Catalogue
    options: list[str]
    bundles: Bundles
    records: list[TestRecord] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    properties: dict[str, Any] = field(default_factory=dict)
    known: KnownIssues = field(default_factory=KnownIssues)
    strict: bool = False
    limit: TimeLimit = field(default_factory=lambda: TimeLimit(OF_TEST, time.time() + OF_RUN))


STATE = pytest.StashKey[RunState]()


def load_catalogue() -> Catalogue:
    """Return the catalogue's rows and the reports."""
    catalogue = Catalogue.load(paths.source_tree() / "testcases" / "catalogue")
    return catalogue.with_rows(report.row for report in load_reports(paths.reports()))


def is_catalogued(item: pytest.Item) -> bool:
    """Whether a test is one of the harness's own testcases, whose names carry a row."""
    return (paths.source_tree() / "testcases") in item.path.parents


def runs_catalogue(config: pytest.Config) -> bool:
    """Whether the harness's own testcases are among what pytest was asked to run."""
    ours = (paths.source_tree() / "testcases").resolve()
    asked = [Path(config.invocation_params.dir, word.partition("::")[0]) for word in config.args]
    return any(
        path.resolve() in {ours, *ours.parents} or ours in path.resolve().parents for path in asked
    )


def is_testcase(item: pytest.Item) -> bool:
    """Whether a test gets a verdict: a testcase, or whatever else takes the plugin's fixtures."""
    if is_catalogued(item):
        return True
    known = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    # The last of a name is the one that the test gets: a project may have fixtures called so.
    made = [one.func.__module__ for name in ("guest", "case") for one in known.get(name, ())[-1:]]
    return "harness.pytest_plugin" in made


def row_of(item: pytest.Item) -> Row | None:
    """Return the catalogue's row of a test; another project's tests have none."""
    return run_state(item.config).catalogue.of_test(item.name) if is_catalogued(item) else None


def own_row(item: pytest.Item) -> Row:
    """Return what stands for a row where a test is its own source of what is right."""
    function = getattr(item, "function", None)
    words = (inspect.getdoc(function) or "").partition("\n")[0]
    return Row(item.name, words, (item.nodeid,), (), {}, item.path)


def worker_id(config: pytest.Config) -> str | None:
    """Return the name of the xdist worker that this is, None on the controller or without."""
    workerinput = getattr(config, "workerinput", None)
    return None if workerinput is None else str(workerinput["workerid"])


def run_state(config: pytest.Config) -> RunState:
    """Return this process's state, made when the first testcase needs it."""
    if STATE not in config.stash:
        root = paths.source_tree()
        given = config.getoption("--nvh-results")
        if worker_id(config) is not None:
            given = getattr(config, "workerinput", {})["nvh_results"]
        base = (
            config.rootpath / "results"
        )  # the checkout's, or those of whoever has tests of guests
        results = ResultsDir.open(Path(given)) if given else ResultsDir.create(base)
        options = Options(
            kernel=config.getoption("--nvh-kernel"),
            accel=config.getoption("--nvh-accel"),
            machine=config.getoption("--nvh-machine"),
            trusted=bool(config.getoption("--nvh-trusted")),
            workloads=_path(config.getoption("--nvh-workloads")),
        )
        told = Told(results.path, worker_id(config) or "main")
        lab = Lab(options, say=_both(to_log, told.build), note=to_log)
        lab.results = results.path
        config.stash[STATE] = RunState(
            results=results,
            lab=lab,
            told=told,
            bundles=Bundles(results.path, lambda: setting(config, lab)),
            catalogue=load_catalogue(),
            options=_again(config),
            known=KnownIssues.load(root / "testcases" / "known-issues.toml"),
            strict=bool(config.getoption("--nvh-strict")),
            limit=TimeLimit(
                config.getoption("--nvh-max-test-time"),
                config.getoption("--nvh-end") or time.time() + OF_RUN,
            ),
        )
    return config.stash[STATE]


def begin_bundle(state: RunState, test: About) -> None:
    """Begin a test's bundle; one that cannot be had costs no verdict."""
    try:
        state.bundles.begin(test)
    except (HarnessError, OSError) as error:
        log.warning("no bundle of %s: %s", test.nodeid, error)


def end_bundle(state: RunState, record: TestRecord, more: Mapping[str, Path] | None = None) -> None:
    """Complete or remove a test's bundle; one that cannot be had costs no verdict."""
    try:
        state.bundles.end(record, more)
    except HarnessError as error:
        log.warning("no bundle of %s: %s", record.nodeid, error)


def _both(*hear: Callable[[str], None]) -> Callable[[str], None]:
    def say(words: str) -> None:
        for one in hear:
            one(words)

    return say


def _path(word: str | None) -> Path | None:
    return None if word is None else Path(word)


def _again(config: pytest.Config) -> list[str]:
    """Return the options with which the run is started again."""
    words = []
    defaults = {"kernel": None, "accel": "auto", "machine": "default", "isolation": "clone"}
    for name, default in defaults.items():
        given = config.getoption(f"--nvh-{name}")
        if given != default:
            words += [f"--{name}", str(given)]
    return [*words, "--strict"] if config.getoption("--nvh-strict") else words
