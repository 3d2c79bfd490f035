"""A mount that is proven to be DAX, for the fixture fsdax and for the testcases."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from harness.errors import WorkloadError
from harness.guest import Guest
from harness.guest.filesystem import Mount
from harness.guest.provision import NamespaceInfo
from harness.verdict.expectation import NotProven
from harness.verdict.status import Status


@contextlib.contextmanager
def mounted(
    guest: Guest, namespace: NamespaceInfo, fs: str, *, mkfs: Sequence[str] = ()
) -> Iterator[Mount]:
    """Make ``fs`` and mount it with dax=always while the block lasts.

    Raises NotProven, for a SKIP, where the kernel has DAX for no file system; whether this mount is
    DAX is the caller's to prove.
    """
    with contextlib.ExitStack() as stack:
        try:
            made = guest.mounted(namespace, fs, dax="always", mkfs=mkfs)
            mount: Mount | None = stack.enter_context(made)
        except WorkloadError:
            if is_built_in(guest):
                raise
            mount = None
        if mount is None or (not mount.is_dax and not is_built_in(guest)):
            raise NotProven(
                "the kernel has no DAX for file systems",
                status=Status.SKIP,
                hint="set CONFIG_FS_DAX=y",
            )
        yield mount


def is_built_in(guest: Guest) -> bool:
    """Whether the kernel is built with CONFIG_FS_DAX: then it has fs/dax.c.

    One that does not show its symbols (CONFIG_KALLSYMS) is taken for one that has it.
    """
    symbols = guest.run("grep -wo -e dax_iomap_rw -e vfs_read /proc/kallsyms", check=False)
    return set(symbols.stdout.split()) != {"vfs_read"}
