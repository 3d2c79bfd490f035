"""What kinds of fault a kernel reports, and how bad each is."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """What kind of fault the kernel reports."""

    PANIC = "panic"
    OOPS = "oops"
    BUG = "bug"
    WARNING = "warning"
    KASAN = "kasan"
    KMSAN = "kmsan"
    KCSAN = "kcsan"
    UBSAN = "ubsan"
    KFENCE = "kfence"
    LOCKDEP = "lockdep"
    RCU_STALL = "rcu-stall"
    SOFT_LOCKUP = "soft-lockup"
    HARD_LOCKUP = "hard-lockup"
    HUNG_TASK = "hung-task"
    GENERAL_PROTECTION = "general-protection"
    PAGE_FAULT = "page-fault"
    REFCOUNT = "refcount"
    LIST_CORRUPTION = "list-corruption"
    OOM_KILL = "oom-kill"
    DMAR_FAULT = "dmar-fault"
    RESET = "reset"

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return _SEVERITIES.get(self, Severity.ERROR)


class Severity(StrEnum):
    """How bad a finding is."""

    FATAL = "fatal"  # the kernel does not run any more
    ERROR = "error"
    WARNING = "warning"


_SEVERITIES = {
    Kind.PANIC: Severity.FATAL,
    Kind.RESET: Severity.FATAL,
    Kind.WARNING: Severity.WARNING,
    Kind.LOCKDEP: Severity.WARNING,
    Kind.KCSAN: Severity.WARNING,
    Kind.OOM_KILL: Severity.WARNING,
    Kind.DMAR_FAULT: Severity.WARNING,
}
