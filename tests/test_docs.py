"""The documentation: every page can be reached, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from harness import cli, paths

ROOT = paths.source_tree()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def links(text: str) -> list[str]:
    """Return what a page links to, but for the network."""
    found = re.findall(r"\]\(([^)#]+)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [link for link in found if "://" not in link]


def test_the_index_has_every_page() -> None:
    listed = set(links((ROOT / "docs" / "README.md").read_text()))
    assert {page.name for page in PAGES if page.parent.name == "docs"} <= listed | {"README.md"}
    assert "docs/README.md" in links((ROOT / "README.md").read_text())


@every_page
def test_links_lead_to_files(page: Path) -> None:
    for link in links(page.read_text()):
        assert (page.parent / link).exists(), link


@every_page
def test_it_is_whole(page: Path) -> None:
    text = page.read_text()
    assert text.startswith("# ")
    assert text.count("```") % 2 == 0
    assert text.endswith("\n")


def commands(text: str) -> list[list[str]]:
    """Return the words of each line of a code block that starts nvh, but for redirections."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        match = re.match(r" {4}(?:\$ )?(?:\S*/)?nvh (.*)", line)
        if match and " [" not in match[1]:  # that is a synopsis
            words = shlex.split(match[1], comments=True)
            end = next((at for at, word in enumerate(words) if word in {"|", ">", "&&"}), None)
            found.append(words[:end])
    return found


@every_page
def test_commands_are_what_the_program_takes(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = cli._parser()
    for words in commands(page.read_text()):
        try:
            parser.parse_args(cli._split(words)[0])
        except SystemExit:
            pytest.fail(f"nvh {shlex.join(words)}: {capsys.readouterr().err.splitlines()[-1]}")


def test_there_are_commands_to_look_at() -> None:
    assert len(commands((ROOT / "README.md").read_text())) > 15
