"""report.html: a run, or all runs of a matrix, as one page that needs nothing beside it."""

from __future__ import annotations

import base64
import functools
import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from harness.report import crosstab, timeline
from harness.report.escape import one_line, printable
from harness.report.page import WORDS, RunView, TestView
from harness.report.results import write_atomic
from harness.report.views import Views
from harness.verdict.status import Status

#: What the page says of its runs, in this order.
_ABOUT = {
    "kernel.origin": "package",
    "machine": "machine",
    "accel": "accelerator",
    "qemu": "QEMU",
    "harness": "harness",
}
_MOST_REASONS = 40


def build(
    runs: Sequence[RunView],
    views: Views,
    *,
    catalogue: Mapping[str, tuple[Sequence[str], Sequence[str]]],
) -> str:
    """Return the page; ``catalogue`` has the sources and the needs of each row."""
    groups = crosstab.groups_of(runs, views, catalogue)
    counted = Counter(test.word for run in runs for test in run.tests)
    several = len(runs) > 1
    heading = f"{len(runs)} kernels" if several else runs[0].info.kernel
    return page(
        "report.html.j2",
        title=f"{', '.join(run.info.kernel for run in runs)}: {_words(runs)}",
        heading=heading,
        runs=runs,
        several=several,
        counts={word: counted[word] for word in WORDS if counted[word]},
        meanings={
            **{status.value: status.meaning for status in Status},
            "KNOWN": "it fails for a reason that is written down",
        },
        about=_about(runs),
        groups=groups,
        tables=crosstab.cross_tables(runs, views),
        kernels=crosstab.kernel_table(runs, groups),
        skipped=_skipped(runs),
        known=_known(runs),
    )


def write(
    path: Path,
    runs: Sequence[RunView],
    views: Views,
    *,
    catalogue: Mapping[str, tuple[Sequence[str], Sequence[str]]],
) -> Path:
    """Write the page, whole or not at all."""
    return write_atomic(path, build(runs, views, catalogue=catalogue))


def page(template: str, **values: Any) -> str:
    """Return a template with its style and script, which alone the browser is told to obey."""
    style, script = _asset("style.css.j2"), _asset("script.js.j2")
    csp = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    found = _environment().get_template(template)
    # Files of our own, in which nothing is filled in.
    return found.render(csp=csp, style=Markup(style), script=Markup(script), **values)  # noqa: S704


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_harmless,
    )


def _harmless(value: Any) -> Any:
    """Spell out what reverses or hides text: no word of a guest reaches the page without this."""
    if isinstance(value, str) and not isinstance(value, Markup) and not value.isprintable():
        return printable(value, 2 * len(value) + 4096)
    return value


@functools.cache
def _asset(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8").strip()


def _digest(text: str) -> str:
    raw = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(raw).decode()}"


def _words(runs: Sequence[RunView]) -> str:
    counted = Counter(test.word for run in runs for test in run.tests)
    return ", ".join(f"{counted[word]} {word}" for word in WORDS if counted[word]) or "no test ran"


def _about(runs: Sequence[RunView]) -> list[tuple[str, str]]:
    """Return what is to be known of the runs, each value once."""
    found = []
    for key, name in _ABOUT.items():
        values = dict.fromkeys(run.info.properties.get(key, "") for run in runs)
        if shown := [one_line(value, 120) for value in values if value][:4]:
            found.append((name, ", ".join(shown)))
    started = min((run.info.started for run in runs if run.info.started), default="")
    if started:
        found.append(("started", one_line(started.replace("T", " "), 40)))
    took = [run.info.seconds for run in runs if run.info.seconds is not None]
    if took:
        found.append(("took", _duration(sum(took))))
    return found


def _duration(total: float) -> str:
    if total < 120:
        return timeline.seconds(total)
    minutes = round(total / 60)
    return f"{minutes} min" if minutes < 120 else time.strftime("%H h %M min", time.gmtime(total))


def _known(runs: Iterable[RunView]) -> list[tuple[str, str, list[TestView]]]:
    """Return the known issues that showed: id, title, tests."""
    found: dict[str, list[TestView]] = {}
    for run in runs:
        for test in run.having("KNOWN"):
            found.setdefault(test.record.known, []).append(test)
    return [
        (issue, next((test.issue.title for test in tests if test.issue), ""), tests)
        for issue, tests in sorted(found.items())
    ]


def _skipped(runs: Iterable[RunView]) -> list[tuple[str, str, list[TestView]]]:
    """Return why tests were skipped, the most frequent reason first."""
    found: dict[tuple[str, str], list[TestView]] = {}
    for run in runs:
        for test in run.having("SKIP"):
            found.setdefault((test.told, one_line(test.record.hint, 400)), []).append(test)
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    return [(why, hint, tests) for (why, hint), tests in ordered[:_MOST_REASONS]]
