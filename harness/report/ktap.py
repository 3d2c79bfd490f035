"""Results as KTAP, version 1 (docs.kernel.org/dev-tools/ktap.html), for what reads kselftest.

A known failure is an expected one (``ok ... # XFAIL``), as kselftest prints it; what could not be
tested is ``not ok ... # ERROR``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from harness.report.escape import one_line
from harness.report.record import TestRecord
from harness.report.stored import StoredRun
from harness.verdict.status import Status

_VERSION = "KTAP version 1"
_INDENT = "  "
_PROPERTIES = ("kernel", "kernel.origin", "machine", "accel", "qemu")
#: Words at which tools/testing/kunit/kunit_parser.py stops to read, or takes a test for crashed.
_KUNIT = (
    "List of all partitions:",
    "Kernel panic - not syncing: VFS:",
    "reboot: System halted",
    "kunit test case crashed!",
)


def build(runs: Sequence[StoredRun]) -> str:
    """Return the tests of a run, or each kernel of several with its own tests below it."""
    if len(runs) == 1:
        return _text(_run(runs[0]))
    lines = [_VERSION, f"1..{len(runs)}"]
    for number, run in enumerate(runs, 1):
        lines += [f"{_INDENT}{line}" for line in _run(run)]
        lines.append(_result(number, run.info.label, *_worst(run)))
    return _text(lines)


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _run(run: StoredRun) -> Iterator[str]:
    missed = run.info.problem or ("" if run.records else "no test ran")
    yield _VERSION
    for name in _PROPERTIES:
        if value := run.info.properties.get(name):
            yield f"# {name}: {_data(value)}"
    yield f"1..{len(run.records) + bool(missed)}"
    for number, record in enumerate(run.records, 1):
        yield from _test(number, record)
    if missed:
        yield _result(len(run.records) + 1, "the run itself", False, f"ERROR MISS: {_data(missed)}")


def _test(number: int, record: TestRecord) -> Iterator[str]:
    path = record.nodeid.partition("[")[0].partition("::")[0]
    name = f"{path.removesuffix('.py').replace('/', '.')}.{record.name}"
    if about := ": ".join(filter(None, (record.row, record.title))):
        yield f"# about: {_data(about)}"
    if not record.status.good:
        for finding in record.findings[:20]:
            yield f"# kernel: {_data(str(finding.get('title', '')))}"
        if record.hint:
            yield f"# hint: {_data(record.hint)}"
    yield f"# seconds: {record.seconds:.3f}"
    said = _data(record.message or record.status.meaning)
    if record.known:
        ended = True, f"XFAIL known issue {_data(record.known)}: {said}"
    elif record.status is Status.SKIP:
        ended = True, f"SKIP {said}"
    elif record.status in (Status.ERROR, Status.MISS):
        ended = False, f"ERROR {record.status.value}: {said}"
    elif record.status is Status.FAIL:
        ended = False, f"FAIL: {said}"  # never a directive of the guest's
    else:
        ended = True, said if record.status is Status.DONE else ""
    yield _result(number, name, *ended)


def _worst(run: StoredRun) -> tuple[bool, str]:
    """Return a kernel's own result: it fails with any of its tests."""
    if run.info.problem or not run.records:
        return False, f"ERROR MISS: {_data(run.info.problem or 'no test ran')}"
    if all(record.status is Status.SKIP for record in run.records):
        return True, "SKIP every test was skipped"
    bad = [one for one in run.records if one.status in (Status.FAIL, Status.ERROR, Status.MISS)]
    return all(one.known for one in bad), ""


def _result(number: int, name: str, right: bool, data: str) -> str:
    told = f" # {data}" if data else ""
    shown = _read_by_kunit(one_line(name, 500).replace("#", ""))
    return f"{'ok' if right else 'not ok'} {number} {shown}{told}"


def _data(text: str) -> str:
    """Return a guest's words in one line, without a directive among them."""
    return _read_by_kunit(one_line(text, 500).replace("#", "\\#"))


def _read_by_kunit(text: str) -> str:
    for words in _KUNIT:
        text = text.replace(words, words.replace(" ", "_"))
    return text
