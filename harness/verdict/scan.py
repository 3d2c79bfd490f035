"""Find the lines of a block that may begin or end a report, at the speed of bytes.find()."""

from __future__ import annotations

from dataclasses import dataclass

from harness.verdict.patterns import BANNER_KEYS, CUT_HERE, END_KEY, HEADERS

#: Keys whose lines hold another trigger anyway.
_IMPLIED = {":", "soft lockup", "NULL pointer dereference", "BUG: memory leak", "ernel BUG"}
#: Short needles that bytes.find() is quick with, their last letter being rare, and the words of
#: which one has to stand around them.
_NEEDLES = {
    "BUG": ("BUG:", "BUG "),
    "INFO": tuple(
        f"INFO: {word}"
        for word in (
            *("rcu", "RCU", "task ", "possible ", "inconsistent ", "trying ", "suspicious "),
            *("HARDIRQ", "SOFTIRQ", "RECLAIM", "hard-", "soft-"),
        )
    ),
    "#": ("[#",),
}


@dataclass(frozen=True)
class Trigger:
    """A literal to scan for; where it is found, one of ``words`` has to stand around it."""

    needle: bytes
    words: tuple[bytes, ...]
    offset: int  # of the needle in each of them


def _triggers() -> tuple[Trigger, ...]:
    """Return what to scan for, as little as will do: every header's line holds one of them."""
    keys = {header.key for header in HEADERS} - _IMPLIED
    keys |= {CUT_HERE, END_KEY, *BANNER_KEYS}
    covered = ("INFO:", *(word for words in _NEEDLES.values() for word in words))
    keys = {key for key in keys if not any(word.rstrip() in key for word in covered)}
    short = {key for key in keys if not any(other in key for other in keys if other != key)}
    return (
        *(Trigger(key.encode(), (), 0) for key in sorted(short)),
        *(
            Trigger(needle.encode(), tuple(map(str.encode, words)), words[0].index(needle))
            for needle, words in _NEEDLES.items()
        ),
    )


_TRIGGERS = _triggers()


def candidates(block: bytes) -> list[int]:
    """Return where the lines begin that hold a trigger, in order."""
    starts: set[int] = set()
    for trigger in _TRIGGERS:
        needle, words, offset = trigger.needle, trigger.words, trigger.offset
        at = block.find(needle)
        while at >= 0:
            if words and not block.startswith(words, max(0, at - offset)):
                at = block.find(needle, at + 1)
                continue
            starts.add(block.rfind(b"\n", 0, at) + 1)
            at = block.find(needle, block.find(b"\n", at))
    return sorted(starts)
