"""What a process knows of a run of testcases: the same for pytest's hooks and for the reports."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness import paths
from harness.errors import HarnessError
from harness.lab import Lab, Options
from harness.report.bundle import Bundles
from harness.report.record import TestRecord
from harness.report.results import ResultsDir
from harness.run_bundles import setting
from harness.time_limit import OF_RUN, OF_TEST, TimeLimit
from harness.verdict.expectation import Catalogue
from harness.verdict.known import KnownIssues
from harness.verdict.reports import load_reports

log = logging.getLogger(__name__)


@dataclass
class RunState:
    """What this process knows of the run."""

    results: ResultsDir
    lab: Lab
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
        results = ResultsDir.open(Path(given)) if given else ResultsDir.create(root / "results")
        options = Options(
            kernel=config.getoption("--nvh-kernel"),
            accel=config.getoption("--nvh-accel"),
            machine=config.getoption("--nvh-machine"),
            trusted=bool(config.getoption("--nvh-trusted")),
            workloads=_path(config.getoption("--nvh-workloads")),
        )
        lab = Lab(options)
        config.stash[STATE] = RunState(
            results=results,
            lab=lab,
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


def end_bundle(state: RunState, record: TestRecord) -> None:
    """Complete or remove a test's bundle; one that cannot be had costs no verdict."""
    try:
        state.bundles.end(record)
    except HarnessError as error:
        log.warning("no bundle of %s: %s", record.nodeid, error)


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
