"""Whether two runs of a test show the same: the same reason, or the same words of the kernel."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

from harness.errors import EXIT_FAILED, EXIT_OK, EXIT_UNTESTABLE
from harness.report.record import TestRecord
from harness.verdict.status import Status

#: Addresses, counts, times and process ids differ from run to run.
_NUMBER = re.compile(r"\b(?:0x[0-9a-f]+|[0-9a-f]{8,}|\d+(?:\.\d+)*)\b", re.IGNORECASE)


class Shows(StrEnum):
    """What a run says of an earlier one's symptom."""

    SAME = "the same symptom"
    OTHER = "another symptom"
    NOT = "does not show"
    UNTESTED = "could not be tested"


def compare(before: TestRecord | None, now: TestRecord) -> Shows:
    """Say whether ``now`` shows what ``before`` did.

    Nothing is known of a run that was killed (None): any failure is then taken for what it met.
    """
    if now.status.good:
        return Shows.NOT
    if before is None:
        return Shows.SAME if now.status is Status.FAIL else Shows.UNTESTED
    if now.status is before.status and _alike(before, now):
        return Shows.SAME
    return Shows.OTHER if now.status is Status.FAIL else Shows.UNTESTED


def exit_code(shown: Iterable[Shows]) -> int:
    """Return the exit code of some runs of a test, as ``git bisect run`` wants it.

    1 when one showed the symptom, 0 when all passed.  Another symptom is neither: whatever fails
    there may hide the one that is looked for, so the revision is skipped (125).
    """
    seen = set(shown)
    if Shows.SAME in seen:
        return EXIT_FAILED
    return EXIT_OK if seen == {Shows.NOT} else EXIT_UNTESTABLE


def _alike(before: TestRecord, now: TestRecord) -> bool:
    if before.known and before.known == now.known:
        return True
    titles = _titles(before) & _titles(now)
    return bool(titles) or _reason(before) == _reason(now)


def _titles(record: TestRecord) -> set[str]:
    return {_NUMBER.sub("#", str(finding.get("title", ""))) for finding in record.findings}


def _reason(record: TestRecord) -> str:
    """Return why a test did not pass, without what differs from run to run."""
    wrong = [item for item in record.expectations if not item.get("ok")]
    if wrong and record.message.startswith(f"{wrong[0].get('what')}:"):
        return "; ".join(f"{item.get('what')}: {_shown(item.get('seen'))}" for item in wrong)
    return _NUMBER.sub("#", record.message)


def _shown(seen: object) -> str:
    """Return an answer without its numbers, which differ from run to run; true is not false."""
    if isinstance(seen, bool):
        return str(seen)
    return _NUMBER.sub("#", seen) if isinstance(seen, str) else type(seen).__name__
