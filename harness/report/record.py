"""What is known of one test, as it is kept in the test's folder and read by every report."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from harness.errors import HostError
from harness.report.escape import one_line, slug, tail
from harness.report.results import write_json
from harness.verdict.status import Status

T = TypeVar("T")

FORMAT = 1
#: The page of a run, in its directory.
PAGE = "report.html"
#: Bytes of all excerpts of one test in a report; the whole text lies in the test's folder.
EXCERPT_LIMIT = 16 << 10


@dataclass(frozen=True)
class TestRecord:
    """The verdict on one test and what it rests on."""

    __test__ = False  # not a class of tests, whatever pytest thinks of its name

    nodeid: str
    status: Status
    seconds: float
    started: float = 0.0  # in seconds since 1970; 0 where it was not written down
    row: str | None = None  # id of the catalogue's row
    title: str = ""
    message: str = ""  # why it did not pass, one line
    hint: str = ""  # what to do about it, one line
    expectations: tuple[Mapping[str, Any], ...] = ()  # as Case records them
    proofs: tuple[Mapping[str, Any], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Mapping[str, Any], ...] = ()  # kernel splats that no test declared
    of_host: bool = False  # the host kept it from running, whatever the kernel
    known: str = ""  # id of the known issue that explains a FAIL
    fixed: tuple[str, ...] = ()  # known issues that were expected here and did not show
    steps: tuple[Mapping[str, Any], ...] = ()  # what the guest was told, when, for how long
    excerpts: Mapping[str, str] = field(default_factory=dict)  # name -> last lines of it

    @property
    def word(self) -> str:
        """The verdict as a person reads it: a known failure is told apart from a new one."""
        return "KNOWN" if self.known else self.status.value

    @property
    def name(self) -> str:
        """The test's function with its parameters."""
        path, bracket, parameters = self.nodeid.partition("[")
        return path.rpartition("::")[2] + bracket + parameters

    @property
    def folder(self) -> str:
        """The test's folder, relative to the run's directory."""
        return f"tests/{slug(self.nodeid)}"

    @property
    def bundle(self) -> str:
        """The test's bundle, if it left one, relative to the run's directory."""
        return f"bundles/{slug(self.nodeid)}.tar.zst"

    @property
    def seen(self) -> str:
        """What was seen, on one printable line."""
        if not self.status.good and self.message:
            return one_line(self.message)
        shown = [f"{item['what']}: {_word(item['seen'])}" for item in self.expectations]
        return one_line(", ".join(shown) or self.message)

    def again(self, options: Sequence[str] = ()) -> str:
        """Return the command that runs this test again; ``options`` are those of the run."""
        if self.row is None:  # another project's: nvh test does not know of it
            words = [word.replace("--", "--nvh-", 1) for word in options]
            return shlex.join(["pytest", self.nodeid, *words])
        return shlex.join([program(), "test", "-k", _selector(self.name), *options])

    def excerpt(self, limit: int = EXCERPT_LIMIT) -> str:
        """Return the excerpts as one printable text of at most ``limit`` characters."""
        share = max(1, limit // max(1, len(self.excerpts)) - 64)
        parts = [
            f"--- {one_line(name, 40)}\n{tail(text, share // 2 if len(text) > share else share)}"
            for name, text in self.excerpts.items()
            if text.strip()
        ]
        return "\n".join(parts)[:limit]

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON can hold it."""
        values = asdict(self)
        values["status"] = self.status.value
        values["seconds"] = round(self.seconds, 3)
        values["started"] = round(self.started, 3)
        return {"format": FORMAT, **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TestRecord:
        """Return the record that ``to_json`` gave; ValueError or another of its like for none.

        It may come from another host, so that nothing is taken for what it should be.
        """
        if values.get("format") != FORMAT:
            raise ValueError(f"format {values.get('format')!r} is not {FORMAT}")
        row = values.get("row")
        return cls(
            nodeid=str(values["nodeid"]),
            status=Status(values["status"]),
            seconds=finite(values["seconds"]),
            started=finite(values.get("started", 0)),
            row=None if row is None else str(row),
            title=str(values.get("title", "")),
            message=str(values.get("message", "")),
            hint=str(values.get("hint", "")),
            expectations=_mappings(values.get("expectations", ())),
            proofs=_mappings(values.get("proofs", ())),
            facts=dict(values.get("facts", {})),
            findings=tuple(map(_finding, _mappings(values.get("findings", ())))),
            of_host=values.get("of_host") is True,
            known=str(values.get("known", "")),
            fixed=tuple(str(issue) for issue in values.get("fixed", ())),
            steps=_mappings(values.get("steps", ())),
            excerpts={str(key): str(text) for key, text in values.get("excerpts", {}).items()},
        )

    def save(self, folder: Path) -> Path:
        """Write result.json into the test's folder, whole or not at all."""
        return write_json(folder / "result.json", self.to_json())

    @classmethod
    def load(cls, file: Path) -> TestRecord:
        """Read a result.json; HostError when it is none."""
        try:
            return cls.from_json(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise HostError(f"{file}: no test record: {error}") from error


class Made(Generic[T]):
    """What a report makes of each record, made once: a run writes its reports after each test."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[TestRecord, Hashable, T]] = {}

    def of(
        self, record: TestRecord, make: Callable[[TestRecord], T], *, given: Hashable = None
    ) -> T:
        """Return what ``make`` makes of a record; again only where it or ``given`` is another."""
        made = self._made.get(record.nodeid)
        if made is None or made[0] is not record or made[1] != given:
            made = self._made[record.nodeid] = (record, given, make(record))
        return made[2]


def boot_findings(records: Iterable[TestRecord]) -> list[str]:
    """Return what the kernel complained of while guests booted, each title once."""
    found: dict[str, None] = {}
    for record in records:
        guest = record.facts.get("guest")
        titles = guest.get("boot_findings") if isinstance(guest, Mapping) else None
        found.update({one_line(str(title)): None for title in titles or ()})
    return list(found)


def zoned(moment: str) -> str:
    """Return a moment as RFC 3339 has it, "" where it is none: 2026-01-02T03:04:05+00:00."""
    try:
        found = datetime.fromisoformat(moment)
    except ValueError:
        return ""
    return (found if found.tzinfo else found.astimezone()).isoformat()


def program() -> str:
    """Return what to type for nvh: a name that the user's shell finds."""
    if shutil.which("nvh"):
        return "nvh"
    return sys.argv[0] if sys.argv[0].endswith("nvh") else ".venv/bin/nvh"


def finite(value: Any) -> float:
    """Return a number of seconds; ValueError or TypeError for anything else."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("not a finite number of seconds")
    return number


def _mappings(values: Any) -> tuple[Mapping[str, Any], ...]:
    found = tuple(values)
    if not all(isinstance(value, dict) for value in found):
        raise ValueError("a list of objects holds something else")
    return found


def _finding(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return values if isinstance(values.get("trace", []), list) else {**values, "trace": []}


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=repr)


def _selector(name: str) -> str:
    """Return a -k expression; pytest's grammar takes brackets and dots, but no spaces or quotes."""
    plain = name.replace("_", "").replace("-", "").replace(".", "")
    plain = plain.replace("[", "").replace("]", "")
    return name if plain.isalnum() and plain.isascii() else name.partition("[")[0]
