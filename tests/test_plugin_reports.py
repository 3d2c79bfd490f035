"""What the plugin selects, runs and writes, however a run ends."""

from __future__ import annotations

import json
import re

import pytest

from harness.run_reporter import verdict_of
from tests.made_up_runs import BUG, CATALOGUE, Runs

pytest_plugins = ["pytester"]


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
