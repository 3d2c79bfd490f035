"""What a command's --help says beside its options: manual.toml, laid out for a terminal."""

from __future__ import annotations

import argparse
import functools
import shutil
import textwrap
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from harness.errors import EXIT_USAGE
from harness.report.escape import one_line

#: Columns of a help text, at most.
WIDTH = 80


class Layout(argparse.HelpFormatter):
    """Fills paragraphs, and leaves lines that begin with a space as they are."""

    def __init__(self, prog: str) -> None:
        width = min(WIDTH, shutil.get_terminal_size().columns - 1)
        super().__init__(prog, max_help_position=26, width=width)
        self._action_max_length = 14  # argparse forgets how far commands are indented

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = []
        for paragraph in text.strip().split("\n"):
            if not paragraph or paragraph.startswith(" ") or paragraph.endswith(":"):
                lines.append(indent + paragraph)
            else:
                filled = textwrap.fill(paragraph, width, break_on_hyphens=False)
                lines += textwrap.indent(filled, indent).split("\n")
        return "\n".join(lines)


class Parser(argparse.ArgumentParser):
    """A parser that tells wrong usage in one line, by the command that was used wrongly."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and what to do, and exit."""
        what = "commands" if self._subparsers else "options"
        told = f"{self.prog}: {one_line(message, 2000)}; {self.prog} --help shows its {what}"
        self.exit(EXIT_USAGE, f"{told}\n")

    def parse_known_args(  # type: ignore[override] # argparse hands on what a command does not know
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Complain of words that the command does not know, which else only nvh itself would."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


@functools.cache
def _pages() -> dict[str, dict[str, Any]]:
    return tomllib.loads(Path(__file__).with_name("manual.toml").read_text())


def describe(parser: argparse.ArgumentParser, command: str) -> None:
    """Give a command's parser its paragraph, its examples and its exit codes."""
    page = _pages()[command or "nvh"]
    exits = {**_pages()["every"]["exits"], **page.get("exits", {})}
    codes = [f"{code:<5}{exits[code]}" for code in sorted(exits, key=int)]
    parser.formatter_class = Layout
    parser.description = page["about"]
    parser.epilog = "\n".join(
        [
            "examples:",
            textwrap.indent(page["examples"].strip(), "  "),
            "",
            "exit codes:",
            textwrap.indent("\n".join(codes), "  "),
        ]
    )


def commands() -> list[str]:
    """Return the names of all commands that have a page; "nvh" stands for the program itself."""
    return [name for name in _pages() if name != "every"]
