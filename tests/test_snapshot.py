"""The pipes through which a guest's state goes out of a QEMU and into another."""

from __future__ import annotations

import gc
import os
import threading
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from harness.errors import HostError
from harness.qemu.qmp import Refused
from harness.qemu.snapshot import NotMigratable, State, save
from harness.qemu.vm import Vm


def open_files() -> int:
    gc.collect()  # an earlier test's may still be open
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("size", [0, 1, 4096, 400_000, (3 << 20) + 5])
def test_a_state_comes_out_of_the_pipe_whole_and_ends(size: int) -> None:
    """Also one that is larger than a pipe: QEMU reads it while the harness goes on writing."""
    data, got = os.urandom(size), b""
    with closing(State(data)) as state:
        os.set_blocking(state.descriptor, False)
        for _ in range(10_000):
            state.feed(0)
            try:
                chunk = os.read(state.descriptor, 1 << 16)
            except BlockingIOError:
                continue
            if not chunk:
                break
            got += chunk
        assert not chunk
    assert got == data


@pytest.mark.parametrize("size", [400_000, 3 << 20])
def test_nothing_of_the_pipe_is_left_open(size: int) -> None:
    before = open_files()
    with closing(State(bytes(size))) as state:
        assert state.fed is (size < 1 << 20)
        state.close()
        assert open_files() == before


class Saving:
    """A QEMU that is told to save itself."""

    def __init__(self, data: bytes, refusal: HostError | None) -> None:
        self.qmp = self
        self._data, self._refusal = data, refusal

    def check(self) -> None:
        """It lives."""

    def send_file(self, descriptor: int, name: str) -> None:
        assert name == "state"
        self._pipe = os.dup(descriptor)

    def execute(self, command: str, arguments: Any = None) -> Any:
        if command != "migrate":
            return {"status": "completed"}
        assert arguments == {"uri": "fd:state"}
        if self._refusal is not None:
            os.close(self._pipe)
            raise self._refusal
        threading.Thread(target=self._write).start()
        return None

    def _write(self) -> None:
        with os.fdopen(self._pipe, "wb") as pipe:
            pipe.write(self._data)


def saving(data: bytes = b"", refusal: HostError | None = None) -> Vm:
    return cast(Vm, Saving(data, refusal))


@pytest.mark.parametrize("size", [0, 400_000, 3 << 20])
def test_what_qemu_says_of_itself_is_kept_for_us_alone(tmp_path: Path, size: int) -> None:
    data, file, before = os.urandom(size), tmp_path / "state", open_files()
    save(saving(data), file)
    assert file.read_bytes() == data
    assert file.stat().st_mode & 0o777 == 0o600
    assert open_files() == before


@pytest.mark.parametrize(
    ("refusal", "for_good"),
    [(Refused("State blocked by nvme"), True), (HostError("QEMU did not answer"), False)],
)
def test_only_a_refusal_is_for_good(tmp_path: Path, refusal: HostError, for_good: bool) -> None:
    before = open_files()
    with pytest.raises(HostError, match=refusal.message) as told:
        save(saving(refusal=refusal), tmp_path / "state")
    assert isinstance(told.value, NotMigratable) is for_good
    assert open_files() == before
