"""report.html: what it answers, what it shows of a test, what a hostile guest cannot do to it."""

from __future__ import annotations

import base64
import gc
import hashlib
import json
import re
import shutil
import sys
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness import cli, pages, paths, process
from harness.errors import HostError, UsageError
from harness.report import timeline
from harness.report.excerpts import WorkloadRun, pieces, workload_runs
from harness.report.views import Views
from harness.steps import Steps
from harness.verdict.status import Status
from tests.made_up_results import (
    DMESG,
    FINDING,
    SPLAT,
    WAIT,
    hostile,
    of_every_verdict,
    page,
    record,
    view,
    write_matrix,
    write_run,
)
from tests.made_up_runs import Runs

pytest_plugins = ["pytester"]


class Page(HTMLParser):
    """A page as a browser takes it apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.raw: dict[str, str] = {}  # what stands in script and style
        self.words = ""
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within in ("script", "style"):
            self.raw[self._within] = self.raw.get(self._within, "") + data
        else:
            self.words += data

    def all(self, key: str) -> list[str]:
        return [attrs[key] for _, attrs in self.tags if key in attrs]


def check(text: str) -> Page:
    """Check what holds for every page: it needs nothing, obeys only itself, leads where it says."""
    found = Page(text)
    counted = Counter(tag for tag, _ in found.tags)
    assert counted["style"] == 1
    assert counted["script"] <= 1
    assert not counted.keys() & {"img", "iframe", "link", "form", "object", "base"}
    assert not [key for _, attrs in found.tags for key in attrs if key.startswith("on")]
    assert not found.all("style"), "the page's own policy forbids it"
    policy = next(attrs["content"] for _, attrs in found.tags if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'; ")
    for tag in found.raw:
        digest = base64.b64encode(hashlib.sha256(found.raw[tag].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    ids = found.all("id")
    assert len(ids) == len(set(ids))
    for href in found.all("href"):
        assert not re.match(r"[a-z]+:|//", href)
        assert not href.startswith("#") or href[1:] in ids, href
    plain = text.replace("\n", "").replace("\t", "")
    assert plain.isprintable(), {char for char in plain if not char.isprintable()}
    return found


def test_a_hostile_guest_shows_and_does_nothing() -> None:
    found = check(page(view([hostile(), *of_every_verdict()])))
    for word in ("scripted", "imaged", "]]>", "{{ 7 * 7 }}", "&lt;", "'quoted'", '"twice"'):
        assert word in found.words
    assert "49" not in found.raw["script"]
    assert "\\u202etxet desrever" in found.words


def test_a_hostile_kernel_and_summary_show_and_do_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [hostile()], kernel="</title><script>x()</script>")
    check(pages.write_stored(folder).read_text())


def test_every_verdict_has_its_place() -> None:
    found = check(page(view(of_every_verdict())))
    for word in (*Status, "KNOWN"):
        assert f"{word} 1" in found.words
    shown = [attrs for tag, attrs in found.tags if tag == "details" and "data-word" in attrs]
    assert Counter(attrs["data-word"] for attrs in shown) == Counter([*Status, "KNOWN"])
    for words in (
        "an operation waits for the pin",
        "commit 1",
        "needs CONFIG_FS_DAX=y",
        "the page is pinned",
        "truncate waits in ext4_break_layouts",
        "release, end 6 ms later",
        "look at fs/dax.c",
        "a complaint while booting",
        "On paper",
    ):
        assert words in found.words, words


@pytest.mark.parametrize(
    ("statuses", "known", "answer"),
    [
        ("PASS PASS", 0, "This kernel does what is right in all 2 tests."),
        ("PASS SKIP", 0, "This kernel does what is right in 1 test. 1 test was skipped."),
        ("PASS", 1, "Nothing new: 1 of 2 tests pass, 1 fails for 1 reason already known."),
        (
            "PASS FAIL FAIL",
            1,
            "This kernel does something wrong: 2 tests of 4 fail for a reason that is not known "
            "yet, L1 first. 1 test fails for 1 reason already known.",
        ),
        ("PASS MISS", 0, "No fault was found, but 1 test of 2 could not be judged."),
        (
            "PASS MISS",
            1,
            "No new fault was found, but 1 test of 3 could not be judged. 1 test fails for 1 "
            "reason already known.",
        ),
        ("MISS ERROR", 0, "Nothing is known of this kernel: no test came to a verdict."),
        ("SKIP", 0, "Nothing is known of this kernel: no test came to a verdict. "),
        ("", 0, "Nothing is known of this kernel: no test ran."),
    ],
)
def test_the_answer_comes_first(statuses: str, known: int, answer: str) -> None:
    records = [record(f"test_l1_{n}", Status(word)) for n, word in enumerate(statuses.split())]
    records += [record("test_l1_known", Status.FAIL, known="why")] * known
    run = view(records)
    assert run.answer.startswith(answer)
    assert run.answer in check(page(run)).words


def test_a_cell_leads_to_its_tests_and_tells_what_was_seen() -> None:
    text = page(view(of_every_verdict()))
    table = text[text.index("What changes the layout") :]
    (cell,) = re.findall(r'<div class="cell FAIL">.*?</div>', table, re.DOTALL)
    assert "FAIL 1/" in cell
    assert "<b>false, not true</b> seen_waiting" in cell
    assert 'href="#test_l_layout.test_l1_operation_waits_for_the_pin-truncate-xfs"' in cell


def test_several_kernels_stand_side_by_side(tmp_path: Path) -> None:
    folder = write_matrix(
        tmp_path,
        {
            "debian:6.1": of_every_verdict(),
            "debian:sid": [record("test_l1_operation_waits_for_the_pin[pass-ext4]")],
            "/src/linux": "the guest's kernel panicked",
        },
    )
    found = check(pages.write_stored(folder).read_text())
    assert "3 kernels" in found.words
    assert "the guest's kernel panicked" in found.words
    text = (folder / "report.html").read_text()
    rows = text[text.index("Rows on each kernel") :]
    assert '<th scope="col">6.1</th><th scope="col">sid</th>' in rows
    line = rows[rows.index('<th scope="row">L1') :].partition("</tr>")[0]
    assert re.findall(r'class="cell (\w+)"', line) == ["FAIL", "PASS", "MISS"]
    assert 'href="#6.1:test_l_layout.test_l1_operation_waits_for_the_pin-truncate-xfs"' in line
    assert "debian-6.1%2Cdefault/night/tests/test_l_layout." in text


def test_kernels_that_do_the_same_share_a_line() -> None:
    good = record("test_l1_operation_waits_for_the_pin[punch-ext4]")
    bad = record("test_l1_operation_waits_for_the_pin[punch-ext4]", Status.FAIL)
    zero = record("test_l1_operation_waits_for_the_pin[zero-ext4]")
    runs = [
        view([first, zero], label=label, kernel=label)
        for label, first in (("6.1", good), ("6.12", bad), ("sid", good))
    ]
    text = page(*runs)
    check(text)
    table = text[text.index("What changes the layout") :]
    cells = re.findall(r'<span class="on">([^<]*)</span><a [^>]*><span [^>]*>([^<]*)<', table)
    assert cells == [("6.1, sid", "PASS 2"), ("6.12", "FAIL"), ("all", "PASS 3")]


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", of_every_verdict())
    first, second, *_ = sorted((folder / "tests").iterdir())
    shutil.rmtree(first)
    (second / "result.json").write_text("{")
    found = check(pages.write_stored(folder).read_text())
    assert found.words.count("test_l1_operation_waits") >= len(of_every_verdict())
    assert f"tests/{first.name}/" not in found.all("href")
    (folder / "summary.json").unlink()
    assert "The run did not end." in check(pages.write_stored(folder).read_text()).words
    shutil.rmtree(folder / "tests")
    with pytest.raises(UsageError, match="holds no results"):
        pages.write_stored(folder)


@pytest.mark.parametrize("text", ["[]", "{", '{"tests": 3}', '{"tests": [3, {}], "seconds": "x"}'])
def test_a_damaged_summary_costs_no_page(tmp_path: Path, text: str) -> None:
    folder = write_run(tmp_path / "run", of_every_verdict()[:2])
    (folder / "summary.json").write_text(text)
    assert "unknown kernel" in check(pages.write_stored(folder).read_text()).words


def test_a_bundle_and_a_folder_are_linked_where_they_are(tmp_path: Path) -> None:
    bad = of_every_verdict()[-2]
    folder = write_run(tmp_path / "run", [bad])
    (folder / "bundles").mkdir()
    (folder / bad.bundle).write_text("")
    hrefs = check(pages.write_stored(folder).read_text()).all("href")
    assert f"{bad.folder}/" in hrefs
    assert bad.bundle in hrefs


def test_a_finding_is_marked_in_the_log() -> None:
    found = pieces(DMESG, [FINDING], 16000)
    (marked,) = [piece for piece in found if piece.marked]
    assert [line.partition("] ")[2] for line in marked.text.splitlines()] == SPLAT
    assert found[0].text == "[... 28 lines]\n"
    moved = f"said by a program\n{DMESG}"  # which the judged log left out
    (marked,) = [piece for piece in pieces(moved, [FINDING], 16000) if piece.marked]
    assert "cut here" in marked.text
    assert pieces(DMESG * 2, [FINDING], 16000)[0].text == "[... 28 lines]\n"
    late = FINDING | {"line": len(DMESG.splitlines()) + 41}  # the second of two alike
    shown = pieces(DMESG * 2, [late], 16000)
    assert shown[0].text == f"[... {28 + len(DMESG.splitlines())} lines]\n"
    assert sum(len(piece.text) for piece in pieces(DMESG * 500, [FINDING], 3000)) < 4000
    assert not any(piece.marked for piece in pieces("nothing\n", [FINDING], 3000))


def test_a_time_line_shows_the_wait_and_the_release() -> None:
    bad = record("test_l1_x", Status.PASS)
    test, wait = timeline.charts(bad, list(workload_runs(bad.excerpts["output"])))
    assert [bar.kind for bar in test.bars] == ["guest", "guest", "guest", "test", "command"]
    begin = next(bar for bar in test.bars if bar.kind == "test").x
    assert all(bar.x + bar.width <= begin + 0.2 for bar in test.bars if bar.kind == "guest")
    pin, waiting, ending = wait.bars
    assert (pin.kind, waiting.kind, ending.kind) == ("pin", "wait", "run")
    ((release, words, _),) = wait.marks
    assert abs(pin.x + pin.width - release) < 0.2
    share = (release - pin.x) / (ending.x + ending.width - pin.x)
    assert share == pytest.approx(1.05 / 1.056, abs=1e-3)
    assert words == "release, end 6 ms later"
    early = {**WAIT, "end_seconds": -0.5}
    assert kinds_of(early, Status.FAIL) == ["pin", "bad"]
    assert kinds_of(early, Status.PASS) == ["pin", "run"]  # the pin was of another file
    # The pin's end is seen a moment after it was asked for, and the operation may be quicker.
    late = {**early, "end_seconds": -0.03, "returned_while_pinned": False}
    assert kinds_of(late, Status.FAIL) == ["pin", "wait", "run"]


def kinds_of(facts: dict[str, object], status: Status) -> list[str]:
    one = record("x", status, facts={}, steps=())
    (chart,) = timeline.charts(one, [WorkloadRun("layout", facts)])
    return [bar.kind for bar in chart.bars]


def test_the_end_of_an_operation_is_no_call_after_it() -> None:
    one = record("x", facts={}, steps=())
    unpinned = {"op_seconds": 0.5, "op": "OK", "end_seconds": 0.5}
    assert not timeline.charts(one, [WorkloadRun("layout", unpinned)])


MOMENTS = {
    **WAIT,
    "pinned_at": 0.1,
    "op_started_at": 0.15,
    "waits_seen_at": 0.2,
    "released_at": 0.7,
    "ended_at": 0.75,
}


def bars(facts: dict[str, object]) -> list[tuple[str, str, float]]:
    """Return the bars of a workload's chart: lane's place, kind and where it ends, in seconds."""
    one = record("x", Status.FAIL, facts={}, steps=())
    (chart,) = timeline.charts(one, [WorkloadRun("layout", facts)])
    zero, scale = 92, (timeline.WIDTH - 104) / 0.75
    return [
        (
            bar.kind,
            chart.lanes[int(bar.y // timeline.LANE)][1],
            round((bar.x + bar.width - zero) / scale, 2),
        )
        for bar in chart.bars
    ]


def test_a_time_line_has_each_moment_that_a_workload_tells() -> None:
    assert bars(MOMENTS) == [
        ("pin", "pin", 0.7),
        ("run", "operation", 0.2),
        ("wait", "operation", 0.7),
        ("run", "operation", 0.75),
    ]
    hung = {**MOMENTS, "ended_at": None, "given_up_at": 0.75}
    assert bars(hung)[-2:] == [("wait", "operation", 0.7), ("bad", "operation", 0.75)]
    early = {**MOMENTS, "released_at": 0.75, "ended_at": 0.4, "waits_seen_at": None}
    assert bars(early) == [("pin", "pin", 0.75), ("bad", "operation", 0.4)]
    signalled = {**early, "waits_seen_at": 0.2}
    assert bars(signalled)[1:] == [("run", "operation", 0.2), ("wait", "operation", 0.4)]
    quick = {**MOMENTS, "released_at": 0.75, "ended_at": 0.7, "returned_while_pinned": False}
    assert kinds_of(quick, Status.FAIL) == ["pin", "run", "wait", "run"]
    unpinned = {**MOMENTS, "pinned_at": None, "released_at": None, "waits_seen_at": None}
    assert bars(unpinned) == [("run", "operation", 0.75)]
    # What cannot have been so is left to what else is known.
    for odd in ({"ended_at": 0.1}, {"released_at": 0.05}, {"waits_seen_at": 0.1}):
        assert [kind for kind, *_ in bars({**MOMENTS, **odd})] == ["pin", "wait", "run"]


def test_the_tests_own_time_line_has_the_pin_where_it_was() -> None:
    command = "/opt/nvh/layout --op truncate"
    steps = tuple({"what": command, "at": at, "seconds": 0.8} for at in (0.2, 5.0))
    output = f"$ {command}\n# facts {json.dumps(MOMENTS)}\n" * 3
    one = record("x", seconds=6.0, steps=steps, excerpts={"output": output})
    whole, *_ = timeline.charts(one, list(workload_runs(output)))
    assert [name for _, name in whole.lanes] == ["guest", "test", "commands", "pin", "operation"]
    pins = [bar for bar in whole.bars if bar.kind == "pin"]
    given = [bar for bar in whole.bars if bar.kind == "command"]
    assert len(pins) == 2  # the third was given at a time that nobody knows
    for pin, command_bar in zip(pins, given, strict=True):
        assert command_bar.x < pin.x
        assert pin.x + pin.width < command_bar.x + command_bar.width


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300, -1, True, "1", None, 10**400])
def test_a_time_line_bears_any_number(value: object) -> None:
    facts = {"how": "clone", "qmp_seconds": value, "ssh_seconds": value}
    odd = record("x", facts={"guest": facts}, steps=({"what": "x", "at": value, "seconds": value},))
    timed = {**WAIT, "op_seconds": value, "end_seconds": value, "map_seconds": value}
    told = [timed, *({**MOMENTS, key: value} for key in MOMENTS if key.endswith("_at"))]
    for facts_told in told:
        for chart in timeline.charts(odd, [WorkloadRun("a", facts_told)]):
            for bar in chart.bars:
                assert 0 <= bar.x <= timeline.WIDTH
                assert 0 < bar.width <= timeline.WIDTH


def test_2000_tests_are_still_a_page() -> None:
    def build(count: int) -> tuple[int, float]:
        some = of_every_verdict()
        records = [record(f"test_l1_{n}[punch-{n}]", row=f"L{n % 30}") for n in range(count)]
        long = {"dmesg": DMESG * 200, "output": "x" * 50000}
        records[: count // 2] = [
            record(f"test_l6_bad{n}", Status.FAIL, findings=(FINDING,), excerpts=long)
            for n in range(count // 2)
        ]
        seconds = []
        for _ in range(2):  # a collection of garbage, or a loaded host, takes its time as well
            gc.collect()
            begun = time.process_time()
            text = page(view([*some, *records]))
            seconds.append(time.process_time() - begun)
        return len(text), min(seconds)

    build(20)  # the templates are compiled
    (small, quick), (large, slow) = build(400), build(2000)
    assert large < 8 << 20
    assert large < 5 * small
    assert slow < 5 * 2.5 * quick  # it grows with the tests and no faster


def test_steps_know_when_a_command_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([101.0, 102.0, 102.5, 103.0, 104.0])
    monkeypatch.setattr(time, "time", lambda: next(now))
    steps = Steps(100.0)
    steps.waited("waits for its guest")
    steps.begin("mount\n")
    steps.end()
    steps.end()
    steps.begin("x" * 1000)
    first, second, third = steps.all()
    assert first == {"what": "waits for its guest", "at": 0.0, "seconds": 1.0}
    assert second == {"what": "mount", "at": 2.0, "seconds": 0.5}
    assert (third["at"], third["seconds"], len(third["what"])) == (3.0, 1.0, 300)


def test_every_pattern_of_the_views_meets_a_test() -> None:
    words = ["--collect-only", "-q", "-p", "no:cacheprovider", "testcases"]
    said = process.run(
        [sys.executable, "-m", "pytest", *words], timeout=300.0, cwd=paths.source_tree()
    )
    lines = [line for line in said.stdout.splitlines() if "::" in line]
    names = [record("x", nodeid=line).name for line in lines]
    views = Views.load(paths.source_tree() / "testcases" / "views.toml")
    for table in views.tables:
        placed = [place for name in names if (place := table.place(name))]
        assert {row for row, _ in placed} == set(table.rows.patterns), table.title
        assert {column for _, column in placed} == set(table.columns.patterns), table.title
    outside = [
        name
        for name in names
        if re.match(r"test_[vpl]\d", name) and not any(table.place(name) for table in views.tables)
    ]
    assert not {name.partition("[")[0] for name in outside} - {
        "test_p1_buffers_change_hands",
        "test_p3_partly_mapped_memory",
        "test_v15_container",
        "test_v15_ranges",
        "test_v16_wrap",
        "test_v17_memlock",
        "test_v18_after_unmap_in_one_piece",
        "test_v18_blocked_access",
        "test_v20_after_unmap_in_one_piece",
        "test_v20_blocked_access",
        "test_v20_memlock",
        "test_v20_ranges",
        "test_v22_registers_and_interrupts",
    }


def test_a_run_ends_with_its_page(runs: Runs) -> None:
    found = runs('def test_v1_first(guest, case): guest.begun("mount"); case.expect("map", "OK")')
    assert found.output.count("report: results/") == 1
    text = (found.results / "latest" / "report.html").read_text()
    assert "This kernel does what is right in 1 test." in check(text).words
    assert "waits for its guest" in text
    assert re.search(">mount[<:]", text)  # as its bar's title where there is no room


def test_a_page_that_cannot_be_written_costs_no_verdict(runs: Runs) -> None:
    found = runs(
        """
from pathlib import Path
def test_v1_first(case):
    Path("results/latest/report.html").mkdir()
    case.expect("map", "OK")
"""
    )
    assert found.code == 0
    assert found.summary["finished"] is True
    assert "report:" not in found.output


def test_nvh_report_prints_the_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", of_every_verdict())
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert cli.main(["report", str(tmp_path / "none")]) == 2
    assert cli.main(["report", str(tmp_path)]) == 2


def test_a_full_disk_keeps_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", of_every_verdict())
    before = pages.write_stored(folder).read_text()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(HostError, match=r"disk full: .*report\.html"):
        pages.write_stored(folder)
    assert (folder / "report.html").read_text() == before
