"""Statuses, the catalogue and the record of a test."""

import json
from pathlib import Path

import pytest

from harness.errors import SpecError
from harness.verdict.expectation import Case, Catalogue, Mismatch, NotProven, Row, row_id
from harness.verdict.status import Status, exit_code

GOOD = """
[V3]
title = "fsdax file mapped for DMA"
source = ["commit 94db151dc892 (v4.16)"]
needs = ["an fsdax namespace"]
[V3.right]
map = "EOPNOTSUPP"
blocked = true
"""


def load(tmp_path: Path, text: str) -> Catalogue:
    (tmp_path / "v.toml").write_text(text)
    return Catalogue.load(tmp_path)


def case_of(tmp_path: Path, lines: list[str] | None = None) -> Case:
    echo = (lambda _line: None) if lines is None else lines.append
    return Case(load(tmp_path, GOOD)["V3"], echo=echo)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("", 125),
        ("PASS", 0),
        ("PASS SKIP", 0),
        ("DONE", 0),
        ("SKIP SKIP", 125),
        ("PASS ERROR", 125),
        ("PASS MISS", 125),
        ("FAIL MISS ERROR", 1),
        ("FAIL PASS", 1),
    ],
)
def test_exit_code(words: str, code: int) -> None:
    assert exit_code(Status(word) for word in words.split()) == code


def test_each_status_has_a_meaning() -> None:
    assert len({status.meaning for status in Status}) == 6


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("test_v3_fsdax_is_refused", "V3"),
        ("testcases/test_v.py::test_v3_x[ext4]", "V3"),
        ("test_l12_many[a::test_v1_]", "L12"),
        ("test_s1", "S1"),
        ("test_something", None),
        ("test_v3x", None),
    ],
)
def test_row_id_of_a_name(name: str, found: str | None) -> None:
    assert row_id(name) == found


def test_catalogue_reads_rows(tmp_path: Path) -> None:
    catalogue = load(tmp_path, GOOD)
    row = catalogue["V3"]
    assert isinstance(row, Row)
    assert row.source == ("commit 94db151dc892 (v4.16)",)
    assert row.expected("map") == "EOPNOTSUPP"
    assert catalogue.of_test("test_v3_x[ext4]") == row
    assert catalogue.of_test("test_other") is None
    assert [item.id for item in catalogue] == ["V3"]
    with pytest.raises(SpecError, match="no row V9"):
        catalogue.of_test("test_v9_x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = [", r"v\.toml: not TOML"),
        ('[v3]\ntitle="x"', r"v\.toml:1: v3: is no row's id"),
        ("V3 = 1", r"v\.toml:1: V3"),
        ('[V3]\nsource=["a"]', r"v\.toml:1: \[V3\] title: is missing"),
        ('[V3]\ntitle="x"', r"v\.toml:1: \[V3\] source: is missing"),
        ('[V3]\ntitle="x"\nsource=[1]', r"v\.toml:3: \[V3\] source"),
        ('[V3]\ntitle="x"\nsource=["a"]\nrihgt={}', r"v\.toml:4: \[V3\] rihgt: unknown key"),
        ('[V3]\ntitle="x"\nsource=["a"]\nright=3', r"v\.toml:4: \[V3\] right"),
    ],
)
def test_catalogue_complains_with_file_table_and_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        load(tmp_path, text)


def test_one_row_in_two_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text(GOOD)
    with pytest.raises(SpecError, match=r"w\.toml: \[V3\]: is also in .*v\.toml"):
        load(tmp_path, GOOD)


def test_empty_directory_is_no_catalogue(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no catalogue"):
        Catalogue.load(tmp_path)


def test_expect_shows_expected_seen_and_source(tmp_path: Path) -> None:
    lines: list[str] = []
    case = case_of(tmp_path, lines)
    case.expect("map", "EOPNOTSUPP")
    with pytest.raises(Mismatch, match="map: expected EOPNOTSUPP, seen OK"):
        case.expect("map", "OK")
    assert lines == [
        "ok: map: expected EOPNOTSUPP, seen EOPNOTSUPP (source: commit 94db151dc892 (v4.16))",
        "NOT OK: map: expected EOPNOTSUPP, seen OK (source: commit 94db151dc892 (v4.16))",
    ]
    assert [item["ok"] for item in case.expectations] == [True, False]


def test_expect_keeps_booleans_and_numbers_apart(tmp_path: Path) -> None:
    case = case_of(tmp_path)
    case.expect("blocked", True)
    with pytest.raises(Mismatch):
        case.expect("blocked", 1)
    case.expect("pages", (1, 2), right=[1, 2])
    with pytest.raises(SpecError, match=r"\[V3.right\] nothing: is missing \(known: map, blocked"):
        case.expect("nothing", 1)


def test_prove_is_a_miss_or_with_a_way_to_get_it_a_skip(tmp_path: Path) -> None:
    case = case_of(tmp_path)
    case.prove("the mount is DAX", True, seen="0x200000")
    with pytest.raises(NotProven, match="not proven: the mount is DAX") as miss:
        case.prove("the mount is DAX", False)
    assert miss.value.status is Status.MISS
    with pytest.raises(NotProven) as skip:
        case.prove("svm", False, enable="boot with -cpu max")
    assert skip.value.status is Status.SKIP
    assert skip.value.hint == "boot with -cpu max"
    with pytest.raises(NotProven) as again:
        case.skip("no /dev/kvm")
    assert again.value.status is Status.SKIP


def test_record_is_json_and_harmless(tmp_path: Path) -> None:
    lines: list[str] = []
    case = case_of(tmp_path, lines)
    case.fact("stack", "a\nb\x1b[31m" + "x" * 100000)
    case.fact("path", tmp_path)
    case.fact("set", {2, 1})
    case.fact("row", case.row)
    case.fact("nan", float("nan"))
    case.allow("DMAR:.*fault")
    assert "NaN" not in json.dumps(case.record)
    assert case.allowed == ("DMAR:.*fault",)
    assert all("\x1b" not in line and "\n" not in line for line in lines)
    assert max(map(len, lines)) < 1000


def gather(case: Case, **seen: object) -> None:
    with case.gathered():
        for key, value in seen.items():
            case.expect(key, value)
            if value is None:
                raise KeyError(key)


def nest(case: Case) -> None:
    with case.gathered():
        gather(case, map="OK")
        case.expect("blocked", False)


def test_gathered_mismatches_are_raised_as_one(tmp_path: Path) -> None:
    case = case_of(tmp_path)
    with pytest.raises(Mismatch, match=r"^map: .* seen OK; blocked: expected true, seen false$"):
        gather(case, map="OK", blocked=False)
    assert len(case.mismatches) == 2
    gather(case, map="EOPNOTSUPP")
    with pytest.raises(Mismatch, match=r"^map: .* seen OK; blocked: expected true, seen false$"):
        nest(case)
    with pytest.raises(Mismatch, match=r"^map: expected EOPNOTSUPP, seen OK$"):
        case.expect("map", "OK")


def test_what_is_wrong_counts_more_than_what_is_not_proven(tmp_path: Path) -> None:
    case = case_of(tmp_path)
    with pytest.raises(Mismatch), case.gathered():
        gather_and_prove(case, "OK")
    with pytest.raises(NotProven), case.gathered():
        gather_and_prove(case, "EOPNOTSUPP")


def gather_and_prove(case: Case, seen: str) -> None:
    with case.gathered():
        case.expect("map", seen)
        case.prove("x", False)


def test_a_fault_in_a_gathering_block_is_its_own(tmp_path: Path) -> None:
    case = case_of(tmp_path)
    with pytest.raises(KeyError):
        gather(case, map=None)
    assert case.mismatches == ("map: expected EOPNOTSUPP, seen null",)
