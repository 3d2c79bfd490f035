"""Results of runs that never were: records of every verdict, some of a hostile guest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import paths
from harness.report import html, summary
from harness.report.page import RunInfo, RunView, run_view
from harness.report.record import TestRecord
from harness.report.views import Views
from harness.verdict.status import Status

#: What must never come through as it is, each with a word to find it by.
HOSTILE = (
    "<script>alert('scripted')</script>"
    "<img src=x onerror=alert('imaged')> ]]> --> </pre></style></title> {{ 7 * 7 }} &lt;"
    "\x1b[31mred\x1b]0;title\x07 \u202etxet desrever\u202c \ufeff \x00 \ud800 'quoted' \"twice\""
)
SPLAT = [
    "------------[ cut here ]------------",
    "WARNING: CPU: 1 PID: 291 at fs/dax.c:390 dax_disassociate_entry+0x86/0xb0",
    "Call Trace:",
    " truncate_inode_pages_range+0x106/0x410",
]
DMESG = "".join(
    f"[   14.{number:06d}] {line}\n"
    for number, line in enumerate([*(f"before {n}" for n in range(40)), *SPLAT, "after it"])
)
FINDING = {
    "kind": "warning",
    "title": "WARNING in dax_disassociate_entry (fs/dax.c:390)",
    "severity": "warning",
    "line": 41,
    "last_line": 44,
    "trace": SPLAT,
}
WAIT = {
    "op_name": "truncate",
    "pinned": True,
    "pin_proof": "the reference count rose",
    "waits_in": "ext4_break_layouts",
    "states": "S",
    "stack": "ext4_break_layouts ext4_setattr notify_change",
    "op_seconds": 1.056,
    "end_seconds": 0.006,
}
GUEST = {
    "release": "6.12.1",
    "how": "clone",
    "qmp_seconds": 0.1,
    "running_seconds": 0.2,
    "ssh_seconds": 1.0,
    "boot_findings": ["a complaint while booting"],
}


def record(name: str, status: Status = Status.PASS, **changed: Any) -> TestRecord:
    """Return a record with all that one can have."""
    right = status in (Status.PASS, Status.DONE)
    values: dict[str, Any] = {
        "nodeid": f"testcases/test_l_layout.py::{name}",
        "status": status,
        "seconds": 1.7,
        "row": "L1",
        "title": "an operation waits for the pin",
        "message": "" if right else "seen_waiting: expected true, seen false",
        "expectations": (
            {
                "what": "seen_waiting",
                "expected": True,
                "seen": right,
                "ok": right,
                "source": "commit 430657b6be89",
            },
        ),
        "proofs": ({"what": "the page is pinned", "proven": True, "seen": "counted"},),
        "facts": {"refs_before": 1, "guest": GUEST},
        "excerpts": {
            "output": f"$ /opt/nvh/layout --op truncate\nok 1\n# facts {json.dumps(WAIT)}\n"
        },
        "steps": ({"what": "mount /dev/pmem0", "at": 0.1, "seconds": 0.4},),
    }
    return TestRecord(**{**values, **changed})


def judged(status: Status, name: str = "test_v3_x[ext4]", **changed: Any) -> TestRecord:
    """Return a record with no more than a verdict and its row."""
    values: dict[str, Any] = {
        "nodeid": f"testcases/test_v.py::{name}",
        "status": status,
        "seconds": 0.5,
        "row": name.split("_")[1].upper(),
        "message": f"why {status.value}",
    }
    return TestRecord(**{**values, **changed})


def of_every_verdict() -> list[TestRecord]:
    """Return a test for each of the six words and for what is known."""
    found = [
        record(f"test_l1_operation_waits_for_the_pin[{status.value.lower()}-ext4]", status)
        for status in Status
        if status is not Status.FAIL
    ]
    log = {"dmesg": DMESG, "output": found[0].excerpts["output"]}
    bad = record(
        "test_l1_operation_waits_for_the_pin[truncate-xfs]",
        Status.FAIL,
        findings=(FINDING,),
        excerpts=log,
        hint="look at fs/dax.c",
    )
    known = replace(
        bad, nodeid=f"{bad.nodeid[:-1]}-known]", known="dax-unmapped-pins", row="L6", hint=""
    )
    return [*found, bad, known]


def hostile() -> TestRecord:
    """Return a test whose guest said the worst wherever it could."""
    return record(
        "test_l1_hostile[" + HOSTILE + "]",
        Status.FAIL,
        row=f"L1{HOSTILE}",
        title=HOSTILE,
        message=HOSTILE,
        hint=HOSTILE,
        known="",
        expectations=({"what": HOSTILE, "expected": HOSTILE, "seen": {HOSTILE: HOSTILE}},),
        proofs=({"what": HOSTILE, "proven": False, "seen": HOSTILE},),
        facts={HOSTILE: HOSTILE, "stack": HOSTILE, "guest": {HOSTILE: HOSTILE, "how": "clone"}},
        findings=({"kind": HOSTILE, "title": HOSTILE, "trace": [HOSTILE], "line": 1},),
        excerpts={
            "dmesg": f"{HOSTILE}\n",
            "stacks": HOSTILE,
            "output": f"$ {HOSTILE}\n# facts "
            + json.dumps({**WAIT, "op_name": HOSTILE, "waits_in": HOSTILE, "op_seconds": 2})
            + f"\n{HOSTILE}\n",
        },
        steps=({"what": HOSTILE, "at": 0.1, "seconds": 0.2}, {"what": 3, "at": "no"}),
    )


def view(
    records: Sequence[TestRecord], *, label: str = "", of: int | None = None, **info: Any
) -> RunView:
    """Return a run of records as a page shows it."""
    told = RunInfo(label, info.pop("kernel", "6.12.1"), **info)
    return run_view(told, records, again={}, issues={}, of=of or len(records))


def page(*runs: RunView) -> str:
    """Return the page of runs, with the checkout's own views."""
    views = Views.load(paths.source_tree() / "testcases" / "views.toml")
    return html.build(runs, views, catalogue={"L1": (["commit 1"], ["CONFIG_FS_DAX=y"])})


def write_run(
    folder: Path,
    records: Sequence[TestRecord],
    *,
    started: str = "2026-01-02T03:04:05+0000",
    finished: bool = True,
    kernel: str = "6.12.1",
) -> Path:
    """Write the results of a run and return their folder."""
    for one in records:
        (folder / one.folder).mkdir(parents=True)
        one.save(folder / one.folder)
        (folder / one.folder / "console.log").write_text("said on the console\n")
    summary.write(
        folder / "summary.json",
        records,
        {"kernel": kernel, "machine": "default", "accel": "tcg"},
        started=started,
        seconds=12.5 if finished else None,
        exit_code=summary.verdict(records) if finished else None,
        finished=finished,
    )
    return folder


def write_matrix(folder: Path, runs: dict[str, Sequence[TestRecord] | str]) -> Path:
    """Write the results of a matrix: records for each kernel, or why it has none."""
    combinations = []
    for kernel, records in runs.items():
        name = f"{kernel.replace(':', '-')},default"
        if not isinstance(records, str):
            write_run(folder / name / "night", records, kernel=f"{kernel} release")
        combinations.append(
            {
                "kernel": kernel,
                "machine": "default",
                "folder": name,
                "state": "done",
                "exit_code": 125 if isinstance(records, str) else 1,
                "seconds": 3.0,
                "results": "" if isinstance(records, str) else f"{name}/night",
                "why": records if isinstance(records, str) else "",
            }
        )
    values = {"format": 1, "started": "2026", "options": {}, "shard": "", "exit_code": 1}
    (folder / "matrix.json").write_text(json.dumps({**values, "combinations": combinations}))
    return folder
