"""report.html in a real browser: it opens, leads, filters, prints, and obeys nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.report.record import TestRecord
from harness.verdict.status import Status
from tests.browser import HOW, Browser, browser, program
from tests.made_up_results import DMESG, FINDING, hostile, of_every_verdict, page, record, view

pytestmark = pytest.mark.skipif(program() is None, reason=f"no Chromium here: {HOW}")

BAD = "test_l_layout.test_l1_operation_waits_for_the_pin-truncate-xfs"
SHOWN = "[...document.querySelectorAll('details.test')].filter(one => one.checkVisibility()).length"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as found:
        found.size(1280, 1000)
        yield found


def opened(chromium: Browser, folder: Path, text: str, *, at: str = "") -> str:
    """Open a page and return its address."""
    file = folder / "report.html"
    file.write_text(text)
    chromium.size(1280, 1000)
    chromium.open(file.as_uri() + at)
    return file.as_uri()


def several(count: int) -> list[TestRecord]:
    return [*of_every_verdict(), *(record(f"test_v3_{n}", row="V3") for n in range(count))]


def test_a_click_on_a_cell_leads_to_its_test(chromium: Browser, tmp_path: Path) -> None:
    address = opened(chromium, tmp_path, page(view(several(30))))
    assert chromium.requests == [address]
    chromium.click(".cell.FAIL > a")
    assert chromium.script("location.hash") == f"#{BAD}"
    assert chromium.script(f"document.getElementById('{BAD}').closest('details').open")
    top = chromium.script(
        f"document.getElementById('{BAD}').closest('details').getBoundingClientRect().top"
    )
    assert 0 < top < 200, "its head is in sight, below the filters"
    assert (
        chromium.script("getComputedStyle(document.querySelector('pre mark')).display") == "block"
    )
    assert chromium.script("document.querySelectorAll('details.test[open] svg rect').length") > 5
    assert chromium.complaints == []


def test_filters_show_what_is_asked_for(chromium: Browser, tmp_path: Path) -> None:
    records = several(30)
    opened(chromium, tmp_path, page(view(records)))
    assert chromium.script("document.querySelector('.filters').checkVisibility()")
    assert chromium.script(SHOWN) == len(records)
    chromium.click("input[type=search]")
    chromium.write("XFS truncate")
    assert chromium.script(SHOWN) == 2
    assert chromium.script("document.querySelector('.count').textContent") == (
        f"2 of {len(records)} tests"
    )
    chromium.click("[data-clear]")
    assert chromium.script(SHOWN) == len(records)
    chromium.click(".toggle.PASS")
    assert chromium.script(SHOWN) == sum(one.status is not Status.PASS for one in records)
    chromium.click(".legend [data-only=KNOWN]")
    assert chromium.script(SHOWN) == 1
    chromium.click("[data-clear]")
    chromium.script(
        "(() => { const one = document.querySelector('select'); one.value = 'V';"
        " one.dispatchEvent(new Event('change')); })()"
    )
    assert chromium.script(SHOWN) == 30
    # A link to a test that a filter hides shows it all the same.
    chromium.script(f"location.hash = '{BAD}'")
    chromium.script("new Promise(done => setTimeout(done, 50))")
    assert chromium.script(f"document.getElementById('{BAD}').checkVisibility()")
    assert chromium.complaints == []


def test_kernels_are_told_apart(chromium: Browser, tmp_path: Path) -> None:
    runs = [view(several(3), label=label, of=20, kernel=label) for label in ("6.1", "6.12")]
    opened(chromium, tmp_path, page(*runs), at=f"#6.12:{BAD}")
    assert chromium.script(f"document.getElementById('6.12:{BAD}').checkVisibility()")
    assert not chromium.script(f"document.getElementById('6.1:{BAD}').checkVisibility()")
    chromium.script(
        "(() => { const one = document.querySelector('[data-key=kernel]'); one.value = '6.1';"
        " one.dispatchEvent(new Event('change')); })()"
    )
    assert chromium.script(SHOWN) == len(several(3))


def test_without_javascript_all_is_there(chromium: Browser, tmp_path: Path) -> None:
    chromium.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        opened(chromium, tmp_path, page(view(several(5))), at=f"#{BAD}")
        # The browser itself opens what a link leads into.
        assert chromium.script(f"document.getElementById('{BAD}').checkVisibility()")
        assert not chromium.script("document.querySelector('.filters').checkVisibility()")
        assert chromium.script(SHOWN) == len(several(5))
    finally:
        chromium.call("Emulation.setScriptExecutionDisabled", value=False)


def test_a_hostile_guest_runs_nothing(chromium: Browser, tmp_path: Path) -> None:
    address = opened(chromium, tmp_path, page(view([hostile(), *of_every_verdict()])))
    chromium.script("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert chromium.script("document.images.length + document.scripts.length") == 1
    assert chromium.requests == [address]
    assert chromium.complaints == []
    assert not [event for event in chromium.events if "javascriptDialog" in str(event)]
    # Whatever came through all the same would not run.
    assert chromium.script(
        "new Promise(done => { document.addEventListener('securitypolicyviolation',"
        " event => done(event.effectiveDirective)); const bad = document.createElement('script');"
        " bad.textContent = 'window.ran = 1'; document.body.append(bad); })"
    ).startswith("script-src")
    assert chromium.script("window.ran === undefined")


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_window_is_too_narrow(chromium: Browser, tmp_path: Path, width: int) -> None:
    opened(chromium, tmp_path, page(view([hostile(), *of_every_verdict()])))
    chromium.size(width, 800, phone=width < 400)
    chromium.script("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert chromium.script("document.documentElement.scrollWidth") <= width


def test_it_is_light_and_dark(chromium: Browser, tmp_path: Path) -> None:
    opened(chromium, tmp_path, page(view(of_every_verdict())))
    seen = {}
    for scheme in ("light", "dark"):
        chromium.scheme(scheme)
        seen[scheme] = chromium.script(
            "['body', '.word.FAIL', '.word.SKIP', '.word.KNOWN', '.answer b', '.mute'].map(one => {"
            " let at = document.querySelector(one); const ink = getComputedStyle(at).color;"
            " while (getComputedStyle(at).backgroundColor === 'rgba(0, 0, 0, 0)')"
            " at = at.parentElement; return [ink, getComputedStyle(at).backgroundColor]; })"
        )
        for ink, ground in seen[scheme]:
            assert contrast(ink, ground) >= 4.5, (scheme, ink, ground)  # WCAG 2.1, AA
    chromium.scheme("light")
    assert seen["light"][0] != seen["dark"][0]


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours as WCAG 2.1 reckons it."""

    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_it_prints_what_did_not_pass(chromium: Browser, tmp_path: Path) -> None:
    opened(chromium, tmp_path, page(view(several(300))))
    chromium.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    chromium.call("Emulation.setEmulatedMedia", media="print")
    try:
        chromium.script("dispatchEvent(new Event('beforeprint'))")
        assert chromium.script(SHOWN) == 4  # FAIL, KNOWN, ERROR, MISS
        assert chromium.script(f"document.getElementById('{BAD}').checkVisibility()")
        assert not chromium.script("document.querySelector('.filters').checkVisibility()")
    finally:
        chromium.call("Emulation.setEmulatedMedia", media="")


def test_2000_tests_open_as_few_do(chromium: Browser, tmp_path: Path) -> None:
    """Not in so many seconds: the host may be slow.  It is the work of the page's one thread."""
    long = {"dmesg": DMESG * 100, "output": "x" * 9000}

    def cost(count: int) -> float:
        bad = [
            record(f"test_l6_{n}", Status.FAIL, findings=(FINDING,), excerpts=long)
            for n in range(count // 10)
        ]
        text = page(view([*bad, *(record(f"test_v3_{n}", row="V3") for n in range(count))]))
        chromium.call("Performance.enable", timeDomain="threadTicks")
        opened(chromium, tmp_path, text)
        metrics = chromium.call("Performance.getMetrics")["metrics"]
        chromium.call("Performance.disable")
        return float({one["name"]: one["value"] for one in metrics}["TaskDuration"])

    cost(20)
    # Two thousand have little more to lay out than two hundred: what is not seen costs nothing yet.
    assert cost(2000) < 10 * cost(200) + 0.2
