"""Records the session that the README shows: ``make session``.

It types COMMANDS into a shell on a terminal, for real, and writes what was shown to session.cast
(asciinema, version 2) and, as frames that follow each other, to session.svg.  Waiting is shortened.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.sax.saxutils import escape

import pexpect
import pyte

from harness import paths

COMMANDS = (
    "nvh doctor",
    "nvh test -n 2 -k 'V9 or (V3 and shared) or (S1 and never)'",
    "nvh report results/latest",
)
COLUMNS, LINES = 100, 30
CAST, SVG = "session.cast", "session.svg"
PROMPT = "$ "
#: Seconds that a command may take.
_PATIENCE = 900.0
#: A frame stands for what was shown within 0.7 s, and is shown for 0.7 s to 1.5 s ...
_FRAME, _SHORTEST, _LONGEST = 0.7, 0.7, 1.5
#: ... or for so long where a command has ended.
_READ = 5.0

_CELL, _ROW, _EDGE = 8.4, 18.0, 12.0
_COLOURS = {
    "default": "#d0d0d0",
    "red": "#ff6b68",
    "green": "#5fd068",
    "brown": "#e5c04b",
    "blue": "#6aa5ff",
    "magenta": "#e08cff",
    "cyan": "#5fd0d8",
    "black": "#808080",
    "white": "#ffffff",
}


@dataclass(frozen=True)
class Event:
    """What was written at a time; ``ends`` is a command's end."""

    at: float
    text: str
    ends: bool = False


@dataclass(frozen=True)
class Frame:
    """A screen, as rows of SVG, and for how many seconds it is shown."""

    rows: tuple[str, ...]
    seconds: float


def record(commands: Sequence[str], root: Path) -> list[Event]:
    """Type commands into a shell and return what was shown."""
    env = {
        **{
            key: os.environ[key] for key in ("HOME", "NVH_CACHE", "NVH_MIRROR") if key in os.environ
        },
        "PATH": f"{root / '.venv/bin'}:{os.environ['PATH']}",
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
        "PS1": PROMPT,
    }
    events: list[Event] = []
    begun = time.monotonic()
    shell = pexpect.spawn(
        "bash",
        ["--norc", "--noprofile", "--noediting"],
        cwd=str(root),
        env=env,
        dimensions=(LINES, COLUMNS),
        encoding="utf-8",
    )

    def take() -> None:
        deadline = time.monotonic() + _PATIENCE
        shown = ""
        while not shown.endswith(PROMPT):
            if time.monotonic() > deadline:
                raise SystemExit(f"session: no end after {_PATIENCE:.0f} s: {shown[-200:]}")
            try:
                text = shell.read_nonblocking(1 << 16, timeout=1.0)
            except pexpect.TIMEOUT:
                continue
            shown += text
            events.append(Event(time.monotonic() - begun, text, shown.endswith(PROMPT)))

    take()
    for command in commands:
        shell.sendline(command)
        take()
    shell.close(force=True)
    spoken = {str(root): "~/nvdimm-harness", str(paths.cache_dir()): "~/.cache/nvdimm-harness"}
    return [replace(event, text=_spoken(event.text, spoken)) for event in events]


def _spoken(text: str, names: Mapping[str, str]) -> str:
    """Return text with this machine's folders as a reader's would be called."""
    for name, spoken in names.items():
        text = text.replace(name, spoken)
    return text


def write_cast(events: Sequence[Event], file: Path) -> None:
    """Write an asciinema recording."""
    head = {"version": 2, "width": COLUMNS, "height": LINES, "idle_time_limit": _LONGEST}
    lines = [json.dumps(head), *(json.dumps([round(one.at, 3), "o", one.text]) for one in events)]
    file.write_text("\n".join(lines) + "\n")


def frames(events: Sequence[Event]) -> Iterator[Frame]:
    """Walk over the screens that are worth showing."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.Stream(screen)
    since = 0.0
    for number, event in enumerate(events):
        stream.feed(event.text)
        last = number == len(events) - 1
        if last or event.ends or events[number + 1].at - since >= _FRAME:
            gap = _READ if event.ends or last else events[number + 1].at - since
            seconds = gap if event.ends or last else min(_LONGEST, max(_SHORTEST, gap))
            since = event.at if last else events[number + 1].at
            yield Frame(tuple(_row(screen, line) for line in range(LINES)), seconds)


def _row(screen: pyte.Screen, line: int) -> str:
    """Return a line of the screen, a text element for each run of one style."""
    cells = [screen.buffer[line][column] for column in range(COLUMNS)]
    parts, begin = [], 0
    for end in range(1, COLUMNS + 1):
        if end < COLUMNS and _style(cells[end]) == _style(cells[begin]):
            continue
        text = "".join(cell.data for cell in cells[begin:end])
        if text.strip():
            ahead = len(text) - len(text.lstrip())
            text = text.strip()
            x, width = (begin + ahead) * _CELL, len(text) * _CELL
            colour, bold = _style(cells[begin])
            weight = ' font-weight="bold"' if bold else ""
            fill = "" if colour == _COLOURS["default"] else f' fill="{colour}"'
            parts.append(
                f'<text x="{x:.1f}" textLength="{width:.1f}"{fill}{weight}>{escape(text)}</text>'
            )
        begin = end
    return "".join(parts)


def _style(cell: pyte.screens.Char) -> tuple[str, bool]:
    colour = _COLOURS.get(cell.fg.removeprefix("bright"), _COLOURS["default"])
    return (colour, bool(cell.bold))


def svg(shown: Sequence[Frame]) -> str:
    """Return the frames as one picture: stacked, and moved past a window; each row is kept once."""
    rows = {row: f"r{number}" for number, row in enumerate({r: 0 for f in shown for r in f.rows})}
    height = LINES * _ROW + 2 * _EDGE
    width = COLUMNS * _CELL + 2 * _EDGE
    total = sum(frame.seconds for frame in shown)
    steps, stacked, at = [], [], 0.0
    for number, frame in enumerate(shown):
        steps.append(f"{100 * at / total:.2f}%{{transform:translateY({-number * height:.0f}px)}}")
        at += frame.seconds
        uses = "".join(
            f'<use href="#{rows[row]}" y="{_ROW * line:.0f}"/>'
            for line, row in enumerate(frame.rows)
            if row
        )
        stacked.append(f'<g transform="translate(0,{number * height:.0f})">{uses}</g>')
    defined = "".join(f'<g id="{name}">{row}</g>' for row, name in rows.items() if row)
    last = f"transform:translateY({-(len(shown) - 1) * height:.0f}px)"
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">
<title>A recorded session: {escape(", ".join(COMMANDS))}</title>
<style>
text{{font:14px ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;white-space:pre}}
#play{{animation:play {total:.1f}s steps(1,end) infinite}}
@keyframes play{{{"".join(steps)}}}
@media (prefers-reduced-motion:reduce){{#play{{animation:none;{last}}}}}
</style>
<defs>{defined}</defs>
<rect width="100%" height="100%" rx="8" fill="#1c1c1c"/>
<g fill="{_COLOURS["default"]}" transform="translate({_EDGE:.0f},{_EDGE + 14:.0f})">
<g id="play">
{"".join(stacked)}
</g></g>
</svg>
"""


def read_cast(file: Path) -> list[Event]:
    """Return what a recording shows."""
    lines = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    return [Event(at, text, text.endswith(PROMPT)) for at, _, text in lines]


def main() -> None:
    """Record the session anew, or with ``--draw`` draw the stored one."""
    folder = Path(__file__).resolve().parent
    if "--draw" not in sys.argv:
        write_cast(record(COMMANDS, folder.parent), folder / CAST)
    picture = svg(list(frames(read_cast(folder / CAST))))
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as aside:
        aside.write(picture)
    Path(aside.name).chmod(0o644)
    Path(aside.name).replace(folder / SVG)


if __name__ == "__main__":
    main()
