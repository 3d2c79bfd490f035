"""What is kept of a guest that did not come up, and what its error says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.errors import GuestHung, GuestPanic, HarnessError
from harness.guest import failed_boot
from harness.guest import template as templates
from harness.images.kernel import Kernel
from harness.lab import Lab


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NVH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """A kernel that has modules."""
    (tmp_path / "bzImage").write_bytes(b"")
    return Kernel("6.1.0", tmp_path / "bzImage", tmp_path, None, "made up", "0")


def alone(kernel: Kernel, config: Path | None = None) -> Kernel:
    return Kernel(kernel.release, kernel.image, None, config, "made up", "0")


def failed(
    folder: Path,
    kernel: Kernel,
    console: str = "Linux version\n",
    *,
    hint: str | None = None,
    lasting: bool = False,
    results: Path | None = None,
) -> str:
    """Let a boot fail and return its error's hint."""
    folder.mkdir(exist_ok=True)
    (folder / "console.log").write_text(console)
    (folder / "qemu.sh").write_text("exec qemu\n")
    (folder / "pmem0.nvdimm").write_text("large\n")
    with (
        pytest.raises(GuestHung) as caught,
        failed_boot.told(folder, kernel, lasting=lasting, results=results),
    ):
        raise GuestHung("the guest did not boot", hint=hint)
    return caught.value.hint or ""


def test_a_runs_boots_are_kept_side_by_side_in_its_results(
    tmp_path: Path, kernel: Kernel, cache: Path
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    for number in range(1, 8):
        hint = failed(tmp_path / "guest", kernel, f"boot {number}\n", results=results)
        assert hint == f"see {results}/failed-boot/{number}/console.log"
    for number in range(1, 8):
        kept = results / "failed-boot" / str(number)
        assert (kept / "console.log").read_text() == f"boot {number}\n"
        assert {file.name for file in kept.iterdir()} == {"console.log", "qemu.sh"}
    assert not cache.exists()


def test_without_results_the_cache_keeps_the_last_few(
    tmp_path: Path, kernel: Kernel, cache: Path
) -> None:
    for number in range(1, 13):
        hint = failed(tmp_path / "guest", kernel, f"boot {number}\n")
        assert hint == f"see {cache}/failed-boot/{number}/console.log"
    left = {path.name for path in (cache / "failed-boot").iterdir()}
    assert left == {"8", "9", "10", "11", "12"}
    assert (cache / "failed-boot/8/console.log").read_text() == "boot 8\n"


def test_a_folder_that_lasts_is_named_itself(tmp_path: Path, kernel: Kernel, cache: Path) -> None:
    hint = failed(tmp_path / "guest", kernel, hint="do this", lasting=True, results=tmp_path)
    assert hint == f"do this; see {tmp_path}/guest/console.log"
    assert not (tmp_path / "failed-boot").exists()
    assert not cache.exists()


def test_what_happens_to_a_guest_that_is_up_is_no_failed_boot(
    tmp_path: Path, kernel: Kernel, cache: Path
) -> None:
    guest: Any = None

    def come_up_and_die() -> None:
        with failed_boot.told(tmp_path, kernel, lasting=False, results=None) as up:
            up.append(guest)
            raise GuestPanic("it panicked")

    with pytest.raises(GuestPanic) as caught:
        come_up_and_die()
    assert caught.value.hint is None
    assert not cache.exists()


def test_logs_that_cannot_be_kept_do_not_hide_why_it_failed(tmp_path: Path, kernel: Kernel) -> None:
    (tmp_path / "failed-boot").write_text("no directory")
    assert failed(tmp_path / "guest", kernel, hint="do this", results=tmp_path) == "do this"


def test_missing_modules_are_a_reason_where_nothing_is_known_of_the_kernel(
    tmp_path: Path, kernel: Kernel
) -> None:
    list_of_drivers = "build in what guest-images/kernel/required.toml lists"
    assert list_of_drivers in failed(tmp_path / "guest", alone(kernel), lasting=True)
    assert list_of_drivers not in failed(tmp_path / "guest", kernel, lasting=True)
    (tmp_path / "config").write_text("CONFIG_PCI=y\n")
    known = alone(kernel, tmp_path / "config")  # and found to have all that is needed
    assert list_of_drivers not in failed(tmp_path / "guest", known, lasting=True)


def test_a_kernel_that_said_nothing_lacks_more_than_modules(tmp_path: Path, kernel: Kernel) -> None:
    guest = tmp_path / "guest"
    assert failed(guest, alone(kernel), "\r\n", lasting=True) == f"see {guest}"


@pytest.mark.parametrize("booted", [False, True], ids=["a-failed-boot", "another-failure"])
def test_nvh_test_has_results_of_a_boot_that_failed(
    tmp_path: Path,
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    *,
    booted: bool,
) -> None:
    """And none of a run that came to nothing before anything was booted."""

    def get(*_: object, results: Path, **__: object) -> None:
        if booted:
            raise HarnessError("no such luck")
        raise GuestHung(failed(tmp_path / "guest", kernel, results=results))

    monkeypatch.setattr(Lab, "recipe", lambda lab: type("Recipe", (), {"machine": lab.machine}))
    monkeypatch.setattr(templates, "get", get)
    results = tmp_path / "results"
    words = ["test", "-k", "V1", "-n", "1", "--accel", "tcg", "--results", str(results)]
    assert main(words) == 125
    said = capfd.readouterr().err
    if booted:
        assert "no such luck" in said
        assert not results.exists()
        return
    (run,) = (path for path in results.iterdir() if not path.is_symlink())
    assert f"see {run}/failed-boot/1/console.log" in said
    assert (run / "failed-boot/1/console.log").read_text() == "Linux version\n"
