"""The bundles that a run leaves, and how nvh repro takes wrong usage."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import pages
from harness.cli import main
from harness.commands import repro
from harness.images.kernel import Kernel
from harness.report import summary, unbundle
from harness.run_bundles import setting
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


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["alone", "a-worker"])
def test_one_has_what_a_guest_has_left_that_lives_on(runs: Runs, options: tuple[str, ...]) -> None:
    """A clone outlives its test, and only then do its files come into the test's folder."""
    found = runs("def test_v1_bad(guest, case): case.expect('map', 'EIO')\n", *options)
    assert not (found.results / "latest/tests/test_v.test_v1_bad/qemu.sh").exists()
    folder = found.results / "latest/bundles/test_v.test_v1_bad"
    unpacked = unbundle.unpack(folder.with_name(f"{folder.name}.tar.zst"), found.results)
    for evidence in (folder / "evidence", unpacked / "evidence"):
        assert (evidence / "guest-console.log").read_text() == "all of the console\n"
        assert (evidence / "qemu.sh").read_text() == "exec qemu\n"
        assert (evidence / "qemu.stderr").read_text() == ""


@pytest.mark.parametrize("said", ["", "a line more\\n"], ids=["silent", "speaks"])
def test_one_has_what_a_guest_says_after_its_test(runs: Runs, said: str) -> None:
    found = runs(
        f"""
import contextlib, types
from harness.aftermath import Aftermath
from harness.pytest_plugin import _AFTERMATH
from conftest import FOLDER, Guest, Pool

SAID = "{said}"

@contextlib.contextmanager
def lingering(self, wish, then=None, *, keep):
    made = Guest()
    made.machine = types.SimpleNamespace(memory=1 << 20)
    yield made
    def end():
        made.vm.child.poll = lambda: 0
        with (FOLDER / "console.log").open("a") as file: file.write(SAID)
    made.vm.console.text = lambda since=0, limit=0: SAID
    assert keep(made, end)

@pytest.fixture
def guests(request, monkeypatch, tmp_path):
    monkeypatch.setattr("harness.aftermath.budget", lambda _: 2)
    monkeypatch.setattr("harness.aftermath.LINGER", 0.1)
    monkeypatch.setattr(Pool, "guest", lingering)
    request.config.stash[_AFTERMATH] = Aftermath(tmp_path)
    return Pool()

def test_v1_bad(guest, case): case.expect("map", "EIO")
"""
    )
    assert found.tests["bad"]["status"] == "FAIL"
    assert (found.results / "latest/tests/test_v.test_v1_bad/qemu.sh").is_file()
    folder = found.results / "latest/bundles/test_v.test_v1_bad"
    unpacked = unbundle.unpack(folder.with_name(f"{folder.name}.tar.zst"), found.results)
    for evidence in (folder / "evidence", unpacked / "evidence"):
        whole = "all of the console\n" + said.replace("\\n", "\n")
        assert (evidence / "guest-console.log").read_text() == whole
        assert (evidence / "qemu.sh").is_file()


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


def test_a_bundle_that_cannot_be_begun_costs_no_verdict(runs: Runs) -> None:
    found = runs(
        """
import harness.report.bundle
def full(*_): raise OSError(5, "a bad disk")
harness.report.bundle._lay_down = full
def test_v1_good(case): case.expect("map", "OK")
def test_v1_bad(case): case.expect("map", "EIO")
""",
        "--log-file=run.log",
    )
    assert {name: test["status"] for name, test in found.tests.items()} == {
        "good": "PASS",
        "bad": "FAIL",
    }
    assert not list((found.results / "latest/bundles").glob("*test_v*"))
    log = (found.results.parent / "run.log").read_text()
    assert re.search(r"WARNING .*no bundle of .*test_v1_good: cannot write .*: a bad disk", log)


def again_of(results: Path) -> str:
    (entry,) = json.loads((results / "latest/summary.json").read_text())["tests"]
    return str(entry["again"])


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Run no test: note with what nvh repro would have run it, and leave a run's results."""
    seen: list[list[str]] = []

    def made_up(words: list[str]) -> int:
        seen.append(words)
        given = dict(
            word.split("=", 1) for word in words if word.startswith("--nvh-") and "=" in word
        )
        results = Path(given["--nvh-results"])
        options = ["--kernel", given["--nvh-kernel"], "--machine", given["--nvh-machine"]]
        ended = record(row="V3")
        (results / ended.folder).mkdir()
        ended.save(results / ended.folder)
        (results / "bundles/.shared").mkdir(parents=True)
        summary.write(results / "summary.json", [ended], {}, options=options)
        pages.write_stored(results)
        print(f"  again:  {ended.again(options)}\nnext:   nvh test --failed x {' '.join(options)}")
        return 1

    def lab(options: Any) -> Any:
        kernel = SimpleNamespace(release="6.12.1", image=Path(options.kernel))
        return SimpleNamespace(recipe=lambda: None, kernel=kernel, workloads=Path("/nowhere"))

    monkeypatch.setattr(repro, "Lab", lab)
    monkeypatch.setattr(pytest, "main", made_up)
    return seen


def test_what_it_says_to_run_again_outlives_what_it_unpacked(
    tmp_path: Path, ran: list[list[str]]
) -> None:
    folder = bundle_of(tmp_path, with_kernel=True)
    archive = folder.with_name(f"{folder.name}.tar.zst")
    results = tmp_path / "again"
    assert main(["repro", "--accel", "tcg", "--results", str(results), str(archive)]) == 1
    (words,) = ran
    (kernel,) = (word for word in words if word.startswith("--nvh-kernel="))
    assert "nvh-repro-" in kernel
    assert "--nvh-with-kernel" in words
    assert again_of(results).endswith(f"repro {archive} --accel tcg")
    for file in results.rglob("*"):
        assert not file.is_file() or "nvh-repro-" not in file.read_text(), file
    assert not (results / "latest/bundles").exists()


def test_a_kernel_that_was_given_is_not_put_into_bundles(
    tmp_path: Path, ran: list[list[str]]
) -> None:
    folder = bundle_of(tmp_path, with_kernel=True)
    image = folder / "README"
    results = tmp_path / "again"
    words = ["--results", str(results), "--kernel", str(image)]
    assert main(["repro", str(folder), *words]) == 1
    assert "--nvh-with-kernel" not in ran[0]
    assert again_of(results).endswith(f"repro {folder} --kernel {image}")


@pytest.mark.parametrize("included", [True, False])
def test_a_bundles_kernel_goes_by_what_the_bundle_calls_it(
    tmp_path: Path, *, included: bool
) -> None:
    folder = bundle_of(tmp_path, with_kernel=True)
    image = folder / "shared/kernel/boot/vmlinuz-6.12.1"
    kernel = Kernel("6.12.1", image, None, None, str(image), "digest")
    options = {
        "--nvh-kernel": str(image),
        "--nvh-with-kernel": included,
        "--nvh-isolation": "clone",
    }
    config: Any = SimpleNamespace(getoption=options.__getitem__)
    lab: Any = SimpleNamespace(kernel=kernel, properties=dict, workloads=tmp_path)
    made = setting(config, lab)
    assert made.kernel is not None
    told = (made.selector, made.kernel.origin, made.with_kernel)
    # Where it is not included, nothing but its path leads to this very kernel.
    assert told == (("debian:6.12", "a deb", True) if included else (str(image), str(image), False))


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
