"""What a kernel says when its test is over: guests live on a little and are then looked at again.

A fault may need a moment to show: work that was queued, a timer, a page that is freed later.  To
wait for it behind each test would cost more than the tests, so the guest lives on beside the next
ones, and its test's verdict is taken back if something shows.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from harness.errors import HarnessError
from harness.guest import Guest
from harness.pool import budget, remove_empty

log = logging.getLogger(__name__)

#: How long a guest lives on, in seconds.
LINGER = 2.5
#: How many do at once: they cost memory.
MOST = 3
#: How long what a guest says after its test waits for the test's record, in seconds.
PATIENCE = 60.0


class _Lingering(threading.Thread):
    def __init__(
        self,
        guest: Guest,
        end: Callable[[], None],
        told: Callable[[str], None],
        recorded: threading.Event,
    ) -> None:
        super().__init__(name="aftermath", daemon=True)
        self._guest = guest
        self._position = guest.vm.console.position
        self._end = end
        self._told = told
        self._recorded = recorded
        self._hurry = threading.Event()
        self._unwanted = False
        self._over = threading.Event()

    def hurry(self) -> None:
        """End the guest now."""
        self._hurry.set()

    def leave(self) -> None:
        """End the guest now, and tell nothing; what waits for a record waits no more."""
        self._unwanted = True
        self.hurry()
        self._recorded.set()

    @property
    def over(self) -> bool:
        """Whether its guest has ended and all was told."""
        return self._over.is_set()

    def wait(self) -> None:
        """Wait until it is over; one whose making was interrupted is nothing to wait for."""
        if self.ident is not None:
            self._over.wait()  # a join that is interrupted makes a thread look dead (Python 3.12)
            self.join()

    def run(self) -> None:
        try:
            self._live_on()
        finally:
            self._over.set()

    def _live_on(self) -> None:
        self._hurry.wait(LINGER)
        words = self._guest.vm.console.text(self._position)
        if words.strip() and not self._unwanted:
            words = self._guest.only_the_kernels(words)
        self._end()
        self._recorded.wait(PATIENCE)
        if self._unwanted:
            return
        try:
            self._told(words)
        except (HarnessError, OSError) as error:
            log.warning("what came after a test is lost: %s", error)


class Aftermath:
    """The guests of tests that are over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder  # the folders of guests are in there
        self._lingering: list[_Lingering] = []
        self._closed = False

    def keep(
        self,
        guest: Guest,
        end: Callable[[], None],
        told: Callable[[str], None],
        recorded: threading.Event,
    ) -> bool:
        """Let a guest live on unless it is dead or broken; return whether it does.

        ``end`` ends it; ``told`` is then called with what its console said meanwhile, not before
        its test is ``recorded``, both on another thread.
        """
        if self._closed or guest.broken is not None or guest.vm.death() is not None:
            return False
        # Beside the test that runs and the clone that is getting ready.
        if budget(guest.machine.memory) < 2:
            return False
        self._lingering = [one for one in self._lingering if not one.over]
        while len(self._lingering) >= MOST:
            oldest = self._lingering[0]
            oldest.hurry()
            oldest.wait()
            self._lingering.remove(oldest)
        self._lingering.append(_Lingering(guest, end, told, recorded))
        self._lingering[-1].start()
        return True

    def wait(self) -> None:
        """Wait until all that there is to say has been said."""
        while self._lingering:
            # Until it is over it stays known: who is interrupted here calls close().
            self._lingering[-1].wait()
            self._lingering.pop()

    def close(self) -> None:
        """End all guests at once, and keep none; nobody asks any more what they had to say."""
        self._closed = True
        for one in self._lingering:
            one.leave()
        self.wait()
        remove_empty(self._folder)
