"""What the plugin makes of each end of a test and of a run."""

from __future__ import annotations

import pytest

from harness.run_reporter import exit_code
from harness.verdict.judge import SPLAT
from tests.made_up_runs import BUG, Runs

pytest_plugins = ["pytester"]


def test_only_what_is_nobodys_verdict_shows_where_it_was_raised(runs: Runs) -> None:
    found = runs(
        """
def test_v1_wrong(case): case.expect("map", "EFAULT")
def test_v1_own_fault(case): case.fact("pages", {}["no such key"])
"""
    )
    assert '{}["no such key"]' in found.output
    assert 'case.expect("map"' not in found.output


def test_no_file_is_parsed_for_a_traceback_that_does_not_show(runs: Runs) -> None:
    found = runs(
        """
def test_v1_from_here_on(case):
    note_parses()
    case.expect("map", "OK")
def test_v1_wrong(case): case.expect("map", "EFAULT")
def test_v1_skipped(case): case.skip("not here")
"""
    )
    assert found.tests["wrong"]["status"] == "FAIL"
    assert found.tests["skipped"]["status"] == "SKIP"
    assert not found.parsed


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


def test_what_comes_after_a_known_mismatch_is_judged(runs: Runs) -> None:
    found = runs(
        """
def gather(case, **seen):
    with case.gathered():
        for key, value in seen.items():
            case.expect(key, value, right={"map": "OK", "waits": True, "data": "OK"}[key])
def test_v1_pair_both(case): gather(case, map="ENOSYS", waits=False, data="OK")
def test_v1_pair_more(case): gather(case, map="ENOSYS", waits=False, data="lost")
def test_v1_pair_half(case): gather(case, map="ENOSYS", waits=True, data="OK")
def test_v1_pair_then(case):
    try:
        gather(case, map="ENOSYS", waits=False)
    except AssertionError as error:
        raise RuntimeError("x") from error
"""
    )
    assert found.tests["pair_both"].get("known") == "made-up-pair"
    words = "map: expected OK, seen ENOSYS; waits: expected true, seen false; data: expected OK"
    assert words in found.output
    assert not any(found.tests[f"pair_{one}"].get("known") for one in ("more", "half", "then"))


def test_pins_that_are_left_fail_a_test_that_does_not_allow_them(runs: Runs) -> None:
    found = runs(
        """
def test_v1_left(guest, case):
    guest.pins = 512
    case.expect("map", "OK")
def test_v1_allowed(guest, case):
    case.allow("^pins_left: ")
    guest.pins = 512
    case.expect("map", "OK")
"""
    )
    assert found.tests["left"]["status"] == "FAIL"
    assert found.tests["left"]["message"] == "pins_left: expected 0, seen 512"
    assert found.tests["allowed"]["status"] == "PASS"
    # What may go is waited for, what a test says will stay is not.
    words = {name: found.dmesg(name).strip() for name in ("left", "allowed")}
    assert words["left"] == "pins that stay are known: False"
    assert words["allowed"] == "pins that stay are known: True"


def test_no_test_passes_whose_guest_does_not_tell_what_its_kernel_said(runs: Runs) -> None:
    found = runs(
        f"""
BUG = {BUG!r}
def test_v1_right(guest, case):
    guest.untold = GuestHung("no end after 200 s: log")
    case.expect("map", "OK")
def test_v1_wrong(guest, case):
    guest.untold = GuestHung("no end after 200 s: log")
    case.expect("map", "EFAULT")
def test_v1_dies_of_it(guest, case):
    guest.untold = GuestHung("no end after 200 s: log")
    guest.killer = GuestReset("the guest ended unasked")
    case.expect("map", "OK")
def test_v1_says_why(guest, case):
    guest.untold = GuestHung("no end after 200 s: log")
    guest.last_words = BUG
    case.expect("map", "OK")
def test_v1_was_dead(guest, case):
    guest.vm.death = lambda: GuestReset("the guest ended unasked")
    case.expect("map", "OK")
"""
    )
    ends = {name: (test["status"], test["message"]) for name, test in found.tests.items()}
    assert ends == {
        "right": ("MISS", "no end after 200 s: log"),
        "wrong": ("FAIL", "map: expected OK, seen EFAULT"),
        "dies_of_it": ("FAIL", "the guest ended unasked"),
        "says_why": ("FAIL", f"{SPLAT}: KASAN: use-after-free in dax_layout_busy_page"),
        "was_dead": ("FAIL", "the guest ended unasked"),
    }


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
def test_v1_faked(guest, case):
    guest.log = "[    9.1] Kernel panic - not syncing: said by a program"
    case.expect("map", "OK")
def test_v1_other_allowed(guest, case):
    case.allow("something else")
    guest.log = BUG
    case.expect("map", "OK")
def test_v1_splat_and_wrong(guest, case):
    guest.log = BUG
    case.expect("map", "EFAULT")
def test_v1_splat_kills_a_program(guest, case):
    guest.log = BUG
    raise WorkloadError("'umount /mnt' ended with status 139: Segmentation fault")
def test_v1_splat_before_a_skip(guest, case):
    guest.log = BUG
    case.skip("no such thing", enable="buy one")
def test_v1_splat_of_a_lost_guest(guest, case):
    guest.log = BUG
    raise GuestLost("gone")
"""
    )
    statuses = {name: entry["status"] for name, entry in found.tests.items()}
    assert statuses == {
        "quiet": "PASS",
        "splat": "FAIL",
        "allowed": "PASS",
        "faked": "PASS",
        "other_allowed": "FAIL",
        "splat_and_wrong": "FAIL",
        "splat_kills_a_program": "FAIL",
        "splat_before_a_skip": "FAIL",
        "splat_of_a_lost_guest": "MISS",
    }
    assert "dax_layout_busy_page" in found.tests["splat"]["message"]
    assert "dax_layout_busy_page" in found.tests["splat_kills_a_program"]["message"]
    assert "umount" in found.tests["splat_kills_a_program"]["hint"]


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
