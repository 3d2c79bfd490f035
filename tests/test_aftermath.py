"""Guests whose tests are over: how many live on, and which end at once; guests are made up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import aftermath as aftermaths
from harness.aftermath import Aftermath
from harness.errors import GuestLost
from tests.made_up_guests import MadeUpGuest


@pytest.fixture
def aftermath(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Aftermath]:
    """Guests live on until somebody hurries them."""
    monkeypatch.setattr(aftermaths, "LINGER", 60.0)
    monkeypatch.setattr(aftermaths, "budget", lambda _: 2)
    made = Aftermath(tmp_path)
    yield made
    made.close()
    assert not [one for one in threading.enumerate() if one.name == "aftermath"]


def over() -> Any:
    """Return a guest whose test is over, and which says nothing more."""
    guest = MadeUpGuest("clone", "default")
    console = SimpleNamespace(position=0, text=lambda _: "")
    return SimpleNamespace(
        machine=SimpleNamespace(memory=1 << 30),
        broken=None,
        vm=SimpleNamespace(console=console, death=guest.vm.death, child=guest.vm.child),
    )


def test_no_more_guests_live_on_than_may(aftermath: Aftermath) -> None:
    """The one that has lived longest goes when there are too many."""
    ended: list[int] = []
    told: list[int] = []
    for number in range(aftermaths.MOST + 2):
        end, tell = partial(ended.append, number), partial(lambda at, _: told.append(at), number)
        assert aftermath.keep(over(), end, tell)
        assert len(aftermath._lingering) <= aftermaths.MOST
    assert ended == told == [0, 1]  # what they had to say is heard, however early they went
    aftermath.close()
    assert sorted(ended) == list(range(aftermaths.MOST + 2))
    assert told == [0, 1]


@pytest.mark.parametrize("what", ["memory", "broken", "dead"])
def test_a_guest_that_is_broken_or_has_no_room_ends_with_its_test(
    aftermath: Aftermath, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    guest = over()
    if what == "memory":
        monkeypatch.setattr(aftermaths, "budget", lambda _: 1)
    elif what == "broken":
        guest.broken = GuestLost("it is gone")
    else:
        guest.vm.child.gone.set()
    assert not aftermath.keep(guest, lambda: pytest.fail("ended"), lambda _: pytest.fail("told"))
    assert aftermath._lingering == []
