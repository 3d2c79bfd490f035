"""The pool's decisions: what it starts, hands out, replaces and ends; guests are made up."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import pool as pools
from harness.errors import GuestLost, ImageError, LaunchError, UsageError
from harness.guest.template import Template
from harness.pool import GuestPool, Wish
from harness.qemu.snapshot import NotMigratable
from tests.made_up_guests import MadeUpGuest, MadeUpVm, World, end

PLENTY = 64 << 30
Eventually = Callable[[Callable[[], object]], None]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    names = SimpleNamespace(
        key=lambda recipe: f"{recipe.machine.name} {recipe.append}",
        why_not=lambda _: None,
        EVIDENCE=(),
    )
    monkeypatch.setattr(pools, "templates", names)
    monkeypatch.setattr(pools, "cloned", made.cloned)
    monkeypatch.setattr(pools, "booted", made.booted)
    monkeypatch.setattr(pools, "memory_available", lambda: PLENTY)
    monkeypatch.setattr(pools, "process", SimpleNamespace(end=end))
    monkeypatch.setattr(pools, "rundir", SimpleNamespace(sweep=lambda: None))
    monkeypatch.setattr(pools, "cores", SimpleNamespace(wait_for_room=lambda _: None))
    return made


Pools = Callable[..., GuestPool]


@pytest.fixture
def pool_of(world: World) -> Iterator[Pools]:
    """Make pools, and see at the end that nothing of them runs."""
    made: list[GuestPool] = []

    def make(**options: Any) -> GuestPool:
        lab: Any = world
        made.append(GuestPool(lab, world.folder / f"pool-{len(made)}", **options))
        return made[-1]

    yield make
    for pool in made:
        pool.close()
    assert world.running == set()
    assert not world.overdue
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pool")]


@pytest.fixture
def pool(pool_of: Pools) -> GuestPool:
    return pool_of()


def made_up(guest: Any) -> MadeUpGuest:
    assert isinstance(guest, MadeUpGuest)
    return guest


# Clones that fail


def test_a_clone_that_does_not_come_up_costs_one_test(pool: GuestPool, world: World) -> None:
    world.troubles = [LaunchError("QEMU refused to start", hint="do this"), None]
    with pytest.raises(LaunchError, match="QEMU refused to start"), pool.guest(Wish()):
        pass
    with pool.guest(Wish()) as guest:
        assert made_up(guest).vm.death() is None
    assert len(world.started) == 2


def test_its_error_names_the_folder_of_its_logs(pool: GuestPool, world: World) -> None:
    world.troubles = [LaunchError("QEMU refused to start", hint="do this")]
    with pytest.raises(LaunchError) as caught, pool.guest(Wish()):
        pass
    words, _, folder = str(caught.value.hint).partition("; its logs are in ")
    assert words == "do this"
    assert [path.name for path in Path(folder).iterdir()] == ["console.log"]


@pytest.mark.parametrize("wish", [Wish("shared"), Wish(power_cycle=True)])
def test_so_does_that_of_a_guest_that_no_warm_one_stands_in_for(
    pool: GuestPool, world: World, wish: Wish
) -> None:
    world.troubles = [GuestLost("it is gone")]
    with pytest.raises(GuestLost) as caught, pool.guest(wish):
        pass
    assert Path(str(caught.value.hint).removeprefix("its logs are in ")).is_dir()


@pytest.mark.parametrize("how", ["failed", "died", "stopped"])
def test_a_warm_clone_that_is_lost_is_replaced_without_a_word(
    pool: GuestPool,
    world: World,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    if how == "failed":
        world.troubles = [None, GuestLost("it did not go on")]
    with pool.guest(Wish(), then=Wish()):
        eventually(pool.ready)
        lost = world.started[-1]
        if how == "died":
            lost.vm.child.gone.set()
        elif how == "stopped":
            lost.vm.answers = False
    with caplog.at_level(logging.WARNING), pool.guest(Wish()) as guest:
        assert made_up(guest) is not lost
        assert made_up(guest).vm.death() is None
        assert lost not in world.running
    assert "a clone failed before its test" in caplog.text
    assert len(world.started) == 3


# Machines without a template


@pytest.mark.parametrize("isolation", ["clone", "shared"])
def test_what_cannot_be_saved_is_booted_and_says_why(
    pool_of: Pools, world: World, isolation: str
) -> None:
    world.unmakable["default"] = NotMigratable("a device of the host")
    said: list[str] = []
    pool = pool_of(say=said.append)
    for _ in range(2):
        with pool.guest(Wish(isolation), then=Wish()) as guest:
            assert made_up(guest).how == "boot"
            assert made_up(guest).facts["why_boot"] == "a device of the host"
    assert said == ["machine default is booted for every test: a device of the host"]
    assert world.made == ["default"]
    assert len(world.started) == (2 if isolation == "clone" else 1)


def test_a_template_that_cannot_be_made_is_tried_once(pool: GuestPool, world: World) -> None:
    world.unmakable["default"] = ImageError("no room for it")
    for isolation in ("clone", "clone", "shared"):
        with pytest.raises(ImageError, match="no room for it"), pool.guest(Wish(isolation)):
            pass
    assert world.made == ["default"]
    with pool.guest(Wish(machine="other")) as guest:  # another machine is another matter
        assert made_up(guest).machine == "other"


def test_isolation_boot_asks_for_no_template(pool: GuestPool, world: World) -> None:
    with pool.guest(Wish("boot")) as guest:
        assert made_up(guest).how == "boot"
    assert world.made == []


# What is started ahead


def ahead(world: World, guest: Any) -> list[MadeUpGuest]:
    """Return what runs besides the guest under test."""
    return [other for other in world.started if other in world.running and other is not guest]


def test_the_next_clone_is_started_while_a_test_runs(
    pool: GuestPool, world: World, eventually: Eventually
) -> None:
    with pool.guest(Wish(), then=Wish()) as first:
        eventually(lambda: len(world.running) == 2)
    (next_one,) = world.running
    with pool.guest(Wish()) as second:
        assert made_up(second) is next_one
        assert second is not first
    assert len(world.started) == 2


@pytest.mark.parametrize(
    "then",
    [
        None,
        Wish("boot"),
        Wish("shared"),
        Wish(power_cycle=True),
        Wish(machine="never asked for"),
    ],
)
def test_nothing_is_started_that_nobody_will_take(
    pool: GuestPool, world: World, eventually: Eventually, then: Wish | None
) -> None:
    with pool.guest(Wish(), then=Wish()):
        eventually(pool.ready)
    with pool.guest(Wish(), then=then) as guest:
        eventually(pool.ready)
        assert ahead(world, guest) == []
    assert len(world.started) == 2


def test_warm_clones_of_another_machine_are_thrown_away(
    pool: GuestPool, world: World, eventually: Eventually
) -> None:
    other = Wish(machine="other")
    with pool.guest(Wish(), then=Wish()) as guest:
        eventually(pool.ready)
        (stale,) = ahead(world, guest)
    with pool.guest(other, then=other) as guest:
        eventually(pool.ready)
        assert stale not in world.running
        assert [clone.machine for clone in ahead(world, guest)] == ["other"]


@pytest.mark.parametrize("isolation", ["boot", "shared"])
def test_a_clone_is_started_behind_a_guest_that_is_none(
    pool: GuestPool, world: World, eventually: Eventually, isolation: str
) -> None:
    with pool.guest(Wish()):
        pass
    with pool.guest(Wish(isolation), then=Wish()) as guest:
        eventually(lambda: [clone.how for clone in ahead(world, guest)] == ["clone"])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_there_are_never_more_guests_than_one_and_those_ahead(
    pool_of: Pools, world: World, eventually: Eventually, count: int
) -> None:
    pool = pool_of(ahead=count)
    wishes = [Wish(), Wish(), Wish(machine="other"), Wish(), Wish("boot"), Wish(), Wish()]
    for wish, then in zip(wishes, [*wishes[1:], None], strict=True):
        with pool.guest(wish, then):
            eventually(pool.ready)
            assert len(world.running) <= count + 1
    assert world.peak == count + 1


@pytest.mark.parametrize(("free", "expected"), [(0, 0), (2 << 30, 0), (4 << 30, 1)])
def test_memory_decides_how_many_run_ahead(
    pool: GuestPool, world: World, monkeypatch: pytest.MonkeyPatch, free: int, expected: int
) -> None:
    monkeypatch.setattr(pools, "memory_available", lambda: free)
    with pool.guest(Wish(), then=Wish()):
        assert len(pool._warm) == expected
    assert world.peak <= expected + 1


def test_nothing_runs_ahead_while_the_guests_fill_the_cores(
    pool: GuestPool, world: World, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    asked, free = threading.Event(), threading.Event()

    def full(until: Callable[[float], bool]) -> None:
        asked.set()
        while not (free.is_set() or until(0.005)):
            pass

    monkeypatch.setattr(pools, "cores", SimpleNamespace(wait_for_room=full))
    with pool.guest(Wish(), then=Wish()):
        assert asked.wait(10)
        assert len(world.running) == 1
    with pool.guest(Wish(), then=Wish()):  # whoever is there gets one, however full it is
        assert len(world.running) == 1
        free.set()
        eventually(lambda: len(world.running) == 2)
        eventually(pool.ready)
    assert len(world.started) == 3


def test_a_clone_that_waits_for_a_core_is_thrown_away_without_a_start(
    pool: GuestPool, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(until: Callable[[float], bool]) -> None:
        while not until(10):
            pass

    monkeypatch.setattr(pools, "cores", SimpleNamespace(wait_for_room=full))
    with pool.guest(Wish(), then=Wish()):
        pass
    pool.close()
    assert len(world.started) == 1


# Shared guests


def test_a_shared_guest_is_shared_until_it_breaks(pool: GuestPool, world: World) -> None:
    def give() -> MadeUpGuest:
        with pool.guest(Wish("shared")) as guest:
            return made_up(guest)

    first = give()
    assert give() is first
    first.answers = False
    second = give()
    assert second is not first
    second.broken = GuestLost("its SSH broke")
    third = give()
    assert third is not second
    third.vm.child.gone.set()
    assert give() is not third
    assert len(world.running) == 1


# Power cycles


def test_a_guest_to_be_power_cycled_has_nvdimms_of_its_own(
    pool: GuestPool, world: World, eventually: Eventually
) -> None:
    with pool.guest(Wish(), then=Wish()):
        eventually(pool.ready)
        warm = world.started[-1]
    with pool.guest(Wish(power_cycle=True), then=Wish()) as guest:
        assert made_up(guest).how == "clone with NVDIMMs of its own"
        assert ahead(world, guest) == [warm]
        with pool.power_cycled(guest) as again:
            assert guest.vm.death() is not None
            assert made_up(again).how == "boot"
            assert made_up(again).facts["why_boot"] == "power cycle"
            assert again.nvdimms == guest.nvdimms
            with pool.power_cycled(again) as third:
                assert third.nvdimms == guest.nvdimms


@pytest.mark.parametrize("isolation", ["clone", "shared"])
@pytest.mark.parametrize("migratable", [True, False])
def test_no_other_guests_power_is_cut(
    pool: GuestPool, world: World, isolation: str, migratable: bool
) -> None:
    if not migratable:
        world.unmakable["default"] = NotMigratable("a device of the host")
    with pool.guest(Wish(isolation)) as guest:
        if isolation == "clone" and not migratable:  # it was booted for this test alone
            with pool.power_cycled(guest) as again:
                assert again.nvdimms == guest.nvdimms
            return
        with pytest.raises(UsageError, match="do not outlive"), pool.power_cycled(guest):
            pass
        assert guest.vm.death() is None


# The end


def test_closing_ends_all_that_runs(pool: GuestPool, world: World) -> None:
    with pool.guest(Wish("shared")):
        pass
    with pool.guest(Wish(), then=Wish()):
        world.gate.clear()
    assert world.running
    pool.close()
    assert world.running == set()
    assert not (world.folder / "pool-0" / "3").exists()  # nobody had the clone ahead


def test_closing_ends_all_even_if_one_of_them_raises(
    pool_of: Pools, world: World, eventually: Eventually
) -> None:
    pool = pool_of(ahead=2)
    with pool.guest(Wish("shared")):
        pass
    with pool.guest(Wish(), then=Wish()):
        eventually(pool.ready)
    ended: list[int] = []

    def complain() -> None:
        ended.append(1)
        if len(ended) == 1:
            raise RuntimeError("made up")

    world.end = complain
    assert len(world.running) == 3
    with pytest.raises(RuntimeError, match="made up"):
        pool.close()
    assert world.running == set()
    assert len(ended) == 3


def test_a_clone_that_hangs_on_its_way_is_ended_at_once(
    pool: GuestPool, world: World, eventually: Eventually
) -> None:
    with pool.guest(Wish(), then=Wish()):
        world.gate.clear()
    eventually(lambda: world.running or not world.started)
    pool.close()  # would wait for ever for one that it does not end
    assert world.running == set()


def test_a_clone_whose_qemu_comes_late_is_ended_too(
    pool: GuestPool, world: World, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """It was thrown away before there was a QEMU to end."""
    launching, late = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def slow(
        template: Template, folder: Path, *, started: Callable[[Any], None]
    ) -> Iterator[MadeUpGuest]:
        launching.set()
        assert late.wait(10)
        with world.cloned(template, folder, started=started) as guest:
            yield guest

    with pool.guest(Wish(), then=None):
        monkeypatch.setattr(pools, "cloned", slow)
        pool._refill(Wish())
        assert launching.wait(10)
        world.gate.clear()  # this one would never come up
        with ThreadPoolExecutor(1) as other:
            closing = other.submit(pool.close)
            eventually(lambda: not pool._warm)
            late.set()
            closing.result(10)


@pytest.mark.parametrize("kept", [False, True])
def test_an_interrupt_while_waiting_leaks_nothing(
    pool: GuestPool,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
    kept: bool,
) -> None:
    with pool.guest(Wish(), then=None):
        world.gate.clear()
        if kept:
            pool._refill(Wish())
    plain = Future.exception
    interrupted: list[int] = []

    def exception(self: Future[object]) -> BaseException | None:
        if interrupted:
            return plain(self)
        interrupted.append(1)
        eventually(lambda: world.running)
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "exception", exception)
    with pytest.raises(KeyboardInterrupt), pool.guest(Wish()):
        pass
    assert interrupted
    assert world.running == set()
    assert len(world.started) == 2
    # It was a test's time, and the run goes on.
    world.gate.set()
    with pool.guest(Wish(), then=Wish()):
        assert len(world.running) == 1
    assert len(world.started) >= 3


def test_an_interrupt_while_a_clone_is_looked_at_leaks_nothing(
    pool: GuestPool, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def death(_: MadeUpVm) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MadeUpVm, "death", death)
    with pytest.raises(KeyboardInterrupt), pool.guest(Wish()):
        pass
    assert len(world.started) == 1
    assert world.running == set()


def test_an_interrupt_before_a_test_has_its_clone_leaks_nothing(
    pool: GuestPool, world: World, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """Between one line and the next: the clone is nobody's but the pool's, which ends it."""
    with pool.guest(Wish(), then=Wish()):
        pass
    eventually(lambda: world.running)

    def stuck(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.pool.stuck", stuck)
    with pytest.raises(KeyboardInterrupt), pool.guest(Wish()):
        pass
    pool.close()
    assert len(world.started) == 2
    assert world.running == set()
