"""What --help and the shell's TAB key tell of each command."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import cli, manual
from harness.commands.completion import SHELLS


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Walk over the program and all its commands, by what is typed."""
    yield parser.prog.removeprefix("nvh").strip() or "nvh", parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from commands(command)


PARSERS = dict(commands(cli._parser()))
every_command = pytest.mark.parametrize("command", PARSERS)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give help texts more room than they may take."""
    monkeypatch.setenv("COLUMNS", "200")


def section(text: str, title: str) -> list[str]:
    """Return the lines of a help text below a title, without their indent."""
    found = text.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
    return [line.removeprefix("  ") for line in found.splitlines()]


@every_command
def test_a_page_has_all_its_parts(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [] if command == "nvh" else command.split()
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "--help"])
    text, complaint = capsys.readouterr()
    assert (end.value.code, complaint) == (0, "")
    assert text.startswith(f"usage: nvh {' '.join(words)}".rstrip())
    assert max(map(len, text.splitlines())) <= 80
    about = text.split("\n\n")[1]
    assert len(about) > 40
    assert about.endswith(".")
    assert any("nvh" in line for line in section(text, "examples"))
    codes = {line.split()[0]: line[5:] for line in section(text, "exit codes")}
    assert codes.keys() >= {"0", "2", "125", "130"}
    assert all(codes.values())


def test_each_command_has_a_page_and_each_page_a_command() -> None:
    assert sorted(manual.commands()) == sorted(PARSERS)


def test_the_program_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = capsys.readouterr().out
    for command in PARSERS:
        if command != "nvh" and " " not in command:
            assert re.search(rf"^    {command} +\w", listed, re.MULTILINE)


@every_command
def test_each_option_says_what_it_does_in_which_unit_and_its_default(command: str) -> None:
    for action in PARSERS[command]._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        text = PARSERS[command]._get_formatter()._expand_help(action) if action.help else ""
        name = "/".join(action.option_strings) or action.dest
        assert len(text) > 5, name
        if action.default not in (None, False, [], "", argparse.SUPPRESS):
            assert "default" in text, name
        if action.metavar == "S":
            assert "seconds" in text, name


def examples(command: str) -> list[list[str]]:
    """Return the words of each example of nvh in a page."""
    text = PARSERS[command].format_help().replace("\\\n", "")
    lines = [line for line in section(text, "examples") if not line.startswith(" ")]
    return [shlex.split(line[line.index("nvh ") :].partition(" > ")[0])[1:] for line in lines]


@every_command
def test_examples_are_what_the_program_takes(command: str) -> None:
    for words in examples(command):
        before, rest = cli._split(words)
        args = PARSERS["nvh"].parse_args(before)
        assert not rest or hasattr(args, "pytest_args") or hasattr(args, "command_words")
        assert command == "nvh" or words[: len(command.split())] == command.split()


# Completion


@pytest.fixture(params=SHELLS)
def script(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """A shell, and the script that it is given."""
    assert cli.main(["completion", request.param]) == 0
    return request.param, capsys.readouterr().out


def test_a_shell_takes_its_script(script: tuple[str, str], tmp_path: Path) -> None:
    shell, text = script
    (tmp_path / "script").write_text(text)
    assert "completion" in text
    assert "virtio-pmem" in text  # a machine
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run(
        [shell, "-n", str(tmp_path / "script")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("nvh cl", "classify"),
        ("nvh machine s", "show"),
        ("nvh test --iso", "--isolation"),
        ("nvh test --accel k", "kvm"),
        ("nvh test --machine virt", "virtio-pmem"),
        ("nvh matrix --set fir", "first"),
        ("nvh machine show nes", "nested"),
        ("nvh report some", "somewhere"),
        ("nvh classify some", "something.log somewhere"),
    ],
)
def test_tab_in_bash(
    typed: str, offered: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "somewhere").mkdir()
    (tmp_path / "something.log").touch()
    words = typed.split()
    lines = (
        "source ./script",
        f"COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1}",
        # What readline does: the function that is registered for the program.
        'read -ra how <<< "$(complete -p nvh)"',
        "for ((i = 0; i < ${#how[@]}; i++)); do [ ${how[i]} = -F ] && with=${how[i + 1]}; done",
        f"$with nvh {shlex.quote(words[-1])} {shlex.quote(words[-2])}",
        'printf "%s\\n" "${COMPREPLY[@]}" | sort | xargs',
    )
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == offered, done.stderr
