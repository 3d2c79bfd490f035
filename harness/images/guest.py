"""All that a boot needs, built for one kernel and named by one digest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.images import initramfs, modules, rootfs
from harness.images.kernel import Kernel
from harness.images.store import Progress, Store, hash_of, to_log

#: Raise it when the code below builds something else from the same inputs.
_RECIPE = "2"
_INITRAMFS = "initramfs.cpio"
_MODULES = "modules.img"


@dataclass(frozen=True)
class GuestImages:
    """The files of a boot; ``digest`` covers everything that it depends on.

    ``root`` goes to a read-only virtio-blk disk with serial nvhroot, ``modules`` to one with serial
    nvhmods; it is None for a kernel without modules.
    """

    kernel: Kernel
    initramfs: Path
    root: Path
    modules: Path | None
    digest: str


def prepare(
    kernel: Kernel,
    store: Store,
    *,
    packages: Sequence[str] = (),
    progress: Progress = to_log,
    verify: bool = True,
) -> GuestImages:
    """Return the images for a kernel, building what the store does not have yet.

    ``packages`` are to be in the root image besides those of every guest.  ``verify`` compares what
    is there with its hashes, which costs half a second; what is damaged is built again.
    ``progress`` is told in a line of each thing that takes longer.  Raises ImageError when
    something cannot be built and UnfitKernel when the kernel lacks drivers.
    """
    wanted = modules.wanted()
    tree = kernel.modules

    def build_modules(target: Path) -> None:
        assert tree is not None
        progress(f"building the modules image of {kernel.release}")
        store.check(tree)
        modules.build_image(tree, kernel.release, wanted.decompressed, target / _MODULES)

    def build_initramfs(target: Path) -> None:
        progress(f"building the initramfs of {kernel.release}")
        if tree is not None:
            store.check(tree)
        initramfs.build(tree, wanted.initramfs, target / _INITRAMFS)

    sources = [part for pair in initramfs.sources().items() for part in pair]
    base_key = hash_of(_RECIPE, kernel.digest, *wanted.initramfs, *sources)
    base = store.get("initramfs", base_key, build_initramfs, verify=verify)
    parts = [rootfs.entry(store, extra=packages, progress=progress, verify=verify), base]
    if tree is not None:
        modules_key = hash_of(_RECIPE, kernel.digest, *wanted.decompressed)
        parts.append(store.get("modules", modules_key, build_modules, verify=verify))
    return GuestImages(
        kernel=kernel,
        initramfs=base.path / _INITRAMFS,
        root=parts[0].path / rootfs.IMAGE,
        modules=parts[2].path / _MODULES if tree is not None else None,
        digest=hash_of(_RECIPE, kernel.digest, *(part.digest for part in parts)),
    )
