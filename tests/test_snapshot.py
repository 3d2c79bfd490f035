"""The pipe through which a saved state goes into a QEMU."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from harness.qemu.snapshot import State


@pytest.mark.parametrize("size", [0, 1, 4096, 400_000, (3 << 20) + 5])
def test_a_state_comes_out_of_the_pipe_whole_and_ends(tmp_path: Path, size: int) -> None:
    """Also one that is larger than a pipe: QEMU reads it while the harness goes on writing."""
    file = tmp_path / "state"
    file.write_bytes(os.urandom(size))
    got = b""
    with file.open("rb") as saved, closing(State(saved.fileno())) as state:
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
    assert got == file.read_bytes()


def test_nothing_of_the_pipe_is_left_open(tmp_path: Path) -> None:
    file = tmp_path / "state"
    file.write_bytes(bytes(3 << 20))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with file.open("rb") as saved, closing(State(saved.fileno())) as state:
        assert not state.fed
    assert len(list(Path("/proc/self/fd").iterdir())) == before
