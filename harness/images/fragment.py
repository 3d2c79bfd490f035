"""Configuration fragments: merged into what a build asks for, and held against what it got."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness import paths
from harness.errors import UsageError

_SET = re.compile(r"(CONFIG_\w+)=(.+)")
_UNSET = re.compile(r"# (CONFIG_\w+) is not set")
_ENTRY = re.compile(r"^(?:menu)?config (\w+)\n((?:[ \t].*\n|\n|#.*\n)*)", re.MULTILINE)
_DEPENDS = re.compile(r"^\s+depends on (.*)$", re.MULTILINE)
_SYMBOL = re.compile(r"(?<!\")\b[A-Z][A-Z0-9_]*\b(?!\")")

#: Always the first: nothing boots without it.
BASE = "base"


@dataclass(frozen=True)
class Fragment:
    """Lines of a configuration; ``values`` has n for what must not be set."""

    name: str
    values: Mapping[str, str]


def find(names: Iterable[str]) -> list[Fragment]:
    """Return the base and the named fragments: of guest-images/kernel, or files.

    Raises UsageError when there is none of a name, or a line is none of a configuration.
    """
    folder = paths.guest_images() / "kernel"
    found = []
    for name in dict.fromkeys([BASE, *names]):
        file = folder / f"{name}.config"
        if "/" in name or not file.is_file():
            file = Path(name).expanduser().absolute()
        if not file.is_file():
            known = ", ".join(sorted(path.stem for path in folder.glob("*.config")))
            raise UsageError(f"no configuration fragment {name}", hint=f"a file, or one of {known}")
        label = file.stem if file.parent == folder else str(file)
        found.append(Fragment(label, parse(file.read_text(errors="replace"), str(file))))
    return found


def parse(text: str, where: str) -> dict[str, str]:
    """Return what a fragment asks for; UsageError names the line that says nothing."""
    values = {}
    for number, line in enumerate(text.splitlines(), start=1):
        unset = _UNSET.fullmatch(line.strip())
        match = _SET.fullmatch(line.strip())
        if unset:
            values[unset[1]] = "n"
        elif match:
            values[match[1]] = match[2]
        elif line.strip() and not line.lstrip().startswith("#"):
            raise UsageError(
                f"{where}:{number}: {line.strip()[:60]} is no line of a configuration",
                hint="CONFIG_X=y, or # CONFIG_X is not set",
            )
    return values


def merged(fragments: Iterable[Fragment]) -> dict[str, str]:
    """Return what all fragments ask for together; a later one wins."""
    values: dict[str, str] = {}
    for fragment in fragments:
        values |= fragment.values
    return values


def text(values: Mapping[str, str]) -> str:
    """Return a fragment that asks for these values."""
    return "".join(f"{option}={value}\n" for option, value in values.items())


def unmet(wanted: Mapping[str, str], config: str) -> list[str]:
    """Return the options that a .config has with another value than was asked for."""
    got = parse(config, ".config")
    return [
        option
        for option, value in wanted.items()
        # A tristate without modules is built in.
        if got.get(option, "n") != value and not (value == "m" and got.get(option) == "y")
    ]


def why(options: Iterable[str], tree: Path, config: str) -> list[str]:
    """Return each option with what its own ``depends on`` lines miss, as far as that is plain.

    Conditions of enclosing menus are not followed.
    """
    wanted = {option.removeprefix("CONFIG_") for option in options}
    if not wanted:
        return []
    entries: dict[str, list[str]] = {name: [] for name in wanted}
    there = set()
    for file in tree.rglob("Kconfig*"):
        for match in _ENTRY.finditer(file.read_text(errors="replace")):
            if match[1] in wanted:
                there.add(match[1])
                entries[match[1]] += _DEPENDS.findall(match[2])
    got = parse(config, ".config")
    said = []
    for name in sorted(wanted):
        symbols = {word for line in entries[name] for word in _SYMBOL.findall(line)}
        lacking = sorted(word for word in symbols if got.get(f"CONFIG_{word}", "n") == "n")
        if name not in there:
            said.append(f"CONFIG_{name} (this source has none)")
        elif lacking:
            conditions = " and ".join(line.strip() for line in entries[name])
            said.append(f"CONFIG_{name} (depends on {conditions}; not set: {', '.join(lacking)})")
        else:
            said.append(f"CONFIG_{name} (its dependencies or another option decide otherwise)")
    return said
