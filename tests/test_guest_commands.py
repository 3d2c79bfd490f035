"""nvh with real guests, as a user starts it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from harness import paths
from harness.guest.boot import Recipe
from harness.lab import Lab, Options
from tests.real_runs import nvh
from tests.screens import on_terminal

pytestmark = pytest.mark.guest

Eventually = Callable[[Callable[[], object]], None]


def test_run_ends_with_the_commands_status_and_passes_its_output(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!/bin/sh\necho out of $1\necho err >&2\nexit 7\n")
    (tmp_path / "tool").chmod(0o755)
    (tmp_path / "data").write_text("some data\n")
    done = nvh(
        *("run", "--accel", "tcg", "--bare"),
        *("--put", f"{tmp_path}/tool", "--put", f"{tmp_path}/data:/srv/in/here"),
        *("--", "cat /srv/in/here; /root/tool 'the guest'"),
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout == "some data\nout of the guest\n"
    assert done.stderr.endswith("err\n")


def test_several_words_are_a_command_and_its_arguments() -> None:
    done = nvh("run", "--accel", "tcg", "--bare", "--", "sh", "-c", "echo $((1 + 2)) two; exit 3")
    assert (done.returncode, done.stdout) == (3, "3 two\n"), done.stderr


def test_run_in_a_provisioned_guest() -> None:
    done = nvh("run", "--accel", "tcg", "--", "test -b /dev/pmem0 && false")
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""


def test_a_command_that_does_not_end() -> None:
    done = nvh("run", "--accel", "tcg", "--bare", "--timeout", "1", "--", "sleep", "300")
    assert done.returncode == 125
    assert "no end after 1 s: sleep 300" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_in_a_shell_is_for_the_guest() -> None:
    argv = [sys.executable, "-m", "harness", "shell", "--accel", "tcg", "--bare"]
    with on_terminal(argv, env={"PYTHONPATH": str(paths.source_tree())}) as shell:

        def prompt() -> bool:
            return shell.lines[-1:] == ["root@nvh:~#"]

        shell.until(prompt)
        # One process, whose signals are what they will be when it speaks: bash (5.2) may lose a
        # SIGINT that comes while it starts a program.
        shell.child.sendline("sh -c \"echo re''ady; exec sleep 300\"")
        shell.until(lambda: "ready" in shell.lines)
        shell.child.sendintr()
        shell.until(prompt)
        shell.child.sendline("echo a''live")
        shell.until(lambda: "alive" in shell.lines and prompt())
        shell.child.sendline("exit 3")
        shell.child.expect(pexpect.EOF, timeout=60)
        shell.child.close()
        assert shell.child.exitstatus == 3


@pytest.mark.parametrize(
    ("trouble", "status", "words"),
    [
        ("echo c > /proc/sysrq-trigger", 125, "the guest's kernel panicked: sysrq triggered crash"),
        ("echo o > /proc/sysrq-trigger", 125, "the guest ended unasked"),
        ("SIGTERM", 130, "nvh: interrupted"),
    ],
    ids=["panic", "power off", "SIGTERM"],
)
def test_a_shell_ends_with_its_guest_or_when_it_is_told_to(
    trouble: str, status: int, words: str, eventually: Eventually
) -> None:
    argv = [sys.executable, "-m", "harness", "shell", "--accel", "tcg", "--bare"]
    with on_terminal(argv, env={"PYTHONPATH": str(paths.source_tree())}) as shell:
        shell.until(lambda: shell.lines[-1:] == ["root@nvh:~#"])
        assert shell.child.pid is not None
        guests = children(shell.child.pid)
        assert guests
        terminal = os.dup(shell.child.child_fd)
        if trouble == "SIGTERM":
            shell.child.kill(signal.SIGTERM)
        else:
            shell.child.sendline(trouble)
        assert shell.end() == status, shell.past
        assert words in " ".join(shell.past)
        assert "Traceback" not in shell.raw
        assert termios.tcgetattr(terminal)[3] & termios.ICANON  # it is not left raw
        os.close(terminal)
    for pid in guests:
        eventually(lambda pid=pid: not Path(f"/proc/{pid}").exists())  # type: ignore[misc]


def children(pid: int) -> list[int]:
    """Return the processes that a process started, and theirs."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            for word in (task / "children").read_text().split():
                found += [int(word), *children(int(word))]
    return found


def test_a_terminated_run_ends_its_guest(recipe: Recipe, eventually: Eventually) -> None:
    assert recipe
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "harness", "run", "--accel", "tcg", "--bare"),
            *("--", "echo up; sleep 300"),
        ],
        cwd=paths.source_tree(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == "up\n"
        guests = children(run.pid)
        assert guests
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 130
        assert "Traceback" not in run.stderr.read()
    for pid in guests:
        eventually(lambda pid=pid: not Path(f"/proc/{pid}").exists())  # type: ignore[misc]


@pytest.mark.parametrize("command", [["run", "--dry-run", "--", "true"], ["shell", "--dry-run"]])
def test_a_dry_run_prints_a_script_that_a_shell_takes(command: list[str]) -> None:
    done = nvh(command[0], "--accel", "tcg", *command[1:])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/sh\n")
    assert "qemu-system-x86_64" in done.stdout
    subprocess.run(["sh", "-n"], input=done.stdout, text=True, check=True)


def test_an_unknown_test_loses_no_earlier_result(tmp_path: Path) -> None:
    results = tmp_path / "results"
    (results / "2020-01-01-000000").mkdir(parents=True)
    (results / "latest").symlink_to("2020-01-01-000000")
    done = nvh("test", "--accel", "tcg", "-k", "no_such_test", "--results", str(results))
    assert done.returncode == 2
    assert "no test matches 'no_such_test' (nvh test --list shows them)" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert (results / "2020-01-01-000000").is_dir()
    assert os.readlink(results / "latest") == "2020-01-01-000000"  # noqa: PTH115


def test_a_wrong_expression_is_a_usage_error(tmp_path: Path) -> None:
    done = nvh("test", "--accel", "tcg", "-k", "V3 and (", "--results", str(tmp_path / "r"))
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr


def test_auto_says_why_and_remembers() -> None:
    chosen = Lab(Options(accel="auto")).accel
    assert chosen.name in {"kvm", "tcg"}
    assert chosen.why
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        assert chosen.name == "tcg"
        assert "/dev/kvm" in chosen.why
    again: list[str] = []
    assert Lab(Options(accel="auto"), say=again.append).accel == chosen
    assert again == [f"accelerator {chosen.name}: {chosen.why}"]


def test_doctor_finds_this_host_fit() -> None:
    done = nvh("doctor")
    assert done.returncode == 0, done.stdout
    assert "missing" not in done.stdout
    assert "Traceback" not in done.stderr
