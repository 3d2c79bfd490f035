"""The classifier on whole logs: crashes that must be found, clean logs that must stay so."""

import random
import re
import tomllib
from collections.abc import Callable
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


#: printk's plain stamp, which each dress replaces.
PLAIN = re.compile(r"(?m)^\[ *(\d+)\.(\d{6})\](?:\[ *([TC]\d+)\])? ")
DRESSES: dict[str, str | Callable[[re.Match[str]], str]] = {
    "none": "",
    "syslog": "Mar  3 04:05:06 bench kernel: ",
    "syslog with stamp": "Mar  3 04:05:06 bench kernel: \\g<0>",
    "busybox": "Mar  3 04:05:06 bench kern.warn kernel: \\g<0>",
    "journalctl": "Mar 03 04:05:06 bench kernel: ",
    "journalctl -o short-precise": "Mar 03 04:05:06.123456 bench kernel: ",
    "journalctl -o short-iso": "2026-03-03T04:05:06+0100 bench kernel: ",
    "journalctl -o short-full": "Tue 2026-03-03 04:05:06 CET bench kernel: ",
    "journalctl -o short-monotonic": "\\g<0>bench kernel: ",
    "journalctl -o short-unix": "1772507106.123456 bench kernel: ",
    "kernel alone": "kernel: ",
    "dmesg -T": "[Tue Mar  3 04:05:06 2026] ",
    "dmesg -d": "[<    0.000012>] ",
    "dmesg -H": "[  +0.000012] ",
    "dmesg -e": "[Mar 3 04:05] ",
    "dmesg -r": "<4>\\g<0>",
    "dmesg -x": "kern  :warn  : \\g<0>",
    "dmesg -x -T": "kern  :warn  : [Tue Mar  3 04:05:06 2026] ",
    "dmesg --time-format=iso": "2026-03-03T04:05:06,123456+01:00 ",
    "/dev/kmsg": lambda m: f"4,{m[2]},{int(m[1])}{m[2]},-;",
    "console server": "2026-03-03 04:05:06.789 ttyS0 \\g<0>",
    "amlogic": lambda m: f"[{m[1]:>5}.{m[2]}@0] ",
    "qualcomm": "\\g<0>[    7.654321]@1 ",
    "mediatek": lambda m: f"[{m[1]:>5}.{m[2]}]  (0)[123:kworker/0:1]",
    "samsung": lambda m: f"[{m[1]:>5}.{m[2]}]  [0:  kworker/0:1:  123] ",
    "colours": "\x1b[32m\\g<0>\x1b[0m\x1b[33m",
}
#: Logs of one CPU at a time whose lines all have the plain stamp.
DRESSED = [path for path in CRASHES if len(PLAIN.findall(path.read_text(errors="replace"))) > 3]


@pytest.mark.parametrize("dress", DRESSES)
def test_crash_is_found_in_every_dress(dress: str) -> None:
    for path in DRESSED:
        text = path.read_text(errors="replace")
        if "Linux version" in text or "interleaved" in path.stem or path.stem == "two-cpus":
            continue
        data = PLAIN.sub(DRESSES[dress], text).encode()
        kinds = {finding.kind.value for finding in stream(data, [data])}
        assert kinds >= {EXPECTED[path.stem][0][0]}, path.stem


@pytest.mark.parametrize("stem", ["kasan-uaf", "hung-task", "kernel-bug", "oom", "two-cpus"])
def test_a_log_cut_at_any_byte_shows_its_report_once_the_header_is_whole(stem: str) -> None:
    data = (LOGS / "crash" / f"{stem}.log").read_bytes()[:3000]
    kind, _ = EXPECTED[stem][0]
    found_at = next(n for n in range(len(data)) if stream(data[:n], [data[:n]]))
    line_end = data.index(b"\n", found_at - 1)
    for end in range(line_end, len(data)):
        assert kind in [finding.kind.value for finding in stream(data[:end], [data[:end]])]


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
