"""The title of a report: which function is concerned, in words that do not change by address."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from harness.verdict.kinds import Kind
from harness.verdict.patterns import Header, Where

_IP = re.compile(
    r"(?:\b[ER]?IP(?: is at|:)?|\bNIP:?|\bPC is at|\bpc *:|\bepc *:|\bera *:|Krnl PSW ?:.*\()"
    r"[^A-Za-z_]*(?:[0-9a-f]{4}:)?(?:\s*(?:\[?<?[0-9a-fx]+>?\]?|[0-9a-f]{8,16})\s)*"
    r"\s*\[?<?(?:[0-9a-f]{8,16}>\] )?(?P<func>[A-Za-z_][\w.]*)\+0x"
)
_TRACE = re.compile(r"Call [Tt]race:|[Bb]acktrace:|<TASK>|Call Trace")
_FRAME = re.compile(
    r"^[\s\[\]<>(0-9a-fx]*?(?P<unsure>\? )?(?P<func>[A-Za-z_][\w.]*)\+0x[0-9a-f]+/0x[0-9a-f]+"
)
_LOCK = re.compile(
    r"(?:, |\s)at: (?:\[<[0-9a-f]+>\] )?(?P<func>[A-Za-z_][\w.]*)"
    r"|^\[<[0-9a-f]+>\] (?P<below>[A-Za-z_][\w.]*)\+0x"  # on the line below "release lock at:"
)
_KILLED = re.compile(r"Kill(?:ed)? process \d+ \((?P<func>[^)]*)\)|,task=(?P<task>[^,]+),pid=")

#: Functions that report, not those reported on.
_REPORTERS = re.compile(
    r"(?:__|_)?(?:dump_|show_stack|sched_show|print_|panic|warn|report_bug|handle_bug|exc_|asm_exc|ubsan"
    r"|handle_overflow|kasan|kmsan|kfence|asan|msan|check_memory_region|lock_acquire|lock_release"
    r"|lockdep|check_|mark_lock|validate_chain|register_lock|might_|___might|refcount_|list_|bad_page"
    r"|invalid_op|do_error_trap|do_trap|die|oops|slab_err|object_err|usercopy|nmi_|show_regs|rcu_"
    r"|del_timer|timer_delete|cancel_work|flush_work|kmemleak|create_object|k[mzc]alloc|__kmalloc"
    r"|kmem_cache_alloc|(?:smp_)?(?:local_)?apic_timer|sched_|update_process_times|tick_|hrtimer|sysvec_|asm_sysvec|mem(?:cpy|set|move|cmp)|str"
    r"|try_to_wake|raw_spin|spin_|mutex_|down_|up_)"
)
#: Functions in which the CPU is for somebody else's reason.
_HELPERS = re.compile(r"_{2}(?:x86_indirect_thunk|sanitizer_cov|asan_|msan_|hwasan_)|kmsan_|kasan_")
#: Functions in which a task sleeps for somebody else's reason.
_SLEEPERS = re.compile(
    r"_{0,3}(?:(?:io_|preempt_)?schedule|wait|do_wait|bit_wait|out_of_line_wait|folio_wait|folio_lock"
    r"|lock_|mutex|rt_mutex|ww_mutex|rwsem|down|percpu_|synchronize_|flush_work|cancel_|switch_to"
    r"|context_switch|completion|prepare_to_wait|[mu]sleep|kthread$|ret_from_fork)"
)
_SUFFIX = re.compile(r"(?:\.(?:isra|constprop|part|cold|llvm|lto_priv)(?:\.\d+)*|\.\d+)+$")
_ADDRESS = re.compile(r"\b(?:0x)?[0-9a-f]{8,16}\b|\b0x[0-9a-f]+\b")
_NUMBER = re.compile(r"(?<![\w.:/-])-?\d+(?![\w.:/])")

UNKNOWN = "an unknown function"


def base(function: str) -> str:
    """Return a function's name without what the compiler appended."""
    return _SUFFIX.sub("", function)


def instruction_pointer(lines: Sequence[str]) -> str | None:
    """Return the function that the first instruction pointer lies in."""
    for line in lines:
        match = _IP.search(line) if "+0x" in line else None
        if match and not _HELPERS.match(match["func"]):
            return base(match["func"])
    return None


def frame(lines: Sequence[str], skip: re.Pattern[str] = _REPORTERS) -> str | None:
    """Return the first sure frame of a call trace that ``skip`` does not match."""
    first = None
    inside = False
    for line in lines:
        inside = inside or _TRACE.search(line) is not None
        match = _FRAME.match(line) if inside else None
        if match and not match["unsure"]:
            if not skip.match(match["func"]):
                return base(match["func"])
            first = first or base(match["func"])
    return first


def _lock(lines: Sequence[str]) -> str | None:
    for line in lines:
        match = _LOCK.search(line)
        if match:
            return base(match["func"] or match["below"])
    return frame(lines)


def _killed(lines: Sequence[str]) -> str | None:
    for line in lines:
        match = _KILLED.search(line)
        if match:
            return match["func"] or match["task"]
    return None


def _where(header: Header, groups: Mapping[str, str | None], lines: Sequence[str]) -> str | None:
    named = groups.get("func")
    found = None
    if header.kind is Kind.OOM_KILL:
        found = _killed(lines)
    elif header.kind is Kind.UBSAN:
        found = named  # a file, not a function
    elif header.where is Where.HEADER and named:
        found = base(named)
    elif header.where in (Where.HEADER, Where.IP):
        found = instruction_pointer(lines) or frame(lines)
    elif header.where is Where.FRAME:
        found = frame(lines) or instruction_pointer(lines)
    elif header.where is Where.SLEEP:
        found = frame(lines, _SLEEPERS)
    elif header.where is Where.LOCK:
        found = _lock(lines)
    return found


def title(header: Header, match: re.Match[str], lines: Sequence[str]) -> tuple[str, str | None]:
    """Return a report's title and the function that it names, if any."""
    groups = match.groupdict()
    where = _where(header, groups, lines)
    words = {key: " ".join((value or "").split()) for key, value in groups.items()}
    if header.kind is Kind.BUG and "what" in words:
        words["what"] = _general(words["what"])
    if header.kind is Kind.KCSAN and groups.get("func"):
        where = " / ".join(base(part.split("+")[0]) for part in str(groups["func"]).split(" / "))
    words["where"] = where or UNKNOWN
    text = header.title.format_map(words).replace(f" in {UNKNOWN}", "")
    return text.replace(" (:)", "").replace(":)", ")").strip(" :")[:200], where


def _general(text: str) -> str:
    """Return words without addresses and numbers, which differ from run to run."""
    return _NUMBER.sub("N", _ADDRESS.sub("ADDR", text))
