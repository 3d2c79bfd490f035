"""What guest a test asks for by its markers and the run's options, and what comes behind it."""

from __future__ import annotations

import pytest

from harness.pool import Wish
from tests.made_up_runs import Run, Runs

pytest_plugins = ["pytester"]


def wishes(run: Run) -> list[tuple[str, str]]:
    """Return what each test asked for and what it said would be asked for next."""
    lines = (run.results.parent / "wishes").read_text().splitlines()
    return [(wish, then) for wish, _, then in (line.partition(" then ") for line in lines)]


MARKERS = {
    "": Wish(),
    'isolation("clone")': Wish("clone"),
    'isolation("boot")': Wish("boot"),
    'isolation("shared")': Wish("shared"),
    'machine("other")': Wish(machine="other"),
    'kernel_args("quiet")': Wish(append=("quiet",)),
    'kernel_args("intel_iommu=off", "nosmp")': Wish(append=("intel_iommu=off", "nosmp")),
}


def test_markers_make_the_wish(runs: Runs) -> None:
    tests = ""
    for number, marker in enumerate(MARKERS):
        tests += f"@pytest.mark.{marker}\n" if marker else ""
        tests += f"def test_v1_n{number}(guest, case): case.expect('map', 'OK')\n"
    found = runs(tests)
    assert [wish for wish, _ in wishes(found)] == [str(wish) for wish in MARKERS.values()]


def test_a_tests_own_marker_goes_before_its_modules_and_the_runs_option(runs: Runs) -> None:
    tests = """
pytestmark = [pytest.mark.machine("other"), pytest.mark.isolation("boot")]
def test_v1_modules(guest, case): case.expect("map", "OK")
@pytest.mark.isolation("clone")
def test_v1_own(guest, case): case.expect("map", "OK")
"""
    found = runs(tests, "--nvh-isolation", "shared")
    assert [wish for wish, _ in wishes(found)] == [
        str(Wish("boot", "other")),
        str(Wish("clone", "other")),
    ]


def test_the_runs_option_is_for_tests_without_a_marker(runs: Runs) -> None:
    found = runs(
        "def test_v1_a(guest, case): case.expect('map', 'OK')", "--nvh-isolation", "shared"
    )
    assert wishes(found) == [(str(Wish("shared")), "None")]


def test_the_next_wish_is_told_unless_the_next_test_has_no_guest(runs: Runs) -> None:
    found = runs(
        """
def test_v1_a(guest, case): case.expect("map", "OK")
@pytest.mark.isolation("boot")
def test_v1_b(guest, case): case.expect("map", "OK")
def test_v1_c(case): case.expect("map", "OK")
@pytest.mark.machine("other")
def test_v1_d(guest, case): case.expect("map", "OK")
"""
    )
    assert wishes(found) == [
        (str(Wish()), str(Wish("boot"))),
        (str(Wish("boot")), "None"),
        (str(Wish(machine="other")), "None"),
    ]


@pytest.mark.parametrize(
    ("marker", "told"),
    [
        ('isolation("vm")', "no isolation is called 'vm' (clone, boot, shared)"),
        ("isolation()", "marker isolation takes one word"),
        ('machine("one", "two")', "marker machine takes one word"),
    ],
)
def test_a_marker_that_means_nothing_is_refused_before_anything_runs(
    runs: Runs, marker: str, told: str
) -> None:
    found = runs(
        f"""
def test_v1_a(guest): pass
@pytest.mark.{marker}
def test_v1_b(guest): pass
"""
    )
    assert found.code == pytest.ExitCode.USAGE_ERROR
    assert f"test_v1_b: {told}" in found.output
    assert not found.results.exists()
    assert "INTERNALERROR" not in found.output


def test_a_level_that_does_not_exist_is_no_option(runs: Runs) -> None:
    found = runs("def test_v1_a(guest): pass", "--nvh-isolation", "vm")
    assert found.code == pytest.ExitCode.USAGE_ERROR


def test_the_power_of_a_shared_guest_is_not_cut(runs: Runs) -> None:
    found = runs(
        """
@pytest.mark.isolation("shared")
def test_v1_a(power_cycle):
    pass
"""
    )
    assert "a shared guest's power is not cut" in found.output
