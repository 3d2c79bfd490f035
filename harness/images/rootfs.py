"""The root image: a small distribution without systemd in its boot path, made by mmdebstrap.

mmdebstrap works as root and, through user namespaces, without; either way nothing of the host
changes.
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from pathlib import Path

from harness import paths, process
from harness.errors import HarnessError, ImageError
from harness.images import apt, distribution
from harness.images.store import Entry, Progress, Store, hash_of

_DEADLINE = 1200.0
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


def entry(store: Store, *, progress: Progress, verify: bool = True) -> Entry:
    """Return the store's root image (file ``IMAGE``), after building it where it is missing.

    Raises ImageError when a mirror cannot be reached or a package is missing there.
    """
    release = distribution.host_release()
    suite = release.codename

    def build(target: Path) -> None:
        progress(f"building the root image from {release.name} {suite}; takes half a minute")
        _bootstrap(suite, target)

    key = hash_of("root", suite, *packages(), hook().read_bytes(), *command("", "", ""))
    return store.get("root", key, build, verify=verify)


def command(program: str, suite: str, image: str) -> list[str]:
    """Return mmdebstrap's arguments without what depends on the host's apt and mirror."""
    argv = [program, "--variant=essential", "--format=null", "--mode=auto"]
    argv += ["--include=" + ",".join(packages())]
    argv += [f'--aptopt={name} "{value}"' for name, value in _APT.items()]
    argv += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _EXCLUDED]
    argv += ["--dpkgopt=force-unsafe-io"]  # the tree is thrown away if we die
    argv += [f"--customize-hook={hook() if program else ''}"]
    argv += [f"--customize-hook=download /root.img {image}"]
    return [*argv, suite, "/dev/null"]


def _bootstrap(suite: str, target: Path) -> None:
    program = process.find("mmdebstrap", package="mmdebstrap")
    argv = command(program, suite, str(target / IMAGE))
    # mmdebstrap runs apt without the host's configuration: proxies and the like go along.
    argv[1:1] = [f"--aptopt={line.rstrip(';')}" for line in apt.host_options()]
    if os.environ.get("NVH_MIRROR"):
        argv.append(distribution.mirror(distribution.host_release().name))
    with tempfile.TemporaryDirectory(prefix="nvh-root-", ignore_cleanup_errors=True) as scratch:
        Path(scratch).chmod(0o755)
        try:
            done = process.run(argv, timeout=_DEADLINE, check=False, env={"TMPDIR": scratch})
        except HarnessError as error:
            raise ImageError(f"the root image was not built: {error.message}") from error
    if done.status != 0 or not (target / IMAGE).is_file():
        raise ImageError(
            f"the root image was not built: {apt.last_error(done.stderr)}",
            hint=distribution.MIRROR_HINT,
        )
