"""A private apt: looks up and fetches packages of any release without touching the host's apt.

apt itself checks the signatures of what it fetches.  Its state lies in a directory of the cache;
only the keyrings and the host's ``Acquire`` settings (proxies, validity of snapshots) are shared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock

from harness import process
from harness.errors import HarnessError, ImageError, KernelError
from harness.images.advance import Advance, bytes_in, watched
from harness.images.store import Progress, hash_of, to_log

_DEADLINE = 900.0
#: Settings of the host that would break a private tree, or that belong to an interactive apt.
_NOT_SHARED = ("IndexTargets", "Changelogs", "cdrom", "CompressionTypes", "Languages")


#: What says most about a failure, in this order; the last line often only says that it failed.
_TELLING = (
    "No space left",
    NO_SUITE := "does not have a Release file",
    "Unable to locate",
    "Could not resolve",
    "Could not connect",
    "Unable to connect",
    "Failed to fetch",
    "Err:",
    "E: ",
)


@dataclass(frozen=True)
class Package:
    """One version of a binary package, as the signed index describes it."""

    name: str
    version: str
    sha256: str
    depends: tuple[str, ...]
    size: int = 0  # of the file to fetch, in bytes

    def __str__(self) -> str:
        """Return name and version as apt-get takes them."""
        return f"{self.name}={self.version}"


def host_options() -> list[str]:
    """Return the host's own Acquire settings as lines of an apt configuration."""
    program = process.find("apt-config", package="apt")
    lines = process.run([program, "dump"], timeout=30).stdout.splitlines()
    skipped = tuple(f"Acquire::{name}" for name in _NOT_SHARED)
    return [
        line
        for line in lines
        if line.startswith("Acquire::") and not line.startswith(skipped) and ' "";' not in line
    ]


def last_error(output: str) -> str:
    """Return the line of apt's or mmdebstrap's output that says most about a failure."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for mark in _TELLING:
        for line in lines:
            if mark in line:
                return line.removeprefix("E: ")
    return lines[-1] if lines else "it said nothing"


class PrivateApt:
    """An apt tree under ``root`` for a set of sources.list lines."""

    def __init__(self, root: Path, sources: Iterable[str]) -> None:
        self.sources = tuple(sources)
        self.root = root / hash_of(*self.sources)[:16]
        self._env = {"APT_CONFIG": str(self.root / "apt.conf"), "LC_ALL": "C"}
        self._lock = filelock.FileLock(root / f"{self.root.name}.lock")
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def update(self) -> str | None:
        """Fetch the indexes; return apt's complaint, or None if all of them came."""
        with self._lock:
            self._write_tree()
            done = self._run("apt-get", "update", "-q", check=False)
        said = done.stdout + done.stderr
        failed = done.status != 0 or "Some index files failed" in said or "Err:" in said
        return last_error(said) if failed else None

    def search(self, pattern: str) -> list[Package]:
        """Return every version of the packages whose whole name matches an extended POSIX regex."""
        with self._lock:
            if not self._ready():
                return []
            found = self._run("apt-cache", "search", "--names-only", f"^{pattern}$").stdout
            names = [line.split()[0] for line in found.splitlines() if line.strip()]
            return self._show(names)

    def versions(self, name: str) -> list[Package]:
        """Return every version of one package."""
        with self._lock:
            return self._show([name]) if self._ready() else []

    def download(
        self, packages: Sequence[Package], into: Path, *, say: Progress = to_log
    ) -> list[Path]:
        """Fetch packages into an empty directory; apt compares them with the signed index."""
        what = f"fetching {packages[0].name} {packages[0].version}"
        partial = self.root / "cache/archives/partial"
        total = sum(package.size for package in packages)

        def look() -> Advance:
            return Advance(what, bytes_in(into, into / "partial", partial), total)

        with self._lock, watched(say, look):
            self._run("apt-get", "download", "-q", *map(str, packages), cwd=into)
        return sorted(into.glob("*.deb"))

    def _ready(self) -> bool:
        return (self.root / "apt.conf").is_file()

    def _show(self, names: Sequence[str]) -> list[Package]:
        if not names:
            return []
        shown = self._run("apt-cache", "show", *names, check=False).stdout
        return list({str(package): package for package in _stanzas(shown)}.values())

    def _write_tree(self) -> None:
        parts = ("etc/apt.conf.d", "etc/preferences.d")
        for name in (*parts, "state/lists/partial", "cache/archives/partial"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "status").touch()
        (self.root / "etc/sources.list").write_text("".join(f"{line}\n" for line in self.sources))
        lines = [
            f'Dir "{self.root}/";',
            f'Dir::Etc "{self.root}/etc/";',
            'Dir::State "state/";',
            f'Dir::State::status "{self.root}/status";',
            'Dir::Cache "cache/";',
            'APT::Architecture "amd64";',
            'APT::Sandbox::User "";',
            'Acquire::Languages "none";',
            'Acquire::Retries "2";',
            *host_options(),
        ]
        (self.root / "apt.conf").write_text("".join(f"{line}\n" for line in lines))

    def _run(
        self, program: str, *words: str, check: bool = True, cwd: Path | None = None
    ) -> process.Completed:
        argv = [process.find(program, package="apt"), *words]
        done = process.run(argv, timeout=_DEADLINE, check=False, env=self._env, cwd=cwd)
        if check and done.status != 0:
            raise ImageError(f"{program} failed: {last_error(done.stderr)}")
        return done


def identity(package: Path) -> tuple[str, str]:
    """Return name and version of a .deb; KernelError when the file is none."""
    if not package.is_file():
        raise KernelError(f"no package at {package}", hint="deb:FILE takes a linux-image .deb")
    program = process.find("dpkg-deb", package="dpkg")
    asked = [program, "--show", "--showformat=${Package} ${Version}", str(package)]
    done = process.run(asked, timeout=_DEADLINE, check=False)
    name, _, version = done.stdout.strip().partition(" ")
    if done.status or not version:
        said = last_error(done.stderr) or "it has no name and version"
        raise KernelError(f"{package} is no package: {said}", hint="deb:FILE takes a .deb")
    return name, version


def unpack(package: Path, into: Path) -> None:
    """Unpack the files of a .deb."""
    program = process.find("dpkg-deb", package="dpkg")
    try:
        process.run([program, "-x", str(package), str(into)], timeout=_DEADLINE)
    except HarnessError as error:
        raise ImageError(f"{package.name} cannot be unpacked: {error.message}") from error


def _stanzas(shown: str) -> Iterable[Package]:
    for stanza in shown.split("\n\n"):
        fields: Mapping[str, str] = dict(
            line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " "
        )
        if "Package" in fields and "SHA256" in fields:
            depends = re.split(r"[,|]", fields.get("Depends", ""))
            yield Package(
                fields["Package"],
                fields["Version"],
                fields["SHA256"],
                tuple(word.split()[0] for word in depends if word.strip()),
                int(fields["Size"]) if fields.get("Size", "").isdecimal() else 0,
            )


def newest(packages: Iterable[Package]) -> Package | None:
    """Return the package with the highest version, in Debian's order."""
    best = None
    argv = [process.find("dpkg", package="dpkg"), "--compare-versions"]
    for package in packages:
        if best is not None:
            words = [best.version, "lt", package.version]
            if process.run([*argv, *words], timeout=30, check=False).status != 0:
                continue
        best = package
    return best
