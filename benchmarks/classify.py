"""How fast the classifier reads: python -m benchmarks.classify needs no guest."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.figures import Figure, lines
from harness import paths
from harness.verdict.classifier import Classifier

_SIZE = 100 << 20
_BLOCK = 1 << 20
#: Lines of one boot after its banner: what a console says while nothing is wrong.
_QUIET_PER_REPORT = 512 << 10


def classifier(runs: int) -> list[Figure]:
    """Return MB/s over a quiet console, and over one with a report in every half megabyte."""
    logs = paths.source_tree() / "tests" / "logs"
    quiet = _without_banner(logs / "clean" / "debian-6.12-boot.log")
    reports = [
        data
        for path in sorted((logs / "crash").glob("*.log"))
        if b"Linux version" not in (data := path.read_bytes())
    ]
    half = quiet * (_QUIET_PER_REPORT // len(quiet) + 1)
    return [
        _figure("classifier, a quiet console", quiet, runs),
        _figure("classifier, with reports", b"".join(half + report for report in reports), runs),
    ]


def _without_banner(path: Path) -> bytes:
    text = path.read_bytes()
    return text[text.index(b"\n", text.index(b"Linux version")) + 1 :]


def _figure(name: str, data: bytes, runs: int) -> Figure:
    data = (data * (_SIZE // len(data) + 1))[:_SIZE]
    samples = tuple(_speed(data) for _ in range(runs))
    return Figure(name, "MB/s", samples, goal=50.0, at_least=True)


def _speed(data: bytes) -> float:
    reader = Classifier()
    began = time.process_time()
    for at in range(0, len(data), _BLOCK):
        reader.feed(data[at : at + _BLOCK])
    reader.finish()
    return len(data) / (time.process_time() - began) / 1e6


if __name__ == "__main__":
    print(*lines(classifier(5)), sep="\n")
