"""nvh completion: what a shell needs to complete nvh's words."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator

import shtab

from harness import paths
from harness.errors import EXIT_OK, HarnessError
from harness.toml_table import Table

SHELLS = ("bash", "zsh", "fish")
#: What a metavar stands for.  A kernel, a machine and a bundle may be names as well.
_FILES = {"BUNDLE", "BUNDLE_OR_TEST", "CONFIG", "FILE", "FILE[:PATH]", "K", "KERNEL", "TREE"}
_FOLDERS = {"DIR", "LINUX", "NEW", "OLD", "RESULTS"}


def completion(args: argparse.Namespace) -> int:
    """Print the script."""
    words = {"NAME": _sets(), "M": _machines(), "MACHINE": _machines()}
    for action in _actions(args.parser):
        names = words.get(str(action.metavar), []) if action.dest in _NAMED else []
        if names:
            found = shtab.cmd(f"printf '%s\\n' {shlex.join(names)}")
        elif action.metavar in _FILES:
            found = shtab.FILE
        elif action.metavar in _FOLDERS:
            found = shtab.DIRECTORY
        else:
            continue
        action.complete = found  # type: ignore[attr-defined] # where shtab looks for it
    print(shtab.complete(args.parser, shell=args.shell))
    return EXIT_OK


#: Options and arguments whose names are known beforehand.
_NAMED = {"machine", "machines", "name", "set"}


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield action


def _machines() -> list[str]:
    folder = paths.guest_images() / "machines"
    return sorted(file.stem for file in folder.glob("*.toml"))


def _sets() -> list[str]:
    try:
        return list(Table.load(paths.source_tree() / "testcases" / "sets.toml").names())
    except HarnessError:  # there is no completion for a file that cannot be read
        return []
