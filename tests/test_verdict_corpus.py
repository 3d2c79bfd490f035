"""The classifier on whole logs: crashes that must be found, clean logs that must stay so."""

import random
import tomllib
from pathlib import Path

import pytest

from harness.verdict.classifier import Classifier, Finding, classify

LOGS = Path(__file__).parent / "logs"
CRASHES = sorted((LOGS / "crash").glob("*.log"))
CLEAN = sorted((LOGS / "clean").glob("*.log"))
EXPECTED: dict[str, list[list[str]]] = tomllib.loads((LOGS / "crash" / "expected.toml").read_text())


def stream(data: bytes, pieces: list[bytes]) -> list[Finding]:
    assert b"".join(pieces) == data
    classifier = Classifier()
    found = [finding for piece in pieces for finding in classifier.feed(piece)]
    return sorted(found + classifier.finish(), key=lambda finding: finding.first_line)


def cut(data: bytes, seed: int) -> list[bytes]:
    chance = random.Random(seed)
    pieces = []
    at = 0
    while at < len(data):
        step = chance.choice([1, 2, 3, 17, 100, 1000])
        pieces.append(data[at : at + step])
        at += step
    return pieces


def test_every_crash_has_an_expectation() -> None:
    assert {path.stem for path in CRASHES} == set(EXPECTED)
    assert len(CRASHES) > 50
    assert CLEAN


@pytest.mark.parametrize("path", CRASHES, ids=lambda path: path.stem)
def test_crash_is_found(path: Path) -> None:
    data = path.read_bytes()
    found = stream(data, [data])
    assert [[finding.kind.value, finding.title] for finding in found] == EXPECTED[path.stem]
    for finding in found:
        assert 1 <= finding.first_line <= finding.last_line <= data.count(b"\n") + 1
        assert finding.trace


@pytest.mark.parametrize("path", [*CRASHES, *CLEAN], ids=lambda path: path.stem)
def test_a_stream_may_be_cut_anywhere(path: Path) -> None:
    data = path.read_bytes()[: 64 << 10]
    whole = stream(data, [data])
    assert stream(data, cut(data, 1)) == whole
    assert stream(data, cut(data, 2)) == whole


@pytest.mark.parametrize("path", CLEAN, ids=lambda path: path.stem)
def test_clean_log_has_no_finding(path: Path) -> None:
    assert stream(path.read_bytes(), [path.read_bytes()]) == []


@pytest.mark.parametrize("path", CRASHES, ids=lambda path: path.stem)
def test_crash_is_found_behind_a_boot(path: Path) -> None:
    boot = (LOGS / "clean" / "debian-6.12-boot.log").read_text(errors="replace").splitlines()
    lines = path.read_text(errors="replace").splitlines()
    if "Linux version" in lines[0]:
        lines = lines[4:]
    if any("Linux version" in line for line in lines) or path.stem == "no-stamps":
        pytest.skip("is about boots, or its lines have no stamps where the boot's have")
    kinds = [finding.kind.value for finding in classify([*boot, *lines])]
    assert kinds == [kind for kind, _ in EXPECTED[path.stem]]
