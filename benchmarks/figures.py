"""Figures: several samples of one thing, quoted by their median."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.report.results import write_json


@dataclass(frozen=True)
class Figure:
    """What was measured; ``goal`` is an upper bound unless ``at_least``."""

    name: str
    unit: str
    samples: tuple[float, ...]
    goal: float | None = None
    at_least: bool = False

    @property
    def median(self) -> float:
        """The figure to quote."""
        return statistics.median(self.samples)

    @property
    def met(self) -> bool | None:
        """Whether the goal was met in this run on this machine; None without one."""
        if self.goal is None:
            return None
        return self.median >= self.goal if self.at_least else self.median <= self.goal

    def as_dict(self) -> dict[str, Any]:
        """Return the figure as JSON can hold it."""
        return {
            "name": self.name,
            "unit": self.unit,
            "median": round(self.median, 4),
            "min": round(min(self.samples), 4),
            "max": round(max(self.samples), 4),
            "samples": [round(sample, 4) for sample in self.samples],
            "goal": self.goal,
            "at_least": self.at_least,
            "met": self.met,
        }


def ratio(name: str, slow: Figure, fast: Figure, *, goal: float | None = None) -> Figure:
    """Return how many times faster ``fast`` is, of medians in the same run."""
    return Figure(name, "times", (slow.median / fast.median,), goal, at_least=True)


def record(file: Path, about: Mapping[str, object], measured: Iterable[Figure]) -> Sequence[Figure]:
    """Write JSON anew after each figure, so that a kill keeps what was measured; return all."""
    figures: list[Figure] = []

    def write(*, finished: bool) -> None:
        shown = [figure.as_dict() for figure in figures]
        write_json(file, {**about, "finished": finished, "figures": shown})

    for figure in measured:
        figures.append(figure)
        write(finished=False)
    write(finished=True)
    return figures


def lines(figures: Sequence[Figure]) -> list[str]:
    """Return the figures as a table of plain lines."""
    width = max(len(figure.name) for figure in figures)
    shown = [f"{'figure':<{width}}  {'median':>8} {'min':>8} {'max':>8}  n    goal"]
    for figure in figures:
        sign = "≥" if figure.at_least else "≤"
        goal = "" if figure.goal is None else f"{sign} {figure.goal:g} {figure.unit}"
        verdict = {True: " met", False: " MISSED", None: ""}[figure.met]
        shown.append(
            f"{figure.name:<{width}}  {figure.median:8.3f} {min(figure.samples):8.3f} "
            f"{max(figure.samples):8.3f}  {len(figure.samples):<3}  {goal}{verdict}"
        )
    return shown
