"""Whether guests leave a core to spare; busy programs stand in for guests."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from harness import cores


def returns_within(looks: int) -> bool:
    """Tell whether a core is found free before somebody has waited that often."""
    waited = []

    def until(seconds: float) -> bool:
        time.sleep(seconds)
        waited.append(seconds)
        return len(waited) > looks

    cores.wait_for_room(until)
    return len(waited) <= looks


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    assert cores.share() == 6.0
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "4")
    assert cores.share() == 1.5


def test_a_guest_that_fills_the_share_leaves_none_until_it_rests(
    busy: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "share", lambda: 1.0)
    monkeypatch.setattr(cores, "idle", lambda: 0.0)
    assert not returns_within(3)
    busy.send_signal(signal.SIGSTOP)
    assert returns_within(3)


def test_beside_one_guest_a_second_core_is_free(
    busy: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "share", lambda: 2.0)
    assert busy.poll() is None
    assert returns_within(3)


@pytest.mark.parametrize(("unused", "free"), [(0.4, False), (0.6, True)])
def test_half_a_core_that_nobody_uses_will_do(
    busy: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, unused: float, free: bool
) -> None:
    monkeypatch.setattr(cores, "share", lambda: 1.0)
    monkeypatch.setattr(cores, "idle", lambda: unused * time.monotonic())
    assert busy.poll() is None
    assert returns_within(3) == free


def test_the_time_that_cores_idle_grows_no_faster_than_time() -> None:
    before, begun = cores.idle(), time.monotonic()
    time.sleep(0.3)
    grown = cores.idle() - before
    tick = len(os.sched_getaffinity(0)) * 0.05
    assert 0 <= grown <= (time.monotonic() - begun) * len(os.sched_getaffinity(0)) + tick


def test_what_is_waited_for_anyway_is_not_held_up() -> None:
    begun = time.monotonic()
    cores.wait_for_room(lambda _: True)
    assert time.monotonic() - begun < 5
