"""The pytest plugin in real runs of pytest, with a made-up catalogue, kernel and guests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import paths
from harness.run_reporter import exit_code, verdict_of

pytest_plugins = ["pytester"]

#: Puts a source tree of the test's own under the plugin, and guests that only have a log.
CONFTEST = """
import contextlib, types
from pathlib import Path
import pytest
import harness.lab, harness.paths

ROOT = Path(__file__).parent
harness.paths.source_tree = lambda: ROOT
harness.lab.Lab.kernel = types.SimpleNamespace(release="6.12.1", origin="made up", digest="0")
harness.lab.Lab.properties = lambda self: {"kernel": "6.12.1"}
pytest_plugins = ["harness.pytest_plugin"]


class Console:
    position = 0

    def text(self, since=0, limit=0):
        return "console\\n"


class Guest:
    facts = {"made": "up"}
    broken = None

    def __init__(self):
        self.log = ""
        child = types.SimpleNamespace(poll=lambda: None)
        self.vm = types.SimpleNamespace(
            console=Console(), death=lambda: None, folder=ROOT, child=child
        )

    def mark(self, text):
        return "token"

    def dmesg(self, since=None):
        return self.log


class Pool:
    @contextlib.contextmanager
    def guest(self, wish, then=None):
        yield Guest()


@pytest.fixture(scope="session")
def guests():
    return Pool()
"""

CATALOGUE = """
[V1]
title = "a made-up row"
source = ["a made-up source"]
[V1.right]
map = "OK"
[V11]
title = "another"
source = ["a made-up source"]
"""

KNOWN = """
[[issue]]
id = "made-up-issue"
title = "it fails"
tests = ["test_v1_known*"]
kernels = []
symptom = "expected OK, seen ENOSYS"
evidence = "made up"
"""

HEAD = """
import pytest
from harness.errors import (
    GuestHung, GuestLost, GuestPanic, GuestReset, HostError, LaunchError, UsageError, WorkloadError,
)
from harness.guest import CommandTimeout

def broken(error):
    @pytest.fixture
    def fixture():
        raise error
    return fixture
"""

BUG = "[    9.1] BUG: KASAN: use-after-free in dax_layout_busy_page+0x1/0x2"


@dataclass(frozen=True)
class Run:
    """What a run left."""

    code: int
    output: str
    results: Path

    @property
    def summary(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.results / "latest" / "summary.json").read_text())
        return loaded

    @property
    def tests(self) -> dict[str, dict[str, Any]]:
        """Each test's entry, by the name behind test_v1_."""
        return {
            entry["test"].rpartition("::")[2].removeprefix("test_v1_"): entry
            for entry in self.summary["tests"]
        }


Runs = Callable[..., Run]


@pytest.fixture
def runs(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Run the plugin on testcases of the test's own."""
    monkeypatch.setenv("PYTHONPATH", str(paths.source_tree()))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeconftest(CONFTEST)
    pytester.makefile(".ini", pytest="[pytest]\njunit_family = xunit1\n")
    folder = pytester.mkdir("testcases")
    (folder / "catalogue").mkdir()
    (folder / "catalogue" / "v.toml").write_text(CATALOGUE)
    (folder / "known-issues.toml").write_text(KNOWN)

    def run(tests: str, *options: str) -> Run:
        (folder / "test_v.py").write_text(HEAD + tests)
        done = pytester.runpytest_subprocess(
            "testcases", "-q", "-p", "no:cacheprovider", *options, timeout=120
        )
        text = done.stdout.str() + done.stderr.str()
        return Run(int(done.ret), text, pytester.path / "results")

    return run


def test_how_each_end_of_a_test_is_judged(runs: Runs) -> None:
    found = runs(
        """
def test_v1_right(case): case.expect("map", "OK")
def test_v1_nothing_said(): pass
def test_v1_compared_nothing(case): case.fact("pages", 3)
def test_v1_wrong(case): case.expect("map", "EFAULT")
def test_v1_assertion(): assert 1 == 2, "words"
def test_v1_not_proven(case): case.prove("the mount is DAX", False)
def test_v1_enable(case): case.prove("nested KVM", False, enable="boot with -cpu max")
def test_v1_case_skip(case): case.skip("not here")
def test_v1_pytest_skip(): pytest.skip("nor here")
def test_v1_own_fault(): {}["key"]
def test_v1_no_such_key(case): case.expect("unmap", "OK")
def test_v1_workload(): raise WorkloadError("no KTAP plan")
def test_v1_panic(): raise GuestPanic("the guest's kernel panicked: x")
def test_v1_reset(): raise GuestReset("the guest ended unasked")
def test_v1_no_end(): raise CommandTimeout("no end after 60 s")
def test_v1_lost(): raise GuestLost("QEMU died with signal 9")
def test_v1_hung(): raise GuestHung("the serial shell did not end")
def test_v1_host(): raise HostError("no room", hint="make room")

setup_panic = broken(GuestPanic("while booting"))
setup_launch = broken(LaunchError("QEMU refused to start"))
setup_assert = broken(AssertionError("of the set-up"))
setup_fault = broken(KeyError("of the set-up"))
def test_v1_panic_in_setup(setup_panic): pass
def test_v1_launch_in_setup(setup_launch): pass
def test_v1_assert_in_setup(setup_assert): pass
def test_v1_fault_in_setup(setup_fault): pass

@pytest.fixture
def teardown_fault():
    yield
    raise KeyError("of the clean-up")
def test_v1_fault_in_teardown(teardown_fault): pass
def test_v1_wrong_and_fault_in_teardown(case, teardown_fault): case.expect("map", "EFAULT")
"""
    )
    assert {name: entry["status"] for name, entry in found.tests.items()} == {
        "right": "PASS",
        "nothing_said": "PASS",
        "compared_nothing": "ERROR",
        "wrong": "FAIL",
        "assertion": "FAIL",
        "not_proven": "MISS",
        "enable": "SKIP",
        "case_skip": "SKIP",
        "pytest_skip": "SKIP",
        "own_fault": "ERROR",
        "no_such_key": "MISS",
        "workload": "MISS",
        "panic": "FAIL",
        "reset": "FAIL",
        "no_end": "FAIL",
        "lost": "MISS",
        "hung": "MISS",
        "host": "MISS",
        "panic_in_setup": "MISS",
        "launch_in_setup": "MISS",
        "assert_in_setup": "ERROR",
        "fault_in_setup": "ERROR",
        "fault_in_teardown": "ERROR",
        "wrong_and_fault_in_teardown": "FAIL",
    }
    assert found.summary["finished"] is True
    assert found.summary["exit_code"] == 1
    assert "map: expected OK, seen EFAULT" in found.output
    assert "no room (make room)" in found.output


@pytest.mark.parametrize(
    ("tests", "code"),
    [
        ("def test_v1_a(case): case.expect('map', 'OK')", 0),
        ("def test_v1_a(case): case.expect('map', 'EFAULT')", 1),
        ("def test_v1_a(): raise HostError('x')", 125),
        ("def test_v1_a(case): case.skip('x')", 125),
        ("def test_v1_known(case): case.expect('map', 'ENOSYS')\ndef test_v1_b(): pass", 0),
        ("def test_v1_known(case): case.expect('map', 'EFAULT')\ndef test_v1_b(): pass", 1),
    ],
)
def test_the_runs_verdict(runs: Runs, tests: str, code: int) -> None:
    assert runs(tests).summary["exit_code"] == code


def test_a_known_issue_explains_its_symptom_and_no_other(runs: Runs) -> None:
    found = runs(
        """
def test_v1_known(case): case.expect("map", "ENOSYS")
def test_v1_known_other(case): case.expect("map", "EFAULT")
def test_v1_stranger(case): case.expect("map", "ENOSYS")
"""
    )
    assert found.tests["known"].get("known") == "made-up-issue"
    assert not found.tests["known_other"].get("known")
    assert not found.tests["stranger"].get("known")
    assert {entry["status"] for entry in found.tests.values()} == {"FAIL"}


def test_a_splat_fails_a_test_whatever_it_returned(runs: Runs) -> None:
    found = runs(
        f"""
BUG = {BUG!r}
def test_v1_quiet(guest, case): case.expect("map", "OK")
def test_v1_splat(guest, case):
    guest.log = BUG
    case.expect("map", "OK")
def test_v1_allowed(guest, case):
    case.allow("use-after-free in dax_layout_busy_page")
    guest.log = BUG
    case.expect("map", "OK")
def test_v1_other_allowed(guest, case):
    case.allow("something else")
    guest.log = BUG
    case.expect("map", "OK")
def test_v1_splat_and_wrong(guest, case):
    guest.log = BUG
    case.expect("map", "EFAULT")
"""
    )
    statuses = {name: entry["status"] for name, entry in found.tests.items()}
    assert statuses == {
        "quiet": "PASS",
        "splat": "FAIL",
        "allowed": "PASS",
        "other_allowed": "FAIL",
        "splat_and_wrong": "FAIL",
    }
    assert "dax_layout_busy_page" in found.tests["splat"]["message"]


def test_each_test_leaves_a_folder_with_its_evidence(runs: Runs) -> None:
    found = runs(
        f"""
def test_v1_shown(guest, case):
    guest.log = {BUG!r}
    print("said by the test")
    case.fact("pages", 3)
    case.expect("map", "OK")
"""
    )
    (folder,) = (found.results / "latest" / "tests").iterdir()
    assert "KASAN" in (folder / "dmesg").read_text()
    assert (folder / "console.log").read_text() == "console\n"
    assert "said by the test" in (folder / "output.txt").read_text()
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["facts"]["pages"] == 3
    assert facts["expectations"][0]["source"] == "a made-up source"
    assert (found.results / "latest" / "junit.xml").read_text().startswith("<?xml")


def test_the_reports_are_there_when_the_run_is_killed(runs: Runs) -> None:
    found = runs(
        """
import os, signal
def test_v1_first(case): case.expect("map", "OK")
def test_v1_killer(): os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    assert found.summary["finished"] is False
    assert found.summary["exit_code"] is None
    assert verdict_of(found.results / "latest") == 125
    assert {name: entry["status"] for name, entry in found.tests.items()} == {"first": "PASS"}
    assert "first" in (found.results / "latest" / "junit.xml").read_text()


@pytest.mark.parametrize(
    ("expression", "chosen"),
    [
        ("V1", {"test_v1_a", "test_v1_b"}),
        ("v1", {"test_v1_a", "test_v1_b"}),
        ("V11", {"test_v11_a"}),
        ("V1 or V11", {"test_v1_a", "test_v1_b", "test_v11_a"}),
        ("not V1", {"test_v11_a", "test_l1_c"}),
        ("V1 and not b", {"test_v1_a"}),
        ("(L1 or V11)", {"test_l1_c", "test_v11_a"}),
        ("test_v1_a", {"test_v1_a"}),
        ("_a", {"test_v1_a", "test_v11_a"}),
        ("V2", set()),
    ],
)
def test_an_id_selects_its_row_and_no_other(
    runs: Runs, pytester: pytest.Pytester, expression: str, chosen: set[str]
) -> None:
    file = pytester.path / "testcases" / "catalogue" / "l.toml"
    file.write_text(CATALOGUE.replace("V11", "L11").replace("V1", "L1"))
    found = runs(
        "def test_v1_a(): pass\ndef test_v1_b(): pass\n"
        "def test_v11_a(): pass\ndef test_l1_c(): pass\n",
        "--collect-only",
        "-k",
        expression,
    )
    listed = {
        line.rpartition("::")[2].strip()
        for line in found.output.splitlines()
        if line.startswith("testcases/") and "::" in line
    }
    assert listed == chosen


def test_looking_makes_no_results(runs: Runs) -> None:
    assert not runs("def test_v1_a(): pass", "--collect-only").results.exists()


def test_a_name_without_a_row_is_refused_before_anything_runs(runs: Runs) -> None:
    found = runs("def test_v1_a(): print('RAN')\ndef test_v99_b(): pass\n", "-s")
    assert found.code != 0
    assert "no row V99 in the catalogue" in found.output
    assert "RAN" not in found.output
    assert "INTERNALERROR" not in found.output


def test_parallel_workers_and_the_controller_agree(runs: Runs) -> None:
    tests = "".join(f"def test_v1_n{n}(case): case.expect('map', 'OK')\n" for n in range(4))
    found = runs(tests, "-n", "2")
    results = found.results
    assert len([path for path in results.iterdir() if not path.is_symlink()]) == 1
    assert set(found.tests) == {"n0", "n1", "n2", "n3"}
    assert found.summary["counts"]["PASS"] == 4


def test_a_dead_worker_is_a_miss_and_not_green(runs: Runs) -> None:
    found = runs(
        """
import os, signal
def test_v1_killer(case):
    case.fact("pages", 3)
    os.kill(os.getpid(), signal.SIGKILL)
def test_v1_other(case): case.expect("map", "OK")
""",
        "-n",
        "2",
    )
    assert {name: entry["status"] for name, entry in found.tests.items()} == {
        "killer": "MISS",
        "other": "PASS",
    }
    assert found.tests["killer"]["message"].startswith("the worker died: worker 'gw")
    assert found.tests["killer"]["id"] == "V1"
    assert found.summary["finished"] is True
    assert found.summary["exit_code"] == 125
    # What was seen until then is there.
    folder = found.results / "latest" / found.tests["killer"]["folder"]
    assert (folder / "output.txt").read_text() == "fact: pages: 3\n"


@pytest.mark.parametrize(
    ("status", "verdict", "code"),
    [
        (pytest.ExitCode.OK, 0, 0),
        (pytest.ExitCode.OK, 1, 1),
        (pytest.ExitCode.TESTS_FAILED, 1, 1),
        (pytest.ExitCode.TESTS_FAILED, 0, 125),
        (pytest.ExitCode.INTERRUPTED, 0, 130),
        (pytest.ExitCode.INTERNAL_ERROR, 0, 125),
        (125, 0, 125),
    ],
)
def test_the_exit_code_of_pytest_and_records(status: int, verdict: int, code: int) -> None:
    assert exit_code(status, verdict) == code


@pytest.mark.parametrize(
    ("whom", "parallel"),
    [("getpid", ()), ("getpid", ("-n", "2")), ("getppid", ("-n", "2"))],
    ids=["serial", "worker", "controller"],
)
def test_an_interrupted_run_is_not_finished(
    runs: Runs, whom: str, parallel: tuple[str, ...]
) -> None:
    found = runs(
        f"""
import os, signal, time
from pathlib import Path
def test_v1_first(case): case.expect("map", "OK")
def test_v1_second():
    deadline = time.monotonic() + 30
    while not list(Path("results").glob("2*/summary.json")) and time.monotonic() < deadline:
        time.sleep(0.01)  # until the first has been told
    os.kill(os.{whom}(), signal.SIGINT)
    time.sleep(30)
""",
        *parallel,
    )
    assert {name: entry["status"] for name, entry in found.tests.items()} == {"first": "PASS"}
    assert found.summary["finished"] is False
    assert found.summary["exit_code"] == 130
    assert found.output.count("nvh: interrupted") == 1
    assert "--full-trace" not in found.output


@pytest.mark.parametrize("parallel", [(), ("-n", "2", "--dist", "loadfile")])
def test_a_full_disk_ends_the_run_in_one_line(runs: Runs, parallel: tuple[str, ...]) -> None:
    found = runs(
        """
import errno, os
def full(fd):
    raise OSError(errno.ENOSPC, "No space left on device")
def test_v1_first(case): case.expect("map", "OK")
def test_v1_filler(): os.fsync = full
def test_v1_never(case): case.expect("map", "OK")
""",
        *parallel,
    )
    assert found.code == 125
    assert "INTERNALERROR" not in found.output
    assert found.output.count("nvh: disk full: ") == 1
    assert found.output.count("disk full") == 1
    assert found.summary["finished"] is False
    assert list(found.tests) == ["first"]
    assert 'name="test_v1_first"' in (found.results / "latest" / "junit.xml").read_text()


def test_what_was_seen_is_there_when_a_test_is_killed(runs: Runs) -> None:
    found = runs(
        """
import os, signal
def test_v1_killer(guest, case):
    case.prove("the mount is DAX", True)
    guest.note("# facts {}")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    (run,) = (path for path in found.results.iterdir() if not path.is_symlink())
    (folder,) = (run / "tests").iterdir()
    assert (folder / "output.txt").read_text() == "proven: the mount is DAX\n# facts {}\n"


def test_workers_log_into_the_runs_log(runs: Runs, pytester: pytest.Pytester) -> None:
    results = pytester.mkdir("given")
    (results / "tests").mkdir()
    runs(
        """
import logging
def test_v1_a(case):
    logging.getLogger("harness.pool").debug("said by the pool")
    logging.getLogger("paramiko").debug("said by paramiko")
    case.expect("map", "OK")
""",
        "-n",
        "2",
        f"--nvh-results={results}",
    )
    log = (results / "harness.log").read_text()
    assert re.search(r" \d+ DEBUG harness.pool: said by the pool", log)
    assert "paramiko" not in log
    # The log is one thing, what the test printed another.
    assert (
        "said by the pool" not in (next((results / "tests").iterdir()) / "output.txt").read_text()
    )


def test_the_way_back_has_all_options_of_the_run(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # without an nvh
    found = runs(
        "def test_v1_a(case): case.expect('map', 'EFAULT')",
        "--nvh-isolation=boot",
        "--nvh-strict",
        "--nvh-kernel=/k",
    )
    again = ".venv/bin/nvh test -k test_v1_a --kernel /k --isolation boot --strict"
    assert found.tests["a"]["again"] == again
    assert f"again:  {again}" in found.output


def test_what_the_kernel_said_while_booting_is_told_once(runs: Runs) -> None:
    found = runs(
        """
def test_v1_a(guest, case):
    guest.facts = {"boot_findings": ["WARNING in nvdimm_probe"]}
    case.expect("map", "OK")
test_v1_b = test_v1_a
"""
    )
    assert found.output.count("kernel, while booting: WARNING in nvdimm_probe") == 1
    assert found.summary["properties"]["boot_findings"] == "WARNING in nvdimm_probe"
    junit = (found.results / "latest" / "junit.xml").read_text()
    assert '<property name="boot_findings" value="WARNING in nvdimm_probe"' in junit
    assert found.summary["exit_code"] == 0
