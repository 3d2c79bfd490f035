"""Kernels: where one comes from, what belongs to it, and what tells it from another."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from harness import process
from harness.errors import HarnessError, ImageError, KernelError
from harness.images import modules, packaged
from harness.images.store import Entry, Progress, Store, file_hash, hash_of, to_log

_INSTALLED = ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz", "lib/modules/*/vmlinuz", "vmlinuz")
BZIMAGE = Path("arch/x86/boot/bzImage")
#: In a tree that the harness built: what it was made of, in words.
ORIGIN = "nvh-origin"


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be booted.

    ``modules`` is its lib/modules/RELEASE directory, None if it is monolithic or came alone.
    ``origin`` says in words where it is from; ``digest`` covers the image and every module.
    """

    release: str
    image: Path
    modules: Path | None
    config: Path | None
    origin: str
    digest: str


def bzimage_release(image: Path) -> str:
    """Return the release in a bzImage's header (Documentation/arch/x86/boot.rst, kernel_version).

    Raises KernelError when the file is not there or is no x86 kernel.
    """
    hint = "give a bzImage, a built kernel tree, or debian:6.12"
    try:
        with image.open("rb") as file:
            head = file.read(0x10000)
    except OSError as error:
        raise KernelError(f"no kernel at {image}: {error.strerror}", hint=hint) from error
    if head[0x202:0x206] != b"HdrS" or len(head) < 0x250:
        what = "an uncompressed vmlinux" if head[:4] == b"\x7fELF" else "not an x86 kernel image"
        raise KernelError(f"{image} is {what}", hint=hint)
    offset = 0x200 + int(struct.unpack_from("<H", head, 0x20E)[0])
    words = head[offset : offset + 256].split(b"\0")[0].decode("ascii", "replace").split()
    if offset == 0x200 or not words or not re.fullmatch(r"[\w.+~:-]+", words[0]):
        raise KernelError(f"{image} does not say which release it is", hint=hint)
    return words[0]


def default_kernel(store: Store, *, progress: Progress = to_log) -> Kernel:
    """Return the kernel for who names none: the newest 6.12 that the host's release offers.

    A release that offers none gives its own default.  Raises as ``resolve`` does.
    """
    return _from_distribution("default", store, progress)


def resolve(selector: str | None, store: Store, *, progress: Progress = to_log) -> Kernel:
    """Return the kernel that a user means.

    None is the default; ``debian:6.1`` (a series), ``debian:trixie`` (a suite's own) and
    ``ubuntu:noble`` are fetched; ``deb:FILE`` is unpacked; anything else is the path of a bzImage,
    of a built kernel tree or of an installed one (boot/vmlinuz-*, lib/modules/*).  Raises
    KernelError when there is no such kernel and ImageError when it cannot be fetched.
    """
    if selector is None:
        return default_kernel(store, progress=progress)
    _named(selector)
    if packaged.SELECTOR.match(selector):
        return _from_distribution(selector, store, progress)
    if selector.startswith(packaged.DEB):
        debs = [Path(name).expanduser().absolute() for name in _debs(selector)]
        return _from_package(packaged.entry_of_files(debs, store, progress=progress))
    path = Path(selector).expanduser().absolute()
    if path.is_dir():
        return _from_directory(path, store, progress)
    if path.is_file() and path.parts[-4:] == BZIMAGE.parts:
        return _from_tree(path.parents[3], store, progress)
    if re.match(r"[a-z]+:", selector) and not path.exists():
        raise KernelError(
            f"no kernel is called {selector}",
            hint="debian:6.12, debian:trixie, ubuntu:noble, deb:FILE",
        )
    return _from_image(path, origin=str(path))


def absolute(selector: str) -> str:
    """Make a path that is relative to here good everywhere; other selectors stay as they are.

    Raises KernelError when nothing is named, as by a shell's variable that is not set: an empty
    path would be the working directory, and a built tree in it the kernel under test.
    """
    _named(selector)
    if selector.startswith(packaged.DEB):
        files = (str(Path(name).expanduser().absolute()) for name in _debs(selector))
        return packaged.DEB + ",".join(files)
    path = selector.startswith(("/", ".", "~")) or Path(selector).exists()
    return str(Path(selector).expanduser().absolute()) if path else selector


def _named(selector: str) -> None:
    files = _debs(selector) if selector.startswith(packaged.DEB) else [selector]
    if not all(file.strip() for file in files):
        hint = "a shell's variable that is not set? leave the option out for the default"
        raise KernelError(f"{selector!r} names no kernel", hint=hint)


def _debs(selector: str) -> list[str]:
    """Return the names of a deb: selector's files."""
    return selector.removeprefix(packaged.DEB).split(",")


def _from_directory(path: Path, store: Store, progress: Progress) -> Kernel:
    if (path / BZIMAGE).is_file():
        return _from_tree(path, store, progress)
    if (path / "Makefile").is_file() and (path / "Kconfig").is_file():
        raise KernelError(f"{path} is a kernel tree that is not built", hint="make bzImage modules")
    images = [image for pattern in _INSTALLED for image in sorted(path.glob(pattern))]
    images = list({image.resolve(): image for image in images}.values())
    if not images:
        raise KernelError(
            f"{path} holds no kernel", hint=f"a built tree has {BZIMAGE}, an installed one boot/"
        )
    if len(images) > 1:
        names = ", ".join(str(image.relative_to(path)) for image in images)
        raise KernelError(f"{path} holds several kernels", hint=f"name one: {names}")
    return _from_image(images[0], origin=str(path))


def _from_image(image: Path, *, origin: str) -> Kernel:
    """Return an installed kernel, or a bzImage that stands alone."""
    release = bzimage_release(image)
    directories = [
        image.parent,  # lib/modules/RELEASE/vmlinuz
        image.parent.parent / "lib/modules" / release,
        image.parent.parent / "usr/lib/modules" / release,
    ]
    installed = next((path for path in directories if (path / "modules.dep").is_file()), None)
    configs = [image.parent / f"config-{release}", image.parent / "config"]
    config = next((path for path in configs if path.is_file()), None)
    digest = hash_of(file_hash(image), _fingerprint(installed))
    return Kernel(release, image, installed, config, origin, digest)


def _from_tree(tree: Path, store: Store, progress: Progress) -> Kernel:
    """Return a built tree's kernel; its modules are installed, stripped, into the store."""
    image = tree / BZIMAGE
    release = bzimage_release(image)
    config = tree / ".config"
    order = tree / "modules.order"
    told = tree / ORIGIN
    installed = None
    modules_digest = "no modules"
    ready = tree / "lib/modules" / release
    if told.is_file() and (ready / "modules.dep").is_file():
        installed, modules_digest = ready, _fingerprint(ready)
    elif order.is_file() and order.read_text().strip():
        key = hash_of("tree-modules-1", str(tree), release, _tree_fingerprint(tree, order))

        def build(target: Path) -> None:
            progress(f"installing the modules of {tree}")
            _install_modules(tree, target)

        # The modules are read once, into an image with a hash of its own.
        entry = store.get("tree-modules", key, build, verify=())
        modules_digest = entry.digest
        installed = entry.path / "lib/modules" / release
        if not (installed / "modules.dep").is_file():
            raise KernelError(
                f"{tree}: bzImage is {release}, the modules are of another release",
                hint="make bzImage modules",
            )
    return Kernel(
        release=release,
        image=image,
        modules=installed,
        config=config if config.is_file() else None,
        origin=told.read_text().strip() if told.is_file() else str(tree),
        digest=hash_of(file_hash(image), modules_digest),
    )


def _install_modules(tree: Path, target: Path) -> None:
    make = process.find("make", package="make")
    try:
        process.run(
            [
                *(make, "-s", "-C", str(tree), "modules_install"),
                *(f"INSTALL_MOD_PATH={target}", "INSTALL_MOD_STRIP=1"),
            ],
            timeout=900,
        )
    except HarnessError as error:
        raise KernelError(
            f"modules of {tree} cannot be installed: {error.message}", hint="make modules"
        ) from error
    modules.remove_links(target)


def _tree_fingerprint(tree: Path, order: Path) -> str:
    """Return what changes when modules are built again: size and time of each."""
    parts = []
    for line in order.read_text().split():
        module = tree / re.sub(r"\.o$", ".ko", line)
        if module.is_file():
            state = module.stat()
            parts.append(f"{line} {state.st_size} {state.st_mtime_ns}")
    return "\n".join(parts)


def _fingerprint(installed: Path | None) -> str:
    """Return what tells one module directory from another without reading it all."""
    if installed is None:
        return "no modules"
    parts = [file_hash(installed / "modules.dep")]
    for path in sorted(modules.ModuleTree(installed).files.values()):
        module = installed / path
        if module.is_file():
            state = module.stat()
            parts.append(f"{path} {state.st_size} {state.st_mtime_ns}")
    return hash_of(*parts)


def _from_distribution(selector: str, store: Store, progress: Progress) -> Kernel:
    return _from_package(packaged.entry(selector, store, progress=progress))


def _from_package(entry: Entry) -> Kernel:
    image = entry.path / packaged.IMAGE
    release = bzimage_release(image)
    package = packaged.package_of(entry)
    tree = entry.path / "lib/modules" / release
    config = entry.path / packaged.CONFIG
    whole = (tree / "modules.dep").is_file()
    if not whole and not (config.is_file() and "CONFIG_MODULES=y" not in config.read_text()):
        raise ImageError(
            f"{package} holds no modules for {release}",
            hint="name another kernel, or deb:IMAGE.deb,MODULES.deb",
        )
    return Kernel(
        release=release,
        image=image,
        modules=tree if whole else None,
        config=config if config.is_file() else None,
        origin=package,
        digest=entry.digest,
    )
