"""A directory as a small read-only ext4 image, without mounting and without being root."""

from __future__ import annotations

import math
from pathlib import Path

from harness import process

BLOCK = 4096
#: Named one by one: the newest features of the host's mke2fs are unknown to an old guest kernel.
FEATURES = "none,extent,filetype,sparse_super,large_file,dir_index"


def write(source: Path, target: Path, *, label: str) -> None:
    """Write ``target``, an ext4 image with the content of the directory ``source``.

    No journal, no reserved blocks, just enough room: it is only ever mounted read-only.
    """
    entries = list(source.rglob("*"))
    blocks = sum(math.ceil(entry.lstat().st_size / BLOCK) + 1 for entry in entries)
    mke2fs = process.find("mke2fs", package="e2fsprogs")
    command = [mke2fs, "-q", "-t", "ext4", "-b", str(BLOCK), "-O", FEATURES, "-m", "0"]
    command += ["-N", str(len(entries) + 64), "-E", "root_owner=0:0", "-L", label]
    command += ["-d", str(source), str(target), f"{blocks * BLOCK * 11 // 10 // 1024 + 16384}k"]
    process.run(command, timeout=600)
    resize2fs = process.find("resize2fs", package="e2fsprogs")
    process.run([resize2fs, "-M", str(target)], timeout=600)
