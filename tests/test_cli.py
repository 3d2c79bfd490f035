"""The command line: what a stranger is told, and how each bad input ends."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import paths
from harness.cli import main
from harness.lab import Lab
from harness.report.record import program

FAKE = Path(__file__).with_name("fake_qemu.py")


@dataclass(frozen=True)
class Said:
    """How nvh ended and what it said."""

    code: int
    out: str
    err: str


Nvh = Callable[..., Said]


@pytest.fixture
def nvh(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Nvh:
    """Run nvh in this process, with an empty cache and away from the source tree."""
    monkeypatch.setenv("NVH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Said:
        capfd.readouterr()
        try:
            code = main(words)
        except SystemExit as end:  # argparse's way out
            code = int(end.code or 0)
        said = capfd.readouterr()
        return Said(code, said.out, said.err)

    return run


def complaint(said: Said, code: int) -> str:
    """Return the one line that a user error is told in."""
    assert said.code == code
    assert "Traceback" not in said.out + said.err
    lines = [line for line in said.err.splitlines() if not line.startswith("[")]  # progress
    assert len(lines) == 1, lines
    assert lines[0].startswith("nvh: ")
    return lines[0]


def bzimage(release: str) -> bytes:
    """Return what passes for a kernel by its header (Documentation/arch/x86/boot.rst)."""
    image = bytearray(0x1000)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x600)
    words = f"{release} (builder@host)".encode()
    image[0x800 : 0x800 + len(words)] = words
    return bytes(image)


# Usage


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness", "--version"],
        cwd=paths.source_tree(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.startswith("nvh ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "nvh: the following arguments are required: COMMAND; nvh --help shows its commands"),
        (["tset"], "nvh: argument COMMAND: invalid choice: 'tset' (choose from 'test', "),
        (["--acel", "test"], "nvh: unrecognized arguments: --acel; nvh --help"),
        (["test", "--acel", "kvm"], "nvh test: unrecognized arguments: --acel kvm; nvh test --he"),
        (["test", "--accel", "hvf"], "nvh test: argument --accel: invalid choice: 'hvf'"),
        (["matrix", "a\nb"], "nvh matrix: unrecognized arguments: a"),
        (["run", "--timeout", "soon", "--", "true"], "nvh run: argument --timeout: invalid float"),
        (["machine", "show", "--", "more"], "nvh machine show: nothing is taken after --; nvh ma"),
        (["machine", "list", "more"], "nvh machine list: unrecognized arguments: more; nvh machi"),
        (["machine"], "nvh machine: the following arguments are required: ACTION; nvh machine --"),
    ],
)
def test_wrong_usage(nvh: Nvh, words: list[str], told: str) -> None:
    said = nvh(*words)
    assert said.code == 2
    assert said.err.startswith(told)
    assert said.err.endswith((" --help shows its options\n", " --help shows its commands\n"))
    assert said.err.count("\n") == 1
    assert said.out == ""


# Kernels


@pytest.mark.parametrize(
    "command", [["test"], ["run", "--", "true"], ["shell"], ["kernel", "show"]]
)
def test_a_kernel_that_is_not_there(nvh: Nvh, tmp_path: Path, command: list[str]) -> None:
    kernel = [str(tmp_path / "none")] if command[0] == "kernel" else []
    chosen = [] if kernel else ["--kernel", str(tmp_path / "none")]
    said = nvh(command[0], *chosen, *command[1:], *kernel)
    line = complaint(said, 2)
    assert f"no kernel at {tmp_path}/none: No such file" in line
    assert "give a bzImage, a built kernel tree, or debian:" in line
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("word", ["", " ", "deb:", "deb:a.deb,"])
@pytest.mark.parametrize(
    "command",
    [
        *(["test"], ["run"], ["shell"], ["doctor"], ["matrix"], ["bisect", "--good", "a"]),
        *(["repro", "bundle"], ["image", "build"], ["kernel", "show"], ["kernel", "check"]),
    ],
    ids=" ".join,
)
def test_nothing_is_no_kernel(nvh: Nvh, tmp_path: Path, command: list[str], word: str) -> None:
    (tmp_path / "arch/x86/boot").mkdir(parents=True)
    (tmp_path / "arch/x86/boot/bzImage").write_bytes(bzimage("6.1.0"))  # a built tree is here
    option = [] if command[0] == "kernel" else ["--kernel"]
    assert f"{word!r} names no kernel (a shell's variable" in complaint(
        nvh(*command, *option, word), 2
    )


def test_nothing_is_no_end_of_a_bisection_and_no_source(nvh: Nvh) -> None:
    assert "--good is missing" in complaint(nvh("bisect", "V1", "--good", "", "--bad", "b"), 2)
    assert "' ' names no kernel" in complaint(nvh("bisect", "V1", "--good", "a", "--bad", " "), 2)
    assert "no kernel source at ''" in complaint(nvh("kernel", "build", ""), 2)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not an x86 kernel image"),
        (b"#!/bin/sh\n", "not an x86 kernel image"),
        (b"\x7fELF" + bytes(4096), "an uncompressed vmlinux"),
        (os.urandom(8192), "not an x86 kernel image"),
    ],
    ids=["empty", "script", "vmlinux", "noise"],
)
def test_a_file_that_is_no_kernel(nvh: Nvh, tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "file").write_bytes(content)
    line = complaint(nvh("test", "--kernel", str(tmp_path / "file")), 2)
    assert f"{tmp_path}/file is {told}" in line


def test_a_kernel_without_the_drivers_is_told_what_to_set(nvh: Nvh, tmp_path: Path) -> None:
    (tmp_path / "vmlinuz-6.99.0").write_bytes(bzimage("6.99.0"))
    (tmp_path / "config-6.99.0").write_text("CONFIG_PCI=y\nCONFIG_VIRTIO_BLK=m\n")
    kernel = str(tmp_path / "vmlinuz-6.99.0")
    line = complaint(nvh("test", "--accel", "tcg", "--kernel", kernel), 125)
    assert "kernel 6.99.0 lacks " in line
    assert "CONFIG_BLK_DEV_PMEM=y" in line
    assert "CONFIG_VIRTIO_BLK=y" in line  # there are no modules to load it from
    assert "CONFIG_PCI=" not in line


# Machines


@pytest.mark.parametrize(
    "command", [["test"], ["run", "--", "true"], ["shell"], ["machine", "show"]]
)
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[machine\n", "m.toml: not TOML: "),
        ("[machine]\ncpus = 2\ncpus = 3\n", "at line 3"),
        ('[machine]\nmemory = "lots"\n', "m.toml:2: [machine] memory: 'lots' is not a size"),
        (
            '[machine]\niommu = "none"\n[[pci]]\nname = "e"\ndevice = "edu"\nvfio = true\n',
            "m.toml:6: [pci #1] vfio: e cannot be bound to vfio-pci on a machine without an IOMMU",
        ),
        ('[[nvdimm]]\nname = "p"\nsize = "1024M"\n', 'use size = "1026M"'),
    ],
)
def test_a_machine_file_that_is_wrong(
    nvh: Nvh, tmp_path: Path, command: list[str], text: str, told: str
) -> None:
    file = tmp_path / "m.toml"
    file.write_text(text)
    chosen = [str(file)] if command[0] == "machine" else []
    option = [] if chosen else ["--machine", str(file)]
    line = complaint(nvh(command[0], *option, *command[1:], *chosen), 2)
    assert told in line
    assert not (tmp_path / "results").exists()


def test_a_machine_that_is_not_there(nvh: Nvh) -> None:
    assert "known: " in complaint(nvh("test", "--machine", "defualt"), 2)
    assert "No such file" in complaint(nvh("test", "--machine", "./none.toml"), 2)


def test_machine_list_and_show(nvh: Nvh, tmp_path: Path) -> None:
    assert "default " in nvh("machine", "list").out
    shown = json.loads(nvh("machine", "show").out)
    assert shown["name"] == "default"
    (tmp_path / "mine.toml").write_text('[[nvdimm]]\nname = "p0"\nsize = "66M"\n')
    mine = json.loads(nvh("machine", "show", "mine.toml").out)
    assert mine["nvdimms"][0]["size"] == 66 << 20


def test_machine_show_argv_is_a_shell_command(nvh: Nvh) -> None:
    said = nvh("machine", "show", "--argv")
    assert said.code == 0
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {said.out}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words[0] == "qemu-system-x86_64"
    assert words[words.index("-accel") + 1].partition(",")[0] == "tcg"
    assert "console=ttyS0" in words[words.index("-append") + 1].split()
    assert any(word.startswith("memory-backend-file,id=mem-fsdax0,") for word in words)
    assert nvh("machine", "show", "--argv", "--accel", "kvm").out != said.out


# The host


def test_a_cache_that_cannot_be_made(nvh: Nvh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVH_CACHE", "/proc/none/cache")
    line = complaint(nvh("test", "--kernel", "debian:6.12"), 125)
    assert "/proc/none/cache" in line
    assert "NVH_CACHE" in line


def test_a_cache_without_room(nvh: Nvh, tmp_path: Path) -> None:
    """In a mount namespace of its own, on a file system of 256 KiB."""
    full = tmp_path / "full"
    full.mkdir()
    script = (
        f"mount -t tmpfs -o size=256k none {full} && head -c 256k /dev/zero >{full}/f 2>/dev/null;"
        f" exec {sys.executable} -m harness test --kernel debian:6.12"
    )
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this host allows no mount namespace to this user")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        cwd=paths.source_tree(),
        env=os.environ | {"NVH_CACHE": str(full / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    line = complaint(Said(done.returncode, done.stdout, done.stderr), 125)
    assert "No space left on device" in line
    assert "NVH_CACHE" in line  # the way out


def test_a_missing_qemu(nvh: Nvh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVH_QEMU", "/nowhere/qemu")
    said = nvh("doctor", "--accel", "tcg")
    assert said.code == 125
    assert "apt-get install qemu-system-x86" in said.out
    assert "Traceback" not in said.out + said.err


# run and shell


def test_a_bug_of_ours_is_neither_good_nor_bad(nvh: Nvh, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Lab, "find_machine", broken)
    said = nvh("machine", "show")
    assert said.code == 125
    assert "ZeroDivisionError" in said.err


def test_run_without_a_command(nvh: Nvh) -> None:
    assert "no command (nvh run [OPTIONS] -- COMMAND)" in complaint(nvh("run"), 2)
    complaint(nvh("run", "--"), 2)


def test_run_with_a_file_that_is_not_there(nvh: Nvh) -> None:
    assert "--put none: no such file" in complaint(nvh("run", "--put", "none", "--", "true"), 2)


def test_files_are_looked_at_before_anything_is_built(nvh: Nvh, tmp_path: Path) -> None:
    nvh("run", "--put", "none", "--", "true")
    assert not (tmp_path / "cache").exists()


# Images


def test_an_empty_store(nvh: Nvh, tmp_path: Path) -> None:
    assert f"0 MiB in {tmp_path}/cache/store" in nvh("image", "list").out
    assert nvh("image", "verify").code == 0
    assert nvh("image", "gc").code == 0
    assert f": {program()} kernel fetch debian:6.12 " in nvh("kernel", "list").out
    assert "no image is named" in complaint(nvh("image", "rm", ""), 2)
    assert "nothing called 'root'" in complaint(nvh("image", "rm", "root"), 2)


def test_a_limit_that_is_no_size(nvh: Nvh) -> None:
    assert "--limit much: not a size" in complaint(nvh("image", "gc", "--limit", "much"), 2)


# A pipe that is closed early


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash's PIPESTATUS")
def test_a_reader_that_goes_away_is_no_error() -> None:
    script = f"{sys.executable} -m harness test --list | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=paths.source_tree(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
