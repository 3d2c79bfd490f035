"""What a person sees of a run: on terminals, in a pipe, on GitHub."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import paths, ui
from harness.ui import How
from tests.made_up_runs import Runs
from tests.screens import Shown, on_terminal
from tests.test_hostile_output import DANGEROUS, EVIL

pytest_plugins = ["pytester"]

#: What a time looks like; a loaded machine's are minutes.
TIME = r"(?:\d+ s|\d+:\d\d)"

#: nvh test's last steps, on the made-up tree of the working directory.
RUN = """
import sys
from pathlib import Path
import pytest
from harness import run_view
from harness.report.results import ResultsDir

results = ResultsDir.create(Path("results"))
workers = int(sys.argv[1])
parallel = ["-n", str(workers)] if workers > 1 else []
words = ["testcases", "-q", "-p", "no:cacheprovider", f"--nvh-results={results.path}"]
with run_view.shown(results.path, workers=workers) as view:
    status = pytest.main([*words, *parallel, *sys.argv[2:]], plugins=[view])
print("after the run")
sys.exit(int(status))
"""

#: Tests that wait for a file of the working directory, so that a moment can be looked at.
WAITS = """
import time
from pathlib import Path
ROOT = Path(__file__).parents[1]

def until(name):
    deadline = time.monotonic() + 300  # a loaded machine takes a minute to begin
    while not (ROOT / name).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
"""


@pytest.fixture
def tree(runs: Runs, pytester: pytest.Pytester) -> Callable[[str], Path]:
    """Write testcases of the test's own; return the directory to run in."""

    def write(tests: str) -> Path:
        runs("", "--version")  # lays out the tree
        file = pytester.path / "testcases" / "test_v.py"
        file.write_text(file.read_text() + WAITS + tests)
        return pytester.path

    return write


@contextlib.contextmanager
def watched(root: Path, *options: str, workers: int = 1, **terminal: object) -> Iterator[Shown]:
    argv = [sys.executable, "-c", RUN, str(workers), *options]
    with contextlib.chdir(root), on_terminal(argv, **terminal) as shown:  # type: ignore[arg-type]
        yield shown


def piped(
    root: Path, *options: str, workers: int = 1, **env: str
) -> subprocess.CompletedProcess[str]:
    unset = ("GITHUB_ACTIONS", "FORCE_COLOR")
    base = {key: value for key, value in os.environ.items() if key not in unset}
    return subprocess.run(
        [sys.executable, "-c", RUN, str(workers), *options],
        cwd=root,
        env={**base, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


FIRST = """
def test_v1_first(case): case.expect("map", "OK")
def test_v1_bad(case): case.expect("map", "EFAULT")
def test_v1_known(case): case.expect("map", "ENOSYS")
def test_v1_slow(guest, case):
    until("go")
    case.expect("map", "OK")
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_the_view_tells_what_runs_and_ends_in_a_table(
    tree: Callable[[str], Path], workers: int
) -> None:
    root = tree(FIRST)
    with watched(root, workers=workers) as shown:
        shown.shows(rf"^v1_slow +{TIME}$")
        shown.shows(r"━+─+ 3/4$")
        shown.shows(rf"^{TIME}  1 PASS  1 FAIL  1 KNOWN")
        assert any(re.match(r"FAIL  test_v1_bad \d+ s: map: expected", one) for one in shown.lines)
        assert any(re.match(r"KNOWN test_v1_known \d+ s: made-up-is", one) for one in shown.lines)
        assert not any("first" in one for one in shown.lines)
        (root / "go").touch()
        assert shown.end() == 1
    past = shown.past
    assert not any("━" in line or "waits for" in line for line in past)  # the view is gone
    assert sum(line.startswith("FAIL  test_v1_bad") for line in past) == 1
    assert any(re.match(r"V1 test_v1_slow +PASS ", line) for line in past)
    assert any(line.startswith("KNOWN made-up-issue: 1 test, V1") for line in past)
    assert "      it fails" in past
    assert any(line.startswith("2 PASS, 1 FAIL, 1 KNOWN in ") for line in past)
    assert any("test --failed results/" in line for line in past)
    assert past[-1] == "after the run"  # standard output is what it was
    words = (root / "results" / "latest" / "pytest.log").read_text()
    assert "FAILURES" in words  # pytest's own words are kept
    assert "\x1b" not in words
    assert not (root / "results" / "latest" / "doing").exists()


def test_what_a_worker_builds_is_told_by_the_view(tree: Callable[[str], Path]) -> None:
    root = tree(
        """
from harness.images.advance import Advance
def test_v1_builds(guest, case, lab):
    for done in range(1, 1000):
        lab.say(Advance("fetching linux-image-6.99", done * 10**5, 98 * 10**6))
        time.sleep(0.1)
        if (ROOT / "go").exists():
            break
    lab.say("making a template")
    until("on")
    case.expect("map", "OK")
def test_v1_other(case): case.expect("map", "OK")
"""
    )
    with watched(root, workers=2, columns=140) as shown:
        shown.shows(
            r"v1_builds .*fetching linux-image-6\.99 .*\d of 98\.0 MB, \d\.\d MB/s, \d.* left"
        )
        (root / "go").touch()
        shown.shows(r"v1_builds .*making a template$")
        (root / "on").touch()
        assert shown.end() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_view_leaves_a_sane_terminal(
    tree: Callable[[str], Path], workers: int
) -> None:
    root = tree(FIRST)
    with watched(root, workers=workers) as shown:
        shown.shows(rf"^v1_slow +{TIME}$")
        shown.shows(r" 3/4$")
        shown.child.sendintr()  # as Ctrl-C does: to the whole process group
        assert shown.end() == 2  # pytest's word for it
    past = shown.past
    assert past.count("nvh: interrupted") == 1
    assert not any("━" in line or "Traceback" in line for line in past)
    assert any(re.match(r"1 PASS, 1 FAIL, 1 KNOWN in ", line) for line in past)
    assert (
        "\x1b[?25l" not in shown.raw
    )  # the cursor was never hidden: a SIGKILL does no harm either
    assert not shown.screen.cursor.hidden


def test_a_view_that_is_killed_leaves_a_cursor(tree: Callable[[str], Path]) -> None:
    root = tree(FIRST)
    with watched(root) as shown:
        shown.shows(rf"^v1_slow +{TIME}$")
        shown.child.kill(signal.SIGKILL)
        shown.end()
    assert not shown.screen.cursor.hidden
    assert "\x1b[?1049h" not in shown.raw  # nor is the other screen in use


def test_a_narrow_terminal_that_changes_its_size(tree: Callable[[str], Path]) -> None:
    root = tree(FIRST.replace("slow", "slow_" + "x" * 80))
    with watched(root, columns=60, lines=12) as shown:
        shown.shows(r"^v1_slow_x+… +\d+ s$")
        shown.shows(r" 3/4$")
        view = [line for line in shown.lines if "━" in line]
        assert len(view) == 1
        assert len(view[0]) == 59
        shown.resize(100, 30)
        shown.until(lambda: any(len(line) == 99 and line.endswith(" 3/4") for line in shown.lines))
        assert sum("━" in line for line in shown.lines) == 1  # painted over, not below
        shown.resize(40, 10)
        shown.until(lambda: any(len(line) == 39 and line.endswith(" 3/4") for line in shown.lines))
        (root / "go").touch()
        assert shown.end() == 1


def test_without_colour(tree: Callable[[str], Path]) -> None:
    root = tree(FIRST)
    (root / "go").touch()
    with watched(root, env={"NO_COLOR": "1"}) as shown:
        assert shown.end() == 1
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", shown.raw)
    assert any(line.startswith("FAIL  test_v1_bad") for line in shown.past)


@pytest.mark.parametrize("term", ["dumb", None])
def test_a_dumb_terminal_gets_plain_lines(tree: Callable[[str], Path], term: str | None) -> None:
    root = tree(FIRST)
    (root / "go").touch()
    with watched(root, env={"TERM": term}) as shown:
        assert shown.end() == 1
    assert "\x1b" not in shown.raw
    assert any(re.match(r"\[ +\d+\.\d s\] FAIL  test_v1_bad", line) for line in shown.past)


def test_a_terminal_without_utf8(tree: Callable[[str], Path]) -> None:
    root = tree(FIRST)
    with watched(root, env={"PYTHONIOENCODING": "ascii"}) as shown:
        shown.shows(r"#+-+ 3/4$")
        (root / "go").touch()
        assert shown.end() == 1


def test_hostile_words_do_nothing_to_the_terminal(tree: Callable[[str], Path]) -> None:
    root = tree(
        f"""
EVIL = {EVIL!r}
import os, sys
def test_v1_evil(guest, case):
    os.write(2, EVIL.encode("utf-8", "replace"))
    sys.__stderr__.write("\\x1b[2J\\x1b[?25l")
    guest.log = "[   1.0] BUG: KASAN: use-after-free in " + EVIL + "+0x1/0x2"
    case.expect("map", EVIL)
@pytest.mark.parametrize("name", [EVIL])
def test_v1_named(guest, case, name):
    from harness.images.advance import Advance
    until("go")
    raise GuestLost(EVIL, hint=EVIL)
"""
    )
    with watched(root, workers=2) as shown:
        shown.shows(r"^v1_named\[")
        shown.shows(r" 1/2$")
        (root / "go").touch()
        assert shown.end() == 1
    allowed = re.sub(r"\x1b\[[0-9;]*[mKAGJ]|\r", "", shown.raw)  # rich's own
    assert not DANGEROUS.search(allowed)
    assert "\x1b[2J" not in shown.raw
    assert any(line.startswith("FAIL  test_v1_evil") for line in shown.past)


def test_a_pipe_gets_a_line_for_what_did_not_pass(tree: Callable[[str], Path]) -> None:
    root = tree(
        FIRST + "".join(f"\ndef test_v1_n{n}(case): case.expect('map', 'OK')" for n in range(30))
    )
    (root / "go").touch()
    done = piped(root, workers=2, FORCE_COLOR="1")
    assert done.returncode == 1
    assert "\x1b" not in done.stdout
    assert re.search(
        r"^\[ +\d+\.\d s\] FAIL  test_v1_bad \d+ s: map: expected OK", done.stdout, re.MULTILINE
    )
    assert "test_v1_n3 " not in done.stdout.partition("\n\n")[0]  # what passed is counted
    assert len(done.stdout.splitlines()) < 40
    assert done.stderr == ""


def test_a_pipe_hears_of_builds_and_now_and_then_how_far_it_is(
    tree: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(
        """
def test_v1_builds(guest, case, lab):
    lab.say("making a template")
    until("told")
    case.expect("map", "OK")
"""
    )
    (root / "sitecustomize.py").write_text(
        """
from pathlib import Path
import harness.run_view as view
view._SELDOM = 1.0
say = view._Lines.say
def said(self, line):
    say(self, line)
    if "making a template" in line:
        Path("made").touch()
    elif "1 running" in line and Path("made").exists():
        Path("told").touch()
view._Lines.say = said
"""
    )
    tree_path = f"{root}:{paths.source_tree()}"
    done = piped(root, PYTHONPATH=tree_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("main: making a template\n") == 1
    assert re.search(rf"\] 0 of 1 test in {TIME}; 1 running, v1_builds for {TIME}\n", done.stdout)


def test_github_gets_groups_and_annotations(tree: Callable[[str], Path]) -> None:
    root = tree(
        """
def test_v1_first(case): case.expect("map", "OK")
def test_v1_bad(case): case.expect("map", "a%b\\n::error::x ##[error]y")
def test_v1_known(case): case.expect("map", "ENOSYS")
@pytest.mark.parametrize("n", range(20))
def test_v1_more(case, n): case.expect("map", "EFAULT")
"""
    )
    done = piped(root, GITHUB_ACTIONS="true")
    lines = done.stdout.splitlines()
    groups = [line for line in lines if line.startswith("::group::")]
    assert groups[0] == "::group::23 tests, 1 done"
    assert len(groups) == lines.count("::endgroup::")
    opened = False
    for line in lines:
        if line.startswith("::error "):
            assert not opened  # what failed is not folded away
        opened = opened if not line.startswith(("::group::", "::endgroup")) else "::group" in line
    annotations = [line for line in lines if line.startswith("::error ")]
    assert len(annotations) == 10
    assert annotations[0].startswith("::error title=FAIL test_v1_bad::map: expected OK, seen")
    assert "a%25b" in annotations[0]
    # No word of a guest is a command of the runner's.
    commands = [line for line in lines if line.lstrip().startswith("::")]
    assert set(commands) == {*groups, *annotations, "::endgroup::"}
    assert "##[" not in done.stdout


def test_pytest_itself_breaks(tree: Callable[[str], Path]) -> None:
    root = tree("def test_v1_a(case): case.expect('map', 'OK')")
    conftest = root / "conftest.py"
    hook = "def pytest_runtest_logstart():\n    raise OSError('oh')\n"
    conftest.write_text(f"{conftest.read_text()}\n@pytest.hookimpl(tryfirst=True)\n{hook}")
    done = piped(root)
    assert "nvh: pytest broke: OSError: oh; see " in done.stdout
    assert "INTERNALERROR" not in done.stdout
    assert "INTERNALERROR" in (root / "results" / "latest" / "pytest.log").read_text()


def test_a_run_that_stops_early_says_why(tree: Callable[[str], Path]) -> None:
    root = tree(FIRST)
    done = piped(root, "-x")
    assert "nvh: stopping after 1 failures\n" in done.stdout


@pytest.mark.parametrize(
    ("tty", "env", "expected"),
    [
        (True, {"TERM": "xterm"}, How.LIVE),
        (True, {"TERM": "xterm", "FORCE_COLOR": "1", "NO_COLOR": "1"}, How.LIVE),
        (False, {"TERM": "xterm", "FORCE_COLOR": "1"}, How.LINES),
        (True, {"TERM": "dumb"}, How.LINES),
        (True, {}, How.LINES),
        (True, {"TERM": "xterm", "GITHUB_ACTIONS": "true"}, How.GITHUB),
        (False, {"GITHUB_ACTIONS": "false"}, How.LINES),
    ],
)
def test_how_work_is_shown(tty: bool, env: dict[str, str], expected: How) -> None:
    class Stream:
        def isatty(self) -> bool:
            return tty

    assert ui.how(Stream(), env) is expected  # type: ignore[arg-type]


PREPARES = """
import sys, time
from harness import ui
from harness.images.advance import Advance
with ui.progress() as shown:
    shown.say("looking up \\x1b[2J [bold]x[/bold]")
    time.sleep(float(sys.argv[1]))
    for done in range(0, 101, 2):
        shown.say(Advance("fetching linux-image", done * 10**6, 100 * 10**6))
        time.sleep(float(sys.argv[1]) / 20)
print("done")
"""


def test_what_is_prepared_shows_bytes_rate_and_time_left() -> None:
    with on_terminal([sys.executable, "-c", PREPARES, "2"], columns=100) as shown:
        shown.shows(r"looking up \[bold\]x\[/bold\]")
        shown.shows(r"fetching linux-image  ━+─+  \d+\.0 of 100\.0 MB, \d+\.\d MB/s, \d+ s left")
        assert len(shown.lines) == 1
        assert shown.end() == 0
    assert shown.past == ["done"]
    assert "\x1b[?25l" not in shown.raw


def test_what_is_prepared_is_a_few_plain_lines_elsewhere() -> None:
    argv = [sys.executable, "-c", PREPARES, "0"]
    base = {key: value for key, value in os.environ.items() if key != "GITHUB_ACTIONS"}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=600, env=base)
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"\[ +\d+\.\d s\] looking up \[bold\]x\[/bold\]", lines[0])
    assert lines[1].endswith("fetching linux-image: 0.0 of 100.0 MB")
    base["GITHUB_ACTIONS"] = "true"
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=600, env=base)
    lines = done.stderr.splitlines()
    assert (lines[0], lines[-1]) == ("::group::kernel, images, template", "::endgroup::")
