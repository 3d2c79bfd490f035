"""The search of an NVDIMM's file from the host."""

import os
from pathlib import Path

from testcases.nvdimm_file import pages_at


def test_every_copy_of_a_page_is_found_once(tmp_path: Path) -> None:
    file, page = tmp_path / "nvdimm", os.urandom(4096)
    # Side by side across the border of two reads, behind a hole, and at the very end.
    right = [8 << 20, (12 << 20) - 4096, 12 << 20, 40 << 20, (64 << 20) - 4096]
    with file.open("wb") as opened:
        opened.truncate(64 << 20)
        for at in right:
            opened.seek(at)
            opened.write(page)
    assert list(pages_at(file, page)) == right
    assert not list(pages_at(file, os.urandom(4096)))
