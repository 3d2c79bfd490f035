"""Kernels that a distribution packages: which one a selector means, and fetching it.

A selector is ``default``, ``debian:6.1`` (the newest of a series), ``debian:trixie`` or
``ubuntu:noble`` (a suite's own kernel).  What it stood for when it was first asked for stays so
until the store forgets it: a run must not change because a mirror moved on, and needs no network.
``deb:FILE`` is a package that somebody has; ``deb:IMAGE,MODULES`` are those of a split kernel.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import ImageError, KernelError
from harness.images import apt, distribution, modules
from harness.images.distribution import Release
from harness.images.store import Entry, Progress, Store, file_hash, hash_of

#: The series of who names no kernel: a long-term one that most releases offer.
DEFAULT_SERIES = "6.12"
SELECTOR = re.compile(r"(debian|ubuntu):([a-z0-9][a-z0-9.\-]*)\Z|default\Z")
#: What stands before the names of package files, which commas part.
DEB = "deb:"

#: What an entry holds, beside lib/modules/RELEASE and, mostly, a config.
IMAGE, CONFIG, SYSTEM_MAP, ABOUT = "vmlinuz", "config", "System.map", "package.json"

_SERIES = re.compile(r"\d+\.\d+\Z")
_OTHER_FLAVOUR = re.compile(r"-(cloud|rt|dbg|unsigned|lowlatency|azure|aws|gcp|oracle)\b")
#: Debian moved image and modules into packages of their own with 7.2, Ubuntu long before.
_PART = re.compile(r"linux-(image|binary|base|modules)(-extra)?-\d")
_RECIPE = "3"
_SPLIT = "of a split kernel name all packages: deb:IMAGE.deb,MODULES.deb"


class _GoneError(ImageError):
    """A version is no longer on the mirror."""


def entry(selector: str, store: Store, *, progress: Progress, anew: bool = False) -> Entry:
    """Return the store's entry of a packaged kernel, fetched if need be.

    ``anew`` asks the mirror what the selector stands for now; without an answer that is unchanged.
    Raises KernelError when nothing matches the selector and ImageError when no mirror answers.
    """
    sources = sources_of(selector)
    key = _choice_key(selector, sources)
    asked: dict[str, object] = {}

    def choose(target: Path) -> None:
        if not asked:
            progress(f"looking up {_spoken(selector)}")
        (target / ABOUT).write_text(
            json.dumps(asked or _choose(selector, sources, store), indent=1)
        )

    if anew:
        progress(f"looking up {_spoken(selector)}")
        asked.update(_choose(selector, sources, store))
        forget(selector, store)
    choice = store.get("kernel-choice", key, choose)
    try:
        return _fetched(choice, store, progress)
    except _GoneError:
        asked.clear()
        # The store had dropped the kernel, and the mirror has only a newer one.
        store.remove(choice)
        return _fetched(store.get("kernel-choice", key, choose), store, progress)


def forget(selector: str, store: Store) -> None:
    """Let a selector stand for what the mirror says when it is next asked for."""
    if choice := store.find("kernel-choice", _choice_key(selector, sources_of(selector))):
        store.remove(choice)


def stands_for(selector: str, store: Store) -> Entry | None:
    """Return the entry that a selector stands for, if both are in the store."""
    choice = store.find("kernel-choice", _choice_key(selector, sources_of(selector)))
    return store.find("kernel", _key(_about(choice)["packages"])) if choice else None


def _choice_key(selector: str, sources: Sequence[Sequence[str]]) -> str:
    return hash_of("choice", _RECIPE, selector, *(line for group in sources for line in group))


def _key(rows: Sequence[Sequence[str]]) -> str:
    return hash_of("kernel", _RECIPE, json.dumps(rows))


def _about(entry: Entry) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((entry.path / ABOUT).read_text())
    return about


def entry_of_files(debs: Sequence[Path], store: Store, *, progress: Progress) -> Entry:
    """Return the store's entry of the kernel in package files, unpacked if need be.

    Raises KernelError when one of them is no package, and ImageError when there is no kernel.
    """
    rows = [[*apt.identity(deb), file_hash(deb)] for deb in debs]

    def build(target: Path) -> None:
        progress(f"unpacking {', '.join(deb.name for deb in debs)}")
        _unpack(target, debs, rows[0][0])
        (target / ABOUT).write_text(json.dumps({"packages": rows}, indent=1))

    key = hash_of("kernel-files", _RECIPE, json.dumps(rows))
    return store.get("kernel", key, build, verify=(IMAGE, CONFIG, ABOUT))


def package_of(entry: Entry) -> str:
    """Return name and version of the package that an entry holds."""
    name, version, _ = _about(entry)["packages"][0]
    return f"{name} {version}"


def _spoken(selector: str) -> str:
    return "the default kernel" if selector == "default" else selector


def sources_of(selector: str) -> list[tuple[str, ...]]:
    """Return groups of sources.list lines; a later one is asked if the earlier have nothing."""
    host = distribution.host_release()
    name, _, what = selector.partition(":")
    if selector == "default":
        return [distribution.sources(host, whole=True)]
    if not _SERIES.match(what):
        return [distribution.sources(Release(name, what))]
    # The last has the oldest kernel that is served, 5.10; not every mirror has it still.
    suites = ["stable", "oldstable", "sid", "bullseye"] if name == "debian" else []
    if host.name == name:
        suites.insert(0, host.codename)
    return [distribution.sources(Release(name, suite), whole=True) for suite in suites]


def series(distribution_name: str, store: Store) -> list[str]:
    """Return the series of the kernel that a distribution's mirrors offer, such as ["6.1", "6.12"].

    Without a network it is what they offered when they were last asked.
    """
    found = set()
    for sources in sources_of(f"{distribution_name}:0.0"):
        repository = repository_of(sources, store)
        repository.update()
        for one in repository.search(r"linux-image-[0-9]+\.[0-9].*-(amd64|generic)"):
            if not _OTHER_FLAVOUR.search(one.name):
                found.add(".".join(re.findall(r"\d+", one.name)[:2]))
    return sorted(found, key=lambda word: tuple(map(int, word.split("."))))


def repository_of(sources: Sequence[str], store: Store) -> apt.PrivateApt:
    """Return the private apt for sources.list lines."""
    return apt.PrivateApt(store.root.parent / "apt", sources)


def _choose(selector: str, groups: Sequence[Sequence[str]], store: Store) -> dict[str, object]:
    """Return the packages that a selector stands for now, the image's first."""
    complaint = None
    for sources in groups:
        repository = repository_of(sources, store)
        complaint = repository.update() or complaint
        wanted = _wanted(selector, repository)
        if wanted is None:
            continue
        packages = [wanted]
        for package in packages:  # grows while it is walked
            names = {name for name in package.depends if _PART.match(name)}
            for name in sorted(names - {one.name for one in packages}):
                part = apt.newest(repository.versions(name))
                packages += [part] if part else []
        rows = [[package.name, package.version, package.sha256] for package in packages]
        return {"packages": rows, "sources": list(sources)}
    if complaint and apt.NO_SUITE not in complaint:
        raise ImageError(f"no kernel packages: {complaint}", hint=distribution.MIRROR_HINT)
    raise KernelError(
        f"no mirror offers {_spoken(selector)}", hint="try debian:6.12, debian:trixie, ubuntu:noble"
    )


def _wanted(selector: str, repository: apt.PrivateApt) -> apt.Package | None:
    what = selector.partition(":")[2]
    if selector == "default":
        return _newest_of_series(DEFAULT_SERIES, repository) or _newest_of_meta(repository)
    if _SERIES.match(what):
        return _newest_of_series(what, repository)
    return _newest_of_meta(repository)


def _newest_of_series(series: str, repository: apt.PrivateApt) -> apt.Package | None:
    # A third number or an ABI follows, so that the series' meta package stays out.
    pattern = rf"linux-image-{re.escape(series)}[.-][0-9].*-(amd64|generic)"
    offered = repository.search(pattern)
    return apt.newest(one for one in offered if not _OTHER_FLAVOUR.search(one.name))


def _newest_of_meta(repository: apt.PrivateApt) -> apt.Package | None:
    meta = apt.newest(repository.search("linux-image-(amd64|generic)"))
    for name in meta.depends if meta else ():
        if re.match(r"linux-image-\d", name):
            return apt.newest(repository.versions(name))
    return None


def _fetched(choice: Entry, store: Store, progress: Progress) -> Entry:
    about = _about(choice)
    rows = about["packages"]

    def build(target: Path) -> None:
        progress(f"fetching {rows[0][0]} {rows[0][1]}")
        repository = repository_of(about["sources"], store)
        packages = known(repository, rows)
        if packages is None:
            complaint = repository.update()
            packages = known(repository, rows)
            if packages is None and complaint:
                raise ImageError(f"no packages: {complaint}", hint=distribution.MIRROR_HINT)
            if packages is None:
                raise _GoneError(f"{rows[0][0]} {rows[0][1]} is no longer offered")
        _fill(target, repository, packages, progress)
        (target / ABOUT).write_text(json.dumps(about, indent=1))

    # The modules are read once, into an image with a hash of its own: Store.check does it then.
    return store.get("kernel", _key(rows), build, verify=(IMAGE, CONFIG, ABOUT))


def known(repository: apt.PrivateApt, rows: Sequence[Sequence[str]]) -> list[apt.Package] | None:
    """Return the packages if the repository has exactly them."""
    found = []
    for name, version, sha256 in rows:
        offered = repository.versions(name)
        match = [one for one in offered if one.version == version and one.sha256 == sha256]
        if not match:
            return None
        found.append(match[0])
    return found


def _fill(
    target: Path, repository: apt.PrivateApt, packages: Sequence[apt.Package], say: Progress
) -> None:
    """Fetch and unpack; keep what a boot needs, in one layout for all distributions."""
    debs = repository.download(packages, target, say=say)
    say(f"unpacking {packages[0].name}")
    _unpack(target, debs, str(packages[0]))
    for deb in debs:
        deb.unlink()


def _unpack(target: Path, debs: Sequence[Path], name: str) -> None:
    """Unpack packages into what an entry holds."""
    work = target / "unpacked"
    work.mkdir()
    for deb in debs:
        apt.unpack(deb, work)
    for kept, patterns in {
        IMAGE: ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz", "lib/modules/*/vmlinuz"),
        CONFIG: ("boot/config-*", "usr/lib/modules/*/config"),
        SYSTEM_MAP: ("boot/System.map-*", "usr/lib/modules/*/System.map"),
    }.items():
        found = [path for pattern in patterns for path in sorted(work.glob(pattern))]
        if found:
            found[0].rename(target / kept)
        elif kept == IMAGE:
            raise ImageError(f"{name} holds no kernel image", hint=_SPLIT)
    for prefix in ("lib", "usr/lib"):
        for tree in sorted(work.glob(f"{prefix}/modules/*")):
            _keep_modules(tree, target / "lib/modules" / tree.name)
    shutil.rmtree(work)
    symbols = target / SYSTEM_MAP
    for tree in target.glob("lib/modules/*"):
        modules.depmod(target, tree.name, system_map=symbols if symbols.is_file() else None)


def _keep_modules(tree: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(tree.iterdir()):
        if path.name.startswith("modules."):
            path.rename(target / path.name)
        elif path.is_dir() and not path.is_symlink():
            shutil.copytree(path, target / path.name, dirs_exist_ok=True, copy_function=shutil.move)
