"""The catalogue of what is right, and the record a test makes of what it saw.

Every row of the catalogue names the source of its expectation; a test looks the right value up by
its row's id, so that code and catalogue cannot drift apart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from harness.errors import HarnessError, SpecError
from harness.toml_table import Table
from harness.verdict.status import Status

_ROW_ID = re.compile(r"[A-Z][0-9]{1,3}")
_TEST_NAME = re.compile(r"test_([a-z])([0-9]{1,3})(?:_|$)")
_UNSET: Any = object()
#: Characters of one value in the output and in the record: a guest makes them as long as it likes.
_SHOWN = 300
_STORED = 16384


class Mismatch(AssertionError):
    """The kernel did something else than what is right."""


class NotProven(HarnessError):
    """A condition that a test needs was not proven; ``status`` says what becomes of the test."""

    def __init__(self, message: str, *, status: Status, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


@dataclass(frozen=True)
class Row:
    """One row of the catalogue."""

    id: str
    title: str
    source: tuple[str, ...]  # commits, documents, mails
    needs: tuple[str, ...]  # preconditions, in words
    right: Mapping[str, Any] = field(hash=False)
    file: Path

    def expected(self, key: str) -> Any:
        """Return the right value of ``key``; SpecError names file, table and key."""
        if key not in self.right:
            known = ", ".join(self.right) or "none"
            raise SpecError(f"{self.file}: [{self.id}.right] {key}: is missing (known: {known})")
        return self.right[key]


class Catalogue:
    """All rows, by id."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {row.id: row for row in rows}

    @classmethod
    def load(cls, directory: Path) -> Catalogue:
        """Read every ``*.toml`` of a directory; SpecError names file, line, table and key."""
        files = sorted(directory.glob("*.toml"))
        if not files:
            raise SpecError(f"{directory}: no catalogue (*.toml) there")
        rows: dict[str, Row] = {}
        for file in files:
            for row in _read(file):
                if row.id in rows:
                    raise SpecError(f"{file}: [{row.id}]: is also in {rows[row.id].file}")
                rows[row.id] = row
        return cls(rows.values())

    def with_rows(self, rows: Iterable[Row]) -> Catalogue:
        """Return it with further rows: reports are not in its files."""
        return Catalogue([*self, *rows])

    def __getitem__(self, row_id: str) -> Row:
        try:
            return self._rows[row_id]
        except KeyError:
            raise SpecError(f"no row {row_id} in the catalogue") from None

    def __contains__(self, row_id: object) -> bool:
        return row_id in self._rows

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def of_test(self, name: str) -> Row | None:
        """Return the row of a test's name or id, None where the name carries no row's id."""
        found = row_id(name)
        return None if found is None else self[found]


def row_id(name: str) -> str | None:
    """Return the catalogue's id that a test's name carries: test_v3_x[ext4] is V3.

    The test of a report, test_report[some_name], carries the report's name.
    """
    function = name.partition("[")[0].rpartition("::")[2]
    if function == "test_report" and name.endswith("]"):
        return name.partition("[")[2].removesuffix("]")
    match = _TEST_NAME.match(function)
    return f"{match[1].upper()}{int(match[2])}" if match else None


def _read(file: Path) -> Iterator[Row]:
    whole = Table.load(file)
    for name in whole.names():
        if not _ROW_ID.fullmatch(name):
            raise whole.error(name, "is no row's id such as V3")
        table = whole.table(name)
        if table is None:
            raise whole.error(name, "is no table")
        right = table.mapping("right")
        row = Row(
            id=name,
            title=table.string("title"),
            source=table.strings("source"),
            needs=table.strings("needs"),
            right=MappingProxyType(right),
            file=file,
        )
        table.done()
        if not row.title.strip():
            raise table.error("title", "is empty")
        if not row.source:
            raise table.error("source", "is missing: every expectation has one")
        yield row


class Case:
    """The record of one test: what was expected, proven and seen.

    Each line goes to ``echo`` as it happens (standard output, where pytest captures it), and into
    ``record``, which JSON can hold.
    """

    def __init__(self, row: Row, *, echo: Callable[[str], None] = print) -> None:
        self.row = row
        self._echo = echo
        self._expectations: list[dict[str, Any]] = []
        self._proofs: list[dict[str, Any]] = []
        self._facts: dict[str, Any] = {}
        self._allowed: list[str] = []
        self._gathered: list[str] | None = None

    @property
    def allowed(self) -> tuple[str, ...]:
        """The patterns of the splats that this test provokes on purpose."""
        return tuple(self._allowed)

    @property
    def expectations(self) -> tuple[dict[str, Any], ...]:
        """What was expected and seen so far, in order."""
        return tuple(self._expectations)

    @property
    def mismatches(self) -> tuple[str, ...]:
        """What was seen otherwise than expected, in order, each as its Mismatch says it."""
        return tuple(_mismatch(made) for made in self._expectations if not made["ok"])

    @property
    def facts(self) -> dict[str, Any]:
        """The facts recorded so far."""
        return dict(self._facts)

    @property
    def record(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {
            "row": self.row.id,
            "title": self.row.title,
            "source": list(self.row.source),
            "expectations": list(self._expectations),
            "proofs": list(self._proofs),
            "facts": dict(self._facts),
            "allowed": list(self._allowed),
        }

    def expect(self, what: str, seen: Any, *, right: Any = _UNSET) -> None:
        """Compare what was seen with what is right; Mismatch when they differ.

        ``what`` is a key of the row's ``right`` table, or any words when ``right`` is given.
        """
        wanted = plain(self.row.expected(what) if right is _UNSET else right)
        got = plain(seen)
        # True == 1 in Python, but a kernel that says 1 did not say yes.
        same = got == wanted and isinstance(got, bool) == isinstance(wanted, bool)
        source = "; ".join(self.row.source)
        made = {"what": what, "expected": wanted, "seen": got, "ok": same, "source": source}
        self._expectations.append(made)
        self._echo(
            f"{'ok' if same else 'NOT OK'}: {what}: expected {_show(wanted)}, seen {_show(got)}"
            f" (source: {source})"
        )
        if same:
            return
        if self._gathered is None:
            raise Mismatch(_mismatch(made))
        self._gathered.append(_mismatch(made))

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Go on comparing after a mismatch; the end of the block raises all of them as one.

        For a row that some kernel is known to fail: what comes after the known mismatch is judged
        as well.  Preconditions are proven before.  Of blocks in each other the outermost raises.
        """
        outer = self._gathered
        mismatches: list[str] = [] if outer is None else outer
        self._gathered = mismatches
        try:
            yield
        except NotProven:
            # What was seen to be wrong counts for more than what could not be seen.
            if not mismatches or outer is not None:
                raise
        finally:
            self._gathered = outer
        if mismatches and outer is None:
            raise Mismatch("; ".join(mismatches))

    def prove(self, what: str, proven: bool, *, seen: Any = "", enable: str | None = None) -> None:
        """Record a precondition; NotProven when it does not hold.

        The test is then a MISS; with ``enable``, which says how to get it, a SKIP.
        """
        got = plain(seen)
        self._proofs.append({"what": what, "proven": bool(proven), "seen": got})
        shown = f" ({_show(got)})" if got not in ("", None) else ""
        self._echo(f"{'proven' if proven else 'NOT PROVEN'}: {what}{shown}")
        if not proven:
            status = Status.MISS if enable is None else Status.SKIP
            raise NotProven(f"not proven: {what}{shown}", status=status, hint=enable)

    def fact(self, key: str, value: Any) -> None:
        """Record something that was observed and is not judged."""
        self._facts[key] = plain(value)
        self._echo(f"fact: {key}: {_show(self._facts[key])}")

    def allow(self, pattern: str) -> None:
        """Declare a kernel splat that the test provokes: a regular expression of its title.

        Pages that it leaves pinned are "pins_left: expected 0, seen N".
        """
        re.compile(pattern)
        self._allowed.append(pattern)
        self._echo(f"allowed: {pattern}")

    def skip(self, reason: str, *, enable: str | None = None) -> NoReturn:
        """End the test as SKIP; ``enable`` says how to get what is missing."""
        raise NotProven(reason, status=Status.SKIP, hint=enable)


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: tuples as lists, unknown things as their repr."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    match value:
        case None | bool() | int():
            found: Any = value
        case float():  # JSON has neither infinity nor NaN
            found = value if math.isfinite(value) else repr(value)
        case str():
            found = value if len(value) <= _STORED else value[:_STORED] + " [...]"
        case Path():
            found = str(value)
        case Mapping():
            found = {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            found = [plain(item) for item in value]
        case set() | frozenset():
            found = sorted((plain(item) for item in value), key=repr)
        case _:
            found = repr(value)[:_STORED]
    return found


def _mismatch(made: Mapping[str, Any]) -> str:
    return f"{made['what']}: expected {_show(made['expected'])}, seen {_show(made['seen'])}"


def _show(value: Any) -> str:
    """Return a value on one line; a string that is a plain word without its quotes."""
    if isinstance(value, str):
        # repr() spells every control character out, so a guest's words stay on their line.
        text = value if re.fullmatch(r"[\w.,:/=+@%-]+", value, re.ASCII) else repr(value)
    else:
        text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " [...]"
