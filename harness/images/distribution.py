"""The releases that packages come from: the host's own and others, their mirrors and keyrings."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from harness import memo, paths, process
from harness.errors import HostError, UsageError

#: What belongs to a release besides itself: where newer kernels of it are.
_NO_SECURITY = re.compile(r"(sid|unstable|testing|experimental|.*-backports)\Z")
MIRROR_HINT = "check the network and the proxy, or set NVH_MIRROR to a mirror that answers"


@dataclass(frozen=True)
class Release:
    """A release of a distribution: ``debian`` ``bookworm``."""

    name: str
    codename: str


def host_release() -> Release:
    """Return the host's release; HostError if it is neither Debian nor Ubuntu nor made of one."""
    try:
        about = platform.freedesktop_os_release()
    except OSError as error:
        raise HostError("no /etc/os-release", hint="the host must be Debian or Ubuntu") from error
    families = [about.get("ID", ""), *about.get("ID_LIKE", "").split()]
    name = next((family for family in ("ubuntu", "debian") if family in families), None)
    if name is None:
        raise HostError(
            f"{about.get('PRETTY_NAME', 'this host')} has no packages that we can use",
            hint="the host must be Debian or Ubuntu",
        )
    derived = about.get(f"{name.upper()}_CODENAME")  # what a derivative is made of
    return Release(name, derived or about.get("VERSION_CODENAME") or "sid")


def named_mirror(name: str) -> str | None:
    """Return the mirror that the user names for a distribution.

    ``$NVH_DEBIAN_MIRROR`` or ``$NVH_UBUNTU_MIRROR``; ``$NVH_MIRROR`` is for that of the host.
    """
    variables = [f"NVH_{name.upper()}_MIRROR"]
    if host_release().name == name:
        variables.append("NVH_MIRROR")
    for variable in variables:
        url = os.environ.get(variable, "").rstrip("/")
        if url and not re.fullmatch(r"[a-z][a-z0-9+.-]*:/\S+", url):
            raise UsageError(f"{variable}={url} is no URL", hint=f"such as http://mirror/{name}")
        if url:
            return url
    return None


def mirror(name: str) -> str:
    """Return the mirror of a distribution: the one that is named, else that of the host's apt.

    Raises HostError when the host's apt knows none of that distribution.
    """
    if named := named_mirror(name):
        return named
    known = _host_mirrors()
    own = host_release()
    if own.name == name and own.codename in known:
        return known[own.codename]
    raise HostError(
        f"the host's apt knows no mirror of {name}",
        hint=f"set NVH_{name.upper()}_MIRROR to the URL of one",
    )


def _security_mirror(base: str) -> str:
    """Return where Debian's security updates are."""
    if named_mirror("debian"):
        return f"{base}-security"
    return _host_mirrors().get(f"{host_release().codename}-security", f"{base}-security")


@functools.cache
def _host_mirrors() -> dict[str, str]:
    """Return the URL that the host's apt has for each release that it names.

    apt takes half a second to say so: it reads the signed lists of all files of each mirror.
    """
    file = paths.cache_dir() / "mirrors" / _state_of_apt()
    found = memo.recall(file)
    if not found:
        found = _asked_of_apt()
        memo.keep(file, found)
    return {str(release): str(url) for release, url in found.items()}


def _state_of_apt() -> str:
    """Return a hash of what apt's answer depends on: its program, settings, sources and lists."""
    program = shutil.which("apt-get")
    files = [Path(program)] if program else []
    for folder in map(Path, ("/etc/apt", "/var/lib/apt/lists")):
        files += [folder, *folder.glob("*"), *folder.glob("*.d/*")]
    stats = [
        (str(file), stat.st_mtime_ns, stat.st_size)
        for file in sorted(files)
        if (stat := _stat(file))
    ]
    words = [os.environ.get("APT_CONFIG", ""), stats]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        return None


def _asked_of_apt() -> dict[str, str]:
    # Third parties name their suites after releases too, but have no component main.
    said = process.run(
        [
            *("apt-get", "indextargets", "--format", "$(COMPONENT) $(RELEASE) $(REPO_URI)"),
            "Created-By: Packages",
        ],
        timeout=30.0,
        check=False,
    )
    found: dict[str, str] = {}
    for line in said.stdout.splitlines():
        component, _, rest = line.partition(" ")
        release, _, url = rest.partition(" ")
        if component == "main" and url:
            found.setdefault(release, url.strip().rstrip("/"))
    return found


def components(name: str) -> tuple[str, ...]:
    """Return the parts of a distribution's archive that its packages are taken from."""
    return ("main", "universe") if name == "ubuntu" else ("main",)


def sources(release: Release, *, whole: bool = False) -> tuple[str, ...]:
    """Return the sources.list lines of a release with its security updates.

    ``whole`` adds its backports, where newer series of the kernel are.
    """
    base = mirror(release.name)
    suite, where = release.codename, " ".join(components(release.name))
    if release.name == "ubuntu":
        option = f"deb [signed-by={_keyring('ubuntu-archive-keyring', 'ubuntu-keyring')}]"
        parts = ("", "-updates", "-security")
        return tuple(f"{option} {base} {suite}{part} {where}" for part in parts)
    option = f"deb [signed-by={_keyring('debian-archive-keyring', 'debian-archive-keyring')}]"
    lines = [f"{option} {base} {suite} main"]
    if not _NO_SECURITY.match(suite):
        lines.append(f"{option} {_security_mirror(base)} {suite}-security main")
        if whole:
            lines.append(f"{option} {base} {suite}-updates main")
            lines.append(f"{option} {base} {suite}-backports main")
    return tuple(lines)


def _keyring(name: str, package: str) -> Path:
    """Return the keyring; newer releases name it .pgp."""
    for suffix in (".gpg", ".pgp"):
        path = Path("/usr/share/keyrings") / (name + suffix)
        if path.is_file():
            return path
    raise HostError(f"no keyring {name}", hint=f"apt-get install {package}")
