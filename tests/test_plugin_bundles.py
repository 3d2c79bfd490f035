"""The bundles that a run leaves, and how nvh repro takes wrong usage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli import main
from harness.report import unbundle
from tests.made_up_bundles import NODEID, bundle_of, record
from tests.made_up_runs import Runs

pytest_plugins = ["pytester"]


def test_only_tests_that_did_not_pass_leave_one(runs: Runs) -> None:
    found = runs(
        """
def test_v1_good(guest, case): case.expect("map", "OK")
def test_v1_bad(guest, case):
    guest.begun("a command")
    case.expect("map", "EIO")
def test_v1_known(guest, case): case.expect("map", "ENOSYS")
def test_v1_skipped(case): case.skip("no vfio")
def test_v1_missed(case): case.prove("dax", False)
broken_guest = broken(LaunchError("no QEMU"))
def test_v1_no_guest(broken_guest): pass
def test_v1_nonsense(case): 1 / 0
"""
    )
    bundles = found.results / "latest/bundles"
    left = {file.name for file in bundles.iterdir() if not file.name.startswith(".")}
    names = {
        f"test_v.test_v1_{name}" for name in ("bad", "known", "missed", "no_guest", "nonsense")
    }
    assert left == names | {f"{name}.tar.zst" for name in names}
    read = unbundle.read(bundles / "test_v.test_v1_bad")
    assert read.record is not None
    assert read.record.message == "map: expected OK, seen EIO"
    assert read.about["row"]["right"] == {"map": "OK"}
    evidence = bundles / "test_v.test_v1_bad/evidence"
    assert (evidence / "commands").read_text() == "a command\n"
    assert (evidence / "console.log").read_text() == "console\n"
    assert "bad.tar.zst (nvh repro)" in found.output


def test_a_killed_run_leaves_that_of_the_test_under_way(runs: Runs) -> None:
    found = runs(
        """
import os, signal
def test_v1_first(case): case.expect("map", "OK")
def test_v1_killer(guest):
    guest.begun("the last command")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    bundles = found.results / "latest/bundles"
    (folder,) = (file for file in bundles.iterdir() if not file.name.startswith("."))
    read = unbundle.read(folder)
    assert (read.nodeid, read.record) == ("testcases/test_v.py::test_v1_killer", None)
    assert (folder / "shared/testcases/test_v.py").is_file()
    assert (folder / "repro.sh").is_file()
    assert "../../tests/test_v.test_v1_killer" in (folder / "README").read_text()
    assert (found.results / "latest/tests/test_v.test_v1_killer/commands").read_text() == (
        "the last command\n"
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["/nowhere"], 2, "no bundle at /nowhere"),
        (["/tmp", "--repeat", "0"], 2, "not a number from 1 on"),
        (["/tmp"], 2, "no bundle"),
    ],
)
def test_wrong_usage(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["repro", *words]) == code
    assert said in capsys.readouterr().err


def test_a_test_that_this_checkout_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bundle_of(tmp_path, record(nodeid="testcases/test_gone.py::test_v1_x"))
    assert main(["repro", str(folder)]) == 125
    assert "is not in this checkout" in capsys.readouterr().err


def test_a_kernel_that_is_not_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = bundle_of(tmp_path, record(nodeid=NODEID))
    values = json.loads((folder / "bundle.json").read_text())
    values["kernel"]["selector"] = "/home/somebody/linux"
    (folder / "bundle.json").write_text(json.dumps(values))
    assert main(["repro", str(folder)]) == 125
    assert "name one with --kernel" in capsys.readouterr().err


def test_a_kernel_that_is_none_is_skipped_by_a_bisection(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bundle_of(tmp_path, record(nodeid=NODEID))
    (tmp_path / "bzImage").write_text("not a kernel")
    assert main(["repro", str(folder), "--kernel", str(tmp_path / "bzImage")]) == 125
    assert "not an x86 kernel image" in capsys.readouterr().err
