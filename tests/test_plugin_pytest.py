"""The plugin beside pytest's own options and other plugins: each does what its manual says."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest

from tests.made_up_runs import BUG, Run, Runs

pytest_plugins = ["pytester"]

THREE = """
def test_v1_right(guest, case): case.expect("map", "OK")
def test_v1_wrong(guest, case): case.expect("map", "ENOSYS")
def test_v11_other(guest, case): case.expect("pin", "OK", right="OK")
"""
CACHE = ("-p", "cacheprovider")


def verdicts(run: Run) -> dict[str, str]:
    return {entry["test"].rpartition("::")[2]: entry["status"] for entry in run.summary["tests"]}


def test_exitfirst_ends_the_run_and_keeps_what_there_is(runs: Runs) -> None:
    found = runs(THREE, "-x")
    assert found.code == pytest.ExitCode.TESTS_FAILED
    assert verdicts(found) == {"test_v1_right": "PASS", "test_v1_wrong": "FAIL"}
    assert "stopping after 1 failures" in found.output


def test_keywords_are_rows_or_words(runs: Runs) -> None:
    assert set(verdicts(runs(THREE, "-k", "V1"))) == {"test_v1_right", "test_v1_wrong"}
    assert set(verdicts(runs(THREE, "-k", "V11 or right"))) == {"test_v1_right", "test_v11_other"}


def test_last_failed_runs_what_failed(runs: Runs) -> None:
    runs(THREE, *CACHE)
    found = runs(THREE, *CACHE, "--lf")
    assert verdicts(found) == {"test_v1_wrong": "FAIL"}


def test_workers_share_one_results_directory(runs: Runs) -> None:
    found = runs(THREE, "-n", "2")
    assert sorted(verdicts(found).values()) == ["FAIL", "PASS", "PASS"]
    assert len([path for path in found.results.iterdir() if not path.is_symlink()]) == 1


def test_pytests_own_junit_file_is_written_beside_ours(
    runs: Runs, pytester: pytest.Pytester
) -> None:
    found = runs(THREE, "--junitxml=own.xml")
    tree = ET.parse(pytester.path / "own.xml")
    names = [case.get("name") for case in tree.iter("testcase")]
    assert names == ["test_v1_right", "test_v1_wrong", "test_v11_other"]
    assert [case.get("name") for case in tree.iter("testcase") if case.find("failure") is not None]
    assert (found.results / "latest" / "junit.xml").is_file()


def test_strict_markers(runs: Runs) -> None:
    marked = """
@pytest.mark.isolation("boot")
@pytest.mark.machine("other")
@pytest.mark.kernel_args("quiet")
def test_v1_marked(guest, case): case.expect("map", "OK")
"""
    assert (
        runs(marked, "--strict-markers", "-W", "error::pytest.PytestUnknownMarkWarning").code
        == pytest.ExitCode.OK
    )


# pytest-timeout

SLEEPS = """
import time
def test_v1_sleeps(guest, case): time.sleep(300)
def test_v1_right(guest, case): case.expect("map", "OK")
"""


def test_a_timeout_of_pytest_timeout_fails_the_test_and_the_run_goes_on(runs: Runs) -> None:
    found = runs(SLEEPS, "--timeout=10", "--timeout-method=signal")
    assert verdicts(found) == {"test_v1_sleeps": "FAIL", "test_v1_right": "PASS"}
    assert "Timeout" in found.tests["sleeps"]["message"]


def test_the_earlier_of_both_limits_counts(runs: Runs) -> None:
    found = runs(SLEEPS, "--timeout=60", "--nvh-max-test-time=10")
    assert verdicts(found) == {"test_v1_sleeps": "MISS", "test_v1_right": "PASS"}
    assert "no end after 10 s" in found.tests["sleeps"]["message"]


def test_a_timeout_holds_after_a_test_of_ours(runs: Runs) -> None:
    """Ours gives the process's one timer back: here a fixture is slow when the test is over."""
    slow = """
import time
@pytest.fixture
def slow():
    yield
    time.sleep(30)
def test_v1_right(slow, case): case.expect("map", "OK")
"""
    assert "Timeout" in runs(slow, "--timeout=10", "--timeout-method=signal").output


# Another project's tests


@pytest.fixture
def elsewhere(runs: Runs, pytester: pytest.Pytester) -> Callable[..., Run]:
    """Run tests that lie beside the harness's testcases instead of among them."""

    def run(tests: str, *options: str) -> Run:
        pytester.makepyfile(test_mine="import pytest\n" + tests)
        done = pytester.runpytest_subprocess("test_mine.py", *options, timeout=120)
        text = done.stdout.str() + done.stderr.str()
        return Run(int(done.ret), text, pytester.path / "results")

    runs("", "--collect-only")
    return run


def test_their_names_are_theirs(elsewhere: Callable[..., Run]) -> None:
    found = elsewhere(
        """
def test_v99_is_no_row(guest, case): case.expect("answer", 42, right=42)
def test_v1_is_none_either(guest): pass
def test_cache_L1(guest): pass
"""
    )
    assert found.code == pytest.ExitCode.OK
    assert set(verdicts(found).values()) == {"PASS"}
    assert [entry["id"] for entry in found.summary["tests"]] == [None] * 3
    assert (found.results / "latest" / "report.html").is_file()


def test_their_keywords_are_theirs(elsewhere: Callable[..., Run]) -> None:
    tests = "def test_cache_L1(guest): pass\ndef test_other(guest): pass\n"
    assert set(verdicts(elsewhere(tests, "-k", "L1"))) == {"test_cache_L1"}


def test_a_splat_fails_their_tests_and_a_proof_that_fails_skips_them(
    elsewhere: Callable[..., Run],
) -> None:
    found = elsewhere(
        f"""
def test_splat(guest):
    '''It complains.'''
    guest.log = {BUG!r}
def test_without(guest, case): case.prove("it has one", False, enable="buy one")
def test_wrong(guest, case): case.expect("answer", 41, right=42)
"""
    )
    assert verdicts(found) == {"test_splat": "FAIL", "test_without": "SKIP", "test_wrong": "FAIL"}
    assert "again:  pytest test_mine.py::test_splat" in found.output
    assert found.summary["tests"][0]["title"] == "It complains."
    assert not list(found.results.glob("*/bundles/test*"))


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["alone", "workers"])
def test_a_test_without_a_guest_is_none_of_ours(
    elsewhere: Callable[..., Run], options: tuple[str, ...]
) -> None:
    found = elsewhere("def test_plain(): pass", *options)
    assert found.code == pytest.ExitCode.OK
    assert not found.results.exists()


def test_the_latest_results_stay_the_latest(elsewhere: Callable[..., Run]) -> None:
    latest = elsewhere("def test_mine(guest): pass").results / "latest"
    before = latest.resolve()
    elsewhere("def test_plain(): pass", "-n", "1")
    assert latest.resolve() == before


# What a user is shown


def test_each_option_has_our_prefix_and_a_line_of_help(pytester: pytest.Pytester) -> None:
    text = pytester.runpytest_subprocess("-p", "harness.pytest_plugin", "--help").stdout.str()
    group = text.partition("nvdimm-harness:\n")[2].partition("\n\n")[0]
    options = [line.split()[0] for line in group.splitlines() if line.startswith("  --")]
    assert len(options) >= 12
    assert all(option.startswith("--nvh-") for option in options)
    assert "--nvh-" not in text.replace(group, "")
    for marker in ("isolation(", "machine(", "kernel_args("):
        assert (
            marker
            in pytester.runpytest_subprocess(
                "-p", "harness.pytest_plugin", "--markers"
            ).stdout.str()
        )


FIXTURES = (
    "case",
    "devdax",
    "fsdax",
    "guest",
    "guests",
    "lab",
    "machine",
    "power_cycle",
    "vfio_device",
    "workload",
)


def test_each_fixture_is_documented(pytester: pytest.Pytester) -> None:
    text = pytester.runpytest_subprocess("-p", "harness.pytest_plugin", "--fixtures").stdout.str()
    for name in FIXTURES:
        where = text.index(f"\n{name} ")
        assert "no docstring" not in text[where:].partition("\n\n")[0]
