"""Host programs: deadlines, missing programs, and children that never outlive the harness."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import paths, process, signals
from harness.errors import EXIT_UNTESTABLE, HostError

Eventually = Callable[[Callable[[], object]], None]


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@pytest.fixture
def pids() -> Iterator[list[int]]:
    """Processes to end after the test if they still run then."""
    collected: list[int] = []
    yield collected
    for pid in collected:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# run


def test_run_returns_what_was_said() -> None:
    done = process.run(["sh", "-c", "echo out; echo err >&2"], timeout=30)
    assert (done.status, done.stdout, done.stderr) == (0, "out\n", "err\n")
    assert done.argv == ("sh", "-c", "echo out; echo err >&2")


def test_run_knows_no_shell() -> None:
    assert process.run(["echo", "$HOME;", "*"], timeout=30).stdout == "$HOME; *\n"


def test_run_feeds_standard_input_and_it_is_empty_by_default() -> None:
    assert process.run(["cat"], timeout=30, stdin="fed").stdout == "fed"
    assert process.run(["cat"], timeout=30).stdout == ""


def test_run_adds_to_the_environment_and_sets_the_directory(tmp_path: Path) -> None:
    done = process.run(
        ["sh", "-c", 'echo "$NVH_A $HOME"; pwd'], timeout=30, env={"NVH_A": "1"}, cwd=tmp_path
    )
    assert done.stdout == f"1 {os.environ.get('HOME', '')}\n{tmp_path}\n"


def test_run_survives_output_that_is_no_text() -> None:
    assert process.run(["printf", r"a\377b"], timeout=30).stdout == "a\ufffdb"


def test_a_failure_carries_status_and_last_words() -> None:
    with pytest.raises(HostError) as caught:
        process.run(["sh", "-c", "echo first >&2; echo last >&2; exit 3"], timeout=30)
    assert caught.value.message == "sh failed with status 3: last"
    assert caught.value.exit_code == EXIT_UNTESTABLE


def test_a_failure_without_words() -> None:
    with pytest.raises(HostError, match="false failed with status 1: it said nothing"):
        process.run(["false"], timeout=30)


def test_a_failure_may_be_an_answer() -> None:
    assert process.run(["false"], timeout=30, check=False).status == 1


def test_a_missing_program_is_named() -> None:
    with pytest.raises(HostError, match="nvh-no-such-program is not installed"):
        process.run(["nvh-no-such-program"], timeout=30)


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [("#!/bin/sh\n", 0o644, "Permission denied"), ("no program", 0o755, "Exec format error")],
)
def test_a_program_that_does_not_start(tmp_path: Path, text: str, mode: int, words: str) -> None:
    file = tmp_path / "tool"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(HostError, match=words) as caught:
        process.run([str(file)], timeout=30)
    assert str(file) in caught.value.message


def test_a_missing_directory_is_not_called_a_missing_program(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="gone") as caught:
        process.run(["true"], timeout=30, cwd=tmp_path / "gone")
    assert "not installed" not in caught.value.message


def test_find_names_the_package() -> None:
    assert process.find("sh", package="dash").endswith("/sh")
    with pytest.raises(HostError, match=r"nope-x is not installed \(apt-get install the-package\)"):
        process.find("nope-x", package="the-package")


def test_find_looks_into_sbin_whatever_the_path_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert process.find("depmod", package="kmod").endswith("sbin/depmod")


def test_a_deadline_holds_and_leaves_nothing(
    tmp_path: Path, pids: list[int], eventually: Eventually
) -> None:
    # The grandchild holds the output pipe open, as a package manager's children would.
    script = f"sleep 300 & echo $! > {tmp_path}/pid; wait"
    begun = time.monotonic()
    with pytest.raises(HostError, match=r"no end after 3 s: sh -c 'sleep 300"):
        process.run(["sh", "-c", script], timeout=3.0)
    assert time.monotonic() - begun < 60
    pids.append(int((tmp_path / "pid").read_text()))
    eventually(lambda: not alive(pids[0]))


def test_a_line_can_be_pasted_into_a_shell() -> None:
    words = ["qemu", "a b", "c'd", "$x", "-device=e,f"]
    again = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {process.shell_line(words)}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert again.stdout.splitlines() == words


# spawn, end, running


def spawn(*argv: str) -> subprocess.Popen[bytes]:
    return process.spawn(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_running_ends_its_child() -> None:
    with process.running(
        ["sleep", "300"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        assert child.poll() is None
    assert child.returncode == -signal.SIGTERM
    assert not alive(child.pid)


def test_running_ends_its_child_when_the_block_fails() -> None:
    with (
        pytest.raises(KeyError),
        process.running(
            ["sleep", "300"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as c,
    ):
        raise KeyError
    assert not alive(c.pid)


def test_end_kills_what_does_not_listen(tmp_path: Path, eventually: Eventually) -> None:
    child = spawn("sh", "-c", f"trap '' TERM; : > {tmp_path}/trapped; while :; do sleep 1; done")
    eventually((tmp_path / "trapped").exists)
    assert process.end(child, grace=0.2) == -signal.SIGKILL
    assert process.end(child, grace=0.2) == -signal.SIGKILL  # twice is once


def test_end_without_grace_kills_at_once() -> None:
    assert process.end(spawn("sleep", "300"), grace=0) == -signal.SIGKILL


def test_end_returns_the_status_of_who_has_ended() -> None:
    child = spawn("sh", "-c", "exit 7")
    child.wait(30)
    assert process.end(child, grace=1) == 7


def test_spawn_has_no_standard_input_and_a_session_of_its_own(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        script = "readlink /proc/self/fd/0; ps -o sid= -p $$; echo $$"
        child = process.spawn(["sh", "-c", script], stdout=out, stderr=out)
        assert child.wait(30) == 0
    null, session, pid = (tmp_path / "out").read_text().split()
    assert null == "/dev/null"
    assert session == pid == str(child.pid)


def test_spawn_passes_descriptors(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        child = process.spawn(
            ["sh", "-c", f"echo hello >/proc/self/fd/{writer}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[writer],
            cwd=tmp_path,
        )
        assert child.wait(30) == 0
        assert os.read(reader, 100) == b"hello\n"
    finally:
        os.close(reader)
        os.close(writer)


def test_a_child_outlives_the_thread_that_asked_for_it(eventually: Eventually) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        started.append(spawn("sleep", "300"))
        comm = Path(f"/proc/{started[0].pid}/comm")
        eventually(lambda: comm.read_text() == "sleep\n")  # past setpriv

    thread = threading.Thread(target=start)
    thread.start()
    thread.join(30)
    (child,) = started
    try:
        # The parent-death signal would come with the thread's end; give it time to.
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.3)
    finally:
        process.end(child, grace=0)


@contextlib.contextmanager
def interrupted(moment: int) -> Iterator[None]:
    """Interrupt the block where the interpreter may run a signal's handler for the nth time.

    It does so between instructions: behind a call, and where a function begins.
    """
    left = moment

    def count(frame: types.FrameType, event: str, _: object) -> None:
        nonlocal left
        where: types.FrameType | None = frame
        if event == "return" and frame.f_code.co_name == "__init__":
            where = frame.f_back  # a class was called
        elif event not in {"call", "c_return"}:
            return
        left -= 1
        if left <= 0 and signals.may_raise(where):
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)


def run_for_a_block() -> None:
    with process.running(
        ["sleep", "300"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        child.poll()


def run_to_its_end() -> None:
    with contextlib.suppress(HostError):
        process.run(["sleep", "300"], timeout=0.01)


@pytest.mark.parametrize("run", [run_for_a_block, run_to_its_end])
def test_no_moment_of_an_interrupt_leaves_a_child(
    run: Callable[[], None], monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    started: list[subprocess.Popen[Any]] = []

    class Started(subprocess.Popen[Any]):
        def _execute_child(self, *words: Any, **named: Any) -> None:
            super()._execute_child(*words, **named)  # type: ignore[misc]
            started.append(self)

    run()
    monkeypatch.setattr(subprocess, "Popen", Started)
    for moment in itertools.count(1):
        over = False
        with contextlib.suppress(KeyboardInterrupt), interrupted(moment):
            run()
            over = True
        # What was killed may not have been waited for.
        eventually(lambda: all(child.poll() is not None for child in started))
        if over:
            break
    assert moment > 100
    assert len(started) > 10


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Return what interrupts the main thread, from another one; the session goes on behind it."""
    signal.signal(signal.SIGUSR1, signals.interrupt)
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(signals, "_interrupts", signals._Interrupts())
            yield lambda: os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        # One that waits for its moment would end us when the test has failed.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def test_nor_does_a_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a child is being started on its thread, for which the first one waits."""
    started: list[subprocess.Popen[Any]] = []

    class Slow(subprocess.Popen[Any]):
        def __init__(self, *words: Any, **named: Any) -> None:
            for _ in range(2):
                interrupt()
                time.sleep(0.3)
            super().__init__(*words, **named)
            started.append(self)

    def start() -> None:
        try:
            spawn("sleep", "300")
        finally:
            time.sleep(2)  # the second one is on its way

    with interruptible() as interrupt:
        monkeypatch.setattr(subprocess, "Popen", Slow)
        monkeypatch.setattr(signals, "MOMENTS", 6000)  # on a loaded host a start takes its time
        with pytest.raises(KeyboardInterrupt):
            start()
    assert [child.returncode for child in started] == [-signal.SIGKILL]


@pytest.mark.parametrize("times", [1, 2])
def test_a_child_may_end_in_order_until_a_second_interrupt(
    eventually: Callable[..., None], tmp_path: Path, times: int
) -> None:
    asked, done = tmp_path / "asked", tmp_path / "done"
    ending = f"until [ -e {tmp_path}/end ]; do sleep 0.1; done; : > {done}; exit"
    script = (
        f"trap ': > {asked}; {ending}' TERM; : > {tmp_path}/trapped; while :; do sleep 0.1; done"
    )
    child = spawn("sh", "-c", script)
    eventually((tmp_path / "trapped").exists)

    def interrupt_it() -> None:
        seen = signals._interrupts
        eventually(asked.exists)
        interrupt()
        eventually(lambda: seen.raised == 1, seconds=60)
        if times == 2:
            interrupt()
            eventually(lambda: child.returncode is not None, seconds=60)
        (tmp_path / "end").touch()

    other = threading.Thread(target=interrupt_it)

    def end() -> None:
        other.start()
        process.end(child, grace=60)

    with interruptible() as interrupt, pytest.raises(KeyboardInterrupt):
        end()
    other.join()
    assert child.wait(10) == (0 if times == 1 else -signal.SIGKILL)
    assert done.exists() == (times == 1)


def test_an_interrupt_is_not_lost_in_the_end_of_a_child_that_does_not_obey(
    eventually: Callable[..., None], tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    trap = f"trap ': > {asked}' TERM; : > {tmp_path}/trapped"
    child = spawn("sh", "-c", f"{trap}; while :; do sleep 0.1; done")
    eventually((tmp_path / "trapped").exists)

    def interrupt_it() -> None:
        eventually(asked.exists)
        signals._interrupts.moments = 0  # it does not wait
        interrupt()

    other = threading.Thread(target=interrupt_it)

    def end() -> None:
        other.start()
        process.end(child, grace=5)

    with interruptible() as interrupt:
        with pytest.raises(KeyboardInterrupt):
            end()
        other.join()
    assert child.poll() == -signal.SIGKILL


OWNER = """
import subprocess, sys, time
from harness import process
out = subprocess.DEVNULL
child = process.spawn(["sleep", "300"], stdout=out, stderr=out)
while open(f"/proc/{child.pid}/comm").read() != "sleep\\n":  # past setpriv
    time.sleep(0.005)
print(child.pid, flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_child_dies_with_its_owner(
    number: signal.Signals, pids: list[int], eventually: Eventually
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=paths.source_tree(),
    ) as owner:
        pids.append(owner.pid)
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        pids.append(child)
        assert alive(child)
        owner.send_signal(number)
        owner.wait(30)
    eventually(lambda: not alive(child))


# rests


def test_what_computes_does_not_come_to_rest(busy: subprocess.Popen[bytes]) -> None:
    begun = time.monotonic()
    assert not process.rests(busy.pid, within=0.8)
    assert time.monotonic() - begun >= 0.8
    busy.send_signal(signal.SIGSTOP)
    assert process.rests(busy.pid, within=30)


def test_a_thread_that_ends_takes_nothing_from_what_the_others_want() -> None:
    script = """
import threading, time
def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
threading.Thread(target=spin, args=(0.7,)).start()
spin(60)
"""
    with subprocess.Popen([sys.executable, "-c", script]) as child:
        deadline = time.monotonic() + 30
        while len(process.demand_of(child.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not process.rests(child.pid, within=1.2)
        child.kill()


def test_what_has_ended_is_at_rest(busy: subprocess.Popen[bytes]) -> None:
    busy.kill()
    busy.wait()
    assert process.demand_of(busy.pid) == {}
    assert process.rests(busy.pid, within=30)
