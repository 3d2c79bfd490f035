"""The recorded session that the README shows, and what draws it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from docs import session
from docs.session import COMMANDS, PROMPT, Event
from harness import paths

DOCS = paths.source_tree() / "docs"
SVG = "{http://www.w3.org/2000/svg}"


def test_the_stored_session_is_small_and_shows_a_run(tmp_path: Path) -> None:
    events = session.read_cast(DOCS / session.CAST)
    text = "".join(event.text for event in events)
    assert [text.count(f"{PROMPT}{command}\r\n") for command in COMMANDS] == [1] * len(COMMANDS)
    assert "KNOWN" in text
    assert "/report.html\r\n" in text
    assert sum(event.ends for event in events) == len(COMMANDS) + 1
    drawn = (DOCS / session.SVG).read_text()
    assert len(drawn) + len(text) < 200_000
    assert drawn == session.svg(list(session.frames(events)))  # make session makes both
    assert f"]({DOCS.name}/{session.SVG})" in (paths.source_tree() / "README.md").read_text()


def test_a_picture_has_each_row_once_and_nothing_that_is_markup() -> None:
    events = [
        Event(0.0, PROMPT, ends=True),
        Event(1.0, "echo '<b>&'\r\n"),
        Event(5.0, "\x1b[31m<b>&\x1b[0m plain\r\n"),
        Event(5.1, PROMPT, ends=True),
    ]
    shown = list(session.frames(events))
    assert [frame.seconds for frame in shown] == [5.0, 1.5, 5.0]
    root = ET.fromstring(session.svg(shown))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert texts.count("$ echo '<b>&'") == 1
    assert "<b>&" in texts
    (red,) = [element for element in root.iter(f"{SVG}text") if element.get("fill") == "#ff6b68"]
    assert red.text == "<b>&"
    assert red.get("textLength") == "33.6"
    ids = {element.get("id") for element in root.iter(f"{SVG}g")}
    used = {str(element.get("href"))[1:] for element in root.iter(f"{SVG}use")}
    assert used <= ids
    assert not list(root.iter(f"{SVG}script"))


def test_the_readers_folders_stand_for_those_of_the_machine() -> None:
    assert session._spoken("a /x/y/z /c", {"/x/y": "~/n", "/c": "~/c"}) == "a ~/n/z ~/c"
