"""Conditions on a kernel's release, as expectations and known issues name them: "<6.15"."""

from __future__ import annotations

import re

_CONDITION = re.compile(r"(<=|>=|<|>)\s*(\d+(?:\.\d+)*)")


def version(release: str) -> tuple[int, ...]:
    """Return the numbers that a release starts with: (6, 12, 117) of 6.12.117+deb12-amd64."""
    match = re.match(r"\d+(?:\.\d+)*", release)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def is_condition(text: str) -> bool:
    """Whether the text is a condition such as "<6.15"."""
    return _CONDITION.fullmatch(text) is not None


def holds(condition: str, release: str) -> bool:
    """Whether a condition holds for a release; it must be one (see is_condition)."""
    match = _CONDITION.fullmatch(condition)
    assert match is not None
    have, bound = version(release), version(match[2])
    # 6.12.117 is neither above nor below 6.12: it is 6.12.
    have = have[: len(bound)]
    return {"<": have < bound, "<=": have <= bound, ">": have > bound, ">=": have >= bound}[
        match[1]
    ]
