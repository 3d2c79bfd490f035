"""What a workload said: KTAP lines and one line of JSON facts (docs.kernel.org/dev-tools/ktap)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from harness.errors import WorkloadError

# Linear: output may be megabytes of whatever a guest likes to say.
_STEP = re.compile(r"(not )?ok ([0-9]+)(?: -)?(?![^\s])(.*)")
_PLAN = re.compile(r"1\.\.(\d+)")
_FACTS = "# facts "
#: A workload's facts are some hundred characters; a guest could say megabytes, or nest for ever.
FACTS_LIMIT = 64 << 10
_DEPTH = 16


@dataclass(frozen=True)
class Step:
    """One line of a workload's result."""

    ok: bool
    name: str


@dataclass(frozen=True)
class WorkloadResult:
    """A workload that ran to its end."""

    command: str
    status: int
    steps: tuple[Step, ...]
    facts: dict[str, Any]
    output: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every step was taken as asked; no word about the kernel yet."""
        return self.status == 0 and all(step.ok for step in self.steps)

    @property
    def failed(self) -> str:
        """Name the steps that could not be taken."""
        return "; ".join(step.name for step in self.steps if not step.ok)


def parse(command: str, status: int, output: str, stderr: str, seconds: float) -> WorkloadResult:
    """Read a workload's output; WorkloadError when it was started wrongly or cut short."""
    steps: list[Step] = []
    facts: dict[str, Any] = {}
    planned: int | None = None
    # Not splitlines(): that also cuts at U+2028 and the like, which JSON may hold.
    for raw in output.split("\n"):
        line = raw.rstrip()
        if line.startswith("Bail out!"):
            raise WorkloadError(f"{command}: {line.removeprefix('Bail out!').strip()}")
        if match := _STEP.fullmatch(line):
            steps.append(Step(not match[1], match[3].strip()))
        elif match := _PLAN.fullmatch(line):
            planned = int(match[1])
        elif line.startswith(_FACTS):
            facts = facts_of(command, line)
    if planned is None:
        words = stderr.strip().splitlines() or output.strip().splitlines() or ["it said nothing"]
        how = f"signal {status - 128}" if status > 128 else f"status {status}"
        raise WorkloadError(f"{command}: no KTAP plan; it ended with {how}: {words[-1]}")
    if planned != len(steps):
        raise WorkloadError(f"{command}: {planned} steps planned and {len(steps)} reported")
    return WorkloadResult(command, status, tuple(steps), facts, output, seconds)


def facts_of(command: str, line: str) -> dict[str, Any]:
    """Return the facts of a line, none of another line; WorkloadError when they are broken."""
    if not line.startswith(_FACTS):
        return {}
    text = line.removeprefix(_FACTS)
    if len(text) > FACTS_LIMIT:
        raise WorkloadError(f"{command}: its facts are longer than {FACTS_LIMIT} characters")
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WorkloadError(f"{command}: its facts are no JSON: {text[:200]}") from error
    if not isinstance(facts, dict):
        raise WorkloadError(f"{command}: its facts are no JSON object")
    if _deeper(facts, _DEPTH):
        raise WorkloadError(f"{command}: its facts nest deeper than {_DEPTH} levels")
    return facts


def _deeper(value: Any, levels: int) -> bool:
    """Say whether lists and objects nest deeper: whoever walks through them recurses."""
    layer = [value]
    for _ in range(levels):
        inner = [v.values() if isinstance(v, dict) else v for v in layer]
        layer = [item for items in inner for item in items if isinstance(item, dict | list)]
        if not layer:
            return False
    return True
