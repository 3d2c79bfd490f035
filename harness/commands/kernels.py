"""nvh kernel build, nvh kernel check: kernels made for the catalogue, and what one lacks for it."""

from __future__ import annotations

import argparse
import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path

from harness import paths, ui
from harness.errors import EXIT_FAILED, EXIT_OK, HarnessError, UsageError
from harness.images import kbuild, kconfig
from harness.lab import Lab, Options, groups_of
from harness.verdict.expectation import Catalogue, Row
from harness.verdict.known import version

_OPTION = re.compile(r"\bCONFIG_\w+")
#: In a row's needs: older kernels have no such option and do without.
_SINCE = re.compile(r"\(from v([\d.]+)\)")
#: What scripts/kconfig writes into a .config's head.
_RELEASE = re.compile(r"^# Linux/\S+ (\S+) Kernel Configuration$", re.MULTILINE)


def build(args: argparse.Namespace) -> int:
    """Build a kernel; print what it could not have, and its path as the last line."""
    if args.j is not None and args.j < 1:
        raise UsageError(f"-j {args.j}: not a number of jobs")
    with ui.progress() as shown:
        built = kbuild.build(
            args.source,
            Lab(Options()).store,
            fragments=args.config,
            patch_files=[Path(file) for file in args.patch],
            jobs=args.j,
            progress=shown.say,
        )
    if built.unmet:
        print(f"not as asked for: {'; '.join(built.unmet)}")
    print(built.path, flush=True)
    return EXIT_OK


def check(args: argparse.Namespace) -> int:
    """Say which rows a configuration can run, and which lines to add for the rest.

    The exit code tells whether a guest of the default machine can boot.
    """
    options, modular, release = _options(args.config)
    machine = Lab(Options()).machine
    stopping = kconfig.lacking(options, groups=groups_of(machine), modular=modular)
    features = kconfig.lacking(options, groups=("features",), modular=modular)
    catalogue = Catalogue.load(paths.source_tree() / "testcases" / "catalogue")
    missing = {
        row.id: _missing(row, options, {one.option for one in features}, release)
        for row in catalogue
    }
    for problem in stopping:
        print(f"no guest: {problem}")
    able = [row for row, lines in missing.items() if not lines and not stopping]
    print(f"{len(able)} of {len(missing)} rows can run whole: {_listed(able) or 'none'}")
    needing: dict[str, list[str]] = {one.option: [] for one in stopping}
    for row, lines in missing.items():
        for option in lines:
            needing.setdefault(option, []).append(row)
    if needing:
        print("\n# lines to add, and the rows that run in part or not at all without")
    for option, rows in needing.items():
        name, _, off = option.partition("=")
        line = f"# {name} is not set" if off else f"{name}=y"
        print(f"{line}{'  # ' if rows else ''}{_listed(rows)}")
    return EXIT_FAILED if stopping else EXIT_OK


def _options(text: str) -> tuple[Mapping[str, str], bool, str]:
    """Return a configuration, whether its kernel has modules to load, and its release or ""."""
    file = Path(text).expanduser()
    if file.is_file():
        try:
            config = file.read_text()
        except UnicodeDecodeError:
            config = ""  # an image
        if options := kconfig.parse(config):
            told = _RELEASE.search(config)
            return options, True, told[1] if told else ""
    lab = Lab(Options(kernel=text))
    with ui.progress() as shown:
        lab.say = shown.say
        found = kconfig.read(lab.kernel)
    if found is None:
        raise HarnessError(
            f"{lab.kernel.origin} does not tell its configuration", hint="name its .config"
        )
    return found, lab.kernel.modules is not None, lab.kernel.release


def _missing(row: Row, options: Mapping[str, str], features: set[str], release: str) -> list[str]:
    """Return the options that a row needs and the configuration of a release, if known, lacks."""
    lacking = {
        option: None
        for option in sorted(features)
        if any(fnmatch.fnmatchcase(row.id, pattern) for pattern in kconfig.rows_of(option))
    }
    for need in " and ".join(row.needs).split(" and "):
        since = _SINCE.search(need)
        if since and release and version(release) < version(since[1]):
            continue
        named = _OPTION.findall(need)  # several are alternatives
        there = any(options.get(option) in ("y", "m") for option in named)
        if named and f"{named[0]}=n" in need:
            if there:
                lacking[f"{named[0]}=n"] = None
        elif named and not there:
            lacking[named[0]] = None
    return list(lacking)


def _order(row: str) -> tuple[str, int]:
    return row[0], int(row[1:])


def _listed(rows: list[str]) -> str:
    return " ".join(sorted(rows, key=_order))
