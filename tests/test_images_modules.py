"""Module closures, decompression, the modules image and ext4 writing."""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.errors import ImageError, KernelError
from harness.images import ext4, modules
from harness.images.modules import ModuleTree

DEP = """\
kernel/fs/ext4/ext4.ko.xz: kernel/lib/crc16.ko.xz kernel/fs/jbd2/jbd2.ko.xz
kernel/fs/jbd2/jbd2.ko.xz:
kernel/lib/crc16.ko.xz:
kernel/crypto/crc32c_generic.ko.xz:
kernel/arch/x86/crypto/crc32c-intel.ko.xz:
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio_ring.ko.gz
kernel/drivers/virtio/virtio_ring.ko.gz:
kernel/drivers/vfio/vfio.ko:
kernel/drivers/vfio/vfio_iommu_type1.ko: kernel/drivers/vfio/vfio.ko
kernel/drivers/vfio/pci/vfio-pci.ko: kernel/drivers/vfio/vfio.ko
"""
SOFTDEP = """\
# Soft dependencies extracted from modules themselves.
softdep ext4 pre: crypto-crc32c nonexistent
softdep jbd2 pre: crypto-crc32c
softdep vfio post: vfio_iommu_type1 vfio_iommu_spapr_tce
softdep crc16 gcm
"""
ALIAS = """\
# Aliases extracted from modules themselves.
alias crypto-crc32c crc32c_generic
alias crypto-crc32c crc32c_intel
alias fs-ext* ext4
alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_blk
"""
BUILTIN = "kernel/drivers/virtio/virtio_pci.ko\nkernel/fs/over-lay.ko\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "lib/modules/6.99"
    root.mkdir(parents=True)
    for name, content in {
        "modules.dep": DEP,
        "modules.softdep": SOFTDEP,
        "modules.alias": ALIAS,
        "modules.builtin": BUILTIN,
        "modules.order": "",
    }.items():
        (root / name).write_text(content)
    for line in DEP.splitlines():
        path = root / line.split(":")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        data = f"module {path.name}".encode()
        if path.suffix == ".xz":
            data = lzma.compress(data)
        elif path.suffix == ".gz":
            data = gzip.compress(data)
        path.write_bytes(data)
    return root


def names(closure: modules.Closure) -> list[str]:
    return [modules.module_name(path) for path in closure.files]


def test_dependencies_and_softdeps_come_first(tree: Path) -> None:
    found = names(ModuleTree(tree).closure(["ext4"]))
    assert found[-1] == "ext4"
    assert set(found) == {"crc32c_generic", "crc32c_intel", "crc16", "jbd2", "ext4"}
    assert found.index("crc32c_generic") < found.index("jbd2")


def test_a_post_softdep_comes_after(tree: Path) -> None:
    assert names(ModuleTree(tree).closure(["vfio-pci"])) == ["vfio", "vfio_iommu_type1", "vfio_pci"]


def test_builtin_needs_no_file_and_is_not_missing(tree: Path) -> None:
    closure = ModuleTree(tree).closure(["virtio_pci", "over_lay", "virtio-blk"])
    assert names(closure) == ["virtio_ring", "virtio_blk"]
    assert closure.missing == ()


def test_an_unknown_name_is_missing_and_an_alias_is_not(tree: Path) -> None:
    closure = ModuleTree(tree).closure(["nd_pmem", "fs-ext4"])
    assert closure.missing == ("nd_pmem",)
    assert "ext4" in names(closure)


def test_nothing_twice(tree: Path) -> None:
    found = names(ModuleTree(tree).closure(["ext4", "jbd2", "ext4", "crc32c-generic"]))
    assert len(found) == len(set(found))


@pytest.mark.parametrize("line", ["../../b.ko:", "/etc/b.ko:", "kernel/b.ko: ../c.ko"])
def test_modules_lie_below_their_directory(tree: Path, line: str) -> None:
    with (tree / "modules.dep").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(KernelError, match="not below it"):
        ModuleTree(tree).closure(["ext4"])


def test_a_directory_without_modules_dep_is_explained(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="depmod"):
        ModuleTree(tmp_path)


def test_decompression(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ko"
    for path in ModuleTree(tree).files.values():
        modules.write_decompressed(tree / path, out)
        assert out.read_bytes() == f"module {Path(path).name}".encode()
    odd = tmp_path / "odd.ko.lz9"
    odd.write_bytes(b"")
    with pytest.raises(ImageError, match="compressed"):
        modules.write_decompressed(odd, out)


@pytest.mark.skipif(not shutil.which("zstd"), reason="no zstd here")
def test_zstd(tmp_path: Path) -> None:
    plain = tmp_path / "mod.ko"
    plain.write_bytes(b"module" * 1000)
    subprocess.run(["zstd", "-q", plain], check=True)
    modules.write_decompressed(tmp_path / "mod.ko.zst", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"module" * 1000


def listing(image: Path, path: str) -> list[str]:
    done = subprocess.run(
        ["/usr/sbin/debugfs", "-R", f"ls -p {path}", image],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split("/") for line in done.stdout.splitlines() if line.startswith("/")]
    return sorted(row[5] for row in rows if row[5] not in {".", "..", "lost+found"})


def test_the_modules_image(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "depmod", lambda *_, **__: None)  # these are no ELF files
    target = tmp_path / "out/modules.img"
    target.parent.mkdir()
    modules.build_image(tree, "6.99", ["virtio_blk", "crc32c_generic", "unknown"], target)
    assert listing(target, "/kernel/crypto") == ["crc32c_generic.ko"]
    assert listing(target, "/kernel/drivers/virtio") == ["virtio_ring.ko"]
    assert listing(target, "/kernel/fs/ext4") == ["ext4.ko.xz"]
    assert "modules.builtin" in listing(target, "/")
    assert [path.name for path in target.parent.iterdir()] == ["modules.img"]


def test_ext4_holds_odd_names_and_many_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(300):
        (source / f"file {number}").write_bytes(b"x" * number * 10)
    ext4.write(source, tmp_path / "image", label="odd")
    assert len(listing(tmp_path / "image", "/")) == 300
    fsck = ["/usr/sbin/e2fsck", "-fn", str(tmp_path / "image")]
    assert subprocess.run(fsck, capture_output=True, check=False).returncode == 0


def test_the_lists_of_the_project_are_sound() -> None:
    wanted = modules.wanted()
    assert "virtio_blk" in wanted.initramfs
    assert len(set(wanted.decompressed)) == len(wanted.decompressed)
