"""Working directories: private, gone with their owner, swept only when the owner is dead."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import paths, rundir
from harness.errors import HostError

OWNER = """
import sys
from pathlib import Path
from harness import rundir
rundir._candidates = lambda: [Path(sys.argv[1])]
with rundir.rundir() as folder:
    (folder / "ram").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process with a working directory of its own, where no other test sweeps."""
    monkeypatch.setattr(rundir, "_candidates", lambda: [tmp_path])
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=paths.source_tree(),
    ) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_a_directory_is_private_and_goes_with_the_block() -> None:
    with rundir.rundir() as folder:
        assert folder.stat().st_mode & 0o7777 == 0o700
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x")
    assert not folder.exists()


def test_a_directory_goes_when_the_block_fails() -> None:
    with pytest.raises(KeyError), rundir.rundir() as folder:
        raise KeyError
    assert not folder.exists()


def test_two_are_two() -> None:
    with rundir.rundir() as one, rundir.rundir() as two:
        assert one != two


def test_one_that_went_already_is_no_error() -> None:
    with rundir.rundir() as folder:
        folder.rmdir()


def test_a_living_owner_keeps_its_directory(owner: tuple[subprocess.Popen[str], Path]) -> None:
    _, folder = owner
    with rundir.rundir() as mine:
        rundir.sweep()
        assert mine.is_dir()
        assert (folder / "ram").read_text() == "x"


def test_a_dead_owners_directory_is_swept(owner: tuple[subprocess.Popen[str], Path]) -> None:
    process, folder = owner
    process.kill()
    process.wait(30)
    assert (folder / "ram").exists()  # SIGKILL left it behind
    rundir.sweep()
    assert not folder.exists()


def test_what_is_not_ours_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rundir, "_candidates", lambda: [tmp_path])
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("x")
    (tmp_path / "nvh-run-link").symlink_to(precious)
    (tmp_path / "nvh-run-file").write_text("x")
    (tmp_path / "other").mkdir()
    rundir.sweep()
    assert (precious / "data").exists()
    assert {path.name for path in tmp_path.iterdir()} >= {"precious", "other", "nvh-run-file"}


def test_making_and_sweeping_at_once_never_takes_a_fresh_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parallel runs each sweep before they make theirs."""
    monkeypatch.setattr(rundir, "_candidates", lambda: [tmp_path])
    stop = threading.Event()

    def sweep() -> None:
        while not stop.is_set():
            rundir.sweep()

    sweepers = [threading.Thread(target=sweep) for _ in range(3)]
    for thread in sweepers:
        thread.start()
    try:
        for _ in range(300):
            with rundir.rundir() as folder:
                (folder / "file").write_text("x")
    finally:
        stop.set()
        for thread in sweepers:
            thread.join(30)
    assert not list(tmp_path.iterdir())


def test_no_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rundir, "_candidates", lambda: [tmp_path])
    monkeypatch.setattr(rundir, "ROOM", 1 << 62)
    with (
        pytest.raises(HostError, match=r"free for a guest \(free space or set TMPDIR\)"),
        rundir.rundir(),
    ):
        pass


def test_falling_back_to_a_disk_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    memory.mkdir()
    disk.mkdir()
    plain = shutil.disk_usage

    def usage(folder: Path) -> object:
        return SimpleNamespace(free=rundir.ROOM - 1) if folder == memory else plain(folder)

    monkeypatch.setattr(rundir, "_candidates", lambda: [memory, disk])
    monkeypatch.setattr(shutil, "disk_usage", usage)
    for _ in range(2):
        with rundir.rundir() as folder:
            assert folder.parent == disk
    told = f"{memory} has no room for a guest: its files go to {disk}, a slower disk"
    assert [record.message for record in caplog.records] == [told]


def test_room_in_memory_is_not_worth_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rundir, "_candidates", lambda: [tmp_path, Path("/nowhere")])
    with rundir.rundir() as folder:
        assert folder.parent == tmp_path
    assert not caplog.records


def test_room_is_counted_once_for_each_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(rundir, "_candidates", lambda: [tmp_path / "shm", tmp_path])
    usage = SimpleNamespace(free=rundir.ROOM * 7 // 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert rundir.room() == 3
    monkeypatch.setattr(rundir, "_candidates", lambda: [tmp_path / "gone", Path("/proc")])
    usage.free = 0
    assert rundir.room() == 0
