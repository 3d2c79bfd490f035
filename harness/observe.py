"""What a guest's kernel said while one test ran."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from harness.errors import HarnessError
from harness.guest import Guest
from harness.report.results import write_atomic
from harness.verdict.classifier import Finding, classify, unexpected

log = logging.getLogger(__name__)


class Observer:
    """The kernel's log and the console between the begin and the end of a test."""

    def __init__(self, guest: Guest, name: str) -> None:
        self.guest = guest
        self.dmesg = ""
        self.console = ""
        #: Splats that the test did not declare.
        self.unexpected: list[Finding] = []
        self._name = name
        self._token: str | None = None
        self._position = 0
        #: What the test's earlier guests said until their power was cut.
        self._earlier = ""

    def begin(self) -> None:
        """Mark the log; raises what is wrong with the guest."""
        self._position = self.guest.vm.console.position
        self._token = self.guest.mark(f"begin {self._name}")

    def go_on(self, guest: Guest) -> None:
        """Go on with the guest that comes after one whose power was cut."""
        self._earlier += self.guest.vm.console.text(self._position).rstrip("\n") + "\n"
        self.guest = guest
        self.begin()

    def end(self, allowed: Sequence[str]) -> None:
        """Read what came since; a guest that died leaves its console."""
        self.console = self.guest.vm.console.text(self._position)
        if self.guest.vm.child.poll() is None and self.guest.vm.death() is None:
            try:
                self.dmesg = self.guest.dmesg(self._token)
            except HarnessError as error:
                log.warning("no dmesg: %s", error)
        if not self.dmesg:
            self.dmesg = self.console
        self.console = self._earlier + self.console
        self.dmesg = self._earlier + self.dmesg
        self.unexpected = list(unexpected(classify(self.dmesg.splitlines()), allowed))

    def save(self, folder: Path) -> None:
        """Write both slices into the test's folder."""
        write_atomic(folder / "dmesg", self.dmesg)
        write_atomic(folder / "console.log", self.console)
