"""A matrix of runs, with a stand-in for nvh test: what is done, kept, gone on with and merged."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import matrix, paths
from harness.cli import main
from harness.errors import HostError, UsageError
from harness.qemu import accel
from harness.report import matrix as kept
from harness.report import matrix_table
from harness.report.matrix import State
from harness.report.record import program
from harness.report.results import owned
from harness.report.summary import Entry, Summary
from harness.verdict.status import Status
from tests import fake_nvh

FAKE = Path(fake_nvh.__file__)


#: Seconds after which a matrix of stand-ins hangs, on a host that has much else to do.
LONG = 300


@dataclass(frozen=True)
class Host:
    """Where matrices run, and what was started there."""

    folder: Path
    capfd: pytest.CaptureFixture[str]

    @property
    def starts(self) -> list[str]:
        log = self.folder / "starts"
        return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []

    @property
    def latest(self) -> Path:
        return (self.folder / "results" / "latest").resolve()

    @property
    def states(self) -> dict[str, str]:
        found = json.loads((self.latest / "matrix.json").read_text())["combinations"]
        return {one["kernel"]: one["state"] for one in found}

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start nvh matrix as a process, to be interrupted or killed."""
        return subprocess.Popen(
            # A shell without job control lets what it starts with & ignore Ctrl-C.
            ["env", "--default-signal=INT", sys.executable, str(FAKE), "matrix", *words],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> tuple[int, str, str]:
        return self._nvh("--results", "results", *words)

    def resume(self, folder: str = "results/latest", *words: str) -> tuple[int, str, str]:
        return self._nvh("--resume", folder, *words)

    def _nvh(self, *words: str) -> tuple[int, str, str]:
        self.capfd.readouterr()
        code = main(["matrix", *words])
        out, err = self.capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err


@pytest.fixture
def host(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Host]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAKE_NVH_LOG", str(tmp_path / "starts"))
    monkeypatch.setenv("PYTHONPATH", str(paths.source_tree()))
    monkeypatch.setattr(matrix, "testing_argv", fake_nvh.argv_of)
    before = signal.getsignal(signal.SIGTERM)
    yield Host(tmp_path, capfd)
    signal.signal(signal.SIGTERM, before)


def kernels(*names: str) -> list[str]:
    return [word for name in names for word in ("--kernel", name)]


# What is planned


def test_a_plan_is_every_kernel_on_every_machine_once() -> None:
    found = matrix.plan(["debian:6.1", "default", "debian:6.1"], ["default", "/m/two.dimms.toml"])
    assert [(one.kernel, one.machine) for one in found] == [
        ("debian:6.1", "default"),
        ("debian:6.1", "/m/two.dimms.toml"),
        ("default", "default"),
        ("default", "/m/two.dimms.toml"),
    ]
    assert [one.folder for one in found[:2]] == ["debian-6.1,default", "debian-6.1,two.dimms"]
    assert [one.label for one in found[:2]] == ["debian-6_1.default", "debian-6_1.two_dimms"]


def test_kernels_of_one_name_share_no_folder() -> None:
    trees = ["/a/linux", "/b/linux", "/c/linux/arch/x86/boot/bzImage", "/d/..", "/d/?"]
    trees += ["deb:/a/linux.deb,/a/modules.deb"]
    folders = [one.folder for one in matrix.plan(trees, ["default"])]
    assert len(set(folders)) == len(trees)
    assert folders[0] == "linux,default"
    assert folders[2].startswith("linux,default-")
    assert folders[5] == "linux.deb,default"
    assert not any("/" in name or name.startswith(".") for name in folders)


def test_shards_have_every_combination_once() -> None:
    plan = matrix.plan([f"debian:6.{number}" for number in range(7)], ["default"])
    shards = [matrix.shard_of(plan, f"{number}/3") for number in (1, 2, 3)]
    assert [len(shard) for shard in shards] == [3, 2, 2]
    assert sorted(one for shard in shards for one in [c.kernel for c in shard]) == [
        one.kernel for one in plan
    ]
    assert matrix.shard_of(plan, "9/9") == ()


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3", "²/2", ""])
def test_a_shard_that_is_none(shard: str) -> None:
    with pytest.raises(UsageError, match="no such part"):
        matrix.shard_of((), shard)


def test_a_run_is_told_what_the_matrix_was_told(tmp_path: Path) -> None:
    (one,) = matrix.plan(["debian:6.1"], ["default"])
    options = {"accel": "kvm", "k": "V3 or L1", "n": "2"}
    words = matrix.testing_argv(options, one, tmp_path)
    assert words[words.index("test") :] == [
        *("test", "--kernel", "debian:6.1", "--machine", "default", "--accel", "kvm"),
        *("-k", "V3 or L1", "-n", "2", "--results", f"{tmp_path}/debian-6.1,default"),
    ]


# Runs


def test_all_pass(host: Host) -> None:
    code, out, _ = host.run(*kernels("PASS", "PASS,KNOWN"), "-k", "V1")
    assert code == 0
    assert host.starts == ["PASS", "PASS,KNOWN"]
    assert (host.folder / "starts").read_text().startswith("PASS default V1\n")
    assert "testing PASS\n" in out  # passed on
    assert "testing PASS\n" in (host.latest / "PASS,default" / "output.log").read_text()  # and kept
    written = json.loads((host.latest / "matrix.json").read_text())
    assert (written["exit_code"], written["finished"]) == (0, True)


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["FAIL", "PASS"], 1),
        (["PASS", "PASS,KNOWN"], 0),
        (["none", "FAIL", "PASS"], 1),
        (["none", "PASS"], 125),
        (["MISS", "PASS"], 125),
        (["SKIP", "PASS"], 125),
        (["killed", "PASS"], 125),
        (["cut", "PASS"], 125),
        (["killed", "FAIL"], 1),
        (["KNOWN", "PASS"], 125),  # nothing but known failures: as of nvh test
        (["KNOWN,PASS", "PASS"], 0),
    ],
)
def test_the_exit_code_is_the_worst_and_the_rest_goes_on(
    host: Host, names: list[str], code: int
) -> None:
    found, out, _ = host.run(*kernels(*names))
    if names == ["KNOWN", "PASS"]:
        code = json.loads(next(host.latest.glob("KNOWN*/latest/summary.json")).read_text())[
            "exit_code"
        ]
    assert found == code
    assert host.starts == names
    assert f"results in {host.latest.relative_to(host.folder)}" in out


def test_what_could_not_be_tested_is_told_why(host: Host) -> None:
    _, out, _ = host.run(*kernels("none", "killed", "cut"))
    assert "none on default: MISS, not tested: the guest's kernel panicked: no init" in out
    assert "killed on default: interrupted, not done: it was killed by signal 9" in out
    assert "cut on default: interrupted, not done: it was cut short: disk full" in out


def test_machines_are_multiplied_with_kernels(host: Host) -> None:
    (host.folder / "mine.toml").write_text("")
    _, out, _ = host.run(*kernels("PASS"), "--machine", "default", "--machine", "mine.toml")
    assert host.starts == ["PASS", "PASS"]
    assert f"PASS {host.folder}/mine.toml" in (host.folder / "starts").read_text()
    assert "    PASS     PASS\nid  default  mine\nV1  PASS     PASS\n" in out


def test_a_shard_runs_its_own(host: Host) -> None:
    assert host.run(*kernels("PASS", "FAIL", "none"), "--shard", "2/2")[0] == 1
    assert host.starts == ["FAIL"]


def test_an_empty_shard_says_so_and_is_no_failure(host: Host) -> None:
    code, out, _ = host.run(*kernels("FAIL"), "--shard", "2/2")
    assert (code, host.starts) == (0, [])
    assert "shard 2/2 has none of the combinations" in out
    assert not (host.folder / "results").exists()


def test_a_dry_run_starts_nothing(host: Host) -> None:
    code, out, _ = host.run(*kernels("PASS", "FAIL"), "--dry-run")
    assert (code, host.starts) == (0, [])
    assert len(out.splitlines()) == 2
    assert not (host.folder / "results").exists()


def test_a_wrong_selection_is_told_before_anything_is_written(host: Host) -> None:
    code, _, err = host.run(*kernels("PASS", "FAIL"), "-k", "V99")
    assert (code, host.starts) == (2, [])
    assert err == "nvh: no test matches 'V99'\n"
    assert not (host.folder / "results").exists()


def test_kvm_that_is_not_there_ends_it_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def missing() -> str:
        return "there is no /dev/kvm"

    monkeypatch.setattr(accel, "_device_problem", missing)
    monkeypatch.setattr(accel, "qemu_program", lambda: "/bin/false")
    monkeypatch.setattr(matrix, "check", lambda *_, **__: pytest.fail("it went on"))
    assert main(["matrix", "--accel", "kvm", "--results", str(tmp_path / "results")]) == 125
    assert "KVM was asked for but there is no /dev/kvm" in capfd.readouterr().err
    assert not (tmp_path / "results").exists()


def test_kvm_that_starts_no_processor_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "_device_problem", lambda: None)
    fake = str(Path(__file__).with_name("fake_qemu.py"))
    monkeypatch.setenv("FAKE_QEMU", "refuse:kvm_buf_set_msrs: Assertion failed")
    with pytest.raises(HostError, match="kvm_buf_set_msrs"):
        accel.require_kvm(fake)
    monkeypatch.setenv("FAKE_QEMU", "greet;sleep:60")
    accel.require_kvm(fake)


# Interruption and resumption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_passed_on_and_the_matrix_goes_on_later(
    host: Host, number: signal.Signals, eventually: Callable[..., None]
) -> None:
    child = host.start("--results", "results", *kernels("FAIL", "slow,PASS", "none", "PASS"))
    eventually(lambda: host.starts == ["FAIL", "slow,PASS"], seconds=LONG)
    eventually(lambda: list(host.latest.glob("slow*/*/summary.json")), seconds=LONG)
    child.send_signal(number)
    out, _ = child.communicate(timeout=LONG)
    assert child.returncode == 130
    assert "nvh: interrupted" in out  # the run was asked to end, and had the time to
    assert host.states == {
        "FAIL": "done",
        "slow,PASS": "interrupted",
        "none": "waiting",
        "PASS": "waiting",
    }
    assert "none on default: not run yet" in out
    assert (
        f"go on with: {program()} matrix --resume {host.latest.relative_to(host.folder)}\n" in out
    )

    (host.folder / "hurry").touch()
    code, out, _ = host.resume()
    assert code == 1  # of the run that was done before
    begun = ["FAIL", "slow,PASS", "slow,PASS", "none", "PASS"]
    assert host.starts == begun
    assert set(host.states.values()) == {"done"}
    assert host.resume()[0] == 1
    assert host.starts == [*begun, "none"]  # what has a verdict is not run again


def test_a_matrix_that_was_killed_goes_on_and_leaves_no_run(
    host: Host, eventually: Callable[..., None]
) -> None:
    child = host.start("--results", "results", *kernels("PASS", "slow,PASS"))
    eventually(lambda: host.starts == ["PASS", "slow,PASS"], seconds=LONG)
    run = child_of(child.pid)
    child.kill()
    child.communicate(timeout=LONG)
    eventually(lambda: zombie(run), seconds=LONG)
    assert host.states == {"PASS": "done", "slow,PASS": "running"}
    (host.folder / "hurry").touch()
    assert host.resume()[0] == 0
    assert host.starts == ["PASS", "slow,PASS", "slow,PASS"]


def child_of(pid: int) -> int:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=True)
    return int(found.stdout.split()[0])


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_runs_that_were_killed_or_cut_short_are_done_again(host: Host) -> None:
    host.run(*kernels("killed", "PASS", "cut", "none"))
    assert host.states == {
        "killed": "interrupted",
        "PASS": "done",
        "cut": "interrupted",
        "none": "done",
    }
    host.resume()
    assert host.starts == ["killed", "PASS", "cut", "none", "killed", "cut", "none"]


def test_a_resumed_matrix_keeps_its_options(host: Host) -> None:
    host.run(*kernels("killed"), "-k", "V1")
    for words in (["--kernel", "PASS"], ["-k", "V2"], ["--shard", "1/2"], ["--results", "r"]):
        code, _, err = host.resume("results/latest", *words)
        assert code == 2
        assert f"{words[0]} with --resume" in err
    host.resume()
    lines = (host.folder / "starts").read_text().splitlines()
    assert lines == ["killed default V1"] * 2


def test_latest_is_the_resumed_one(host: Host) -> None:
    host.run(*kernels("killed"))
    first = host.latest
    host.run(*kernels("PASS"))
    host.resume(str(first))
    assert host.latest == first
    alone = first.rename(host.folder / "alone")
    host.resume(str(alone))
    assert not (host.folder / "latest").is_symlink()


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"format": 99}', "\x00"])
def test_resuming_what_is_no_matrix(host: Host, content: str | None) -> None:
    (host.folder / "dir").mkdir()
    if content is not None:
        (host.folder / "dir" / "matrix.json").write_text(content)
    code, _, err = host.resume("dir")
    assert code == 2
    assert err.startswith("nvh: --resume dir: ")
    assert err.count("\n") == 1


def test_two_are_never_at_work_in_one_folder(host: Host) -> None:
    host.run(*kernels("killed"))
    with owned(host.latest, "nvh matrix"):
        code, _, err = host.resume()
    assert code == 2
    assert "another nvh matrix is at work in" in err
    assert host.starts == ["killed"]


def test_an_older_attempt_is_not_taken_for_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_NVH_LOG", str(tmp_path / "starts"))
    monkeypatch.setenv("PYTHONPATH", str(paths.source_tree()))
    plan = matrix.plan(["PASS"], ["default"])
    begun = kept.Matrix("now", {}, "", plan)
    first = matrix.carry_out(begun, tmp_path, argv_of=fake_nvh.argv_of)
    assert first.combinations[0].results
    again = first.replaced(0, state=State.INTERRUPTED)
    second = matrix.carry_out(again, tmp_path, argv_of=lambda *_: ["sh", "-c", "echo dead; exit 3"])
    (one,) = second.combinations
    assert (one.results, one.exit_code, one.why) == ("", 3, "dead")
    assert second.exit_code == 125


@pytest.mark.parametrize("status", [0, 1])
def test_a_run_without_a_summary_has_judged_nothing(tmp_path: Path, status: int) -> None:
    begun = kept.Matrix("now", {}, "", matrix.plan(["PASS"], ["default"]))
    found = matrix.carry_out(begun, tmp_path, argv_of=lambda *_: ["sh", "-c", f"exit {status}"])
    assert found.exit_code == 125
    assert found.combinations[0].why == "it said nothing"


def test_a_program_that_does_not_start_is_could_not_test(tmp_path: Path) -> None:
    begun = kept.Matrix("now", {}, "", matrix.plan(["PASS"], ["default"]))
    found = matrix.carry_out(begun, tmp_path, argv_of=lambda *_: ["/nowhere/nvh"])
    assert found.exit_code == 125
    assert "/nowhere/nvh" in found.combinations[0].why


# What is left


def test_the_merged_junit_tells_kernels_and_machines_apart(host: Host) -> None:
    host.run(*kernels("PASS,FAIL", "none", "debian:PASS"))
    document = ET.parse(host.latest / "junit.xml").getroot()
    names = [(case.get("classname"), case.get("name")) for case in document.iter("testcase")]
    assert names == [
        ("PASS-FAIL.default.testcases.test_v", "test_v1_x"),
        ("PASS-FAIL.default.testcases.test_v", "test_v2_x"),
        ("none.default", "the run itself"),
        ("debian-PASS.default.testcases.test_v", "test_v1_x"),
    ]
    assert (document.get("tests"), document.get("failures"), document.get("errors")) == (
        *("4", "1", "1"),
    )
    error = document.find(".//error")
    assert error is not None
    assert "the guest's kernel panicked: no init" in str(error.get("message"))
    first = document.find("testsuite")
    assert first is not None
    found = {one.get("name"): one.get("value") for one in first.findall("properties/property")}
    assert found["kernel"] == "6.0-PASS,FAIL"  # of the run itself
    assert found["matrix.kernel"] == "PASS,FAIL"
    assert (host.latest / str(found["results"]) / "summary.json").is_file()
    case = document.find(".//testcase/properties/property[@name='row']")
    assert case is not None
    assert case.get("value") == "V1"


def test_a_damaged_junit_is_told_and_the_rest_is_merged(host: Host) -> None:
    host.run(*kernels("PASS", "killed"))
    next(host.latest.glob("PASS*/2*/junit.xml")).write_text("<testsuites><oops")
    host.resume()
    document = ET.parse(host.latest / "junit.xml").getroot()
    problems = [str(error.get("message")) for error in document.iter("error")]
    assert problems[0].startswith("junit.xml cannot be read: ")


def entry(row: str, status: Status, name: str = "a", **extra: Any) -> Entry:
    return Entry(f"testcases/test_x.py::test_{name}", status, row=row, title=f"row {row}", **extra)


def summary_with(*tests: Entry) -> Summary:
    return Summary("now", True, 1.0, 0, {}, tests)


def test_the_table_says_the_worst_of_a_row() -> None:
    one = summary_with(
        entry("V10", Status.PASS),
        entry("V2", Status.PASS, "a"),
        entry("V2", Status.FAIL, "b"),
        entry("V2", Status.FAIL, "c", known="k"),
        entry("L1", Status.PASS, "a"),
        entry("L1", Status.PASS, "b"),
    )
    other = summary_with(entry("V10", Status.SKIP), entry("", Status.MISS, "odd"))
    rows = matrix_table.rows_of([one, None, other])
    assert [row.id for row in rows] == ["L1", "V2", "V10", "test_odd"]
    assert list(map(str, matrix_table.lines_of(rows, ["6.1", "6.12", "sid"]))) == [
        "id        6.1       6.12  sid",
        "L1        PASS 2    -     -     row L1",
        "V2        FAIL 1/3  -     -     row V2",
        "V10       PASS      -     SKIP  row V10",
        "test_odd  -         -     MISS  row",
    ]


def test_a_kernel_that_could_not_be_tested_passed_no_row(host: Host) -> None:
    _, out, _ = host.run(*kernels("PASS,PASS", "none", "FAIL"))
    assert "\nid  PASS-PASS  none  FAIL\nV1  PASS       MISS  FAIL\nV2  PASS       MISS  -\n" in out
    assert "3 combinations: 1 passed, 1 could not be tested, 1 failed; results in" in out


def test_a_narrow_terminal_gets_several_tables() -> None:
    kernels = [f"6.{number}" for number in range(5)]
    rows = matrix_table.rows_of([summary_with(entry("V1", Status.PASS))] * 5)
    lines = [str(line) for line in matrix_table.lines_of(rows, kernels, width=40)]
    assert lines == [
        "id  6.0   6.1   6.2   6.3",
        "V1  PASS  PASS  PASS  PASS  row V1",
        "id  6.4",
        "V1  PASS  row V1",
    ]
    assert len(matrix_table.lines_of(rows, kernels, width=80)) == 2
    assert len(matrix_table.lines_of(rows, kernels, width=10)) == 10  # one at least


def test_a_failure_is_shown_with_the_way_back(host: Host) -> None:
    _, out, _ = host.run(*kernels("PASS,FAIL"))
    assert "  FAIL test_v2_x: map: expected OK, seen ENOSYS\n    again: " in out
    assert "nvh test -k test_v2_x" in out
