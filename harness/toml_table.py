"""A TOML table read strictly: every complaint names file, line, table and key."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import SpecError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_HEADER = re.compile(r"\s*\[[^]=]*\]+\s*(?:#.*)?")


def parse_size(text: str) -> int | None:
    """Return ``text`` ("770M", "2G", "4096") in bytes, None when it is no size (powers of 1024)."""
    match = _SIZE.fullmatch(text.strip())
    return int(match[1]) * _UNITS[match[2].upper()] if match else None


def format_size(size: int) -> str:
    """Return a size in bytes in the largest unit that divides it, as QEMU and ndctl take it."""
    for unit in ("G", "M", "K"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


class Table:
    """One table of a TOML file; keys are taken from it, and what is left over is an error."""

    def __init__(self, file: Path, name: str, values: dict[str, Any], text: str = "") -> None:
        self.file = file
        self.name = name
        self._text = text  # of the whole file
        self._values = dict(values)
        self._known: set[str] = set()

    @classmethod
    def load(cls, file: Path) -> Table:
        """Read a file; SpecError when it is missing or is no TOML."""
        try:
            text = file.read_text(encoding="utf-8")
            values = tomllib.loads(text)
        except OSError as error:
            raise SpecError(f"{file}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise SpecError(f"{file}: not TOML: {error}") from error
        return cls(file, "", values, text)

    def error(self, key: str, message: str, *, hint: str | None = None) -> SpecError:
        """Return the complaint about a key."""
        where = f"[{self.name}] {key}" if self.name else key
        line = _line(self._text, self.name, key)
        place = f"{self.file}:{line}" if line else str(self.file)
        return SpecError(f"{place}: {where}: {message}", hint=hint)

    def names(self) -> tuple[str, ...]:
        """Return the keys that nobody has taken yet, in the file's order."""
        return tuple(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def _take(self, key: str, kind: type | tuple[type, ...], what: str, default: Any) -> Any:
        self._known.add(key)
        if key not in self._values:
            if default is ...:
                raise self.error(key, f"is missing; {what} is needed")
            return default
        value = self._values.pop(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise self.error(key, f"{value!r} is not {what}")
        return value

    def string(self, key: str, default: Any = ...) -> str:
        """Take a string."""
        return str(self._take(key, str, "a string", default))

    def optional_string(self, key: str) -> str | None:
        """Take a string that may be absent."""
        value: str | None = self._take(key, str, "a string", None)
        return value

    def choice(self, key: str, choices: Sequence[str], default: Any = ...) -> str:
        """Take one of a few words."""
        value = self.string(key, default)
        if value not in choices:
            raise self.error(key, f"{value!r} is not one of {', '.join(choices)}")
        return value

    def integer(self, key: str, default: Any = ..., *, low: int = 1, high: int = 1 << 16) -> int:
        """Take a whole number within bounds."""
        value = int(self._take(key, int, "a whole number", default))
        if not low <= value <= high:
            raise self.error(key, f"{value} is not between {low} and {high}")
        return value

    def boolean(self, key: str, default: Any = ...) -> bool:
        """Take true or false."""
        return bool(self._take(key, bool, "true or false", default))

    def size(self, key: str, default: Any = ...) -> int:
        """Take a size ("770M" or a number of bytes), in bytes."""
        value = self._take(key, (str, int), 'a size such as "770M"', default)
        size = parse_size(str(value))
        if size is None or isinstance(value, bool):
            raise self.error(key, f'{value!r} is not a size such as "770M"')
        return size

    def strings(self, key: str) -> tuple[str, ...]:
        """Take a list of strings; absent is empty."""
        value = self._take(key, list, "a list of strings", [])
        if not all(isinstance(item, str) for item in value):
            raise self.error(key, "is not a list of strings")
        return tuple(value)

    def mapping(self, key: str) -> dict[str, Any]:
        """Take an inline table of plain values; absent is empty."""
        return dict(self._take(key, dict, "a table", {}))

    def table(self, key: str) -> Table | None:
        """Take a sub-table, None when it is absent."""
        value = self._take(key, dict, "a table", None)
        return None if value is None else Table(self.file, self._path(key), value, self._text)

    def tables(self, key: str) -> list[Table]:
        """Take an array of tables; absent is empty."""
        value = self._take(key, list, f"a list of tables ([[{key}]])", [])
        if not all(isinstance(item, dict) for item in value):
            raise self.error(key, f"is not a list of tables ([[{key}]])")
        return [
            Table(self.file, f"{self._path(key)} #{number}", item, self._text)
            for number, item in enumerate(value, 1)
        ]

    def done(self) -> None:
        """Complain about the first key that nobody took."""
        for key in self._values:
            close = difflib.get_close_matches(key, self._known, n=1)
            hint = (
                f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(self._known))}"
            )
            raise self.error(key, "unknown key", hint=hint)

    def _path(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key


def _line(text: str, table: str, key: str) -> int:
    """Return the line of a key, or of its table's header where the key is missing; 0: unknown.

    tomllib tells no lines.  ``table`` is spelt as in complaints: "nvdimm #2.namespace".
    """
    lines = text.splitlines()
    at = 0
    path: list[str] = []
    for part in table.split(".") if table else []:
        word, _, number = part.partition(" #")
        path.append(word)
        found = _headers(lines, path, at)[int(number or 1) - 1 :]
        if not found:  # an inline table: its line is its key's
            return _key(lines, word, at) or at
        at = found[0]
    return _key(lines, key, at) or next(iter(_headers(lines, [*path, key], at)), at)


def _headers(lines: Sequence[str], path: Sequence[str], after: int) -> list[int]:
    """Return the lines of [path] or [[path]] behind a line, counted from 1."""
    dotted = r"\s*\.\s*".join(f"[\"']?{re.escape(word)}[\"']?" for word in path)
    header = re.compile(rf"\s*\[\[?\s*{dotted}\s*\]")
    return [number for number, line in enumerate(lines[after:], after + 1) if header.match(line)]


def _key(lines: Sequence[str], key: str, after: int) -> int:
    """Return the line of ``key =`` behind a line and before the next header; 0: not there."""
    wanted = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[.=]")
    for number, line in enumerate(lines[after:], after + 1):
        if wanted.match(line):
            return number
        if _HEADER.fullmatch(line):
            break
    return 0
