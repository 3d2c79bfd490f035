"""Guests whose tests are over: how many live on, and which end at once; guests are made up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
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


def recorded() -> threading.Event:
    """Return that a test's record is written."""
    event = threading.Event()
    event.set()
    return event


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
        assert aftermath.keep(over(), end, tell, recorded())
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
    refused(aftermath, guest)
    assert aftermath._lingering == []


def refused(aftermath: Aftermath, guest: Any) -> None:
    end, tell = (lambda: pytest.fail("ended")), (lambda _: pytest.fail("told"))
    assert not aftermath.keep(guest, end, tell, recorded())


def test_one_whose_test_was_cut_short_waits_for_no_record(
    aftermath: Aftermath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt may come between the end of a test's fixtures and its record."""
    monkeypatch.setattr(aftermaths, "LINGER", 0.0)
    ended, told = threading.Event(), threading.Event()
    assert aftermath.keep(over(), ended.set, lambda _: told.set(), threading.Event())
    assert ended.wait(10)
    begun = time.monotonic()
    aftermath.close()
    assert time.monotonic() - begun < aftermaths.PATIENCE / 2
    assert not told.is_set()


@pytest.mark.parametrize("where", ["keep", "wait"])
def test_who_is_interrupted_in_waiting_for_one_ends_it_all_the_same(
    aftermath: Aftermath, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    release = threading.Event()
    ended: list[int] = []

    def end(number: int) -> None:
        release.wait(30)
        ended.append(number)

    for number in range(aftermaths.MOST):
        assert aftermath.keep(over(), partial(end, number), lambda _: None, recorded())

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    waits: Callable[[], object] = aftermath.wait
    if where == "keep":
        waits = partial(aftermath.keep, over(), release.set, lambda _: None, recorded())
    with monkeypatch.context() as patched:
        patched.setattr(aftermaths._Lingering, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            waits()
    release.set()
    aftermath.close()
    assert sorted(ended) == list(range(aftermaths.MOST))


def test_none_lives_on_when_the_run_is_over(aftermath: Aftermath) -> None:
    """pytest ends the fixtures of a test that was cut short after the session's own end."""
    aftermath.close()
    refused(aftermath, over())
