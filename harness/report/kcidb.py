"""Results as KernelCI takes them: checkouts, builds, tests, issues and incidents of KCIDB.

The schema is that of kcidb-io (https://github.com/kernelci/kcidb-io), version 5.3.  An id is made
of what it stands for, so that the same results sent twice are the same objects.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from harness.errors import HarnessError, UsageError
from harness.report.escape import one_line, printable
from harness.report.record import EXCERPT_LIMIT, TestRecord
from harness.report.stored import StoredRun
from harness.verdict.known import KnownIssue
from harness.verdict.status import Status

VERSION = {"major": 5, "minor": 3}
#: Who sends it; KernelCI gives a CI system its name.
ORIGIN = "nvdimm_harness"

_ORIGIN = re.compile(r"[a-z0-9_]+")
_ID = re.compile(r"[a-z0-9_]+:.+")
_URL = re.compile(r"https?://[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+")  # the characters of RFC 3986
_OUTSIDE_PATH = re.compile(r"[^a-zA-Z0-9_-]+")
#: Where the tests are in KernelCI's tree of all tests.
_ROOT = "nvdimm"
#: The list of known issues has no versions of its own.
_ISSUE_VERSION = 1
_EXCERPT_OF_GOOD = 2048
_MOST_FILES = 40
#: Of one value in misc: entries, levels, characters.
_MOST, _DEPTH, _VALUE = 100, 8, 2048
_ENVIRONMENT = ("machine", "machine.digest", "accel", "accel.why", "qemu", "images.digest")


def build(
    runs: Sequence[StoredRun],
    issues: Iterable[KnownIssue],
    *,
    origin: str = ORIGIN,
    url: str = "",
    build_id: str = "",
) -> dict[str, Any]:
    """Return the report of some runs; UsageError when it cannot be had as asked for.

    ``url`` is where the results' folder can be downloaded from; without it no file is named.
    ``build_id`` is the id of a build that KernelCI knows already: that which was tested.
    """
    if not _ORIGIN.fullmatch(origin):
        raise UsageError(f"{origin!r} is no origin", hint="a-z, 0-9 and _")
    if url and not _URL.fullmatch(url):
        raise UsageError(f"{url!r} is no address", hint="https://HOST/PATH")
    if build_id and not (_ID.fullmatch(build_id) and build_id.isprintable()):
        raise UsageError(f"{build_id!r} is no build's id", hint="ORIGIN:ID, such as maestro:68a1")
    if build_id and len({_kernel(run) for run in runs}) > 1:
        raise UsageError("these are several kernels, and a build is one", hint="give one's folder")
    return _Report(origin, url, build_id, {issue.id: issue for issue in issues}).of(runs)


def check(report: Mapping[str, Any]) -> bool:
    """Hold a report against kcidb-io's schema; False where that is not installed."""
    try:
        import kcidb_io  # noqa: PLC0415 - an extra, which few need
        from jsonschema.exceptions import ValidationError  # noqa: PLC0415 - comes with it
    except ImportError:
        return False
    try:
        kcidb_io.schema.LATEST.validate(dict(report))
    except ValidationError as error:
        raise HarnessError(f"KCIDB would refuse {error.json_path}: {error.message}") from error
    return True


class _Report:
    """The objects of a report as they are found, each once."""

    def __init__(
        self, origin: str, url: str, build_id: str, issues: Mapping[str, KnownIssue]
    ) -> None:
        self._origin = origin
        self._url = f"{url.rstrip('/')}/" if url else ""
        self._build_id = build_id
        self._known = issues
        self._checkouts: dict[str, dict[str, Any]] = {}
        self._builds: dict[str, dict[str, Any]] = {}
        self._issues: dict[str, dict[str, Any]] = {}
        self._tests: list[dict[str, Any]] = []
        self._incidents: list[dict[str, Any]] = []

    def of(self, runs: Sequence[StoredRun]) -> dict[str, Any]:
        """Return the report."""
        for run in runs:
            build_id = self._build_id or self._build(run)
            for record in run.records:
                self._tests.append(self._test(run, record, build_id))
            if run.info.problem or not run.records:
                self._tests.append(self._missed(run, build_id))
        found = {
            "version": VERSION,
            "checkouts": list(self._checkouts.values()),
            "builds": list(self._builds.values()),
            "tests": self._tests,
            "issues": list(self._issues.values()),
            "incidents": self._incidents,
        }
        return {key: value for key, value in found.items() if value}

    def _id(self, *parts: str) -> dict[str, str]:
        """Return the beginning of each object: its id and its origin."""
        return {"id": f"{self._origin}:{_hash(*parts)}", "origin": self._origin}

    def _build(self, run: StoredRun) -> str:
        """Add a run's kernel and return its build's id."""
        kernel, said = _kernel(run), run.info.properties
        origin = said.get("kernel.origin", "") or run.info.kernel
        checkout = {
            **self._id("checkout", kernel),
            "comment": one_line(origin, 1000),
            "valid": True,
            "misc": _plain({"kernel": run.info.kernel, "origin": origin}),
        }
        build = {
            **self._id("build", kernel),
            "checkout_id": checkout["id"],
            "comment": one_line(run.info.kernel, 1000),
            "architecture": "x86_64",
            "status": Status.PASS.value,  # it was there to be tested
            "misc": _plain({key: said[key] for key in said if key.startswith("kernel")}),
        }
        self._checkouts.setdefault(str(checkout["id"]), checkout)
        self._builds.setdefault(str(build["id"]), build)
        return str(build["id"])

    def _test(self, run: StoredRun, record: TestRecord, build_id: str) -> dict[str, Any]:
        """Return a test and add its incidents."""
        found: dict[str, Any] = {
            **self._id("test", *_run(run), record.nodeid),
            "build_id": build_id,
            "path": _path(record),
            "comment": one_line(": ".join(filter(None, (record.row, record.title)))),
            "status": record.status.value,
            "environment": _environment(run, record),
            "misc": _plain(_told(run, record)),
        }
        if math.isfinite(record.seconds):
            found["duration"] = round(record.seconds, 3)
        if record.started:
            moment = datetime.fromtimestamp(record.started, UTC)
            found["start_time"] = moment.isoformat(timespec="milliseconds")
        limit = _EXCERPT_OF_GOOD if record.status.good else EXCERPT_LIMIT
        if excerpt := record.excerpt(limit):
            found["log_excerpt"] = printable(excerpt, limit)
        found.update(self._files(run, record))
        if record.known:
            self._incident(record, found["id"], record.known, present=True)
        for issue in record.fixed:
            self._incident(record, found["id"], issue, present=False)
        return found

    def _missed(self, run: StoredRun, build_id: str) -> dict[str, Any]:
        """Return the test that a run as a whole is: a kernel that did not boot is no pass."""
        return {
            **self._id("run", *_run(run)),
            "build_id": build_id,
            "path": f"{_ROOT}.run",
            "comment": one_line(run.info.problem or "no test ran", 1000),
            "status": Status.MISS.value,
            "environment": _environment(run, None),
        }

    def _files(self, run: StoredRun, record: TestRecord) -> dict[str, Any]:
        """Return where a test's files can be had."""
        if not self._url or run.info.folder is None:
            return {}
        folder = run.info.folder
        try:
            paths = [file for file in sorted((folder / record.folder).iterdir()) if file.is_file()]
        except OSError:
            paths = []
        paths += [file for file in [folder / record.bundle] if file.is_file()]
        found = [
            {"name": file.name, "url": self._url + run.info.href + quote(_below(folder, file))}
            for file in paths[:_MOST_FILES]
            if file.stat().st_size > 0
        ]
        logs = [one["url"] for one in found if one["name"] == "output.txt"]
        others = [one for one in found if one["name"] != "output.txt"]
        return {**({"log_url": logs[0]} if logs else {}), "output_files": others}

    def _incident(self, record: TestRecord, test: str, issue: str, *, present: bool) -> None:
        """Add that a known issue showed in a test, or did not."""
        known = self._known.get(issue)
        about: dict[str, Any] = {**self._id("issue", issue), "version": _ISSUE_VERSION}
        about["culprit"] = {"code": True, "tool": False, "harness": False}
        about["comment"] = one_line(known.title if known else issue, 1000)
        about["misc"] = {"id": one_line(issue)}
        if known:
            about["report_subject"] = one_line(known.title, 1000)
            about["misc"] |= {"evidence": printable(known.evidence, 4096)}
            if urlsplit(known.link).scheme in ("http", "https"):
                about["report_url"] = known.link
        self._issues.setdefault(about["id"], about)
        self._incidents.append(
            {
                **self._id("incident", test, issue),
                "issue_id": about["id"],
                "issue_version": _ISSUE_VERSION,
                "test_id": test,
                "present": present,
                "comment": one_line(record.seen, 1000),
            }
        )


def _hash(*parts: str) -> str:
    raw = json.dumps(parts).encode()
    return hashlib.sha256(raw).hexdigest()[:40]


def _kernel(run: StoredRun) -> str:
    """Return what tells a kernel from every other."""
    said = run.info.properties
    return said.get("kernel.digest") or f"{said.get('kernel.origin', '')} {run.info.kernel}"


def _run(run: StoredRun) -> tuple[str, ...]:
    """Return what tells a run from every other."""
    about = (run.info.started, str(run.info.seconds), _kernel(run), run.info.label)
    return (*about, run.info.properties.get("machine.digest", ""))


def _path(record: TestRecord) -> str:
    """Return a test's place in the tree: nvdimm.test_l_layout.test_l1_waits.truncate-ext4."""
    file = record.nodeid.partition("[")[0].partition("::")[0]
    function, _, parameters = record.name.partition("[")
    parts = (file.rpartition("/")[2].removesuffix(".py"), function, parameters.removesuffix("]"))
    safe = (_OUTSIDE_PATH.sub("_", part)[:200].strip("_") for part in parts)
    return ".".join([_ROOT, *filter(None, safe)])


def _environment(run: StoredRun, record: TestRecord | None) -> dict[str, Any]:
    said = run.info.properties
    guest = record.facts.get("guest") if record else None
    machine = said.get("machine") or "a machine that is not known"
    shown = [f"machine {machine}", *(said[key] for key in ("accel", "qemu") if said.get(key))]
    misc: dict[str, Any] = {key: said[key] for key in _ENVIRONMENT if key in said}
    if isinstance(guest, Mapping):
        misc["guest"] = guest
    return {"comment": one_line(", ".join(shown)), "misc": _plain(misc)}


def _told(run: StoredRun, record: TestRecord) -> dict[str, Any]:
    """Return what the schema has no word for; nothing that is empty."""
    titles = ("kind", "title", "severity")
    found = {
        "test": record.nodeid,
        "row": record.row,
        "message": record.message,
        "hint": record.hint,
        "known": record.known,
        "expectations": record.expectations,
        "proofs": record.proofs,
        "facts": {key: value for key, value in record.facts.items() if key != "guest"},
        "findings": [{key: one.get(key) for key in titles} for one in record.findings],
        "again": run.again.get(record.nodeid, ""),
    }
    return {key: value for key, value in found.items() if value}


def _plain(value: Any, depth: int = _DEPTH) -> Any:
    """Return a guest's value bounded and without what a database cannot hold (NUL, surrogates)."""
    match value:
        case str():
            return printable(value, _VALUE)
        case bool() | int() | None:
            return value
        case float():
            return value if math.isfinite(value) else repr(value)
        case Mapping() if depth:
            items = list(value.items())[:_MOST]
            return {one_line(str(key)): _plain(item, depth - 1) for key, item in items}
        case list() | tuple() if depth:
            return [_plain(item, depth - 1) for item in value[:_MOST]]
    return printable(repr(value), _VALUE)


def _below(folder: Path, file: Path) -> str:
    return file.relative_to(folder).as_posix()
