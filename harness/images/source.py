"""Kernel sources to build from: a user's tree, or a distribution's source package.

``debian-source:6.12`` is the newest ``linux-source-6.12`` that the mirrors offer, fetched as
kernels are (see packaged.py) and unpacked once below the cache.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import filelock

from harness import process
from harness.errors import HarnessError, ImageError, KernelError
from harness.images import apt, distribution, packaged
from harness.images.store import Progress, Store, hash_of

SELECTOR = re.compile(r"debian-source:(\d+\.\d+)\Z")
#: Seconds to wait for another process; unpacking takes one to two minutes.
_PATIENCE = 1800.0
#: What a build leaves in a tree; ``make O=`` refuses such a tree too.
_BUILT = (".config", "include/config", "arch/x86/include/generated")


@dataclass(frozen=True)
class Source:
    """A kernel's source: ``files`` maps each path to what changes when the file does."""

    root: Path
    name: str  # in words, for people
    identity: str  # changes with any file
    files: Mapping[str, str]
    ours: bool  # nobody changes it: files may be linked to


def find(selector: str, store: Store, *, progress: Progress) -> Source:
    """Return the source that a user means: ``debian-source:6.12``, or the path of a tree.

    Raises KernelError when there is none, and ImageError when it cannot be fetched.
    """
    match = SELECTOR.match(selector)
    if match:
        return _package(match[1], store, progress)
    root = Path(selector).expanduser().absolute()
    hint = "give a kernel tree or debian-source:6.12"
    if not selector or not root.is_dir():
        raise KernelError(f"no kernel source at {selector or repr(selector)}", hint=hint)
    if not all((root / part).exists() for part in ("Makefile", "Kconfig", "arch/x86/Makefile")):
        raise KernelError(f"{root} is no kernel source", hint=hint)
    files = _signed(root, _tree_files(root))
    listing = "\n".join(f"{path} {files[path]}" for path in sorted(files))
    return Source(root, str(root), hash_of("tree", str(root), listing), files, ours=False)


def _tree_files(root: Path) -> Iterator[str]:
    """Walk over the paths of a tree's own files, without what a build made of them."""
    known = _git_files(root)
    if known is not None:
        yield from known
        return
    built = next((part for part in _BUILT if (root / part).exists()), None)
    if built is not None:
        raise KernelError(
            f"{root} was built in place ({built}) and has no git to tell its sources",
            hint=f"make -C {root} mrproper, or build it from a git checkout",
        )
    yield from _walk(root)


def _walk(root: Path) -> Iterator[str]:
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name != ".git")
        inside = os.path.relpath(folder, root)
        prefix = "" if inside == "." else f"{inside}/"
        links = [name for name in names if Path(folder, name).is_symlink()]
        yield from (prefix + name for name in (*files, *links))


def _git_files(root: Path) -> list[str] | None:
    """Return what git tracks or would add; None where the tree is not a checkout of its own."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    words = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = process.run(["git", "-C", str(root), *words], timeout=120.0, check=False)
    if done.status != 0:
        complaint = (done.stderr.strip().splitlines() or ["it said nothing"])[0]
        raise KernelError(f"git cannot list the files of {root}: {complaint}")
    return sorted({name for name in done.stdout.split("\0") if name})


def _signed(root: Path, names: Iterator[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            state = os.lstat(root / name)
        except FileNotFoundError:  # removed, and git was not told
            continue
        if stat.S_ISLNK(state.st_mode):
            found[name] = f"link {(root / name).readlink()}"
        elif stat.S_ISREG(state.st_mode):
            found[name] = f"{state.st_size} {state.st_mtime_ns} {state.st_mode & 0o111:o}"
    return found


def build_dir(store: Store) -> Path:
    """Return where sources and their objects are: beside the store, for they change."""
    return store.root.parent / "build"


# Source packages


def _package(series: str, store: Store, progress: Progress) -> Source:
    groups = packaged.sources_of(f"debian:{series}")
    key = hash_of("source-choice", "1", series, *(line for group in groups for line in group))

    def choose(target: Path) -> None:
        progress(f"looking up linux-source-{series}")
        (target / packaged.ABOUT).write_text(json.dumps(_choose(series, groups, store), indent=1))

    for last in (False, True):
        choice = store.get("kernel-choice", key, choose)
        about = json.loads((choice.path / packaged.ABOUT).read_text())
        name, version, sha256 = about["packages"][0]
        root = build_dir(store) / f"{name}-{sha256[:16]}"
        with filelock.FileLock(f"{root}.lock", timeout=_PATIENCE):
            if root.is_dir() or _unpack(root, about, store, progress):
                break
        if last:
            raise ImageError(f"{name} {version} is no longer offered", hint="ask again")
        store.remove(choice)  # the mirror has only a newer one
    identity = hash_of("package", name, version, sha256)
    return Source(root, f"{name} {version}", identity, _signed(root, _walk(root)), ours=True)


def _choose(series: str, groups: list[tuple[str, ...]], store: Store) -> dict[str, object]:
    complaint = None
    for sources in groups:
        repository = packaged.repository_of(sources, store)
        complaint = repository.update() or complaint
        newest = apt.newest(repository.versions(f"linux-source-{series}"))
        if newest is not None:
            row = [newest.name, newest.version, newest.sha256]
            return {"packages": [row], "sources": list(sources)}
    if complaint and apt.NO_SUITE not in complaint:
        raise ImageError(f"no kernel source: {complaint}", hint=distribution.MIRROR_HINT)
    raise KernelError(f"no mirror offers linux-source-{series}", hint="try debian-source:6.12")


def _unpack(root: Path, about: Mapping[str, list[list[str]]], store: Store, say: Progress) -> bool:
    """Fetch and unpack a source package to ``root``; False when its version is gone."""
    name, version, _ = about["packages"][0]
    repository = packaged.repository_of([str(line) for line in about["sources"]], store)
    packages = packaged.known(repository, about["packages"])
    if packages is None:
        repository.update()
        packages = packaged.known(repository, about["packages"])
    if packages is None:
        return False
    aside = root.with_name(f".{root.name}-{uuid.uuid4().hex[:8]}")
    aside.mkdir(parents=True)
    try:
        say(f"fetching {name} {version}")
        for deb in repository.download(packages, aside, say=say):
            apt.unpack(deb, aside)
            deb.unlink()
        tars = sorted(aside.glob("usr/src/linux-source-*.tar.*"))
        if not tars:
            raise ImageError(f"{name} {version} holds no kernel source")
        say(f"unpacking {name}, a minute or two")
        tree = aside / "tree"
        tree.mkdir()
        tar = process.find("tar", package="tar")
        words = ["--strip-components=1", "-C", str(tree), "-xf", str(tars[0])]
        process.run([tar, *words], timeout=_PATIENCE)
        tree.rename(root)
    except HarnessError as error:
        raise ImageError(f"{name} cannot be unpacked: {error.message}", hint=error.hint) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True
