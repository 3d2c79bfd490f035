"""Reports as testcases: what their files say, what a reproducer said, and nvh new-report."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness import paths
from harness.cli import main
from harness.errors import SpecError, WorkloadError
from harness.report.record import program
from harness.verdict.expectation import row_id
from harness.verdict.reports import good_name, heard, load_reports

GOOD = """
[report]
title = "it leaks"
mail = "https://example.org/1"
claim = "it leaks, and should not"
kernels = [">=5.8", "<6.2"]
[setup]
devices = ["edu"]
mount = { filesystem = "xfs" }
[run]
arguments = ["--file", "$NVH_MOUNT/a"]
[proof]
dax = true
[right]
map = "OK"
"""


def write(folder: Path, text: str = GOOD, name: str = "some_report") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.toml").write_text(text)
    (folder / f"{name}.sh").write_text("#!/bin/sh\n")
    return folder


def test_a_report_is_read(tmp_path: Path) -> None:
    (report,) = load_reports(write(tmp_path))
    assert report.row.id == report.name == "some_report"
    assert (report.row.source, dict(report.row.right)) == (
        ("https://example.org/1",),
        {"map": "OK"},
    )
    assert report.mount is not None
    assert (report.mount.nvdimm, report.mount.filesystem) == ("fsdax0", "xfs")
    assert report.script == tmp_path / "some_report.sh"
    assert report.concerns("6.1.192")
    assert not report.concerns("6.12.117")
    assert not report.concerns("5.4.1")


def test_what_names_nothing_right_has_to_end_well(tmp_path: Path) -> None:
    text = GOOD.partition("[right]")[0]
    (report,) = load_reports(write(tmp_path, text))
    assert dict(report.right) == {"result": "ok"}


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('"it leaks"', '""', "title: is empty"),
        ('mail = "https://example.org/1"', "", "mail: is missing"),
        ('">=5.8"', '"5.8"', "is not a condition"),
        ('"xfs"', '"fat"', "'fat' is not one of"),
        ("[setup]", "[setpu]", "unknown key"),
        ("devices", "device", "did you mean devices"),
        ("[report]", "[other]", "report"),
        ("[right]\n", "[right\n", "not TOML"),
        ("kernels", 'machine = "/tmp/evil.toml"\nkernels', "is not a machine's name"),
        ("kernels", 'machine = "../evil"\nkernels', "is not a machine's name"),
    ],
)
def test_a_mistake_is_told_by_its_place(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint) as caught:
        load_reports(write(tmp_path, GOOD.replace(old, new)))
    assert "some_report.toml" in str(caught.value)


def test_a_report_without_a_reproducer_is_told(tmp_path: Path) -> None:
    (write(tmp_path) / "some_report.sh").unlink()
    with pytest.raises(SpecError, match="no reproducer"):
        load_reports(tmp_path)


@pytest.mark.parametrize("name", ["v3", "x", "Name", "a-b", "../x", "1abc", "a" * 41, "p12"])
def test_names_that_are_none(name: str) -> None:
    assert not good_name(name)


def test_its_test_carries_its_name() -> None:
    assert row_id("testcases/test_reports.py::test_report[some_report]") == "some_report"
    assert row_id("test_v3_x[some_report]") == "V3"


# What a reproducer said


@pytest.mark.parametrize(
    ("status", "output", "result"),
    [
        (0, "", "ok"),
        (0, "free words\n", "ok"),
        (1, "", "status 1"),
        (139, "", "ended by signal 11"),
        (0, "ok 1 - a\nnot ok 2 - it leaks\n1..2\n", "not ok: it leaks"),
        (1, "not ok 1 - a\nnot ok 2 - b\n", "not ok: a; b"),
        (0, "    not ok 1 - nested\nok 1\n", "not ok: nested"),
        (0, "ok 1 - a # SKIP no device\n1..1", "ok"),
    ],
)
def test_how_it_ended(status: int, output: str, result: str) -> None:
    assert heard(status, output).result == result


def test_facts_of_several_programs_are_one_reproducers() -> None:
    said = heard(0, '# facts {"a": 1, "b": 2}\n1..0\n# facts {"b": 3}\n')
    assert dict(said.facts) == {"a": 1, "b": 3}


def test_what_it_lacks_and_what_it_could_not_begin() -> None:
    assert heard(0, "1..0 # SKIP no kvm\n").skipped == "no kvm"
    assert heard(0, "1..0 # skip\n").skipped == "it does not say why"
    assert heard(2, "Bail out! usage\n").bailed == "usage"
    assert heard(0, "ok 1\n1..1\n").skipped == ""


def test_broken_facts_are_told() -> None:
    with pytest.raises(WorkloadError, match="no JSON"):
        heard(0, "# facts {broken\n")


# nvh new-report


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NVH_REPORTS", str(tmp_path / "reports"))
    return tmp_path / "reports"


@pytest.mark.parametrize("kind", ["--sh", "--c"])
def test_a_new_report_is_one(folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--mail", 'a "quoted" mail', "--title", 'it */ leaks\n\\ and "more"']
    assert main(["new-report", "my_bug", kind, *words, "--machine", "nested"]) == 0
    (report,) = load_reports(folder)
    assert (report.mail, report.machine) == ('a "quoted" mail', "nested")
    assert (report.script is None) == (kind == "--c")
    assert report.mount is not None
    said = capsys.readouterr().out
    assert f"{program()} test -k my_bug\n" in said
    assert ("make workloads" in said) == (kind == "--c")
    assert main(["new-report", "my_bug"]) == 2  # nothing is overwritten


@pytest.mark.parametrize("name", ["v3", "../x", "vfio_map", "A"])
def test_a_bad_name_is_refused(folder: Path, name: str) -> None:
    assert main(["new-report", name]) == 2
    assert not folder.exists()


def test_a_wrong_machine_is_refused(folder: Path) -> None:
    assert main(["new-report", "my_bug", "--machine", "nowhere"]) == 2
    assert main(["new-report", "my_bug", "--machine", "mine.toml"]) == 2
    assert not folder.exists()


def test_the_c_skeleton_is_built_with_the_workloads(folder: Path, tmp_path: Path) -> None:
    main(["new-report", "my_bug", "--c", "--title", "%s {x} */"])
    make = [
        *("make", "-s", "-C", str(paths.source_tree() / "testcases/workloads")),
        *(f"BUILD={tmp_path}/build", f"{tmp_path}/build/my_bug"),
    ]
    subprocess.run(make, check=True, timeout=300)
    done = subprocess.run(
        [tmp_path / "build/my_bug", "--file", tmp_path / "file"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = heard(done.returncode, done.stdout)
    assert (said.result, dict(said.facts)) == ("ok", {"data": "equal"})


def test_a_report_does_not_take_a_workloads_name(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    (folder / "layout.c").write_text("int main(void) { return 0; }\n")
    make = ["make", "-s", "-C", str(paths.source_tree() / "testcases/workloads")]
    done = subprocess.run(
        [*make, f"BUILD={tmp_path}/build"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "layout is the name of a workload" in done.stderr


def test_the_reports_of_this_checkout_are_sound() -> None:
    reports = load_reports(paths.source_tree() / "testcases" / "reports")
    assert {report.name for report in reports} >= {
        "vfio_fsdax_pins", "s_dax_definition", "dax_layout_busy_page", "kvm_huge_dax",
        "vfio_pfnmap_fault",
    }  # fmt: skip
    assert all(report.claim.strip() and report.kernels for report in reports)
