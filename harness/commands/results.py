"""nvh report and nvh trend: pages of stored results, and their forms for other tools."""

from __future__ import annotations

import argparse
import json
import sys
import webbrowser
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from urllib.parse import unquote

from harness import pages
from harness.errors import EXIT_OK, UsageError
from harness.report import junit, kcidb, ktap, stored
from harness.report import trend as nights
from harness.report.junit import Family
from harness.report.results import write_atomic
from harness.report.stored import StoredRun


class Format(StrEnum):
    """What stored results can be written as."""

    HTML = "html"
    JUNIT = "junit"
    XUNIT2 = "xunit2"
    KCIDB = "kcidb"
    KTAP = "ktap"


_NAMES = {
    Format.JUNIT: "junit.xml",
    Format.XUNIT2: "xunit2.xml",
    Format.KCIDB: "kcidb.json",
    Format.KTAP: "results.ktap",
}


def report(args: argparse.Namespace) -> int:
    """Write stored results again, as report.html or for another tool, and print the path."""
    folder = Path(args.results)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no directory", hint="such as results/latest")
    wanted = Format(args.format)
    if wanted is not Format.KCIDB and (args.origin or args.url or args.build):
        raise UsageError("--origin, --url and --build go with --format kcidb")
    if wanted is Format.HTML:
        if args.output:
            raise UsageError("report.html leads to the files beside it", hint="leave out --output")
        return _done(pages.write_stored(folder.resolve()), args.open)
    if args.open:
        raise UsageError("--open shows the page", hint="leave out --format")
    return _export(folder.resolve(), wanted, args)


def _export(folder: Path, wanted: Format, args: argparse.Namespace) -> int:
    runs = stored.load(folder)
    match wanted:
        case Format.KCIDB:
            data = _kcidb(runs, args)
        case Format.KTAP:
            data = ktap.build(runs).encode()
        case _:
            data = _junit(runs, Family.XUNIT2 if wanted is Format.XUNIT2 else Family.XUNIT1)
    if args.output == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return EXIT_OK
    target = Path(args.output) if args.output else folder / _NAMES[wanted]
    return _done(write_atomic(target.resolve(), data), to_open=False)


def _junit(runs: Sequence[StoredRun], family: Family) -> bytes:
    if len(runs) == 1 and not runs[0].classes:
        (run,) = runs
        about = run.info
        return junit.build(
            run.records, about.properties, started=about.started, folder=about.folder, family=family
        )
    parts = []
    for run in runs:
        about = run.info
        suite = junit.suite_of(run.records, about.properties, about.started, about.folder, family)
        results = {"results": unquote(about.href).rstrip("/")}
        parts.append(junit.Part(about.label, run.classes, suite, results, about.problem))
    return junit.merge(parts)


def _kcidb(runs: Sequence[StoredRun], args: argparse.Namespace) -> bytes:
    found = kcidb.build(
        runs,
        pages.known_issues(),
        origin=args.origin or kcidb.ORIGIN,
        url=args.url or "",
        build_id=args.build or "",
    )
    if not kcidb.check(found):
        hint = "pip install 'nvdimm-harness[kcidb]'"
        print(f"nvh: not checked against KCIDB's schema ({hint})", file=sys.stderr)
    return json.dumps(found, indent=1).encode() + b"\n"


def trend(args: argparse.Namespace) -> int:
    """Write trend.html of many nights and print its path."""
    folders = [Path(word) for word in args.folders]
    target = Path(args.output) if args.output else nights.where(folders)
    return _done(nights.write(target.resolve(), folders), args.open)


def _done(path: Path, to_open: bool) -> int:
    print(path, flush=True)
    if to_open and not webbrowser.open(path.as_uri()):
        raise UsageError("there is no browser to open it with")
    return EXIT_OK
