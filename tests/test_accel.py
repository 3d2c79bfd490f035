"""The choice of the accelerator, with a stand-in for QEMU and for /dev/kvm."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import process
from harness.errors import EXIT_UNTESTABLE, GuestLost, HostError
from harness.qemu import accel, unprivileged, vm
from harness.qemu.accel import Accel

FAKE = Path(__file__).with_name("fake_qemu.py")

BROKEN = "refuse:kvm_buf_set_msrs: Assertion failed"
SILENT = "greet;sleep:60"
WORKING = "greet;print:[    0.000000] Linux version 6.12.0 (gcc);sleep:60"

Choose = Callable[..., Accel]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Let /dev/kvm fail to open with an errno, or open whatever this host has."""
    really = os.open

    def behave(error: int | None) -> None:
        def opened(path: Any, *rest: Any, **more: Any) -> int:
            if path != "/dev/kvm":
                return really(path, *rest, **more)
            if error is not None:
                raise OSError(error, os.strerror(error), path)
            return really("/dev/null", os.O_RDWR)

        monkeypatch.setattr(os, "open", opened)

    return behave


@pytest.fixture
def choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: Callable[[int | None], None]
) -> Choose:
    """Choose for a /dev/kvm that opens and a QEMU that plays a scenario."""
    device(None)
    # The stand-in's interpreter may lie where only this user can get.
    monkeypatch.setattr(unprivileged, "choose", lambda *_: "the test's own user")
    monkeypatch.setenv("FAKE_QEMU_LOG", str(tmp_path / "starts"))

    def chosen(scenario: str, requested: str = "auto", digest: str = "abc") -> Accel:
        monkeypatch.setattr(accel, "FIRST_LINE", 60.0 if scenario == WORKING else 0.5)
        monkeypatch.setenv("FAKE_QEMU", scenario)
        return accel.choose(
            requested,
            kernel=Path("/boot/bzImage"),
            digest=digest,
            qemu=str(FAKE),
            cache=tmp_path / "cache",
        )

    return chosen


def starts(tmp_path: Path) -> int:
    file = tmp_path / "starts"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_tcg_by_name_asks_nobody(choose: Choose, tmp_path: Path) -> None:
    assert choose(BROKEN, "tcg") == Accel("tcg", "asked for")
    assert starts(tmp_path) == 0


@pytest.mark.parametrize("requested", ["auto", "kvm"])
def test_a_kvm_that_prints_the_kernels_first_line_works(choose: Choose, requested: str) -> None:
    assert choose(WORKING, requested).name == "kvm"


def test_a_kvm_that_aborts_falls_back_with_qemus_words(choose: Choose) -> None:
    chosen = choose(BROKEN)
    assert chosen.name == "tcg"
    assert "kvm_buf_set_msrs: Assertion failed" in chosen.why


def test_a_kvm_that_stays_silent_falls_back_after_its_time(choose: Choose) -> None:
    chosen = choose(SILENT)
    assert chosen.name == "tcg"
    assert "printed nothing within" in chosen.why


def test_a_kernel_that_resets_at_once_falls_back(choose: Choose) -> None:
    chosen = choose("greet;event:SHUTDOWN,guest-reset;exit:0")
    assert chosen.name == "tcg"
    assert "does not run here" in chosen.why


def test_a_qemu_that_does_not_even_greet_falls_back(
    choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm, "GREETING", 0.3)
    assert choose("sleep:60").name == "tcg"


@pytest.mark.parametrize("scenario", [BROKEN, SILENT])
def test_kvm_by_name_that_does_not_work_is_an_error(choose: Choose, scenario: str) -> None:
    with pytest.raises(HostError) as caught:
        choose(scenario, "kvm")
    assert caught.value.message.startswith("KVM was asked for but ")
    assert caught.value.hint == "use --accel auto or tcg"
    assert caught.value.exit_code == EXIT_UNTESTABLE


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errno.ENOENT, "there is no /dev/kvm"),
        (errno.EACCES, "add it to the group kvm"),
        (errno.EPERM, "may not be opened by this user"),
        (errno.ENODEV, "does not open: No such device"),
        (errno.EBUSY, "does not open"),
    ],
)
def test_a_device_that_does_not_open(
    choose: Choose, device: Callable[[int | None], None], tmp_path: Path, error: int, words: str
) -> None:
    device(error)
    chosen = choose(WORKING)
    assert chosen.name == "tcg"
    assert words in chosen.why
    with pytest.raises(HostError, match="KVM was asked for"):
        choose(WORKING, "kvm")
    assert starts(tmp_path) == 0


@pytest.mark.parametrize("scenario", [BROKEN, WORKING])
def test_the_answer_is_remembered(choose: Choose, tmp_path: Path, scenario: str) -> None:
    first = choose(scenario)
    other = WORKING if scenario == BROKEN else BROKEN
    assert choose(other) == first
    assert starts(tmp_path) == 1


def test_kvm_by_name_does_not_believe_an_old_problem(choose: Choose, tmp_path: Path) -> None:
    assert choose(SILENT).name == "tcg"
    assert choose(WORKING, "kvm").name == "kvm"
    assert choose(BROKEN).name == "kvm"
    assert starts(tmp_path) == 2


def test_a_qemu_that_was_killed_is_asked_again(
    choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> Any:
        raise GuestLost("QEMU died with signal 9")

    with monkeypatch.context() as patch:
        patch.setattr(vm, "launched", killed)
        assert choose(WORKING).name == "tcg"
    assert choose(WORKING).name == "kvm"


def test_a_missing_program_is_no_broken_kvm(
    choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(vm, "launched", lambda *_, **__: process.find("nope-x", package="util-linux"))
        with pytest.raises(HostError, match="apt-get install util-linux"):
            choose(WORKING)
    assert choose(WORKING).name == "kvm"


def test_another_kernel_is_asked_anew(choose: Choose, tmp_path: Path) -> None:
    assert choose(BROKEN).name == "tcg"
    assert choose(WORKING, digest="def").name == "kvm"
    assert starts(tmp_path) == 2


def test_another_boot_of_the_host_is_asked_anew(
    choose: Choose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose(BROKEN).name == "tcg"
    really = Path.read_text

    def other(self: Path, *rest: Any, **more: Any) -> str:
        return "another" if self.name == "boot_id" else really(self, *rest, **more)

    monkeypatch.setattr(Path, "read_text", other)
    assert choose(WORKING).name == "kvm"
    assert starts(tmp_path) == 2


@pytest.mark.parametrize("junk", ["", "{", "[]", '{"other": 1}', "\x00"])
def test_a_damaged_answer_is_asked_anew(choose: Choose, tmp_path: Path, junk: str) -> None:
    choose(BROKEN)
    (file,) = (tmp_path / "cache" / "kvm").iterdir()
    file.write_text(junk)
    assert choose(WORKING).name == "kvm"
    assert choose(BROKEN).name == "kvm"
    assert starts(tmp_path) == 2


def test_a_cache_that_cannot_be_written_is_no_error(choose: Choose, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    assert choose(BROKEN).name == "tcg"
    assert choose(WORKING).name == "kvm"


def test_qemu_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVH_QEMU", str(FAKE))
    assert accel.qemu_program() == str(FAKE)
    assert accel.qemu_version(str(FAKE)) == "0.0.0 (fake)"


def test_a_missing_qemu_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVH_QEMU", "/nowhere/qemu")
    with pytest.raises(HostError, match="apt-get install qemu-system-x86"):
        accel.qemu_program()
