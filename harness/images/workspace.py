"""A private copy of a kernel source in which patches come and go, with its object directories.

What differs from the last time is written anew, with a fresh time; everything else keeps its time.
So make rebuilds what a patch touches, going in and going out, and nothing else.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath

import filelock

from harness.errors import ImageError
from harness.images.source import Source, build_dir
from harness.images.store import Progress, Store, file_hash, hash_of

_INDEX = "index.json"
_IN_DOUBT = "?"
#: Seconds to wait for another build in the same workspace; one with KASAN takes half an hour.
_PATIENCE = 7200.0


class Workspace:
    """The directory of one source below the cache."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tree = root / "source"

    @classmethod
    def of(cls, source: Source, store: Store) -> Workspace:
        """Return the workspace of a source; of a tree, the same one whatever is in the tree."""
        return cls(build_dir(store) / f"work-{hash_of(str(source.root))[:16]}")

    def objects(self, name: str) -> Path:
        """Return the object directory of a configuration, made when it is not there.

        It begins as a copy of the last one that was made: kbuild knows of each object which options
        it depends on, and makes only those anew.
        """
        path = self.root / f"objects-{hash_of(name)[:16]}"
        if not path.is_dir():
            others = sorted(
                self.root.glob("objects-*/.config"), key=lambda one: one.stat().st_mtime
            )
            aside = self.root / "new-objects"
            shutil.rmtree(aside, ignore_errors=True)
            if others:
                shutil.copytree(others[-1].parent, aside, symlinks=True)
            else:
                aside.mkdir(parents=True)
            aside.rename(path)
        return path

    @contextlib.contextmanager
    def locked(self, progress: Progress) -> Iterator[None]:
        """Keep other builds out while the block lasts; the lock goes with our process."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = filelock.FileLock(f"{self.root}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            progress("waiting for another build of the same source")
            try:
                lock.acquire(timeout=_PATIENCE)
            except filelock.Timeout as error:
                raise ImageError(
                    f"another build has held {self.root} for {_PATIENCE:.0f} s", hint="end it"
                ) from error
        try:
            yield
        finally:
            lock.release()

    def sync(self, source: Source, patched: Mapping[str, Path | None], say: Progress) -> int:
        """Make the copy hold the source with the patched files in place; return what changed.

        ``patched`` maps paths to the files to have there, None to no file.
        """
        wanted = dict(source.files)
        for name, file in patched.items():
            wanted.pop(name, None)
            if file is not None:
                wanted[name] = f"patched {file_hash(file)} {file.stat().st_mode & 0o111:o}"
        known = self._known()
        fresh = {name for name, sign in wanted.items() if known.get(name) != sign}
        gone = known.keys() - wanted.keys()
        if not fresh and not gone:
            return 0
        if not known:
            # The times of a new copy are old ones: objects of an earlier one would look up to date.
            shutil.rmtree(self.root, ignore_errors=True)
            self.tree.mkdir(mode=0o700, parents=True)
            say(f"copying {source.name}")
        # After a crash, what is noted as in doubt is looked at again.
        self._note(known | dict.fromkeys(fresh | gone, _IN_DOUBT))
        for name in sorted(gone, reverse=True):
            (self.tree / name).unlink(missing_ok=True)
            self._remove_empty(PurePath(name).parent)
        changed = len(gone)
        for folder in {PurePath(name).parent for name in fresh}:
            (self.tree / folder).mkdir(parents=True, exist_ok=True)
        for name in sorted(fresh):
            origin = patched.get(name) or source.root / name
            changed += _put(origin, self.tree / name, link=source.ours and not known)
        self._note(wanted)
        return changed

    def _remove_empty(self, folder: PurePath) -> None:
        """Remove a folder that is empty, and those around it: a file may take its place."""
        for empty in (folder, *folder.parents):
            if not empty.parts:
                return
            try:
                (self.tree / empty).rmdir()
            except OSError:
                return

    def _known(self) -> dict[str, str]:
        try:
            known = json.loads((self.root / _INDEX).read_text())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _note(self, signs: Mapping[str, str]) -> None:
        fresh = self.root / f"{_INDEX}.new"
        fresh.write_text(json.dumps(signs))
        fresh.replace(self.root / _INDEX)


def _put(origin: Path, target: Path, *, link: bool) -> bool:
    """Have a file's content at ``target``; False when it was there already."""
    if origin.is_symlink():
        if target.is_symlink() and target.readlink() == origin.readlink():
            return False
        target.unlink(missing_ok=True)
        target.symlink_to(origin.readlink())
        return True
    mode = origin.stat().st_mode & 0o777
    if target.is_file() and not target.is_symlink():
        same = filecmp.cmp(origin, target, shallow=False)
        if same and target.stat().st_mode & 0o111 == mode & 0o111:
            return False
    if link:
        with contextlib.suppress(OSError):
            os.link(origin, target)
            return True
    # Never in place: the old file may be a link to one that others rely on.
    aside = target.with_name(f".{target.name}.nvh")
    shutil.copyfile(origin, aside)
    aside.chmod(mode | 0o200)
    aside.replace(target)
    return True
