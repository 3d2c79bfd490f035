"""What a guest's kernel said while one test ran."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from harness.errors import HarnessError, HostError
from harness.guest import Guest
from harness.report.results import write_atomic
from harness.verdict.classifier import Finding, classify, unexpected
from harness.verdict.expectation import Mismatch

log = logging.getLogger(__name__)


_PINS_LEFT = "pins_left: expected 0, seen {}"


def _may_leave(pins: int, allowed: Sequence[str]) -> bool:
    """Return whether a test has allowed so many pins to be left."""
    return any(re.search(pattern, _PINS_LEFT.format(pins)) for pattern in allowed)


class Observer:
    """The kernel's log and the console between the begin and the end of a test."""

    def __init__(self, guest: Guest, name: str) -> None:
        self.guest = guest
        self.dmesg = ""
        self.console = ""
        #: Splats that the test did not declare.
        self.unexpected: list[Finding] = []
        #: Pages that were pinned meanwhile and not unpinned.
        self.pins_left = 0
        self._name = name
        self._token: str | None = None
        self._position = 0
        #: Why the log could not be read; None of a guest that was to end.
        self._unread: HarnessError | None = None
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
        vm = self.guest.vm
        self._unread = vm.death()
        self.console = vm.console.text(self._position)
        if vm.child.poll() is None and self._unread is None:
            try:
                known = _may_leave(1, allowed)
                self.dmesg, self.pins_left = self.guest.ending(self._token, known=known)
            except HarnessError as error:
                log.warning("no dmesg: %s", error)
                self._unread = vm.death() or error
                self.console = vm.console.text(self._position)  # it may have said why
        said = self.dmesg
        if said and classify(said.splitlines()):
            said = self.guest.only_the_kernels(said)
        if not self.dmesg:
            said = self.dmesg = self.console
        self.console = self._earlier + self.console
        self.dmesg = self._earlier + self.dmesg
        said = self._earlier + said
        self.unexpected = list(unexpected(classify(said.splitlines()), allowed))

    def check_pins(self, allowed: Sequence[str]) -> None:
        """Raise Mismatch when the kernel counts pins that the test's programs took with them."""
        if self.pins_left > 0 and not _may_leave(self.pins_left, allowed):
            raise Mismatch(_PINS_LEFT.format(self.pins_left))

    def check_logs(self) -> None:
        """Raise why what the guest's kernel said is not known in whole.

        HostError when the host could not keep it, else what kept the guest from telling.
        """
        console = self.guest.vm.console
        if console.log_lost:
            raise HostError(str(console.log_error), hint="free space for the results")
        if self._unread is not None:
            raise self._unread

    def add(self, words: str, allowed: Sequence[str]) -> list[Finding]:
        """Add what the console said after the end; return what is found in that alone."""
        self.console += words
        self.dmesg += words
        late = list(unexpected(classify(words.splitlines()), allowed))
        self.unexpected += late
        return late

    def save(self, folder: Path) -> None:
        """Write both slices into the test's folder."""
        write_atomic(folder / "dmesg", self.dmesg)
        write_atomic(folder / "console.log", self.console)
