"""Long-term pins by other parts of the kernel than VFIO: made ready, asked for, and judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.guest import Guest
from harness.guest.guest import WORKLOADS
from harness.verdict.expectation import Case
from harness.verdict.known import holds
from testcases.kprobes import calls
from testcases.vfio_steps import expect_all, prove_oracle, references_left

# There need not be a udev in the guest: devtmpfs makes the nodes.  Each prints what longpin's
# --device is to be, or nothing.
_RDMA = """
[ -d /sys/module/rdma_rxe ] && [ -d /sys/module/ib_uverbs ] || modprobe -qa rdma_rxe ib_uverbs
for interface in /sys/class/net/*/device; do interface=${interface%/device}; break; done
[ -d /sys/class/infiniband/nvh-rxe ] ||
    rdma link add nvh-rxe type rxe netdev ${interface##*/} 2>/dev/null
for name in /sys/class/infiniband_verbs/uverbs*; do
    [ "$(cat $name/ibdev 2>/dev/null)" = nvh-rxe ] && echo /dev/infiniband/${name##*/}
done
true
"""
_VIVID = "modprobe -q vivid n_devs=1 node_types=0x101 multiplanar=1 allocators=0; true"
# 2 keeps even root out; what a distribution has set is not what a row is about.
_IO_URING = "echo 0 2>/dev/null > /proc/sys/kernel/io_uring_disabled; true"


@dataclass(frozen=True)
class Pinner:
    """A part of the kernel that pins: its name in longpin, what makes it ready, how to get it."""

    name: str
    prepare: str
    enable: str
    reads: bool = False  # it can pin for reading only


IO_URING = Pinner("io_uring", _IO_URING, "set CONFIG_IO_URING=y")
RDMA = Pinner(
    "rdma", _RDMA, "set CONFIG_RDMA_RXE=m CONFIG_INFINIBAND_USER_ACCESS=m (no cloud flavour)", True
)
XDP = Pinner("xdp", "modprobe -q af_xdp; true", "set CONFIG_XDP_SOCKETS=y")
VIVID = Pinner("vivid", _VIVID, "set CONFIG_VIDEO_VIVID=m (no cloud flavour)", True)
_GUP_ENABLE = "set CONFIG_GUP_TEST=y CONFIG_DEBUG_FS=y (v5.11; pins that last: v6.2)"
GUP = Pinner("gup_test", "true", _GUP_ENABLE, True)
GUP_FAST = Pinner("gup_test-fast", "true", _GUP_ENABLE, True)
GUP_ONCE = Pinner("gup_test-once", "true", _GUP_ENABLE, True)

#: What is tried on a DAX file: how it is mapped and touched before it is to be pinned.  A page that
#: is in the page table takes the fast way through mm/gup.c, one that is not the slow one.
FSDAX = {
    "shared": ("", ()),
    "shared, untouched": ("", ("--touch", "none")),
    "private, read": (":private", ("--touch", "read")),
    "private, untouched": (":private", ("--touch", "none")),
}
#: As FSDAX, for pinners that can pin for reading: there nothing asks for a write fault.
FSDAX_READ = {
    "shared, for reading": ("", ("--access", "r")),
    "read-only, for reading": ("", ("--access", "r", "--prot", "r", "--touch", "read")),
    "private, for reading": (":private", ("--access", "r", "--prot", "r", "--touch", "read")),
}


class Pins:
    """A pinner that is ready in a guest, for one test."""

    def __init__(self, guest: Guest, case: Case, pinner: Pinner) -> None:
        self.guest = guest
        self.case = case
        self.pinner = pinner
        self._device = guest.run(pinner.prepare, timeout=60.0).stdout.strip()

    def observe(self, *options: str) -> dict[str, Any]:
        """Ask for a pin and return what came of it; SKIP where the kernel has no such pinner."""
        device = ("--device", self._device) if self._device else ()
        return self._ask("longpin", "--pinner", self.pinner.name, *device, *options)

    def _ask(self, program: str, *options: str, without: str = "") -> dict[str, Any]:
        """Return a program's facts; SKIP where the kernel lacks anything but what may be lacked."""
        done = self.guest.workload(program, *options)
        self.case.fact(done.command, done.facts)
        lacked = done.facts.get("missing", without)
        if lacked != without:
            missing = f"{lacked}: {done.facts['missing_why']}"
            self.case.skip(f"the kernel has no {missing}", enable=self.pinner.enable)
        self.case.prove("the workload took all its steps", done.ok, seen=done.failed)
        return done.facts

    def has(self, part: str) -> bool:
        """Whether the kernel has a part of this pinner, whatever else it may lack."""
        facts = self.guest.workload("longpin", "--pinner", self.pinner.name).facts
        return bool(facts.get("missing") != part)

    def prove_working(self) -> None:
        """Prove that the pinner takes what it must take: a refusal means something only then."""
        seen = self.observe()
        self.case.prove(f"{self.pinner.name} pins anonymous memory", seen["pin"] == "OK")

    def expect_taken(
        self, what: str, *options: str, right: str = "OK", charged: str = "pinned_kib"
    ) -> dict[str, Any]:
        """Expect a pin: seen in the reference counts while it lasts, and given back after.

        charged is the key of the row that says how much of it the process is charged for.
        """
        seen = self.observe(*options)
        self.judge(f"{self.pinner.name}, {what}", seen, right, charged)
        return seen

    def expect_all_or_nothing(self, what: str, *options: str) -> None:
        """As expect_taken(), after a pin that is refused for its last page and keeps no other."""
        self.expect_taken(what, "--beyond", *options, right=self.case.row.expected("anonymous"))

    def expect_limited(self, *options: str) -> None:
        """Expect that RLIMIT_MEMLOCK is for all that is pinned at a time, and given back after.

        Also of what is refused before: memory that is only to be read, by who would write to it.
        """
        options = ("--memlock", "3M", *options)
        seen = self.observe(*options)
        for what in ("readonly_private", "readonly_shared"):
            if what in seen:
                self.case.expect(what, seen[what], right=self.case.row.expected("readonly"))
        if "partly" in seen:
            self.case.expect("partly", seen["partly"], right=self.case.row.expected("beyond"))
        self.judge(f"{self.pinner.name}, with a limit", seen, "OK", "pinned_kib_limited")
        for what in ("pin_more", "pin_again"):
            self.case.expect(what, seen[what])

    def expect_kept_when_shared(self, *options: str) -> None:
        """Expect pages that a child shares to be the process's own once they are pinned.

        It writes to them, and what is pinned has to be what it has then.
        """
        for size, huge in (("1M", False), ("2M", True)):
            self._expect_kept_when_shared(huge, "--size", size, *options)

    def _expect_kept_when_shared(self, huge: bool, *options: str) -> None:
        seen = self.observe("--source", "anon-private", "--fork", *options)
        prove_oracle(self.case, seen)
        pairs = zip(seen["refs_before"], seen["refs_shared"], strict=True)
        self.case.prove("a child shares the pages", any(now > then for then, now in pairs))
        self.case.prove(
            "the page is a huge one" if huge else "the pages are small ones",
            seen.get("large_folio") is huge,
            enable="set CONFIG_TRANSPARENT_HUGEPAGE=y",
        )
        self.case.expect(f"{self.pinner.name}, shared by a child", seen["pin"], right="OK")
        self.case.expect("pages moved by a write", seen["moved_by_write"], right=0)
        self.case.expect("unpin", seen["unpin"])
        left = len(seen["refs_before"]) - seen["let_go_of"]
        self.case.expect("references_left", left)

    def expect_secret_refused(self) -> None:
        """Expect no pin of memfd_secret's pages, though they are in the page table.

        A kernel without them has nothing to refuse: there V7, which is about them, is SKIP.
        """
        device = ("--device", self._device) if self._device else ()
        options = ("--source", "secret", "--size", "64K", "--access", "r")
        options = ("--pinner", self.pinner.name, *device, *options)
        seen = self._ask("longpin", *options, without="memfd_secret")
        if "missing" not in seen:
            self.judge("secret memory", seen, self.case.row.expected("secret"))

    def expect_table(self, program: str, key: str, *options: str) -> None:
        """Expect of another program's facts what a table of the row says; SKIP what is missing."""
        seen = self._ask(program, *options)
        self.case.prove(
            "reference counts can be read",
            "refcount_missing" not in seen,
            seen=seen.get("refcount_missing", ""),
            enable="set CONFIG_KPROBE_EVENTS=y CONFIG_PERF_EVENTS=y",
        )
        expect_all(self.case, seen, key)

    def expect_large_folios_taken(self) -> None:
        """Expect the pages that are meant of large folios: one mapped often, parts of several."""
        mount = "mkdir -p /tmp/large && mount -t tmpfs -o huge=always,size=16M nvh /tmp/large"
        if self.guest.run(mount, check=False).status != 0:
            self.case.skip("no tmpfs with large folios", enable="set CONFIG_TRANSPARENT_HUGEPAGE=y")
        try:
            seen = self.observe("--source", "file:/tmp/large/file", "--size", "64K", "--repeat")
            if not seen.get("large_folio"):
                self.case.skip(
                    "no 2 MiB of memory are in one piece", enable="give the guest more memory"
                )
            self.judge("one page of a large folio", seen, "OK", "pinned_kib_folio")
            options = ("--case", "pieces", "--file", "/tmp/large/pieces")
            self.expect_table("buffers", "pieces", *options)
        finally:
            self.guest.run("umount /tmp/large")

    def expect_fsdax_refused(self, path: str, right: str) -> None:
        """Expect that no mapping of a DAX file is pinned, and that the file is free at once.

        Call it when prove_working() has passed.
        """
        for what, (how, options) in (FSDAX | (FSDAX_READ if self.pinner.reads else {})).items():
            seen = self.observe("--source", f"file:{path}{how}", "--truncate", *options)
            self.case.prove("the file is DAX", seen["dax"] == 1, seen=seen["dax"])
            self.judge(f"{self.pinner.name}, fsdax {what}", seen, right)

    def expect_huge_refused(self, path: str, right: str) -> None:
        """As expect_fsdax_refused(), of a file that one entry of the page table maps 2 MiB of.

        pin_user_pages_fast() has a way of its own for these.
        """
        options = ("--path", f"{path}/huge", "--create", "8M", "--fault", "--offset", "2M")
        faults = self.guest.workload("dax_state", *options).facts["faults"]
        self.case.prove("the file is mapped with 2 MiB pages", faults == 1, seen=faults)
        seen = self.observe("--source", f"file:{path}/huge", "--offset", "2M", "--truncate")
        self.case.prove("the file is DAX", seen["dax"] == 1, seen=seen["dax"])
        self.judge(f"{self.pinner.name}, fsdax huge", seen, right)

    def observe_private_copy(self, path: str) -> dict[str, Any]:
        """Ask for a pin of private pages of a DAX file that are proven to be copies."""
        seen = self.observe("--source", f"file:{path}:private", "--truncate")
        self.case.prove("the file is DAX", seen["dax"] == 1, seen=seen["dax"])
        self.case.prove("the file kept its data", seen["file_kept"] is True)
        self.case.prove(
            "the pages are copies",
            seen.get("pages_copied", 0) > 0,
            seen=seen.get("pages_copied", ""),
            enable="set CONFIG_PROC_PAGE_MONITOR=y",
        )
        return seen

    def expect_charged(self, kib: int, key: str) -> None:
        """Expect what the row says of the process's VmPin, where it knows that of this kernel."""
        right = self.case.row.expected(key)
        if isinstance(right, dict):
            release = str(self.guest.facts["release"])
            right = next((it for rule, it in right.items() if holds(rule, release)), None)
        if right is None:
            self.case.fact("pinned_kib", kib)
        else:
            self.case.expect("pinned_kib", kib, right=right)

    def judge(
        self, what: str, seen: dict[str, Any], right: str, charged: str = "pinned_kib"
    ) -> None:
        """Compare an answer, and what is left of the pin when all is over."""
        if "beyond" in seen:
            self._judge_beyond(what, seen)
        self.case.expect(what, seen["pin"], right=right)
        if right == "OK" and "unpin" in seen:
            prove_oracle(self.case, seen)
            if "half_absent" in seen:
                self.case.prove("half of it is not in the page table", seen["half_absent"])
            pairs = zip(seen["refs_before"], seen["refs_pinned"], strict=True)
            self.case.expect("pages pinned", all(now > then for then, now in pairs), right=True)
            self.expect_charged(seen["pinned_kib"] - seen["pinned_before_kib"], charged)
            for transfer in ("copied", "copied_piece", "copied_end", "read_piece"):
                if transfer in seen:
                    right_copy = self.case.row.expected("copied")
                    self.case.expect(f"{what}: {transfer}", seen[transfer], right=right_copy)
            for transfer in ("outside_begin", "outside_end", "outside_memory"):
                if transfer in seen:
                    right_copy = self.case.row.expected("outside")
                    self.case.expect(f"{what}: {transfer}", seen[transfer], right=right_copy)
            if "pin_twice" in seen:
                self.case.expect("pin_twice", seen["pin_twice"])
            self.case.expect("unpin", seen["unpin"])
        if "refs_before" in seen:
            self.case.expect("references_left", references_left(seen))
        left = seen["pinned_after_kib"] - seen["pinned_before_kib"]
        self.case.expect("pinned memory accounted (KiB)", left, right=0)
        if "truncate" in seen:
            self.case.expect("truncate", seen["truncate"])

    def _judge_beyond(self, what: str, seen: dict[str, Any]) -> None:
        """Compare what became of a pin that was refused for its last page."""
        right = self.case.row.expected("beyond")
        right = right[self.pinner.name] if isinstance(right, dict) else right
        self.case.expect(f"{what}: beyond", seen["beyond"], right=right)
        prove_oracle(self.case, seen)
        after = seen | {"refs_after": seen["refs_beyond"]}
        self.case.expect(f"{what}: references left of a part", references_left(after), right=0)
        left = seen["pinned_beyond_kib"] - seen["pinned_before_kib"]
        self.case.expect(f"{what}: pinned memory accounted of a part (KiB)", left, right=0)


def gup_ways(guest: Guest, case: Case) -> list[Pins]:
    """Return the ways in which gup_test pins for long, each proven to work; SKIP without any.

    They are slow and fast where pins last (v6.2), else the benchmark.
    """
    lasting = Pins(guest, case, GUP)
    if lasting.has("PIN_LONGTERM_TEST_START"):
        ways = [lasting, Pins(guest, case, GUP_FAST)]
    else:
        ways = [Pins(guest, case, GUP_ONCE)]
    for pins in ways:
        pins.prove_working()
    return ways


def iouring_calls(pins: Pins) -> str:
    """Return the function with which io_uring pins: pin_user_pages or pin_user_pages_fast.

    The latter goes its slow way without calling the former.
    """
    pins.prove_working()
    workload = f"{WORKLOADS}/longpin --pinner io_uring"
    hits = calls(pins.guest, "pin_user_pages", workload)
    pins.case.fact("calls of pin_user_pages", hits)
    pins.case.prove(
        "calls of pin_user_pages can be counted",
        hits is not None,
        enable="set CONFIG_KPROBE_EVENTS=y",
    )
    return "pin_user_pages" if hits else "pin_user_pages_fast"


def checks_files(pins: Pins) -> str:
    """Return who looks at the file of a mapping to be registered: "io_uring" or "gup"."""
    pins.prove_working()
    # Any file that lies on disk and is left alone: the mapping is private.
    options = ("--source", "file:/usr/bin/ndctl:private:ro", "--size", "4K")
    seen = pins.observe(*options)
    pins.case.prove("io_uring's own check answers", seen["pin"] in {"OK", "EOPNOTSUPP"})
    return "gup" if seen["pin"] == "OK" else "io_uring"
