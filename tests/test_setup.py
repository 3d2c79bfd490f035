"""harness/setup.sh against a host made of fakes: no package, environment or network is touched."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REAL = (
    *("bash", "cat", "env", "flock", "grep", "head", "ls", "mkdir", "mv", "readlink", "rm", "sed"),
    *("sha256sum", "sleep", "stat", "tail", "touch", "tr"),
)
FAKES = {
    "id": "echo ${FAKE_UID:-0}",
    "dpkg-query": 'echo "dpkg-query" >>"$CALLS"; cat "$HOST/installed"',
    "apt-cache": '[[ " $FAKE_KNOWN " == *" $2 "* ]]',
    "apt-get": """
        echo "apt-get $* $DEBIAN_FRONTEND" >>"$CALLS"
        if [[ $1 == update ]]; then touch "$HOST/updated"; exit; fi
        [[ -z ${FAKE_STALE:-} || -e $HOST/updated ]] || { echo "E: Unable" >&2; exit 100; }
        [[ -z ${FAKE_BROKEN:-} ]] || { echo "E: broken" >&2; exit 100; }
    """,
    "python3": """
        if [[ $1 == -c ]]; then [[ -z ${FAKE_OLD:-} ]] && readlink -f "$0"; exit; fi
        echo "python $1 $2" >>"$CALLS"
        if [[ $2 == venv ]]; then
            sleep ${FAKE_SLEEP:-0}
            mkdir -p "$3/bin" && touch "$3/pyvenv.cfg" && ln -s "$0" "$3/bin/python"
        elif [[ $2 == pip ]]; then
            [[ -z ${FAKE_OFFLINE:-} ]] || { echo "ERROR: No matching distribution"; exit 1; }
            touch "${0%/*}/nvh" && chmod +x "${0%/*}/nvh"
        fi
    """,
}


class Host:
    """A checkout, and a PATH with nothing but fakes and harmless programs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkout = folder / "checkout"
        self.calls_file = folder / "calls"
        self.venv = self.checkout / ".venv"
        programs = folder / "bin"
        programs.mkdir()
        for name in (*REAL, "ln", "chmod"):
            path = shutil.which(name)
            assert path, name
            (programs / name).symlink_to(path)
        for name, text in FAKES.items():
            (programs / name).write_text(f"#!{programs}/bash\n{text}\n")
            (programs / name).chmod(0o755)
        for name in ("harness/setup.sh", "guest-images/host-packages.txt", "pyproject.toml"):
            (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.checkout / name)
        self.packages = self.checkout / "guest-images/host-packages.txt"
        self.packages.write_text("# packages\nqemu-system-x86  # the guest\npython3\n\n")
        self.install("qemu-system-x86", "python3")
        (folder / "status").touch()

    def install(self, *names: str) -> None:
        lines = "".join(f"installed {name}:amd64\n" for name in names)
        (self.folder / "installed").write_text(lines + "config-files removed\n")

    def env(self, **extra: str) -> dict[str, str]:
        return {
            "PATH": str(self.folder / "bin"),
            "HOST": str(self.folder),
            "CALLS": str(self.calls_file),
            "NVH_DPKG_STATUS": str(self.folder / "status"),
            **extra,
        }

    def start(self, *words: str, **extra: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [self.checkout / "harness/setup.sh", *words],
            env=self.env(**extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def setup(self, *words: str, **extra: str) -> tuple[int, str]:
        self.calls_file.write_text("")
        child = self.start(*words, **extra)
        said, _ = child.communicate(timeout=120)
        return child.returncode, said

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_second_start_does_nothing_and_says_nothing(host: Host) -> None:
    code, said = host.setup()
    assert code == 0, said
    assert host.calls == ["dpkg-query", "python -m venv", "python -m pip"]
    assert host.setup() == (0, "")
    assert host.calls == []


def test_changed_project_is_installed_into_the_same_environment(host: Host) -> None:
    host.setup()
    with (host.checkout / "pyproject.toml").open("a") as file:
        file.write("# new\n")
    assert host.setup()[0] == 0
    assert host.calls == ["dpkg-query", "python -m pip"]


def test_changed_host_packages_are_only_looked_at(host: Host) -> None:
    host.setup()
    os.utime(host.folder / "status", (1, 1))
    assert host.setup() == (0, "")
    assert host.calls == ["dpkg-query"]
    host.install("python3")
    os.utime(host.folder / "status", (2, 2))
    assert host.setup(FAKE_UID="1000")[0] == 125


def test_half_made_environment_is_made_again(host: Host) -> None:
    host.setup()
    (host.venv / ".nvh-setup").unlink()
    (host.venv / "rest").touch()
    assert host.setup()[0] == 0
    assert "python -m venv" in host.calls
    assert not (host.venv / "rest").exists()


def test_foreign_directory_is_left_alone(host: Host) -> None:
    host.venv.mkdir()
    (host.venv / "thesis").touch()
    code, said = host.setup()
    assert (code, said.count("\n")) == (125, 1)
    assert "is no virtual environment" in said
    assert (host.venv / "thesis").exists()


def test_environment_may_lie_elsewhere(host: Host) -> None:
    code, _ = host.setup(VENV=str(host.folder / "elsewhere"))
    assert code == 0
    assert (host.folder / "elsewhere/bin/nvh").exists()
    assert not host.venv.exists()


def test_missing_packages_without_root_are_named_in_one_line(host: Host) -> None:
    host.install("bash")
    code, said = host.setup(FAKE_UID="1000")
    assert code == 125
    assert said == (
        "setup: missing packages, and neither root nor sudo to install them: "
        "apt-get install qemu-system-x86 python3\n"
    )
    assert not host.venv.exists()


def test_missing_packages_are_installed(host: Host) -> None:
    host.install("python3")
    code, said = host.setup()
    assert code == 0
    assert "setup: installing qemu-system-x86\n" in said
    (call,) = [call for call in host.calls if call.startswith("apt-get")]
    assert call.endswith(" qemu-system-x86 noninteractive")
    assert "--no-install-recommends" in call


def test_packages_of_another_list_are_installed_and_nothing_else(host: Host) -> None:
    others = host.folder / "others.txt"
    others.write_text("flex  # for kernels\npython3\n")
    code, said = host.setup("packages", str(others))
    assert (code, said) == (0, "setup: installing flex\n")
    assert [call.split()[0] for call in host.calls] == ["dpkg-query", "apt-get"]
    assert not host.venv.exists()
    code, said = host.setup("packages", str(others), FAKE_UID="1000")
    assert (code, said.count("\n")) == (125, 1)
    assert said.endswith("apt-get install flex\n")
    host.install("python3", "flex")
    assert host.setup("packages", str(others)) == (0, "")


def test_package_lists_are_fetched_only_when_they_do_not_do(host: Host) -> None:
    host.install()
    code, _ = host.setup(FAKE_STALE="1")
    assert code == 0
    verbs = [call.split()[1] for call in host.calls if call.startswith("apt-get")]
    assert verbs == ["install", "update", "install"]
    assert "qemu-system-x86 python3 " in host.calls[1]


def test_failing_apt_is_one_line(host: Host) -> None:
    host.install("python3")
    code, said = host.setup(FAKE_BROKEN="1")
    assert code == 125
    assert "apt-get could not install qemu-system-x86: E: broken" in said.splitlines()[-1]


def test_failing_pip_is_one_line_and_leaves_no_stamp(host: Host) -> None:
    code, said = host.setup(FAKE_OFFLINE="1")
    assert code == 125
    assert "pip could not install the Python packages: ERROR: No matching" in said.splitlines()[-1]
    assert not (host.venv / ".nvh-setup").exists()
    assert host.setup()[0] == 0


def test_old_python_is_named(host: Host) -> None:
    code, said = host.setup(FAKE_OLD="1", FAKE_UID="1000")
    assert code == 125
    assert "no Python 3.11 or newer" in said


def test_not_debian_is_said(host: Host) -> None:
    (host.folder / "bin/dpkg-query").unlink()
    code, said = host.setup()
    assert (code, said.count("\n")) == (125, 1)
    assert "needs a Debian or Ubuntu host with qemu-system-x86" in " ".join(said.split())


def test_two_at_once_make_one_environment(host: Host) -> None:
    host.calls_file.write_text("")
    children = [host.start(FAKE_SLEEP="0.3") for _ in range(3)]
    for child in children:
        child.communicate(timeout=120)
    assert [child.returncode for child in children] == [0, 0, 0]
    assert host.calls.count("python -m venv") == 1


def test_every_host_package_says_why() -> None:
    for line in (ROOT / "guest-images/host-packages.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert "#" in line, line
