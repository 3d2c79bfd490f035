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


class _Lingering(threading.Thread):
    def __init__(self, guest: Guest, end: Callable[[], None], told: Callable[[str], None]) -> None:
        super().__init__(name="aftermath", daemon=True)
        self._guest = guest
        self._position = guest.vm.console.position
        self._end = end
        self._told = told
        self.hurry = threading.Event()
        self.unwanted = False

    def run(self) -> None:
        self.hurry.wait(LINGER)
        words = self._guest.vm.console.text(self._position)
        if words.strip() and not self.unwanted:
            words = self._guest.only_the_kernels(words)
        self._end()
        if self.unwanted:
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

    def keep(self, guest: Guest, end: Callable[[], None], told: Callable[[str], None]) -> bool:
        """Let a guest live on unless it is dead or broken; return whether it does.

        ``end`` ends it; ``told`` is then called with what its console said meanwhile, both on
        another thread.
        """
        if guest.broken is not None or guest.vm.death() is not None:
            return False
        # Beside the test that runs and the clone that is getting ready.
        if budget(guest.machine.memory) < 2:
            return False
        self._lingering = [one for one in self._lingering if one.is_alive()]
        while len(self._lingering) >= MOST:
            oldest = self._lingering.pop(0)
            oldest.hurry.set()
            oldest.join()
        self._lingering.append(_Lingering(guest, end, told))
        self._lingering[-1].start()
        return True

    def wait(self) -> None:
        """Wait until all that there is to say has been said."""
        while self._lingering:
            self._lingering.pop().join()

    def close(self) -> None:
        """End all guests at once; nobody asks any more what they had to say."""
        for one in self._lingering:
            one.unwanted = True
            one.hurry.set()
        self.wait()
        remove_empty(self._folder)
