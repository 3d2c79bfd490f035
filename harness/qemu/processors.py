"""What a guest's processors do, as QEMU sees it: the witness of a lockup."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from harness.errors import HarnessError
from harness.qemu.qmp import Qmp

#: How often processors are looked at before one counts as locked up, and how far apart, in seconds.
_SAMPLES, _APART = 5, 0.1
_CPU = re.compile(r"^CPU#(\d+)$", re.MULTILINE)
_STATE = re.compile(
    r"[RE]IP=([0-9a-f]+) [RE]FL=([0-9a-f]+) .*?CPL=(\d).*?HLT=(\d)", re.DOTALL
)  # as target/i386/cpu-dump.c prints it (QEMU 7.2)
_IF = 1 << 9


@dataclass(frozen=True)
class Processor:
    """One processor at one moment."""

    number: int
    address: int
    interrupts: bool
    kernel: bool
    halted: bool

    @property
    def busy(self) -> bool:
        """Whether it runs in the kernel."""
        return self.kernel and not self.halted


def registers(qmp: Qmp) -> str:
    """Return all registers of all processors; raises HostError when QEMU does not answer."""
    command = {"command-line": "info registers -a"}
    text = qmp.execute("human-monitor-command", command, timeout=10.0)
    return str(text).replace("\r", "")


def processors(text: str) -> list[Processor]:
    """Read what ``registers`` returned."""
    found = []
    parts = _CPU.split(text)
    for number, part in zip(parts[1::2], parts[2::2], strict=True):
        if match := _STATE.search(part):
            flags = int(match[2], 16)
            found.append(
                Processor(
                    number=int(number),
                    address=int(match[1], 16),
                    interrupts=bool(flags & _IF),
                    kernel=match[3] == "0",
                    halted=match[4] == "1",
                )
            )
    return found


def locked(qmp: Qmp) -> list[Processor]:
    """Return the processors that are in the kernel whenever one looks; raises HostError."""
    stuck: dict[int, Processor] = {}
    for sample in range(_SAMPLES):
        if sample:
            time.sleep(_APART)
        seen = {one.number: one for one in processors(registers(qmp)) if one.busy}
        stuck = seen if not sample else {n: one for n, one in seen.items() if n in stuck}
    return list(stuck.values())


def told(qmp: Qmp) -> str:
    """Say in some words what the processors are locked up in, "" when they are not."""
    try:
        stuck = locked(qmp)
    except HarnessError:
        return ""
    if not stuck:
        return ""
    numbers = ", ".join(str(one.number) for one in stuck)
    which = f"CPU {numbers}" if len(stuck) == 1 else f"CPUs {numbers}"
    masked = sum(not one.interrupts for one in stuck)
    how = {0: "on", len(stuck): "off"}.get(masked, "partly off")
    return f"{which} in the kernel with interrupts {how}"
