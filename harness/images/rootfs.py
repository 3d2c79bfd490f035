"""The root image: a small distribution without systemd in its boot path, made by mmdebstrap.

mmdebstrap works as root and, through user namespaces, without; either way nothing of the host
changes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import paths, process
from harness.errors import ImageError
from harness.images import apt, distribution
from harness.images.advance import Advance, bytes_in, watched
from harness.images.store import Entry, Progress, Store, hash_of

log = logging.getLogger(__name__)

_DEADLINE = 1200.0
#: Seconds that mmdebstrap gets to unmount and remove its tree after SIGTERM.
_GRACE = 30.0
IMAGE = "root.img"
_APT = {
    "APT::Install-Recommends": "false",
    "Acquire::Languages": "none",
}
_EXCLUDED = ("doc", "man", "locale", "info", "bug", "lintian", "zoneinfo")


def packages() -> tuple[str, ...]:
    """Read guest-images/root/packages.toml."""
    table = tomllib.loads((paths.guest_images() / "root" / "packages.toml").read_text())
    return tuple(table["packages"])


def hook() -> Path:
    """Return the script that turns the finished tree into an image."""
    return paths.guest_images() / "root" / "image-hook"


def entry(
    store: Store, *, extra: Sequence[str] = (), progress: Progress, verify: bool = True
) -> Entry:
    """Return the store's root image (file ``IMAGE``), after building it where it is missing.

    ``extra`` are packages on top of those of every image.  Raises ImageError when a mirror cannot
    be reached or a package is missing there.
    """
    release = distribution.host_release()
    suite = release.codename
    # One image whatever order they are named in, and none of its own for what is in each anyway.
    more = sorted(set(extra) - set(packages()))

    def build(target: Path) -> None:
        what = f" with {', '.join(more)}" if more else ""
        time = "a minute" if more else "half a minute"
        progress(f"building the root image{what} from {release.name} {suite}; takes {time}")
        _bootstrap(suite, target, more, progress)

    key = hash_of(
        "root",
        suite,
        *packages(),
        hook().read_bytes(),
        *command("", "", "", more, distribution.components(release.name)),
    )
    return store.get("root", key, build, verify=verify)


def command(
    program: str, suite: str, image: str, extra: Sequence[str], components: Sequence[str]
) -> list[str]:
    """Return mmdebstrap's arguments without what depends on the host's apt and mirror."""
    argv = [program, "--variant=essential", "--format=null", "--mode=auto"]
    argv += ["--components=" + ",".join(components)]
    argv += ["--include=" + ",".join([*packages(), *extra])]
    argv += [f'--aptopt={name} "{value}"' for name, value in _APT.items()]
    argv += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _EXCLUDED]
    argv += ["--dpkgopt=force-unsafe-io"]  # the tree is thrown away if we die
    argv += [f"--customize-hook={hook() if program else ''}"]
    argv += [f"--customize-hook=download /root.img {image}"]
    return [*argv, suite, "/dev/null"]


def _bootstrap(suite: str, target: Path, extra: Sequence[str], say: Progress) -> None:
    program = process.find("mmdebstrap", package="mmdebstrap")
    name = distribution.host_release().name
    argv = command(program, suite, str(target / IMAGE), extra, distribution.components(name))
    # mmdebstrap runs apt without the host's configuration: proxies and the like go along.
    argv[1:1] = [f"--aptopt={line.rstrip(';')}" for line in apt.host_options()]
    if named := distribution.named_mirror(name):
        argv.append(named)
    with _scratch() as scratch:
        said = scratch / "mmdebstrap.log"
        full = [*_confined(), "env", f"TMPDIR={scratch}", *argv]
        with (
            said.open("wb") as out,
            process.running(full, stdout=out, stderr=out, grace=_GRACE) as child,
            watched(say, lambda: _stage(said, scratch)),
        ):
            try:
                status = child.wait(_DEADLINE)
            except subprocess.TimeoutExpired as error:
                raise ImageError(f"no root image after {_DEADLINE:.0f} s") from error
        if status < 0:
            raise ImageError(f"mmdebstrap was ended by signal {-status}", hint="ask again")
        if status != 0 or not (target / IMAGE).is_file():
            words = said.read_text(errors="replace")
            raise ImageError(
                f"the root image was not built: {apt.last_error(words)}", hint=_hint(words)
            )


def _stage(said: Path, scratch: Path) -> str:
    """Return what mmdebstrap does at the moment, and how much it has fetched."""
    stages = [line for line in said.read_text(errors="replace").splitlines() if line[:3] == "I: "]
    if not stages:
        return ""
    what = f"the root image: {stages[-1][3:].partition(': ')[0].rstrip('.')}"
    archives = list(scratch.glob("*/var/cache/apt/archives"))
    fetched = bytes_in(*archives, *(folder / "partial" for folder in archives))
    return Advance(what, fetched) if fetched and "download" in what else what


def _hint(said: str) -> str:
    """Return what to do about mmdebstrap's complaint: mostly it is the network."""
    if "unable to pick chroot mode automatically" in said:  # no lines in /etc/subuid, /etc/subgid
        ids = "100000-165535"
        return f"sudo usermod --add-subuids {ids} --add-subgids {ids} $USER, or run as root"
    return distribution.MIRROR_HINT


def _confined() -> list[str]:
    """Return a prefix that keeps mmdebstrap's mounts away from the host, whatever ends it.

    As root it binds the host's own /dev/shm into its tree, writable, and leaves it there when it
    is killed: who then removes the tree empties /dev/shm.  In a mount namespace of its own that
    goes with its last process.  SIGTERM, also when the harness dies, lets it clean up.
    """
    setpriv = process.find("setpriv", package="util-linux")
    prefix = [setpriv, "--pdeathsig", "TERM", "--"]
    if os.geteuid() == 0:
        unshare = process.find("unshare", package="util-linux")
        prefix += [unshare, "--mount", "--propagation", "private", "--"]
    return prefix


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A directory that mmdebstrap's users may enter, removed unless something is mounted in it."""
    path = Path(tempfile.mkdtemp(prefix="nvh-root-")).resolve()
    path.chmod(0o755)
    try:
        yield path
    finally:
        if mounts_below(path):
            log.warning("%s is left: something is mounted in it, see findmnt(8)", path)
        else:
            shutil.rmtree(path, ignore_errors=True)


def mounts_below(path: Path, *, mountinfo: Path = Path("/proc/self/mountinfo")) -> list[str]:
    """Return the mount points at or below a path: removing it would remove what they show."""
    points = [line.split()[4] for line in mountinfo.read_text().splitlines()]
    decoded = [re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), at) for at in points]
    return [at for at in decoded if Path(at).is_relative_to(path)]
