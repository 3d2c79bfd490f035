"""An interrupt ends a run, whatever its cleaning does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import cli, interrupts, signals
from harness.errors import EXIT_INTERRUPTED, EXIT_USAGE
from tests.made_up_runs import Runs

pytest_plugins = ["pytester"]


@pytest.mark.parametrize(
    "cleaning", ["raise GuestLost('SSH broke')", "return"], ids=["an error", "no error"]
)
@pytest.mark.parametrize("words", [(), ("-n", "1")], ids=["alone", "a worker"])
def test_what_cleaning_ends_with_is_no_verdict(
    runs: Runs, cleaning: str, words: tuple[str, ...]
) -> None:
    """A worker would go on with the next test, deaf to any further interrupt."""
    found = runs(
        f"""
import os, signal, time

def test_v1_before(case): case.expect("map", "OK")

def test_v1_first(case):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
    finally:
        {cleaning}

def test_v1_second(case): case.expect("map", "OK")
""",
        *words,
    )
    assert found.code == 2, found.output
    assert list(found.tests) == ["before"]


@pytest.mark.parametrize("words", [(), ("-n", "1")], ids=["alone", "a worker"])
def test_no_time_goes_into_a_traceback_that_nobody_reads(
    runs: Runs, words: tuple[str, ...]
) -> None:
    """On a busy machine pytest would take seconds for it, in each process."""
    found = runs(
        """
import os, signal, time

def test_v1_first(case):
    note_parses()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)
""",
        *words,
    )
    assert found.code == 2, found.output
    assert 0 < len(found.parsed) <= 2  # a file and a function, where it came


def test_who_ends_a_session_before_it_begins_is_heard(
    runs: Runs, pytester: pytest.Pytester
) -> None:
    (pytester.path / "testcases" / "conftest.py").write_text(
        """
import pytest

def pytest_sessionstart():
    pytest.exit("no such device", returncode=125)
"""
    )
    found = runs("def test_v1_first(case): case.expect('map', 'OK')")
    assert found.code == 125, found.output
    assert "no such device" in found.output
    assert "Traceback" not in found.output


def test_with_pdb_it_is_for_the_debugger(runs: Runs) -> None:
    found = runs(
        """
import os, signal, time
def test_v1_first(case):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)
""",
        "--pdb",
    )
    assert "PDB post_mortem" in found.output


@contextlib.contextmanager
def interrupted() -> Iterator[None]:
    """This process is, in the block; its session goes on behind it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(signals, "_interrupts", signals._Interrupts())
        with pytest.raises(KeyboardInterrupt):
            signals.end()
        yield


def test_a_debuggers_prompt_takes_it() -> None:
    with interrupted():
        assert signals.came()
        interrupts.pytest_leave_pdb()
        assert not signals.came()


def test_an_error_of_its_cleaning_has_no_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["report", str(tmp_path / "nothing")]
    assert cli.main(words) == EXIT_USAGE
    said = capsys.readouterr()
    with interrupted():
        assert cli.main(words) == EXIT_INTERRUPTED
    assert capsys.readouterr() == said  # it is told all the same
