"""The cpio writer, the per-run segment and the base initramfs."""

from __future__ import annotations

import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from harness.errors import EXIT_UNTESTABLE, UnfitKernel
from harness.images import initramfs
from harness.images.initramfs import CpioEntry, cpio, run_segment


def parse(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Read newc archives, one behind the other, as the kernel does; later files win."""
    found: dict[str, tuple[int, bytes]] = {}
    place = 0
    while place < len(archive):
        if archive[place] == 0:
            place += 1
            continue
        assert place % 4 == 0
        assert archive[place : place + 6] == b"070701"
        fields = [int(archive[place + 6 + 8 * n : place + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[place + 110 : place + 110 + name_size - 1].decode()
        data = place + 110 + name_size
        data += -data % 4
        place = data + size
        place += -place % 4
        if name != "TRAILER!!!":
            found[name] = (mode, archive[data : data + size])
    return found


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 511, 512, 100_000])
def test_what_is_written_is_read_back(size: int) -> None:
    entries = [CpioEntry(f"{'n' * (size % 7 + 1)}", stat.S_IFREG | 0o600, b"d" * size)]
    archive = cpio(entries)
    assert len(archive) % 512 == 0
    assert parse(archive) == {entries[0].name: (entries[0].mode, entries[0].data)}


def test_the_same_files_give_the_same_bytes() -> None:
    assert run_segment({"a": b"1", "b": b"2"}) == run_segment({"b": b"2", "a": b"1"})


def test_a_run_segment_makes_its_directories_and_keeps_keys_private() -> None:
    found = parse(run_segment({"boot.env": b"X=1\n", "keys/host": b"secret"}))
    assert found["nvh"] == (stat.S_IFDIR | 0o700, b"")
    assert found["nvh/keys"] == (stat.S_IFDIR | 0o700, b"")
    assert found["nvh/keys/host"] == (stat.S_IFREG | 0o600, b"secret")
    assert list(found).index("nvh") < list(found).index("nvh/keys/host")


@pytest.mark.skipif(not shutil.which("cpio"), reason="no cpio here")
def test_cpio_agrees() -> None:
    archive = cpio(
        [
            CpioEntry("dev", stat.S_IFDIR | 0o755),
            CpioEntry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            CpioEntry("init", stat.S_IFREG | 0o755, b"#!"),
        ]
    )
    done = subprocess.run(["cpio", "-tv"], input=archive, capture_output=True, check=True)
    lines = done.stdout.decode().splitlines()
    assert [line.split()[-1] for line in lines] == ["dev", "dev/console", "init"]
    assert lines[1].startswith("crw-------")
    assert "5,   1" in lines[1]


def module_tree(tmp_path: Path) -> Path:
    tree = tmp_path / "lib/modules/6.99"
    (tree / "kernel").mkdir(parents=True)
    (tree / "modules.dep").write_text("kernel/a.ko: kernel/b.ko\nkernel/b.ko:\n")
    (tree / "kernel/a.ko").write_bytes(b"A")
    (tree / "kernel/b.ko").write_bytes(b"B")
    return tree


def fake_compiler(name: str, target: Path) -> bytes:
    target.write_bytes(b"\x7fELF")
    return f"{name} program".encode()


def test_the_base_has_init_and_its_modules_in_load_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initramfs, "compile_program", fake_compiler)
    out = tmp_path / "out/initramfs.cpio"
    out.parent.mkdir()
    initramfs.build(module_tree(tmp_path), ["a"], out)
    found = parse(out.read_bytes() + run_segment({"boot.env": b"X"}))
    assert found["init"] == (stat.S_IFREG | 0o755, b"init program")
    assert found["modules.list"][1] == b"/lib/b.ko\n/lib/a.ko\n"
    assert found["lib/b.ko"][1] == b"B"
    assert {"nvh/rc", "nvh/boot.env"} <= set(found)
    assert [path.name for path in out.parent.iterdir()] == ["initramfs.cpio"]


def test_a_monolithic_kernel_gets_an_empty_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initramfs, "compile_program", fake_compiler)
    initramfs.build(None, ["ext4"], tmp_path / "initramfs.cpio")
    assert parse((tmp_path / "initramfs.cpio").read_bytes())["modules.list"][1] == b""


def test_a_kernel_without_a_driver_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initramfs, "compile_program", fake_compiler)
    with pytest.raises(UnfitKernel, match="lacks virtio_blk") as caught:
        initramfs.build(module_tree(tmp_path), ["a", "virtio_blk"], tmp_path / "out")
    assert caught.value.exit_code == EXIT_UNTESTABLE


@pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc here")
def test_init_is_a_static_program(tmp_path: Path) -> None:
    data = initramfs.compile_program("init", tmp_path / "init")
    assert data[:4] == b"\x7fELF"
    table, count = struct.unpack_from("<Q", data, 0x20)[0], struct.unpack_from("<H", data, 0x38)[0]
    types = [struct.unpack_from("<I", data, table + 56 * n)[0] for n in range(count)]
    assert 3 not in types, "PT_INTERP: it wants a dynamic loader"
    assert b"nvh-init: " in data
