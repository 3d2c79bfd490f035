"""Bundles: what is there before a test's guest, what stays, and what a hostile one cannot do."""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from harness.errors import HarnessError, UsageError
from harness.report import symptom, unbundle
from harness.report.bundle import EVIDENCE_LIMIT, Bundles
from harness.report.symptom import Shows
from harness.report.unbundle import BundleError
from harness.verdict.status import Status
from tests.made_up_bundles import MACHINE, NODEID, about, archive_of, bundle_of, record, setting

#: What writes a bundle's files, by file or function: an interrupt may come before any line of it.
WRITERS = {"bundle.py", "results.py", "write_text", "copyfile"}


def names(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


# What a run leaves


def test_a_bundle_is_there_before_the_guest(tmp_path: Path) -> None:
    bundles = Bundles(tmp_path / "results", lambda: setting(tmp_path))
    folder = bundles.begin(about())
    assert {"README", "repro.sh", "bundle.json", "machine/small.toml"} <= names(folder)
    assert os.access(folder / "repro.sh", os.X_OK)
    assert (folder / "shared/programs/vfio_map").read_text() == "program"
    assert (folder / "shared/kernel.config").read_text() == "CONFIG_FS_DAX=y\n"
    read = unbundle.read(folder)
    assert (read.nodeid, read.record) == (NODEID, None)
    assert read.kernel()[0] == "debian:6.12"
    told = read.about["kernel"]
    assert (told["release"], told["origin"]) == ("6.12.1", "a deb")
    assert len(told["image_sha256"]) == 64


@pytest.mark.parametrize("status", [Status.PASS, Status.SKIP, Status.DONE])
def test_a_test_that_did_not_fail_takes_its_bundle_away(tmp_path: Path, status: Status) -> None:
    bundles = Bundles(tmp_path / "results", lambda: setting(tmp_path))
    bundles.begin(about())
    assert bundles.end(record(status, "")) is None
    assert [file.name for file in (tmp_path / "results/bundles").iterdir()] == [".shared"]


@pytest.mark.parametrize(
    "ended",
    [record(), record(Status.MISS, "no boot"), record(Status.ERROR, "a bug"), record(known="it")],
    ids=["FAIL", "MISS", "ERROR", "KNOWN"],
)
def test_one_that_did_leaves_directory_and_archive(tmp_path: Path, ended: Any) -> None:
    folder = bundle_of(tmp_path, ended)
    assert not (folder / "shared").is_symlink()
    assert {"evidence/result.json", "evidence/dmesg", "evidence/commands"} <= names(folder)
    assert "shared/testcases/catalogue/v.toml" in names(folder)
    # Of the programs only what ran.
    assert {name for name in names(folder) if "programs" in name} == {"shared/programs/vfio_map"}
    told, readme = f"{ended.word} {ended.known}".strip(), (folder / "README").read_text()
    assert f"\nverdict   {told}: {ended.message}" in readme
    assert '\nright     map: "OK"\nsource    a mail\n          a commit\n' in readme
    unpacked = unbundle.unpack(folder.with_name(f"{folder.name}.tar.zst"), tmp_path / "made")
    assert names(unpacked) == names(folder)
    assert unbundle.read(unpacked).record == ended
    assert os.access(unpacked / "shared/programs/vfio_map", os.X_OK)
    left = [file.name for file in folder.parent.iterdir() if file.name.startswith(".")]
    assert left == [".shared"]


def interrupted(action: Callable[[], object], at: int) -> bool:
    """Run it with a Ctrl-C before the at-th line of what writes; return whether it came to that."""
    left = at

    def watch(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if not WRITERS & {Path(frame.f_code.co_filename).name, frame.f_code.co_name}:
            return None
        left -= event == "line"
        if left == 0:
            left = -1
            raise KeyboardInterrupt
        return watch

    def run() -> None:
        sys.settrace(watch)
        try:
            action()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)

    # Python 3.11 keeps an exception of a trace function as the context of all that come later.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result()
    return left < 0


@pytest.mark.parametrize("ends", [False, True], ids=["begin", "end"])
def test_an_interrupt_leaves_no_half_of_a_file(tmp_path: Path, *, ends: bool) -> None:
    ended = record()
    tests = tmp_path / "results" / ended.folder
    tests.mkdir(parents=True)
    ended.save(tests)
    shared = setting(tmp_path)
    results = tmp_path / "results"
    for at in itertools.count(1):
        shutil.rmtree(results / "bundles", ignore_errors=True)
        bundles = Bundles(results, lambda: shared)
        if ends:
            bundles.begin(about())
        action = (
            functools.partial(bundles.end, ended)
            if ends
            else functools.partial(bundles.begin, about())
        )
        whole = not interrupted(action, at)
        for file in results.rglob("*.json"):
            json.loads(file.read_text())
        assert not list((results / "bundles").rglob(".*.*[0-9]"))
        if whole:
            break
    assert at > 100


def test_the_kernel_comes_along_when_asked_for(tmp_path: Path) -> None:
    folder = bundle_of(tmp_path, with_kernel=True)
    assert "shared/kernel/lib/modules/6.12.1/kernel/ext4.ko" in names(folder)
    selector, _ = unbundle.read(folder).kernel()
    assert selector == str(folder / "shared/kernel/boot/vmlinuz-6.12.1")
    assert not (bundle_of(tmp_path / "without") / "shared/kernel").exists()


def test_an_installed_kernels_modules_come_without_its_tree(tmp_path: Path) -> None:
    tree = tmp_path / "made/modules"
    shared = setting(tmp_path, with_kernel=True)
    outside = tmp_path / "linux"
    outside.mkdir()
    (outside / "huge").write_text("the whole tree")
    (outside / "weak.ko").write_text("module")
    (tree / "build").symlink_to(outside)
    (tree / "source").symlink_to("/nowhere")
    (tree / "headers").mkdir()
    (tree / "headers/huge").write_text("in some distributions build is no link")
    (tree / "weak.ko").symlink_to(outside / "weak.ko")
    (tree / "modules.dep").write_text("kernel/ext4.ko:\nweak.ko: kernel/ext4.ko\n")
    folder = Bundles(tmp_path / "results", lambda: shared).begin(about())
    copy = folder / "shared/kernel/lib/modules/6.12.1"
    assert names(copy) == {"modules.dep", "kernel/ext4.ko", "weak.ko"}
    assert not [path for path in copy.rglob("*") if path.is_symlink()]


def test_a_kernel_that_cannot_be_read_is_asked_for_by_each_test(tmp_path: Path) -> None:
    shared = setting(tmp_path)
    bundles = Bundles(tmp_path / "results", lambda: shared)
    image = tmp_path / "made/boot/vmlinuz"
    image.unlink()
    for _ in range(2):
        with pytest.raises(OSError, match="vmlinuz"):
            bundles.begin(about())
    image.write_text("image")
    told = unbundle.read(bundles.begin(about())).about["kernel"]
    assert told["selector"] == "debian:6.12"


def test_a_reports_program_is_kept_if_it_never_ran(tmp_path: Path) -> None:
    ended = record(
        Status.MISS, "no boot", nodeid="testcases/test_reports.py::test_report[made_bug]",
        row="made_bug",
    )  # fmt: skip
    folder = bundle_of(tmp_path, ended, commands="")
    assert set(unbundle.read(folder).programs()) == {"made_bug"}


def test_a_long_log_is_cut_from_its_start(tmp_path: Path) -> None:
    ended = record()
    tests = tmp_path / "results" / ended.folder
    tests.mkdir(parents=True)
    (tests / "guest-console.log").write_bytes(b"a" * EVIDENCE_LIMIT + b"the end")
    text = (bundle_of(tmp_path) / "evidence/guest-console.log").read_bytes()
    assert text.startswith(b"[the first 7 bytes are left out]\n")
    assert text.endswith(b"the end")
    assert len(text) < EVIDENCE_LIMIT + 100


def test_sources_that_change_later_do_not_change_the_bundle(tmp_path: Path) -> None:
    folder = bundle_of(tmp_path)
    with (tmp_path / "made/testcases/test_v_dax.py").open("a") as file:
        file.write("changed")
    assert (folder / "shared/testcases/test_v_dax.py").read_text() == "import pytest\n"


def test_two_runs_of_a_test_leave_one_bundle(tmp_path: Path) -> None:
    bundle_of(tmp_path)
    assert bundle_of(tmp_path).is_dir()


def test_the_script_calls_the_nvh_that_made_it_or_another(tmp_path: Path) -> None:
    folder = bundle_of(tmp_path)
    script = folder / "repro.sh"
    bare = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([script], capture_output=True, text=True, env=bare, check=False)
    assert done.returncode == 125
    assert "set NVH" in done.stderr
    nvh = tmp_path / "nvh"
    nvh.write_text('#!/bin/sh\necho "$@"\nexit 7\n')
    nvh.chmod(0o755)
    done = subprocess.run(
        [script, "--kernel", "a b"], capture_output=True, text=True, check=False,
        env={**bare, "NVH": str(nvh)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (7, f"repro {folder} --kernel a b\n")


# What comes from elsewhere


def member(name: str, data: bytes = b"x", **fields: Any) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, io.BytesIO(data)


@pytest.mark.parametrize(
    "info",
    [
        member("b/../../escaped"),
        member("../escaped"),
        member("/tmp/escaped"),
        member("b/link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("b/link", b"", type=tarfile.LNKTYPE, linkname="../../x"),
        member("b/fifo", b"", type=tarfile.FIFOTYPE),
        member("b/device", b"", type=tarfile.CHRTYPE),
    ],
    ids=["dots", "up", "absolute", "symlink", "hard link", "fifo", "device"],
)
def test_a_hostile_archive_is_refused(tmp_path: Path, info: Any) -> None:
    folder = tmp_path / "target"
    folder.mkdir()
    archive = archive_of(tmp_path, lambda tar: tar.addfile(*info))
    with pytest.raises(BundleError):
        unbundle.unpack(archive, folder)
    assert not list(tmp_path.rglob("escaped"))
    assert not (folder / "bundle.tar").exists()


def test_an_archive_that_grows_without_end_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unbundle, "SIZE_LIMIT", 1 << 20)
    bomb = archive_of(tmp_path, lambda tar: tar.addfile(*member("b/zeros", bytes(4 << 20))))
    assert bomb.stat().st_size < 64 << 10
    with pytest.raises(BundleError, match="cannot be unpacked"):
        unbundle.unpack(bomb, tmp_path)
    assert not (tmp_path / "bundle.tar").exists()


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unbundle, "MEMBER_LIMIT", 3)

    def fill(tar: tarfile.TarFile) -> None:
        for number in range(4):
            tar.addfile(*member(f"b/{number}"))

    with pytest.raises(BundleError, match="more than a bundle"):
        unbundle.unpack(archive_of(tmp_path, fill), tmp_path)


@pytest.mark.parametrize("data", [b"", b"no archive", b"\x28\xb5\x2f\xfd broken"])
def test_what_is_no_archive_is_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.tar.zst").write_bytes(data)
    with pytest.raises(BundleError):
        unbundle.unpack(tmp_path / "x.tar.zst", tmp_path)


@pytest.mark.parametrize(
    "test",
    [
        "testcases/../../evil.py::test_x",
        "/tmp/evil.py::test_x",
        "testcases/test_x.py",
        "-p evil",
        "testcases/test_x.py::test_y --rootdir=/tmp",
        "evil/test_x.py::test_y",
        "",
        None,
        3,
    ],
)
def test_a_test_is_one_of_the_checkouts(tmp_path: Path, test: object) -> None:
    folder = bundle_of(tmp_path)
    values = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**values, "test": test}))
    with pytest.raises(BundleError, match="is not a test's id"):
        unbundle.read(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', "nonsense", "[" * 100_000])
def test_a_broken_bundle_is_told(tmp_path: Path, text: str) -> None:
    folder = bundle_of(tmp_path)
    (folder / "bundle.json").write_text(text)
    with pytest.raises(BundleError):
        unbundle.read(folder)


def test_a_directory_without_a_bundle_is_told(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle"):
        unbundle.read(tmp_path)


@pytest.mark.parametrize(
    "more",
    [
        '[machine]\nqemu_args = ["-drive", "file=/dev/sda"]\n',
        '[[nvdimm]]\nname = "a"\nsize = "34M"\npath = "/dev/sda"\n',
        '[[pci]]\nname = "a"\nhost = "0000:01:00.0"\n',
        '[[pci]]\nname = "a"\ndevice = "vfio-pci"\n',
        '[[pci]]\nname = "a"\ndevice = "edu"\noptions = { romfile = "/root/key" }\n',
    ],
)
def test_a_machine_that_asks_for_the_hosts_things_is_refused(tmp_path: Path, more: str) -> None:
    folder = bundle_of(tmp_path)
    file = folder / "machine/small.toml"
    assert unbundle.read(folder).machine_file() == file
    file.write_text(more if more.startswith("[machine]") else MACHINE + more)
    with pytest.raises(BundleError, match="the host's"):
        unbundle.read(folder).machine_file()


def test_what_is_unpacked_has_the_archives_times(tmp_path: Path) -> None:
    info, content = member("b/file", b"x")
    info.mtime = 1_700_000_000
    folder = unbundle.unpack(archive_of(tmp_path, lambda tar: tar.addfile(info, content)), tmp_path)
    assert (folder / "file").stat().st_mtime == info.mtime


def test_a_kernel_that_links_to_what_is_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = bundle_of(tmp_path)
    boot = folder / "shared/kernel/boot"
    boot.mkdir(parents=True)
    (boot / "vmlinuz-6.99").write_bytes(b"MZ")
    assert unbundle.read(folder).kernel()[0] == str(boot / "vmlinuz-6.99")
    module = folder / "shared/kernel/lib/modules/6.99/a.ko"
    module.parent.mkdir(parents=True)
    module.symlink_to("/etc/shadow")
    with pytest.raises(BundleError, match=r"a\.ko is a link"):
        unbundle.read(folder).kernel()


def test_a_kernel_tree_in_a_bundle_is_never_built(tmp_path: Path) -> None:
    folder = bundle_of(tmp_path)
    tree = folder / "tree"
    tree.mkdir()
    for selector in (
        *(str(tree), "tree", "../tree", "/nowhere/at/all"),
        *(f"deb:{tree}", "deb:tree", "deb:/nowhere/at/all"),
    ):
        values = json.loads((folder / "bundle.json").read_text())
        values["kernel"]["selector"] = selector
        (folder / "bundle.json").write_text(json.dumps(values))
        with pytest.raises(HarnessError, match="which is not here"):
            unbundle.read(folder).kernel()


def test_a_changed_test_is_noticed(tmp_path: Path) -> None:
    folder = bundle_of(tmp_path)
    here, there = tmp_path / "made/testcases", unbundle.read(folder).testcases
    same = unbundle.code_digest(here, NODEID)
    assert unbundle.code_digest(there, NODEID) == same
    (here / "test_other.py").write_text("another test")
    assert unbundle.code_digest(here, NODEID) == same
    (here / "steps.py").write_text("what tests share")
    assert unbundle.code_digest(here, NODEID) != same
    shutil.rmtree(there)
    assert unbundle.code_digest(there, NODEID) != same


# The same symptom


def splat(title: str, **more: Any) -> Any:
    return record(message=f"a fault: {title}", findings=({"title": title},), **more)


def wrong(what: str, seen: object) -> Any:
    told = {"what": what, "expected": 0, "seen": seen, "ok": False}
    return record(message=f"{what}: expected 0, seen {seen}", expectations=(told,))


@pytest.mark.parametrize(
    ("before", "now", "shown"),
    [
        (record(), record(), Shows.SAME),
        (record(), record(Status.PASS, ""), Shows.NOT),
        (record(), record(message="unmap: expected OK, seen EIO"), Shows.OTHER),
        (record(), record(Status.MISS, "QEMU is gone"), Shows.UNTESTED),
        (record(), record(Status.SKIP, "no vfio"), Shows.UNTESTED),
        (record(), record(Status.ERROR, "a bug"), Shows.UNTESTED),
        (wrong("left", 512), wrong("left", 1024), Shows.SAME),
        (wrong("left", 512), wrong("right", 512), Shows.OTHER),
        (wrong("map", "EFAULT"), wrong("map", "EIO"), Shows.OTHER),
        (wrong("data", "page 3 is wrong"), wrong("data", "page 9 is wrong"), Shows.SAME),
        (splat("WARNING in a"), splat("WARNING in a"), Shows.SAME),
        (splat("WARNING in a"), splat("WARNING in b"), Shows.OTHER),
        (record(known="x"), record(message="otherwise", known="x"), Shows.SAME),
        (record(known="x"), record(message="otherwise"), Shows.OTHER),
        (record(message="no end after 180 s"), record(message="no end after 90 s"), Shows.SAME),
        (record(Status.MISS, "no boot"), record(Status.MISS, "no boot"), Shows.SAME),
        (record(Status.MISS, "no boot"), record(Status.MISS, "no SSH"), Shows.UNTESTED),
        (None, record(), Shows.SAME),
        (None, record(Status.MISS, "no boot"), Shows.UNTESTED),
        (None, record(Status.PASS, ""), Shows.NOT),
    ],
)
def test_the_same_symptom(before: Any, now: Any, shown: Shows) -> None:
    assert symptom.compare(before, now) is shown


@pytest.mark.parametrize(
    ("shown", "code"),
    [
        ([Shows.SAME], 1),
        ([Shows.NOT], 0),
        ([Shows.NOT, Shows.NOT, Shows.SAME], 1),
        ([Shows.NOT, Shows.UNTESTED], 125),
        ([Shows.OTHER], 125),
        ([Shows.OTHER, Shows.NOT], 125),
        ([Shows.OTHER, Shows.SAME, Shows.UNTESTED], 1),
        ([], 125),
    ],
)
def test_git_bisect_run_can_use_the_exit_code(shown: list[Shows], code: int) -> None:
    assert symptom.exit_code(shown) == code


def test_a_bundle_error_is_a_users_error() -> None:
    assert issubclass(BundleError, UsageError)
