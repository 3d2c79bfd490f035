"""Whether guests leave a core to spare; busy programs stand in for guests."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from harness import cores

#: A program that waits for a loaded host's core looks idle until it gets one.
LONG = 1.0


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
    monkeypatch.setattr(cores, "SAMPLE", LONG)
    monkeypatch.setattr(cores, "share", lambda: 1.0)
    monkeypatch.setattr(cores, "idle", lambda: 0.0)
    assert not returns_within(3)
    busy.send_signal(signal.SIGSTOP)
    assert returns_within(3)


def test_beside_one_guest_a_second_core_is_free(
    busy: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "share", lambda: 2.0)
    monkeypatch.setattr(cores, "idle", lambda: 0.0)
    assert busy.poll() is None
    assert returns_within(3)


@pytest.mark.parametrize(("unused", "free"), [(0.2, False), (0.8, True)])
def test_half_a_core_that_nobody_uses_will_do(
    busy: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, unused: float, free: bool
) -> None:
    monkeypatch.setattr(cores, "SAMPLE", LONG)
    monkeypatch.setattr(cores, "share", lambda: 1.0)
    monkeypatch.setattr(cores, "idle", lambda: unused * time.monotonic())
    assert busy.poll() is None
    assert returns_within(3) == free


def test_the_time_that_our_cores_had_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = tmp_path / "stat"
    stat.write_text(
        "cpu  9 9 9 9999 9999 9\ncpu0 1 2 3 400 50 6\ncpu1 1 2 3 7000 800 6\n"
        "cpu2 1 2 3 30 20 6\nintr 1 2 3 4 5 6\n"
    )
    monkeypatch.setattr(cores, "_STAT", stat)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2})
    assert cores.idle() == 500 / os.sysconf("SC_CLK_TCK")


def test_the_hosts_own_figures_are_read() -> None:
    assert cores.idle() > 0


def test_what_is_waited_for_anyway_is_not_held_up() -> None:
    begun = time.monotonic()
    cores.wait_for_room(lambda _: True)
    assert time.monotonic() - begun < 5
