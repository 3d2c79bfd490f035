"""nvh report and nvh trend: pages of stored results."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from harness import pages
from harness.errors import EXIT_OK, UsageError
from harness.report import trend as nights


def report(args: argparse.Namespace) -> int:
    """Write report.html of stored results again and print its path."""
    folder = Path(args.results)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no directory", hint="such as results/latest")
    return _done(pages.write_stored(folder.resolve()), args.open)


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
