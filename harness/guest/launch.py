"""A guest's QEMU, as unprivileged as its machine lets it be."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HostError
from harness.qemu import unprivileged
from harness.qemu.argv import Memory, Wiring
from harness.qemu.vm import Vm, launched

if TYPE_CHECKING:
    from harness.guest.boot import Recipe

log = logging.getLogger(__name__)


@contextlib.contextmanager
def started(
    recipe: Recipe,
    *,
    initramfs: Path,
    nvdimms: Mapping[str, Path],
    folder: Path,
    memory: Memory | None = None,
    pass_fds: tuple[int, ...] = (),
    grace: float = 2.0,
) -> Iterator[Vm]:
    """Run a recipe's QEMU for as long as the block lasts; ``vm.user`` says whom it runs as."""

    def vector(wiring: Wiring) -> list[str]:
        return recipe.argv(initramfs=initramfs, nvdimms=dict(nvdimms), wiring=wiring, memory=memory)

    user = unprivileged.choose(recipe.machine, recipe.accel, recipe.qemu)
    with contextlib.ExitStack() as stack:
        if isinstance(user, str):
            log.debug("QEMU runs as %s", user)
            ram = [memory.file] if memory is not None else []
            vm = stack.enter_context(
                launched(
                    vector,
                    folder=folder,
                    pass_fds=pass_fds,
                    grace=grace,
                    mapped=[*ram, *nvdimms.values()],
                )
            )
            vm.user = user
            yield vm
            return
        own: list[Path] = []
        private: list[Path] = []
        if memory is not None and memory.shared:
            own.append(_made(memory.file, recipe.machine.memory))
        elif memory is not None:
            private.append(memory.file)
        copied = memory is None or memory.shared or memory.own_nvdimms
        (own if copied else private).extend(nvdimms.values())
        images = recipe.images
        readable = [images.kernel.image, initramfs, images.root]
        files = stack.enter_context(
            unprivileged.handed_over(
                user,
                readable=[*readable, *([images.modules] if images.modules else [])],
                own=own,
                private=private,
            )
        )
        vm = stack.enter_context(
            launched(
                vector,
                folder=folder,
                pass_fds=pass_fds,
                grace=grace,
                user=user,
                files=files,
                mapped=own,  # the others are copies in memory
            )
        )
        vm.user = f"user {user.uid}, who owns nothing"
        yield vm


def _made(file: Path, size: int) -> Path:
    """Make the file that QEMU would make if it could."""
    try:
        with file.open("xb") as made:
            made.truncate(size)
    except OSError as error:
        raise HostError(f"{file}: {error.strerror}") from error
    return file
