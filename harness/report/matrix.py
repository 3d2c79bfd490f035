"""matrix.json: which kernels and machines a matrix runs on, and how far each of them is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from harness.errors import HarnessError
from harness.report import summary
from harness.report.results import reading, write_json
from harness.report.summary import Summary

FORMAT = 1
FILE = "matrix.json"


class State(StrEnum):
    """How far a combination is."""

    WAITING = "waiting"
    RUNNING = "running"  # or its owner was killed
    DONE = "done"  # it ended by itself, whatever came of it
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Combination:
    """One kernel on one machine."""

    kernel: str
    machine: str
    folder: str  # relative to the matrix's
    state: State = State.WAITING
    exit_code: int | None = None
    seconds: float | None = None
    results: str = ""  # the run's results directory, relative to the matrix's; "" when it made none
    why: str = ""  # why it could not be tested, or not to its end

    def __str__(self) -> str:
        """Return it as a person names it."""
        return f"{self.kernel} on {self.machine}"

    @property
    def untested(self) -> bool:
        """Whether it ended without a single verdict: no such kernel, or one that does not boot."""
        return self.state is State.DONE and not self.results

    @property
    def label(self) -> str:
        """Kernel and machine as part of a JUnit class name, in which a dot separates."""
        return self.folder.replace(".", "_").replace(",", ".")


@dataclass(frozen=True)
class Matrix:
    """All combinations of a matrix, with the options of nvh test that they share."""

    started: str
    options: Mapping[str, str]
    shard: str  # "2/5", "" for the whole
    combinations: tuple[Combination, ...]
    exit_code: int | None = None  # None while it goes on, and of a killed one

    @property
    def finished(self) -> bool:
        """Whether every combination is done."""
        return all(one.state is State.DONE for one in self.combinations)

    def replaced(self, index: int, **changes: object) -> Matrix:
        """Return the matrix with one combination changed."""
        found = list(self.combinations)
        found[index] = dataclasses.replace(found[index], **changes)  # type: ignore[arg-type]
        return dataclasses.replace(self, combinations=tuple(found))

    def ended(self, exit_code: int | None) -> Matrix:
        """Return the matrix with its exit code, None while it goes on."""
        return dataclasses.replace(self, exit_code=exit_code)

    def save(self, folder: Path) -> Path:
        """Write matrix.json, whole or not at all."""
        values = dataclasses.asdict(self)
        return write_json(folder / FILE, {"format": FORMAT, **values, "finished": self.finished})


def load(folder: Path) -> Matrix:
    """Read a matrix's folder; HostError when it is none."""
    file = folder / FILE
    with reading(file, FORMAT, "matrix") as values:
        return Matrix(
            started=str(values["started"]),
            options={key: str(value) for key, value in values["options"].items()},
            shard=str(values["shard"]),
            combinations=tuple(
                Combination(**{**one, "state": State(one["state"])})
                for one in values["combinations"]
            ),
            exit_code=values["exit_code"],
        )


def summary_of(folder: Path, combination: Combination) -> Summary | None:
    """Return what a combination's run says of itself, None when it left nothing readable."""
    if not combination.results:
        return None
    try:
        return summary.load(folder / combination.results / "summary.json")
    except HarnessError:
        return None
