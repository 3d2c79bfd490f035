"""Finding a kernel, saying why one is none, and holding its configuration against the list."""

from __future__ import annotations

import argparse
import bz2
import gzip
import lzma
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.commands import inventory
from harness.errors import ImageError, KernelError, UsageError
from harness.images import kconfig, kernel, packaged
from harness.images.apt import Package, last_error
from harness.images.kernel import Kernel, resolve
from harness.images.store import Store, in_use

CONFIG = "CONFIG_MODULES=y\nCONFIG_FS_DAX=y\nCONFIG_XFS_FS=m\n# CONFIG_KVM is not set\n"
RELEASE = "6.99.1-test"


def bzimage(payload: bytes = b"", *, release: str = RELEASE) -> bytes:
    """Return the head of a bzImage, enough of one for who reads its header."""
    image = bytearray(0x1000)
    image[0x1F1] = 3  # setup sectors, so the protected-mode code starts at 0x800
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x300)
    text = f"{release} (me@here) #1 SMP".encode()
    image[0x500 : 0x500 + len(text)] = text
    struct.pack_into("<II", image, 0x248, 0x800, len(payload))
    return bytes(image) + payload


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache/store")


def installed(root: Path, *, image: str = f"boot/vmlinuz-{RELEASE}") -> Path:
    (root / image).parent.mkdir(parents=True, exist_ok=True)
    (root / image).write_bytes(bzimage())
    modules = root / "lib/modules" / RELEASE
    modules.mkdir(parents=True, exist_ok=True)
    (modules / "modules.dep").write_text("kernel/a.ko:\n")
    (modules / "kernel").mkdir(exist_ok=True)
    (modules / "kernel/a.ko").write_bytes(b"A")
    (root / "boot").mkdir(exist_ok=True)
    (root / f"boot/config-{RELEASE}").write_text(CONFIG)
    return root


def built_tree(root: Path) -> Path:
    """Make what a kernel tree looks like after make, with a modules_install that works."""
    (root / "arch/x86/boot").mkdir(parents=True)
    (root / kernel.BZIMAGE).write_bytes(bzimage())
    (root / ".config").write_text(CONFIG)
    (root / "modules.order").write_text("kernel/a.ko\n")
    (root / "kernel").mkdir()
    (root / "kernel/a.ko").write_bytes(b"A")
    (root / "Makefile").write_text(
        f"D := $(INSTALL_MOD_PATH)/lib/modules/{RELEASE}\n"
        "modules_install:\n"
        "\tmkdir -p $(D)/kernel && cp kernel/a.ko $(D)/kernel/\n"
        "\techo 'kernel/a.ko:' >$(D)/modules.dep && ln -s $(CURDIR) $(D)/build\n"
    )
    return root


def test_a_bzimage_alone(tmp_path: Path, store: Store) -> None:
    image = tmp_path / "bzImage"
    image.write_bytes(bzimage())
    found = resolve(str(image), store)
    assert (found.release, found.modules, found.config) == (RELEASE, None, None)


def test_an_installed_kernel_brings_modules_and_config(tmp_path: Path, store: Store) -> None:
    root = installed(tmp_path / "root")
    for selector in (root, root / f"boot/vmlinuz-{RELEASE}"):
        found = resolve(str(selector), store)
        assert found.modules == root / "lib/modules" / RELEASE
        assert found.config == root / f"boot/config-{RELEASE}"


def test_the_digest_changes_with_image_and_modules(tmp_path: Path, store: Store) -> None:
    root = installed(tmp_path / "root")
    before = resolve(str(root), store).digest
    assert resolve(str(root), store).digest == before
    (root / "lib/modules" / RELEASE / "kernel/a.ko").write_bytes(b"AA")
    after = resolve(str(root), store).digest
    (root / f"boot/vmlinuz-{RELEASE}").write_bytes(bzimage(b"more"))
    assert len({before, after, resolve(str(root), store).digest}) == 3


def test_a_built_tree_gets_its_modules_installed(tmp_path: Path, store: Store) -> None:
    tree = built_tree(tmp_path / "linux")
    found = resolve(str(tree), store)
    assert found == resolve(str(tree / kernel.BZIMAGE), store)
    assert found.config == tree / ".config"
    assert found.modules is not None
    assert found.modules.is_relative_to(store.root)
    assert not (found.modules / "build").exists()
    (tree / "kernel/a.ko").write_bytes(b"B")
    assert resolve(str(tree), store).digest != found.digest


def test_a_tree_without_modules_is_monolithic(tmp_path: Path, store: Store) -> None:
    tree = built_tree(tmp_path / "linux")
    (tree / "modules.order").unlink()
    assert resolve(str(tree), store).modules is None


def test_modules_that_do_not_install_are_explained(tmp_path: Path, store: Store) -> None:
    tree = built_tree(tmp_path / "linux")
    (tree / "kernel/a.ko").unlink()
    with pytest.raises(KernelError, match="make modules"):
        resolve(str(tree), store)
    assert store.entries() == []


def test_modules_of_another_release_are_refused(tmp_path: Path, store: Store) -> None:
    tree = built_tree(tmp_path / "linux")
    (tree / kernel.BZIMAGE).write_bytes(bzimage(release="6.99.2"))
    with pytest.raises(KernelError, match="another release"):
        resolve(str(tree), store)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "not an x86 kernel image"),
        (b"#!/bin/sh\n" * 1000, "not an x86 kernel image"),
        (b"\x7fELF" + bytes(5000), "uncompressed vmlinux"),
        (bzimage(release="\x01\x02"), "does not say"),
        (bzimage()[:0x240], "not an x86 kernel image"),
    ],
)
def test_what_is_no_kernel_is_told_so(
    tmp_path: Path, store: Store, content: bytes | None, message: str
) -> None:
    path = tmp_path / "image"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KernelError, match=message) as caught:
        resolve(str(path), store)
    assert "debian:6.12" in str(caught.value)


def test_directories_that_are_no_kernel(tmp_path: Path, store: Store) -> None:
    with pytest.raises(KernelError, match="holds no kernel"):
        resolve(str(tmp_path), store)
    (tmp_path / "Makefile").touch()
    (tmp_path / "Kconfig").touch()
    with pytest.raises(KernelError, match=r"not built.*make bzImage"):
        resolve(str(tmp_path), store)
    two = installed(tmp_path / "two")
    (two / "boot/vmlinuz-6.98").write_bytes(bzimage())
    with pytest.raises(KernelError, match="several kernels"):
        resolve(str(two), store)


@pytest.mark.parametrize("selector", ["fedora:40", "debian:", "Debian:6.12"])
def test_unknown_selectors(store: Store, selector: str) -> None:
    with pytest.raises(KernelError, match=r"debian:6\.12"):
        resolve(selector, store)


class FakeApt:
    """A repository that offers what the test says."""

    complaint: str | None = None
    offered: tuple[Package, ...] = ()

    def update(self) -> str | None:
        return self.complaint

    def search(self, pattern: str) -> list[Package]:
        return [one for one in self.offered if re.fullmatch(pattern, one.name)]

    def versions(self, name: str) -> list[Package]:
        return [one for one in self.offered if one.name == name]


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    fake = FakeApt()
    monkeypatch.setattr(packaged, "repository_of", lambda *_: fake)
    monkeypatch.setattr(packaged, "sources_of", lambda _: [("deb somewhere",)])
    return fake


def package(name: str, version: str, *depends: str) -> Package:
    return Package(name, version, "0" * 64, depends)


def test_no_network_is_an_image_error(store: Store, repository: FakeApt) -> None:
    repository.complaint = "Could not resolve 'mirror.example'"
    with pytest.raises(ImageError, match=r"Could not resolve.*NVH_MIRROR"):
        resolve("debian:6.12", store)
    assert store.entries() == []


def test_a_series_nobody_offers_is_the_users_error(store: Store, repository: FakeApt) -> None:
    with pytest.raises(KernelError, match=r"no mirror offers debian:5\.99"):
        resolve("debian:5.99", store)


def test_the_newest_plain_kernel_of_a_series_is_chosen(repository: FakeApt) -> None:
    repository.offered = (
        package("linux-image-6.12-amd64", "6.12.117-1"),
        package("linux-image-6.12.9+deb12-amd64", "6.12.9-1"),
        package("linux-image-6.12.117+deb12-amd64", "6.12.117-1", "kmod"),
        package("linux-image-6.12.117+deb12-cloud-amd64", "6.12.117-2"),
        package("linux-image-6.12.117+deb12-rt-amd64", "6.12.117-2"),
        package("linux-image-6.1.0-50-amd64", "6.1.192-2"),
    )
    fake = repository
    assert str(packaged._wanted("debian:6.12", fake)).startswith(  # type: ignore[arg-type]
        "linux-image-6.12.117+deb12-amd64="
    )
    assert str(packaged._wanted("debian:6.1", fake)).startswith(  # type: ignore[arg-type]
        "linux-image-6.1.0-50-amd64="
    )


def test_packages_of_a_split_kernel_come_along(store: Store, repository: FakeApt) -> None:
    repository.offered = (
        package("linux-image-amd64", "7.2.13-1", "linux-image-7.2.13-amd64"),
        package(
            "linux-image-7.2.13-amd64",
            "7.2.13-1",
            *("dracut", "linux-binary-7.2.13-amd64", "linux-modules-7.2.13-amd64"),
        ),
        package("linux-binary-7.2.13-amd64", "7.2.13-1"),
        package("linux-modules-7.2.13-amd64", "7.2.13-1"),
    )
    chosen = packaged._choose("debian:sid", [("deb somewhere",)], store)
    rows = chosen["packages"]
    assert isinstance(rows, list)
    assert [row[0] for row in rows] == [
        "linux-image-7.2.13-amd64",
        "linux-binary-7.2.13-amd64",
        "linux-modules-7.2.13-amd64",
    ]


def deb(folder: Path, *, name: str, files: str, version: str = "6.99.1-1") -> Path:
    """Make a package of those files of an installed kernel that a pattern names."""
    tree, root = installed(folder / "installed"), folder / name
    for path in tree.rglob("*"):
        if path.is_file() and path.relative_to(tree).match(files):
            target = root / path.relative_to(tree)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n"
        "Maintainer: me <me@here>\nDescription: a kernel\n"
    )
    made = folder / f"{name}_{version}.deb"
    subprocess.run(["dpkg-deb", "-b", str(root), str(made)], check=True, capture_output=True)
    shutil.rmtree(root)
    return made


def test_a_kernel_in_a_package_file(tmp_path: Path, store: Store) -> None:
    file = deb(tmp_path, name="linux-image-mine", files="*")
    found = resolve(f"deb:{file}", store)
    assert (found.release, found.origin) == (RELEASE, "linux-image-mine 6.99.1-1")
    assert found.modules is not None
    assert (found.modules / "kernel/a.ko").read_bytes() == b"A"
    assert found.config is not None
    assert found.config.read_text() == CONFIG
    assert resolve(f"deb:{file}", store) == found
    file.write_bytes(deb(tmp_path, name="linux-image-other", files="*").read_bytes())
    assert resolve(f"deb:{file}", store).digest != found.digest


def test_a_split_kernel_is_several_package_files(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = deb(tmp_path, name="linux-binary-mine", files="boot/*")
    parts = deb(tmp_path, name="linux-modules-mine", files="*/modules.dep")
    with pytest.raises(ImageError, match=r"no modules for 6\.99.*deb:IMAGE\.deb,MODULES\.deb"):
        resolve(f"deb:{image}", store)
    with pytest.raises(ImageError, match=r"no kernel image.*deb:IMAGE\.deb,MODULES\.deb"):
        resolve(f"deb:{parts}", store)
    monkeypatch.chdir(tmp_path)
    words = kernel.absolute(f"deb:{image.name},{parts.name}")
    assert words == f"deb:{image},{parts}"
    assert resolve(words, store).modules is not None


def test_what_is_no_package_file(tmp_path: Path, store: Store) -> None:
    (tmp_path / "file").write_text("no package")
    with pytest.raises(KernelError, match=r"file is no package: .*deb:FILE takes"):
        resolve(f"deb:{tmp_path}/file", store)
    with pytest.raises(KernelError, match=r"no package at /none"):
        resolve("deb:/none", store)


@pytest.fixture
def mirror(
    tmp_path: Path, repository: FakeApt, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Return what lets the mirror offer one version of a kernel that can be fetched."""
    monkeypatch.setenv("NVH_CACHE", str(tmp_path / "cache"))

    def offer(version: str) -> None:
        made = deb(tmp_path, name="linux-image-6.99.1-amd64", files="*", version=version)
        repository.offered = (package("linux-image-6.99.1-amd64", version),)
        monkeypatch.setattr(
            repository,
            "download",
            lambda _, target, say: [Path(shutil.copy(made, target))],
            raising=False,
        )

    return offer


def quiet(_: str) -> None:
    pass


def test_fetching_asks_what_a_name_stands_for_now(
    store: Store,
    repository: FakeApt,
    mirror: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fetch = argparse.Namespace(selectors=["debian:6.99"])
    mirror("1")
    assert inventory.kernel_fetch(fetch) == 0
    first = packaged.entry("debian:6.99", store, progress=quiet)
    mirror("2")
    assert packaged.entry("debian:6.99", store, progress=quiet) == first
    assert inventory.kernel_fetch(fetch) == 0
    second = packaged.entry("debian:6.99", store, progress=quiet)
    assert packaged.package_of(second) == "linux-image-6.99.1-amd64 2"
    assert second.key != first.key
    assert packaged.package_of(second) in capsys.readouterr().out
    repository.offered, repository.complaint = (), "Could not resolve 'mirror.example'"
    with pytest.raises(ImageError, match="Could not resolve"):
        inventory.kernel_fetch(fetch)
    assert packaged.entry("debian:6.99", store, progress=quiet) == second
    with pytest.raises(UsageError, match=r"not what a mirror has.*debian:sid"):
        inventory.kernel_fetch(argparse.Namespace(selectors=["/a/linux"]))


@pytest.mark.parametrize("what", ["debian:6.99", RELEASE, "key"])
def test_a_kernel_is_removed_by_each_of_its_names(
    store: Store, mirror: Callable[[str], None], what: str
) -> None:
    mirror("1")
    entry = packaged.entry("debian:6.99", store, progress=quiet)
    args = argparse.Namespace(what=entry.key[:12] if what == "key" else what)
    descriptor = in_use(entry.path)
    assert inventory.kernel_rm(args) == 1
    os.close(descriptor)
    packaged.entry("debian:6.99", store, progress=quiet)
    assert inventory.kernel_rm(args) == 0
    assert [one for one in store.entries() if one.kind == "kernel"] == []
    for gone in (args.what, ""):
        with pytest.raises(UsageError, match="no kernel called"):
            inventory.kernel_rm(argparse.Namespace(what=gone))
    assert packaged.entry("debian:6.99", store, progress=quiet).key == entry.key


def test_the_telling_line_of_apt() -> None:
    said = "Err:1 x\nE: Failed to fetch http://x  Could not connect to x\nE: apt-get update failed"
    assert last_error(said).startswith("Failed to fetch")
    assert last_error("") == "it said nothing"


def kernel_with(tmp_path: Path, config: str, *, modules: bool) -> Kernel:
    path = tmp_path / "config"
    path.write_text(config)
    tree = tmp_path if modules else None
    return Kernel(RELEASE, tmp_path / "image", tree, path, "a test", "digest")


def test_missing_options_are_named_with_their_reason(tmp_path: Path) -> None:
    found = kconfig.problems(kernel_with(tmp_path, CONFIG, modules=True), groups=("boot", "nvdimm"))
    lines = [str(problem) for problem in found]
    assert not [line for line in lines if line.startswith("CONFIG_FS_DAX=")]
    assert "CONFIG_VIRTIO_NET=m (SSH)" in lines


def test_a_kernel_without_modules_needs_them_built_in(tmp_path: Path) -> None:
    modular = kconfig.problems(kernel_with(tmp_path, CONFIG, modules=True), groups=("features",))
    alone = kconfig.problems(kernel_with(tmp_path, CONFIG, modules=False), groups=("features",))
    assert "CONFIG_XFS_FS" not in {problem.option for problem in modular}
    assert "CONFIG_XFS_FS=y (xfs with DAX)" in {str(problem) for problem in alone}


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, bz2.compress, bytes])
def test_the_configuration_is_read_out_of_the_image(tmp_path: Path, compress: object) -> None:
    assert callable(compress)
    inner = bytes(999) + b"IKCFG_ST" + gzip.compress(CONFIG.encode()) + b"IKCFG_ED" + bytes(99)
    image = bzimage(compress(inner) + struct.pack("<I", len(inner)))
    assert kconfig.from_image(image) == CONFIG
    path = tmp_path / "image"
    path.write_bytes(image)
    found = Kernel(RELEASE, path, None, None, "a test", "digest")
    assert "CONFIG_KVM" in {one.option for one in kconfig.problems(found, groups=("features",))}


@pytest.mark.parametrize("payload", [b"", b"\x1f\x8bbroken", b"\xfd7zXZ\0broken", b"noise" * 99])
def test_an_unknown_configuration_gives_no_problems(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes(bzimage(payload))
    found = Kernel(RELEASE, path, None, None, "a test", "digest")
    assert kconfig.read(found) is None
    assert kconfig.problems(found) == []
