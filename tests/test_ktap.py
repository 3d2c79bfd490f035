"""What a workload said, be it whole, cut short or hostile."""

from __future__ import annotations

import time

import pytest

from harness.errors import WorkloadError
from harness.guest.ktap import Step, WorkloadResult, parse

GOOD = """KTAP version 1
# vfio_map
ok 1 - opened the group
not ok 2 - mapped 2 MiB
ok 3 - read back # SKIP no /dev/kvm
ok 4 bare
# a note
1..4
# facts {"map": "EFAULT", "size": 2097152, "untouched": true}
"""


def read(output: str, status: int = 0, stderr: str = "") -> WorkloadResult:
    return parse("tool --x", status, output, stderr, 1.5)


def test_a_whole_report() -> None:
    result = read(GOOD, status=1)
    assert result.steps == (
        Step(True, "opened the group"),
        Step(False, "mapped 2 MiB"),
        Step(True, "read back # SKIP no /dev/kvm"),
        Step(True, "bare"),
    )
    assert result.facts == {"map": "EFAULT", "size": 2097152, "untouched": True}
    assert (result.command, result.status, result.seconds) == ("tool --x", 1, 1.5)
    assert not result.ok
    assert result.failed == "mapped 2 MiB"
    assert result.output == GOOD


def test_every_step_and_the_status_make_it_ok() -> None:
    assert read("ok 1 - a\n1..1\n").ok
    assert not read("ok 1 - a\n1..1\n", status=1).ok
    assert not read("not ok 1 - a\n1..1\n", status=0).ok


def test_the_plan_may_come_first() -> None:
    assert read("1..2\nok 1 - a\nok 2 - b\n").ok


def test_carriage_returns_and_trailing_blanks() -> None:
    result = read('ok 1 - a  \r\n1..1\r\n# facts {"a": 1}\r\n')
    assert result.steps[0].name == "a"
    assert result.facts == {"a": 1}


@pytest.mark.parametrize(
    ("output", "status", "stderr", "words"),
    [
        ("", 0, "", "no KTAP plan; it ended with status 0: it said nothing"),
        ("ok 1 - a\n", 0, "", "no KTAP plan; it ended with status 0: ok 1 - a"),
        ("ok 1 - a\n", 139, "", "no KTAP plan; it ended with signal 11: ok 1 - a"),
        ("", 127, "sh: tool: not found\n", "status 127: sh: tool: not found"),
        ("ok 1 - a\n1..2\n", 0, "", "2 steps planned and 1 reported"),
        ("ok 1 - a\nok 2 - b\n1..1\n", 0, "", "1 steps planned and 2 reported"),
        ("ok 1 - a\nBail out! no vfio\n1..1\n", 3, "", "tool --x: no vfio"),
        ("Bail out! usage: --device\n", 2, "", "tool --x: usage: --device"),
        ("1..0\n# facts {oops\n", 0, "", "its facts are no JSON: {oops"),
        ("1..0\n# facts [1]\n", 0, "", "no JSON object"),
        ("1..0\n# facts " + "[" * 50_000 + "\n", 0, "", "no JSON: [[["),
        ('1..0\n# facts {"a": ' + "[" * 500 + "]" * 500 + "}\n", 0, "", "deeper than 16"),
        ('1..0\n# facts {"a": "' + "x" * 70_000 + '"}\n', 0, "", "longer than 65536"),
        ('1..0\n# facts {"a": ' + "9" * 5000 + "}\n", 0, "", "no JSON"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_not_whole_is_an_error(output: str, status: int, stderr: str, words: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        read(output, status, stderr)
    assert words in caught.value.message
    assert caught.value.message.startswith("tool --x: ")
    assert len(caught.value.message) < 1000


def test_a_report_cut_anywhere_is_never_taken_for_a_whole_one() -> None:
    last = GOOD.index("1..4") + len("1..4")
    for cut in range(last):
        with pytest.raises(WorkloadError):
            read(GOOD[:cut])


def test_a_line_separator_inside_the_facts_does_not_cut_them() -> None:
    name = "a\u2028b\u0085c\x7f"
    assert read(f'1..0\n# facts {{"name": "{name}"}}\n').facts == {"name": name}


def test_only_whole_lines_count() -> None:
    hostile = "\x1b[2Jok 1 - a\n ok 2 - b\nok3 - c\nok - d\nnot  ok 4\n# 1..9\n1..0\n"
    assert read(hostile).steps == ()


@pytest.mark.parametrize("filler", [" ", "# ", " #", "# SKIP", "- "])
def test_a_very_long_line_is_read_in_proportion_to_its_length(filler: str) -> None:
    def seconds(length: int) -> float:
        text = "ok 1 a" + filler * (length // len(filler)) + "x\n1..1\n"
        begun = time.process_time()
        assert read(text).ok
        return time.process_time() - begun

    # A quadratic reader takes 256 times as long for 16 times the text, a linear one 16 times.
    small = max(min(seconds(1 << 14) for _ in range(3)), 0.001)
    assert min(seconds(1 << 18) for _ in range(3)) < 100 * small
