"""Whom QEMU runs as, and what it is given to open."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import HostError
from harness.qemu import unprivileged
from harness.qemu.unprivileged import User, choose, handed_over, sealed_copy
from harness.spec import Machine

Load = Callable[[str], Machine]

QEMU = "/bin/true"  # anybody may start it
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its user")


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(unprivileged, "_mapped", lambda _: True)


@pytest.fixture
def kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(unprivileged, "KVM", device)
    return device


def test_a_user_that_is_not_root_stays_itself(
    machine_of: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert choose(machine_of(""), "kvm", QEMU) == "the harness's own user"


@pytest.mark.usefixtures("as_root")
def test_root_gives_each_qemu_a_user_that_nobody_is(machine_of: Load) -> None:
    users = {choose(machine_of(""), "tcg", QEMU) for _ in range(8)}
    assert len(users) > 1
    for user in users:
        assert isinstance(user, User)
        assert 61184 <= user.uid < 65520
        assert user.groups == ()
        assert "--no-new-privs" in user.setpriv
        assert "--clear-groups" in user.setpriv


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[[pci]]\nname = "nic"\nhost = "0000:01:00.0"\n', "nic is a device of the host's"),
        ('[[nvdimm]]\nname = "p0"\nsize = "66M"\npath = "/dev/dax0.0"\n', "NVDIMM p0 has a path"),
        ('[machine]\nqemu_args = ["-blockdev", "driver=file,filename=/x"]\n', "qemu_args name"),
    ],
)
def test_what_opens_for_root_only_is_the_reason(machine_of: Load, text: str, why: str) -> None:
    reason = choose(machine_of(text), "tcg", QEMU)
    assert isinstance(reason, str)
    assert reason.startswith(f"root: {why}")


@pytest.mark.usefixtures("as_root")
def test_kvm_comes_by_its_group_or_by_its_mode(machine_of: Load, kvm: Path) -> None:
    for mode, allowed in ((0o660, True), (0o606, True), (0o640, False), (0o600, False)):
        kvm.chmod(mode)
        user = choose(machine_of(""), "kvm", QEMU)
        assert isinstance(user, User) is allowed, oct(mode)
        if isinstance(user, User):
            assert f"--groups {kvm.stat().st_gid}" in " ".join(user.setpriv)
        else:
            assert str(user).endswith("opens for root only")
    assert isinstance(choose(machine_of(""), "tcg", QEMU), User)


@pytest.mark.usefixtures("as_root")
def test_a_qemu_in_a_private_directory_runs_as_root(machine_of: Load, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o700)
    program = tmp_path / "home" / "qemu"
    program.touch(0o755)
    assert "is not for others to start" in str(choose(machine_of(""), "tcg", str(program)))


@pytest.mark.usefixtures("as_root")
def test_a_namespace_without_other_users(machine_of: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unprivileged, "_mapped", lambda uid: uid == 0)
    assert "has no other users" in str(choose(machine_of(""), "tcg", QEMU))


def test_a_sealed_copy_is_opened_for_writing_and_never_written(tmp_path: Path) -> None:
    file = tmp_path / "ram"
    with file.open("wb") as out:
        out.truncate(16 << 20)
        out.seek(8 << 20)
        out.write(b"precious")
    copy = sealed_copy(file)
    assert sealed_copy(file) == copy
    assert os.pread(copy, 8, 8 << 20) == b"precious"
    assert os.fstat(copy).st_size == 16 << 20
    assert os.fstat(copy).st_blocks * 512 < 1 << 20  # holes stay holes
    again = os.open(f"/proc/self/fd/{copy}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.write(again, b"x")
    with pytest.raises(PermissionError):
        os.ftruncate(again, 0)
    with pytest.raises(PermissionError):
        os.open(f"/proc/self/fd/{copy}", os.O_RDWR | os.O_TRUNC)
    os.close(again)


def test_a_file_that_changed_is_copied_again(tmp_path: Path) -> None:
    file = tmp_path / "ram"
    file.write_bytes(b"one")
    first = sealed_copy(file)
    file.unlink()
    file.write_bytes(b"other")
    assert os.pread(sealed_copy(file), 9, 0) == b"other"
    assert os.pread(first, 9, 0) == b"one"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for given in ("readable", "private"):
        lists: dict[str, list[Path]] = {"readable": [], "own": [], "private": []}
        with (
            pytest.raises(HostError, match=f"{gone}: No such file"),
            handed_over(User(os.getuid()), **(lists | {given: [gone]})),
        ):
            pass


@root_only
def test_the_user_opens_what_it_was_handed_and_nothing_else(tmp_path: Path) -> None:
    """The way to the files is closed to it; their names are of no use."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    public, secret, own, private = (home / name for name in ("public", "secret", "own", "private"))
    for file in (public, secret, own, private):
        file.write_text(f"of {file.name}")
        file.chmod(0o600)
    public.chmod(0o644)
    user = User(61234)
    with handed_over(user, readable=[public, secret], own=[own], private=[private]) as files:

        def sh(line: str) -> tuple[int, str]:
            done = subprocess.run(
                ["setpriv", *user.setpriv, "--", "bash", "-c", line],
                pass_fds=list(files.values()),
                capture_output=True,
                text=True,
                check=False,
            )
            return done.returncode, done.stdout

        for file, number in files.items():
            assert sh(f"cat {file}")[0] != 0
            assert sh(f"cat /proc/self/fd/{number}") == (0, f"of {file.name}")
            written = sh(f"echo changed 1<>/proc/self/fd/{number}")[0] == 0
            assert written is (file == own)
        assert sh("id -u; id -G")[1].split() == ["61234", "61234"]
    assert own.read_text().startswith("changed")
    assert [file.read_text() for file in (public, secret, private)] == [
        "of public",
        "of secret",
        "of private",
    ]
