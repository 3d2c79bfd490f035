"""The root image: one for each set of packages; its clean-up never reaches through a mount."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from harness.errors import HostError, UsageError
from harness.images import distribution, rootfs
from harness.images.store import Progress, Store

MOUNTINFO = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
87 27 0:27 / {path}/mmdebstrap.x/dev/shm rw,relatime - tmpfs tmpfs rw
88 27 0:28 / {path}-other/dev rw,relatime - tmpfs tmpfs rw
89 27 0:29 / {path}/with\\040space rw,relatime - tmpfs tmpfs rw
"""


def test_mounts_below_a_path_are_found(tmp_path: Path) -> None:
    info = tmp_path / "mountinfo"
    info.write_text(MOUNTINFO.format(path="/tmp/nvh-root-a"))
    found = rootfs.mounts_below(Path("/tmp/nvh-root-a"), mountinfo=info)
    assert found == ["/tmp/nvh-root-a/mmdebstrap.x/dev/shm", "/tmp/nvh-root-a/with space"]
    assert rootfs.mounts_below(Path("/tmp/nvh-root-b"), mountinfo=info) == []


def test_a_tree_with_a_mount_in_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with rootfs._scratch() as path:
        keep = path / "precious"
        keep.write_text("x")
        monkeypatch.setattr(rootfs, "mounts_below", lambda _: ["/somewhere"])
    assert keep.read_text() == "x"
    keep.unlink()
    path.rmdir()


def test_a_plain_tree_is_removed() -> None:
    with rootfs._scratch() as path:
        (path / "dir").mkdir()
    assert not path.exists()


def test_root_builds_in_a_mount_namespace_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "--mount" in rootfs._confined()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "--mount" not in rootfs._confined()
    assert "TERM" in rootfs._confined()


def test_without_subordinate_ids_the_hint_is_not_the_network() -> None:
    said = "I: automatically chosen format: null\nE: unable to pick chroot mode automatically\n"
    assert "usermod --add-subuids 100000-165535 --add-subgids 100000-165535" in rootfs._hint(said)
    assert rootfs._hint("E: Failed to fetch") == distribution.MIRROR_HINT


def test_an_image_for_each_set_of_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[list[str]] = []

    def bootstrap(suite: str, target: Path, extra: Sequence[str], say: Progress) -> None:
        built.append(list(extra))
        (target / rootfs.IMAGE).write_bytes(b"image")

    monkeypatch.setattr(rootfs, "_bootstrap", bootstrap)
    store = Store(tmp_path / "store")
    said: list[str] = []

    def image(*extra: str) -> Path:
        return rootfs.entry(store, extra=extra, progress=said.append).path

    usual = rootfs.packages()[0]
    assert image() == image(usual)
    assert image("gdb", "fio") == image("fio", usual, "gdb", "fio") != image()
    assert built == [[], ["fio", "gdb"]]
    assert "building the root image with fio, gdb from" in said[1]
    wanted = rootfs.command("mmdebstrap", "stable", "out", ["fio"], ["main"])
    assert f"--include={','.join([*rootfs.packages(), 'fio'])}" in wanted


@pytest.mark.parametrize("value", ["deb.example.org/debian", "localhost:3142/debian", "http://a b"])
def test_a_mirror_that_is_no_url(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NVH_MIRROR", value)
    with pytest.raises(UsageError, match=r"NVH_MIRROR=.* is no URL \(such as http://mirror/"):
        distribution.mirror("debian")


@pytest.mark.parametrize("value", ["http://a/debian", "file:/srv/debian", "mirror+http://a/list"])
def test_a_mirror_of_the_users(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NVH_MIRROR", value + "/")
    assert distribution.mirror("debian") == value


@pytest.fixture
def host_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An apt-get that knows what the file says, on a bookworm host."""
    program = tmp_path / "apt-get"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/targets\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("NVH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NVH_MIRROR", raising=False)
    bookworm = distribution.Release("debian", "bookworm")
    monkeypatch.setattr(distribution, "host_release", lambda: bookworm)
    distribution._host_mirrors.cache_clear()
    yield tmp_path / "targets"
    distribution._host_mirrors.cache_clear()


def test_the_mirror_is_the_one_that_the_hosts_apt_uses(host_apt: Path) -> None:
    host_apt.write_text(
        "stable bookworm http://third/debian/\n"
        "main bookworm http://one/debian/\n"
        "main bookworm-security http://two/debian-security/\n"
    )
    assert distribution.mirror("debian") == "http://one/debian"
    lines = distribution.sources(distribution.host_release(), whole=True)
    assert any("http://two/debian-security bookworm-security" in line for line in lines)
    with pytest.raises(HostError, match="knows no mirror of ubuntu"):
        distribution.mirror("ubuntu")


def test_apt_is_asked_again_when_it_may_say_something_else(host_apt: Path) -> None:
    host_apt.write_text("main bookworm http://one/debian/\n")
    assert distribution.mirror("debian") == "http://one/debian"
    host_apt.write_text("main bookworm http://other/debian/\n")
    distribution._host_mirrors.cache_clear()  # as the next process begins
    assert distribution.mirror("debian") == "http://one/debian"
    os.utime(host_apt.with_name("apt-get"), (1, 1))
    distribution._host_mirrors.cache_clear()
    assert distribution.mirror("debian") == "http://other/debian"


def test_an_apt_without_sources_is_told(host_apt: Path) -> None:
    host_apt.write_text("")
    with pytest.raises(HostError, match="NVH_DEBIAN_MIRROR"):
        distribution.mirror("debian")


def test_each_distribution_has_a_mirror_of_its_own(
    host_apt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host_apt.write_text("main noble http://one/ubuntu/\n")
    noble = distribution.Release("ubuntu", "noble")
    monkeypatch.setattr(distribution, "host_release", lambda: noble)
    monkeypatch.setenv("NVH_DEBIAN_MIRROR", "http://other/debian/")
    assert distribution.mirror("debian") == "http://other/debian"
    assert distribution.mirror("ubuntu") == "http://one/ubuntu"
    monkeypatch.setenv("NVH_MIRROR", "http://third/ubuntu")
    assert distribution.mirror("debian") == "http://other/debian"
    assert distribution.mirror("ubuntu") == "http://third/ubuntu"
