"""The store: whole entries or none, one builder, damage found and repaired."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import HostError, ImageError
from harness.images.store import MANIFEST, Store, hash_of

BUILDER = """
import sys, time
from pathlib import Path
from harness.images.store import Store

root, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def build(target):
    (target / "file").write_text("built")
    with log.open("a") as out:
        out.write("built\\n")
    time.sleep(seconds)

print(Store(root).get("kind", "key", build).path)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def text(content: str) -> Callable[[Path], None]:
    def build(target: Path) -> None:
        (target / "dir").mkdir()
        (target / "dir/file").write_text(content)

    return build


def never(_: Path) -> None:
    raise AssertionError("built again")


def start_builder(tmp_path: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, tmp_path / "store", tmp_path / "log", str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def aside(store: Store) -> list[Path]:
    return list((store.root / "aside").iterdir())


def test_an_entry_is_built_once_and_found_again(store: Store) -> None:
    first = store.get("root", "k1", text("hello"))
    assert (first.path / "dir/file").read_text() == "hello"
    assert first.size == len("hello")
    again = store.get("root", "k1", never)
    assert again.path == first.path
    assert again.digest == first.digest
    assert [entry.key for entry in store.entries()] == ["k1"]
    assert not aside(store)


def test_a_build_that_fails_publishes_nothing(store: Store) -> None:
    def build(target: Path) -> None:
        (target / "file").write_text("half")
        raise HostError("mke2fs failed")

    with pytest.raises(HostError, match="mke2fs failed"):
        store.get("root", "k1", build)
    assert store.find("root", "k1") is None
    assert not aside(store)


def test_a_full_disk_is_an_image_error_with_a_hint(store: Store) -> None:
    def build(_: Path) -> None:
        with Path("/dev/full").open("w") as out:
            out.write("x" * 100_000)

    with pytest.raises(ImageError, match=r"No space left on device.*NVH_CACHE"):
        store.get("root", "k1", build)
    assert store.entries() == []
    assert not aside(store)


def test_a_program_that_dies_of_a_full_disk_is_explained(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(_: Path) -> None:
        raise HostError("mke2fs failed with status 1")

    monkeypatch.setattr("harness.images.store._ROOM", 1 << 62)
    with pytest.raises(ImageError, match=r"no space left in .*mke2fs failed"):
        store.get("root", "k1", build)


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "manifest", "link"])
def test_a_damaged_entry_is_built_again(store: Store, harm: str) -> None:
    entry = store.get("root", "k1", text("hello"))
    file = entry.path / "dir/file"
    if harm == "flip":
        file.write_text("hellO")
    elif harm == "truncate":
        file.write_text("")
    elif harm == "remove":
        file.unlink()
    elif harm == "manifest":
        (entry.path / MANIFEST).write_text("{")
    else:
        file.unlink()
        file.symlink_to("/etc/passwd")
    built = store.get("root", "k1", text("hello"))
    assert (built.path / "dir/file").read_text() == "hello"
    assert built.damage() is None


def test_only_the_named_files_are_verified(store: Store) -> None:
    entry = store.get("kernel", "k1", text("hello"))
    (entry.path / "dir/file").write_text("hellO")
    store.get("kernel", "k1", never, verify=False)
    store.get("kernel", "k1", never, verify=("vmlinuz",))
    assert store.owner(entry.path / "dir") == entry
    with pytest.raises(ImageError, match="wrong sha256"):
        store.check(entry.path / "dir")
    assert store.find("kernel", "k1") is None
    store.check(Path("/elsewhere"))


def test_two_processes_build_one(tmp_path: Path) -> None:
    builders = [start_builder(tmp_path, 0.3) for _ in range(2)]
    outputs = [builder.communicate(timeout=30)[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert outputs[0] == outputs[1]
    assert (tmp_path / "log").read_text() == "built\n"


def test_who_waits_too_long_for_another_builder_is_told(tmp_path: Path, store: Store) -> None:
    builder = start_builder(tmp_path, 60)
    wait_for(tmp_path / "log")
    with pytest.raises(ImageError, match=r"has been building kind key for 0 s"):
        store.get("kind", "key", never, patience=0.1)
    builder.kill()
    builder.communicate(timeout=30)


def test_a_killed_builder_leaves_nothing_published(tmp_path: Path, store: Store) -> None:
    builder = start_builder(tmp_path, 60)
    wait_for(tmp_path / "log")
    assert store.sweep() == []  # its owner lives
    os.kill(builder.pid, signal.SIGKILL)
    builder.communicate(timeout=10)
    assert store.find("kind", "key") is None
    assert len(aside(store)) == 1
    entry = store.get("kind", "key", text("mine"))
    assert (entry.path / "dir/file").read_text() == "mine"
    assert not aside(store)


def test_gc_drops_the_longest_unused_first(store: Store) -> None:
    for age, key in enumerate(["new", "middle", "old"]):
        entry = store.get("root", key, text("x" * 1000))
        stamp = time.time() - 1000 * age
        os.utime(entry.path / MANIFEST, (stamp, stamp))
    store.get("root", "old", never)  # used again
    assert [entry.key for entry in store.gc(2000)] == ["middle"]
    assert {entry.key for entry in store.entries()} == {"new", "old"}
    assert store.gc(0)
    assert store.entries() == []


def test_a_store_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match="NVH_CACHE"):
        Store(tmp_path / "file" / "store")


def test_hashes_tell_where_a_part_ends() -> None:
    assert hash_of("ab", "c") != hash_of("a", "bc")
    assert hash_of("a") == hash_of(b"a")
