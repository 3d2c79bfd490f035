"""An NVDIMM's file compared with what it was."""

from pathlib import Path

from testcases.nvdimm_image import BLOCK, Layout, file_digest, read_blocks, strays

_WHERE = Layout(
    first=512,
    end=1024,
    free=frozenset(range(700, 1024)),
    files={"kept": (600, 601), "changed": (610,)},
)


def _image(tmp_path: Path) -> Path:
    file = tmp_path / "nvdimm"
    with file.open("wb") as opened:
        opened.truncate(1100 * BLOCK)
    for number in (1, 520, 600, 601, 610):
        _put(file, number, b"old")
    return file


def _put(file: Path, number: int, words: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(number * BLOCK)
        opened.write(words)


def test_only_changed_files_and_metadata_may_differ(tmp_path: Path) -> None:
    file = _image(tmp_path)
    before = read_blocks(file)
    _put(file, 610, b"new")
    _put(file, 520, b"new")  # neither free nor a file's
    _put(file, 800, b"\x0a\xf3")  # an extent tree's block that was given back
    assert strays(file, before, _WHERE, ("changed",)) == []
    assert len(strays(file, before, _WHERE, ())) == 1


def test_every_other_change_is_told(tmp_path: Path) -> None:
    file = _image(tmp_path)
    before = read_blocks(file)
    for number in (1, 601, 700, 1023, 1099):
        _put(file, number, b"new")
    assert strays(file, before, _WHERE, ("changed",)) == [
        "byte 0x1000 of the NVDIMM: outside the file system",
        "block 89 of the device: of file kept",
        "block 188 of the device: free",
        "block 511 of the device: free",
        "byte 0x44b000 of the NVDIMM: outside the file system",
    ]


def test_a_block_that_becomes_zero_is_a_change(tmp_path: Path) -> None:
    file = _image(tmp_path)
    before = read_blocks(file)
    _put(file, 600, b"\0\0\0")
    assert strays(file, before, _WHERE, ("changed",)) == ["block 88 of the device: of file kept"]


def test_a_files_digest_is_that_of_its_blocks_in_order(tmp_path: Path) -> None:
    file = _image(tmp_path)
    _put(file, 601, b"new")
    assert file_digest(file, (600, 601)) != file_digest(file, (601, 600))
