"""How a report shows tests: groups of rows, and tables of what meets what, from views.toml."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from harness.toml_table import Table


@dataclass(frozen=True)
class Side:
    """The rows or the columns of a table: names, each with a pattern of test names."""

    patterns: Mapping[str, re.Pattern[str]] = field(hash=False)

    def of(self, test: str) -> str | None:
        """Return the first name whose pattern matches a test's name."""
        for name, pattern in self.patterns.items():
            if pattern.match(test):
                return name
        return None


@dataclass(frozen=True)
class View:
    """A table: a test stands where its row and its column meet."""

    title: str
    corner: str
    tell: tuple[str, ...]  # what a cell tells of a test, the first that it compared
    rows: Side
    columns: Side

    def place(self, test: str) -> tuple[str, str] | None:
        """Return the row and the column of a test, None where it is not in the table."""
        column = self.columns.of(test)
        row = None if column is None else self.rows.of(test)
        return None if row is None or column is None else (row, column)


@dataclass(frozen=True)
class Views:
    """The groups of rows and the tables of a report."""

    groups: Mapping[str, str] = field(default_factory=dict, hash=False)
    tables: tuple[View, ...] = ()

    @classmethod
    def load(cls, file: Path) -> Views:
        """Read views.toml; SpecError names file, table and key."""
        root = Table.load(file)
        groups = {str(key): str(value) for key, value in root.mapping("groups").items()}
        tables = tuple(_view(table) for table in root.tables("table"))
        root.done()
        return cls(groups, tables)

    @cached_property
    def order(self) -> Sequence[str]:
        """The groups' letters in their order."""
        return list(self.groups)


def _view(table: Table) -> View:
    view = View(
        title=table.string("title"),
        corner=table.string("corner"),
        tell=table.strings("tell"),
        rows=_side(table, "rows"),
        columns=_side(table, "columns"),
    )
    table.done()
    return view


def _side(table: Table, key: str) -> Side:
    found = {}
    for name, patterns in table.mapping(key).items():
        if not isinstance(patterns, list) or not all(isinstance(one, str) for one in patterns):
            raise table.error(key, f"{name!r} is no list of patterns")
        found[str(name)] = re.compile("|".join(fnmatch.translate(one) for one in patterns))
    return Side(found)
