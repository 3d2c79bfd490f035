"""What the lab tells of a kernel."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from harness import lab, paths
from harness.errors import EXIT_UNTESTABLE, UnfitKernel
from harness.images.kernel import Kernel
from harness.images.store import Progress, Store
from harness.lab import Lab, Options
from harness.pytest_plugin import check_machine
from harness.verdict.expectation import NotProven
from harness.verdict.status import Status


def kernel_of(folder: Path, config: str) -> Kernel:
    (folder / "config").write_text(config)
    return Kernel("6.1.0", folder / "bzImage", None, folder / "config", "made", "abc")


def test_a_kernel_without_drivers_is_skipped_by_bisect(tmp_path: Path) -> None:
    machine = Lab(Options()).machine
    with pytest.raises(UnfitKernel, match="set CONFIG_BLK_DEV_INITRD=y") as caught:
        lab.check_drivers(kernel_of(tmp_path, ""), machine)
    assert caught.value.exit_code == EXIT_UNTESTABLE


def test_a_kernel_is_held_against_the_machine_that_a_test_wants(tmp_path: Path) -> None:
    required = tomllib.loads((paths.guest_images() / "kernel" / "required.toml").read_text())
    options = [option for group in ("boot", "nvdimm") for option in required[group]]
    made = Lab(Options())
    made.kernel = kernel_of(tmp_path, "".join(f"{option}=y\n" for option in options))
    with pytest.raises(NotProven, match="machine virtio-pmem needs") as caught:
        check_machine(made, "virtio-pmem")
    assert caught.value.status is Status.SKIP  # and the run's other tests go on
    assert caught.value.hint == "set CONFIG_VIRTIO_PMEM=y in its .config"


def test_fetching_a_kernel_says_what_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(_: str | None, __: Store, *, progress: Progress) -> Kernel:
        progress("fetching it")
        return kernel_of(tmp_path, "")

    said: list[str] = []
    monkeypatch.setattr(lab, "resolve", resolve)
    monkeypatch.setattr(lab, "check_drivers", lambda *_: None)
    assert Lab(Options(), say=said.append).kernel.release == "6.1.0"
    assert said == ["fetching it"]


def test_a_machine_with_packages_has_images_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[tuple[str, ...], bool]] = []

    def prepare(
        _: Kernel, __: Store, *, packages: tuple[str, ...], verify: bool, **___: object
    ) -> object:
        made.append((packages, verify))
        return object()

    monkeypatch.setattr(lab, "resolve", lambda *_, **__: kernel_of(tmp_path, ""))
    monkeypatch.setattr(lab, "check_drivers", lambda *_: None)
    monkeypatch.setattr(lab, "prepare", prepare)
    one = Lab(Options(trusted=True))
    nested = one.find_machine("nested")
    assert one.images is one.images_of(one.machine)
    assert one.images_of(nested) is one.images_of(nested) is not one.images
    # Whoever started this process has not verified what only another machine needs.
    assert made == [((), False), (("qemu-system-x86",), True)]
