"""What the first line of a kernel report looks like: data for the classifier.

Each header is looked for at the start of a kernel message (after time stamp and caller id), never
in its middle: "foo[12]: BUG: ..." is a program's message.  ``key`` is a literal that the line must
contain; scan.py looks for the keys before anything looks at lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from harness.verdict.kinds import Kind


class Where(Enum):
    """Where a report says which function is concerned."""

    HEADER = "the header itself"
    IP = "the instruction pointer"
    FRAME = "the first telling frame of the call trace"
    SLEEP = "the first frame that is not about sleeping"
    LOCK = "the place where the lock is taken"
    NOWHERE = "nothing to look for"


@dataclass(frozen=True)
class Header:
    """The first line of a report."""

    kind: Kind
    key: str
    regex: re.Pattern[str]
    title: str  # a format: the regex's groups and {where}
    where: Where = Where.NOWHERE
    trace: bool = True  # whether a call trace or registers belong to it
    confirm: bool = False  # whether it is only words until a line of a report follows
    die: bool = False  # whether it is the line that die() prints into a report that began before
    one_line: bool = False  # whether it is complete in itself
    part: bool = False  # whether it is a line of whatever report is open
    common: bool = False  # whether programs say it too: proof is needed where nothing has a stamp


def _header(
    kind: Kind, key: str, regex: str, title: str, where: Where = Where.NOWHERE, **flags: bool
) -> Header:
    return Header(kind, key, re.compile(regex), title, where, **flags)


#: The message is not the first thing on its line: these prefixes are the kernel's own.
_PREFIX = r"(?:(?:NMI )?watchdog: |rcu: |traps: |CPU ?\d+:? )*"

#: A file of the kernel's source.
_SOURCE = r"[^\s:]+\.(?:[chS]|rs)"

_LOCKDEP = (
    r"possible circular locking dependency|possible irq lock inversion dependency"
    r"|possible recursive locking|possible deadlock|inconsistent lock state"
    r"|[A-Za-z_]+-safe -> [A-Za-z_]+-unsafe lock order|bad unlock balance|bad contention"
    r"|held lock freed|[Nn]ested lock was not taken|Invalid wait context"
    r"|lock held (?:when returning to user space|at task exit time)"
    r"|.{1,40} still has locks held|trying to register non-static key|suspicious (?:RCU usage|rcu_)"
)

#: What the kernel says after BUG: on a line that may stand alone.
_BUG_WORDS = (
    r"scheduling |sleeping function|using |Bad |non-zero |spinlock |rwlock |workqueue |Dentry "
    r"|MAX_|key |looking up|mempool |(?:\S+ )?stack guard|memory leak|unable to handle|failure at"
)

#: In this order: the first that matches is the report's kind.
HEADERS: tuple[Header, ...] = (
    _header(
        Kind.PANIC,
        "Kernel panic",
        r"Kernel panic(?: - not syncing)?(?:: ?(?P<what>.*))?",
        "kernel panic: {what}",
        confirm=True,
    ),
    _header(
        Kind.OOPS,
        "PANIC:",
        _PREFIX + r"PANIC: (?P<what>double fault|early exception)",
        "{what} in {where}",
        Where.IP,
    ),
    _header(
        Kind.KASAN,
        "BUG: KAS",
        r"BUG: KAS(?:AN|an): (?P<what>.*?)"
        r"(?: in (?P<func>[\w.]+)(?:\+.*)?| on address.*| at addr.*)?$",
        "KASAN: {what} in {where}",
        Where.HEADER,
    ),
    _header(
        Kind.KMSAN,
        "BUG: KMSAN:",
        r"BUG: KMSAN: (?P<what>.*?)(?: in (?P<func>[\w.]+).*)?$",
        "KMSAN: {what} in {where}",
        Where.HEADER,
    ),
    _header(
        Kind.KCSAN,
        "BUG: KCSAN:",
        r"BUG: KCSAN: (?P<what>.*?)(?: in (?P<func>[\w.]+(?:\+\S+)?(?: / [\w.]+)?).*)?$",
        "KCSAN: {what} in {where}",
        Where.HEADER,
        trace=False,
    ),
    _header(
        Kind.KFENCE,
        "BUG: KFENCE:",
        r"BUG: KFENCE: (?P<what>.*?)(?: in (?P<func>[\w.]+).*)?$",
        "KFENCE: {what} in {where}",
        Where.HEADER,
    ),
    _header(
        Kind.SOFT_LOCKUP,
        "soft lockup",
        _PREFIX + r"BUG: soft lockup",
        "soft lockup in {where}",
        Where.IP,
    ),
    _header(
        Kind.HARD_LOCKUP,
        "LOCKUP",
        _PREFIX + r"(?:(?:Watchdog |self-)?detected hard LOCKUP|NMI Watchdog detected LOCKUP)",
        "hard lockup in {where}",
        Where.IP,
    ),
    _header(
        Kind.LOCKDEP,
        ":",
        rf"(?:\[ )?(?:WARNING|INFO|BUG): (?:\[ BUG: )?(?P<what>{_LOCKDEP})",
        "{what} in {where}",
        Where.LOCK,
    ),
    _header(
        Kind.PAGE_FAULT,
        "NULL pointer dereference",
        _PREFIX + r"(?:BUG: |(?:BUG: )?[Uu]nable to handle )[Kk]ernel NULL pointer dereference",
        "NULL pointer dereference in {where}",
        Where.IP,
    ),
    _header(
        Kind.PAGE_FAULT,
        "nable to handle",
        _PREFIX + r"(?:BUG: [Uu]|U)nable to handle (?:kernel|page|paging)",
        "page fault in {where}",
        Where.IP,
    ),
    _header(
        Kind.PAGE_FAULT,
        "Unhandled",
        r"(?:Unhandled|Bad|Imprecise) (?:fault|prefetch abort|data abort|exception):?.* at "
        r"(?:0x)?[0-9a-f]{8}",
        "unhandled fault in {where}",
        Where.IP,
        confirm=True,
    ),
    _header(
        Kind.GENERAL_PROTECTION,
        "general protection fault",
        r"(?:Oops: )?general protection fault(?:[,:]| maybe)",
        "general protection fault in {where}",
        Where.IP,
    ),
    _header(
        Kind.BUG,
        "usercopy:",
        r"usercopy: [Kk]ernel memory (?P<what>\w+) attempt detected",
        "BUG: usercopy {what} in {where}",
        Where.FRAME,
    ),
    _header(
        Kind.REFCOUNT,
        "refcount_t",
        r"refcount_t(?: \w+)?(?::| at )\s*(?P<what>[^.;]*)",
        "refcount: {what} in {where}",
        Where.FRAME,
    ),
    *(
        _header(
            Kind.LIST_CORRUPTION,
            key,
            r"(?P<what>(?:__)?h?list_\w+) (?:corruption|double add)",
            "{what} corruption in {where}",
            Where.FRAME,
        )
        for key in ("corruption", "double add")
    ),
    _header(
        Kind.BUG,
        "ernel BUG",
        r"[Kk]ernel BUG (?:at )?(?P<what>.*?)!?$",
        "BUG at {what} in {where}",
        Where.IP,
    ),
    _header(
        Kind.BUG,
        "BUG ",
        r"BUG (?P<what>\S+) \((?:Not tainted|Tainted)[^)]*\): (?P<why>.*)",
        "BUG {what}: {why}",
    ),
    _header(
        Kind.RCU_STALL,
        "INFO: ",
        _PREFIX
        + r"INFO: (?P<what>rcu\w*|RCU) (?:self-)?detected (?:expedited )?(?:stall|CPU \d+ stall)",
        "{what} stall in {where}",
        Where.IP,
    ),
    _header(
        Kind.HUNG_TASK,
        "INFO: task",
        r"INFO: task (?P<what>.*):\d+ (?:(?:is )?blocked(?: in I/O wait)?|can't die) for more than",
        "task {what} hung in {where}",
        Where.SLEEP,
    ),
    _header(
        Kind.HUNG_TASK,
        "blocked for more than",
        r"(?P<what>.*):\d+ blocked for more than \d+ seconds",
        "task hung in {where}",
        Where.SLEEP,
        confirm=True,
    ),
    _header(
        Kind.UBSAN,
        "UBSAN:",
        r"UBSAN: (?P<what>.*?) in (?P<func>\S+)",
        "UBSAN: {what} in {where}",
        Where.HEADER,
    ),
    _header(
        Kind.WARNING,
        "WARNING: ",
        rf"WARNING: (?:CPU: \d+ PID: \d+ )?at (?P<file>{_SOURCE})(?::(?P<line>\d+))?"
        r"(?: (?P<func>[A-Za-z_][\w.]*)(?:\+|\())?",
        "WARNING in {where} ({file}:{line})",
        Where.HEADER,
    ),
    _header(  # since v6.18
        Kind.WARNING,
        "WARNING: ",
        rf"WARNING: (?:\[.*\] )?(?P<file>{_SOURCE}):(?P<line>\d+) at (?P<func>[\w.]+)",
        "WARNING in {where} ({file}:{line})",
        Where.HEADER,
    ),
    _header(
        Kind.WARNING,
        "WARNING: ",
        rf"WARNING: (?:CPU: \d+ PID: \d+\b|at {_SOURCE}\b|at [0-9a-f]{{8,16}} )",
        "WARNING in {where}",
        Where.IP,
        confirm=True,
    ),
    _header(
        Kind.WARNING,
        "WARNING: ",
        r"WARNING: kernel stack (?P<what>regs|frame pointer) .*\bhas bad\b",
        "WARNING: kernel stack {what} has bad value",
        trace=False,
    ),
    _header(  # v2.6
        Kind.WARNING,
        "Badness ",
        r"Badness (?:in (?P<func>\w+) )?at (?P<file>[\w./+-]+\.[ch]):(?P<line>\d+)",
        "WARNING in {where} ({file}:{line})",
        Where.HEADER,
        confirm=True,
    ),
    _header(  # the rest of the line was lost
        Kind.WARNING,
        "WARNING:",
        r"WARNING:\s*$",
        "WARNING in {where}",
        Where.IP,
        confirm=True,
    ),
    _header(
        Kind.OOM_KILL,
        "invoked oom-killer",
        r".{1,32} invoked oom-killer: ",
        "out of memory: killed {where}",
    ),
    _header(
        Kind.OOM_KILL,
        "ut of memory",
        r"(?:Memory cgroup o|O)ut of memory(?: \(\w+\))?: [Kk]ill(?:ed)? process",
        "out of memory: killed {where}",
        trace=False,
    ),
    *(
        _header(Kind.OOM_KILL, key, regex, "out of memory: killed {where}", trace=False)
        for key, regex in (
            ("Killed process", r"Killed process \d+,? \(.*\),? (?:UID \d+,? )?(?:total-vm|vsz):"),
            ("oom-kill:constraint", r"oom-kill:constraint="),
        )
    ),
    _header(
        Kind.DMAR_FAULT,
        "] Request device [",
        r"(?:dmar_fault: )?DMAR: ?\[(?P<what>DMA \w+|INTR-REMAP|\w+)[^]]*\] Request device "
        r"\[(?P<device>[^]]*)\].*?(?:\[fault reason \w+\] ?(?P<why>.*))?$",
        "DMAR: {what} fault by {device}: {why}",
        trace=False,
        one_line=True,
    ),
    _header(
        Kind.DMAR_FAULT,
        "AMD-Vi: Event",
        r"(?:\S+ (?P<device>[\da-fA-F:.]+): )?AMD-Vi: Event logged \[(?P<what>[A-Z_]+)",
        "AMD-Vi: {what} fault",
        trace=False,
        one_line=True,
    ),
    _header(
        Kind.DMAR_FAULT,
        "fault from EP",
        r"\S+ \S+: (?P<what>\w+) fault from EP (?P<device>\d+)",
        "virtio-iommu: {what} fault by endpoint {device}",
        trace=False,
        one_line=True,
    ),
    _header(
        Kind.DMAR_FAULT,
        "context fault",
        r"arm-smmu\S* \S+: Unhandled context fault",
        "SMMU: unhandled context fault",
        trace=False,
        one_line=True,
    ),
    _header(
        Kind.BUG,
        "unregister_netdevice",
        r"unregister_netdevice: waiting for \S+ to become free",
        "unregister_netdevice: waiting for a device to become free",
        trace=False,
        one_line=True,
    ),
    _header(
        Kind.BUG,
        "Busy inodes after unmount",
        r"VFS: Busy inodes after unmount",
        "VFS: busy inodes after unmount",
        trace=False,
        one_line=True,
    ),
    _header(
        Kind.BUG,
        "failed to free all reserved pages",
        r".{0,80}failed to free all reserved pages",
        "failed to free all reserved pages",
        trace=False,
        one_line=True,
    ),
    _header(
        Kind.BUG,
        "BUG: memory leak",
        r"BUG: memory leak",
        "memory leak in {where}",
        Where.FRAME,
    ),
    _header(  # kmemleak
        Kind.BUG,
        "unreferenced object 0x",
        r"unreferenced object 0x[0-9a-f]{8,16} \(size \d+\)",
        "memory leak in {where}",
        Where.FRAME,
    ),
    _header(
        Kind.BUG,
        "BUG:",
        _PREFIX + rf"(?:\[ )?BUG: (?P<what>(?:{_BUG_WORDS}).*?)(?: \])?$",
        "BUG: {what}",
        trace=False,
    ),
    _header(
        Kind.BUG,
        "BUG:",
        _PREFIX + r"(?:\[ )?BUG:(?: (?P<what>.+?))?(?: \])?$",
        "BUG: {what}",
        trace=False,
        common=True,
    ),
    _header(
        Kind.BUG,
        "Bad page",
        r"Bad page (?P<what>state|map) in process",
        "BUG: Bad page {what}",
        trace=False,
    ),
    _header(
        Kind.BUG,
        "pagealloc: ",
        r"pagealloc: (?P<what>memory corruption|single bit error)",
        "pagealloc: {what}",
        confirm=True,
    ),
    _header(  # the rest of SLUB's report was lost
        Kind.BUG,
        " age=",
        r"(?:INFO: )?(?:Allocated|Freed) in (?P<func>[\w.]+)\S* age=\d+ cpu=\d+ pid=",
        "BUG: a slab object of {where}",
        Where.HEADER,
        part=True,
    ),
    _header(
        Kind.BUG,
        "file count is",
        r"VFS: Close: file count is (?:0|zero)",
        "VFS: close of a file without a reference",
        trace=False,
        one_line=True,
    ),
    _header(
        Kind.BUG,
        "slab error in",
        r"slab error in (?P<what>\w+)\(\): ",
        "slab error in {what}",
        trace=False,
    ),
    _header(
        Kind.BUG,
        "Kernel bug detected",
        r"Kernel bug detected\[#\d+\]",
        "BUG in {where}",
        Where.IP,
    ),
    _header(
        Kind.OOPS,
        "[#",
        _PREFIX
        + r"(?P<what>[A-Za-z][^\[\]]{0,120}?)(?:[:,] [0-9a-fx]{4,16})?(?: ilc:\d)? ?\[#\d+\]",
        "{what} in {where}",
        Where.IP,
        confirm=True,
        die=True,
    ),
)

#: Where a report may begin before its header (WARN() prints its own words in between).
CUT_HERE = "[ cut here ]"
#: Where a report ends.
END = re.compile(r"---\[ end (?:trace|Kernel panic)")
END_KEY = "---[ end "
#: A new boot of the kernel; see Classifier for which of them is unexpected.
BANNER = re.compile(r"(?:Linux version \d+\.\d+|(?:.*\. )?Booting the kernel\.)")
BANNER_KEYS = ("Linux version ", "Booting the kernel.")
#: Words that explain a reset; one of them before it is enough.
ASKED_FOR = (
    *(b"reboot: ", b"Rebooting", b"rebooting", b"-- Boot", b"-- Reboot", b"resetting ..."),
    *(b"estarting system", b"Emergency Restart", b"Emergency Remount", b"sysrq: Resetting"),
    *(b"ower off", b"ower-off", b"ower down", b"owering off", b"owering down", b"going down for"),
    *(b"hutting down", b"kexec", b"System halted"),
)

#: Words that stand for a report even in the middle of a line, where its lines follow.
UNMISTAKABLE = re.compile(
    r"kernel BUG at |BUG: (?:K[A-Z]{1,2}SAN|KFENCE|unable to handle|kernel NULL pointer)"
    r"|BUG: soft lockup"
    r"|WARNING: CPU: \d+ PID: \d+ at |general protection fault(?:, prob|: 0000 \[)"
    r"|INFO: task .{1,60} blocked for more|INFO: rcu_\w+ (?:self-)?detected"
    r"|Kernel panic - not syncing: |(?:WARNING|INFO): possible (?:circular|recursive)"
    r"|(?:divide error|invalid opcode|stack segment): 0000 \[#"
)

#: Messages that look like a header and are none.
NOT_A_HEADER = re.compile(
    r"BUG: (?:no syscalls can create|[a-z]+ is deprecated)|BUG \S+ \(.*\): kasan: bad access"
    r"|INFO: (?:lockdep is turned off|Stall ended before|NMI handler|sys_)"
)
