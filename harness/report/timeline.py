"""A test's time as bars: how its guest came up, its commands, the pin and who waits for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.report.escape import one_line
from harness.report.excerpts import WorkloadRun
from harness.report.record import TestRecord

#: The drawing's width and its lanes' height, in its own units (pixels where it is not scaled).
WIDTH = 720
LANE = 24
_NAMES = 92  # the lanes' names, on the left
_RIGHT = 12
_AXIS = 22
#: A bar is never thinner: what took a millisecond is still there.
_THIN = 2.0
#: The width of one character of a label, roughly.
_LETTER = 6.4
_MOST_BARS = 40
_MOST_CHARTS = 4


@dataclass(frozen=True)
class Span:
    """A time in a lane, in seconds from the chart's zero."""

    lane: str
    begin: float
    end: float
    label: str
    kind: str  # start, guest, command, pin, wait, run, call


@dataclass(frozen=True)
class Bar:
    """A span as it is drawn."""

    x: float
    y: float
    width: float
    label: str  # what fits into or beside it
    label_x: float
    inside: bool
    title: str  # the whole, where the label is not
    kind: str


@dataclass(frozen=True)
class Chart:
    """A drawing: lanes of bars over one axis."""

    title: str
    height: float
    lanes: tuple[tuple[float, str], ...]
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    marks: tuple[tuple[float, str, bool], ...]  # x, words, whether they end there
    words: str  # the same for who does not see it


def seconds(value: float) -> str:
    """Return a duration as a person reads it."""
    if abs(value) < 0.0995:
        return f"{value * 1000:.3g} ms"
    return f"{value:.2f} s" if abs(value) < 99.5 else f"{value:.0f} s"


def charts(record: TestRecord, runs: Sequence[WorkloadRun]) -> list[Chart]:
    """Return what is known of a test's time, nothing where nothing was recorded."""
    found = []
    whole = _test(record)
    if whole:
        whole += _within(record, runs)
        found.append(draw("guest and test, from the test's begin", whole))
    for run in runs:
        name = run.command.split()[0].rpartition("/")[2] if run.command.split() else "workload"
        spans, marks = _moments(run.facts)
        if not spans:
            spans, marks = _wait(run.facts)
        if spans:
            title = f"{one_line(name, 40)}: pin and operation"
            found.append(draw(title, _judged(record, spans), marks))
        elif spans := _calls(run.facts):
            found.append(draw(f"{one_line(name, 40)}: its calls, one after the other", spans))
    return found[:_MOST_CHARTS]


def _test(record: TestRecord) -> list[Span]:
    """Return the guest's start and the test's commands; zero is the test's begin."""
    guest = record.facts.get("guest")
    facts = guest if isinstance(guest, Mapping) else {}
    spans = []
    if facts.get("how") == "clone":
        # It was started while the test before still ran, so it lies before this one's begin.
        spans = _stages(
            facts,
            ("qmp_seconds", "QEMU"),
            ("running_seconds", "state"),
            ("ssh_seconds", "login"),
        )
        shift = max((span.end for span in spans), default=0.0)
        spans = [
            Span(span.lane, span.begin - shift, span.end - shift, span.label, span.kind)
            for span in spans
        ]
    elif facts:
        spans = _stages(
            facts,
            ("ready_seconds", "boot"),
            ("ssh_seconds", "login"),
            ("provisioned_seconds", "provisioning"),
        )
    if record.seconds > 0 and (spans or record.steps):
        spans.append(Span("test", 0.0, record.seconds, record.word, "test"))
    for step in record.steps[:_MOST_BARS]:
        at, took = _number(step.get("at")), _number(step.get("seconds"))
        if at is not None and took is not None:
            spans.append(Span("commands", at, at + took, _short(step.get("what", "")), "command"))
    return spans


def _short(command: object) -> str:
    """Return a command without the folder of its program."""
    first, blank, rest = str(command).strip().partition(" ")
    return f"{first.rpartition('/')[2]}{blank}{rest}"


def _stages(facts: Mapping[str, Any], *stages: tuple[str, str]) -> list[Span]:
    """Return what follows each other, each told by when it was done."""
    spans, begun = [], 0.0
    for key, label in stages:
        done = _number(facts.get(key))
        if done is not None and done >= begun:
            spans.append(Span("guest", begun, done, label, "guest"))
            begun = done
    return spans


def _within(record: TestRecord, runs: Sequence[WorkloadRun]) -> list[Span]:
    """Return the pins and operations of workloads where they lie in the test.

    A workload counts from its own start, which is taken for when the command was given.
    """
    found: list[Span] = []
    given = [(str(step.get("what")), _number(step.get("at"))) for step in record.steps]
    for run in runs:
        at = next((at for what, at in given if at is not None and what == run.command), None)
        if at is None:
            continue
        given.remove((run.command, at))  # the same command may be given again
        spans, _ = _moments(run.facts)
        shifted = (replace(span, begin=span.begin + at, end=span.end + at) for span in spans)
        found += [span for span in shifted if span.end <= record.seconds]
    return _judged(record, found[:_MOST_BARS])


def _judged(record: TestRecord, spans: Sequence[Span]) -> list[Span]:
    """Return spans, none of them bad in a test that passed: the pin was of another file."""
    if not record.status.good:
        return list(spans)
    return [replace(span, kind="run") if span.kind == "bad" else span for span in spans]


def _moments(facts: Mapping[str, Any]) -> tuple[list[Span], list[tuple[float, str]]]:
    """Return a pin and the operation that met it; zero is the workload's start.

    Nothing where the workload did not tell when they began and ended, or not in that order.
    """
    pinned, started, seen, released, ended, left = (
        _number(facts.get(f"{name}_at"))
        for name in ("pinned", "op_started", "waits_seen", "released", "ended", "given_up")
    )
    last = max((at for at in (started, seen, released, ended, left) if at is not None), default=0.0)
    if started is None or not _ordered(0.0, started, seen, last) or not _ordered(started, ended):
        return [], []
    if ended is not None and released is not None and facts.get("returned_while_pinned") is False:
        released = min(ended, released)  # its end was asked for before, and seen after
    name = str(facts.get("op_name") or "operation")
    spans, marks = [], []
    if pinned is not None:
        if not _ordered(0.0, pinned, released):
            return [], []
        proof = facts.get("pin_proof") or "pinned"
        spans.append(
            Span("pin", pinned, last if released is None else released, f"held: {proof}", "pin")
        )
    free = last if released is None else released
    if ended is not None and released is not None and pinned is not None and ended < released:
        if seen is not None and _ordered(seen, ended):  # a signal ends a wait
            spans.append(Span("operation", started, seen, f"{name} runs", "run"))
            spans.append(Span("operation", seen, ended, _waits(name, facts), "wait"))
        else:
            spans.append(Span("operation", started, ended, f"{name} is done under the pin", "bad"))
        return spans, [(ended, "it returns"), (released, "release")]
    until = last if ended is None else ended
    if seen is not None:
        spans.append(Span("operation", started, seen, f"{name} runs", "run"))
        spans.append(
            Span("operation", seen, max(seen, min(free, until)), _waits(name, facts), "wait")
        )
    begun = started if seen is None else max(seen, min(free, until))
    if ended is None:
        spans.append(Span("operation", begun, until, f"{name} does not end", "bad"))
    else:
        spans.append(Span("operation", begun, until, f"{name} ends", "run"))
    if released is not None:
        after = f", end {seconds(ended - released)} later" if ended is not None else ""
        marks.append((released, f"release{after}"))
    return spans, marks


def _ordered(*moments: float | None) -> bool:
    told = [at for at in moments if at is not None]
    return told == sorted(told)


def _waits(name: str, facts: Mapping[str, Any]) -> str:
    """Say where an operation waits, and in which state."""
    where = str(facts.get("waits_in") or "")
    state = str(facts.get("states") or facts.get("state") or "")
    return f"{name} waits{f' in {where}' if where else ''}{f', {state}' if state else ''}"


def _wait(facts: Mapping[str, Any]) -> tuple[list[Span], list[tuple[float, str]]]:
    """Return a pin and the operation that met it; zero is the operation's begin."""
    took, after = _number(facts.get("op_seconds")), _number(facts.get("end_seconds"))
    if took is None or after is None or not facts.get("pinned"):
        return [], []
    if facts.get("returned_while_pinned") is False:
        after = max(0.0, after)  # the pin's end was asked for before, and seen after
    released = max(0.0, took - after)
    name = str(facts.get("op_name") or "operation")
    pin = Span("pin", 0.0, released, f"held: {facts.get('pin_proof') or 'pinned'}", "pin")
    if after < 0:  # it did not wait for the pin's end
        spans = [pin, Span("operation", 0.0, took, f"{name} is done under the pin", "bad")]
        return spans, [(took, "it returns"), (released, "release")]
    spans = [
        pin,
        Span("operation", 0.0, released, _waits(name, facts), "wait"),
        Span("operation", released, took, f"{name} ends", "run"),
    ]
    return spans, [(released, f"release, end {seconds(after)} later")]


def _calls(facts: Mapping[str, Any]) -> list[Span]:
    """Return the calls that were timed, in their order, with what they returned."""
    spans, at = [], 0.0
    for key, value in facts.items():
        took = _number(value)
        name = str(key).removesuffix("_seconds")
        if name == key or not name or took is None or took < 0:
            continue
        if name == "end" and "op_seconds" in facts:
            continue  # of layout: the last part of its operation, not a call after it
        result = facts.get(name)
        told = f"{name}: {result}" if isinstance(result, str) else name
        spans.append(Span("calls", at, at + took, f"{told}, {seconds(took)}", "call"))
        at += took
    return spans if len(spans) > 1 else []


def draw(title: str, spans: Sequence[Span], marks: Iterable[tuple[float, str]] = ()) -> Chart:
    """Return the drawing of spans and of moments."""
    told = list(marks)
    low = min(0.0, *(span.begin for span in spans))
    high = max([*(span.end for span in spans), *(at for at, _ in told), low + 1e-6])
    scale = (WIDTH - _NAMES - _RIGHT) / (high - low)

    def x(at: float) -> float:
        return round(_NAMES + (at - low) * scale, 1)

    top = 16.0 if told else 4.0
    lanes = list(dict.fromkeys(span.lane for span in spans))
    ends = {
        index: next((later.begin for later in spans[index + 1 :] if later.lane == span.lane), high)
        for index, span in enumerate(spans)
    }
    bars = tuple(
        _bar(span, x(span.begin), x(span.end), x(ends[index]), top + lanes.index(span.lane) * LANE)
        for index, span in enumerate(spans)
    )
    bottom = top + len(lanes) * LANE
    return Chart(
        title=title,
        height=bottom + _AXIS,
        lanes=tuple((top + index * LANE + 15, lane) for index, lane in enumerate(lanes)),
        bars=bars,
        ticks=tuple((x(at), seconds(at) if at else "0") for at in _ticks(low, high)),
        marks=tuple((x(at), words, x(at) > WIDTH * 0.6) for at, words in told),
        words="; ".join(
            f"{span.label} {seconds(span.begin)} to {seconds(span.end)}" for span in spans[:12]
        ),
    )


def _bar(span: Span, begin: float, end: float, following: float, y: float) -> Bar:
    width = max(_THIN, end - begin)
    label = one_line(span.label, 200)
    letters = int((width - 8) / _LETTER)
    beside = int((following - begin - width - 4) / _LETTER)
    inside = letters >= min(len(label), 12) or letters >= beside
    room = letters if inside else beside
    short = label if len(label) <= room else f"{label[: room - 1]}…" if room > 4 else ""
    return Bar(
        x=begin,
        y=y + 3,
        width=round(width, 1),
        label=short,
        label_x=round(begin + 4 if inside else begin + width + 4, 1),
        inside=inside,
        title="" if short == label else f"{label}: {seconds(span.end - span.begin)}",
        kind=span.kind,
    )


def _ticks(low: float, high: float) -> list[float]:
    """Return four to nine round moments."""
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(size for size in (1, 2, 5, 10) if size * unit >= rough)
    first = math.ceil(low / step)
    return [round(number * step, 9) for number in range(first, math.floor(high / step) + 1)]


def _number(value: Any) -> float | None:
    """Return a finite number, None for anything else: a guest says what it likes."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = float(value) if abs(value) < 1e6 else math.inf
    return number if math.isfinite(number) else None
