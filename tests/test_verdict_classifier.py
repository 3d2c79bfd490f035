"""The classifier's single rules: what is the kernel's word and what is not, and its limits."""

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.verdict.classifier import Classifier, Kind, classify, unexpected
from harness.verdict.classify_files import classify_files

STAMP = "[   12.345678] "
BODY = ["CPU: 0 PID: 1 Comm: x Not tainted 6.1.0 #1", "Call Trace:", " f+0x1/0x2"]
WARNING = ["WARNING: CPU: 0 PID: 1 at fs/dax.c:373 dax_disassociate_entry+0x1/0x2", *BODY]
DMAR = (
    "DMAR: [DMA Write NO_PASID] Request device [00:05.0] fault addr 0x1000 "
    "[fault reason 0x05] PTE Write access is not set"
)


def kinds(*lines: str, stamp: str = STAMP) -> list[str]:
    boot = [STAMP + "smpboot: x", STAMP + "tsc: y"] if stamp else []
    return [finding.kind.value for finding in classify([*boot, *(stamp + line for line in lines)])]


NOISE = [
    "XFS (pmem0): DAX enabled. Warning: EXPERIMENTAL, use at your own risk",
    "EXT4-fs (pmem0): DAX enabled. Warning: EXPERIMENTAL, use at your own risk",
    "AMD-Vi: AMD IOMMUv2 functionality not available on this system - This is not a bug.",
    "clocksource: timekeeping watchdog on CPU1: Marking clocksource 'tsc' as unstable",
    "clocksource: Long readout interval, skipping watchdog check: cs_nsec: 1 wd_nsec: 2",
    "Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on",
    "WARNING: Spectre v2 mitigation leaves CPU vulnerable to RETBleed attacks, data leaks!",
    "RETBleed: WARNING: Spectre v2 mitigation leaves CPU vulnerable to RETBleed attacks",
    "** NOTICE NOTICE NOTICE **",
    "ACPI BIOS Error (bug): Could not resolve symbol [\\_SB.PCI0], AE_NOT_FOUND",
    "[Firmware Bug]: TSC_DEADLINE disabled due to Errata",
    "ACPI Warning: SystemIO range conflicts with OpRegion",
    "INFO: lockdep is turned off.",
    "INFO: NMI handler (perf_event_nmi_handler) took too long to run: 1.2 msecs",
    "rcu: INFO: Stall ended before state dump start",
    "perf: interrupt took too long (2510 > 2500), lowering kernel.perf_event_max_sample_rate",
    "a.out[123]: segfault at 0 ip 0000000000401136 sp 00007ffd error 6 in a.out[401000+1000]",
    "traps: a.out[12] general protection fault ip:401136 sp:7ffd error:0 in a.out[401000+1000]",
    "traps: a.out[12] trap invalid opcode ip:401136 sp:7ffd error:0 in a.out[401000+1000]",
    "systemd[1]: Kernel panic - not syncing: no",
    "myprog[77]: BUG: my own",
    "kselftest: WARNING: CPU: 0 PID: 1 at fs/dax.c:373 told by a program",
    "foo: module verification failed: signature and/or required key missing - tainting kernel",
    "foo: loading out-of-tree module taints kernel.",
    "modprobe: FATAL: Module foo not found in directory /lib/modules/6.1.0",
    "DMAR: Host address width 39",
    "DMAR: DRHD base: 0x000000fed90000 flags: 0x0",
    "DMAR: DRHD: handling fault status reg 2",
    "sysrq: Show Blocked State",
    "hung_task: INFO only",
    "DEBUG: WARNING: and BUG: in the middle",
    "ODEBUG: selftest passed",
    "Kernel command line: panic=-1 oops=panic softlockup_panic=1",
    "kvm: no hardware support",
    "stress: page allocation failure: order:4, mode:0x40cc0(GFP_KERNEL|__GFP_COMP)",
    "WARNING: Unprivileged eBPF is on, data leaks possible via Spectre v2 BHB attacks",
    "WARNING: The mand mount option is deprecated and",
    "WARNING: workqueue cpumask: online intersect > possible intersect",
    "pktgen: WARNING: trying to remove a running interface, stopping it now",
    "EXT4-fs (pmem0): INFO: recovery required on readonly filesystem",
    "BUG UNIX (Not tainted): kasan: bad access detected",
    "unchecked MSR access error: WRMSR to 0x1a4 (tried to write 0x0f) at rIP: 0xffff (f+0x1/0x2)",
    "mce: [Hardware Error]: Machine check events logged",
    "EDAC MC0: Giving out device to module sb_edac controller",
    "Warning: unable to open an initial console.",
    "ata1.00: failed command: READ FPDMA QUEUED",
    "check: Scanning for low memory corruption every 60 seconds",
    "Memory failure: 0x1f: Sending SIGBUS to app:3 due to hardware memory corruption",
    "page_owner: memory corruption is not what this says",
    "oom_reaper: reaped process 77 (hog), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB",
]
#: A message, its kind and a word of its title, each as printk says it.
ALONE = [
    ("BUG: Bad rss-counter state mm:000000001234abcd type:MM_ANONPAGES val:3", "bug", "rss"),
    (
        "WARNING: kernel stack regs at 0123456789abcdef in x:3 has bad 'bp' value 0",
        "warning",
        "reg",
    ),
    ("INFO: RCU detected CPU 1 stall (t=2500 jiffies)", "rcu-stall", "stall"),
    ("NMI Watchdog detected LOCKUP on CPU 1, ip c0123456, registers:", "hard-lockup", "lockup"),
    ("[ INFO: hard-safe -> hard-unsafe lock order detected ]", "lockdep", "unsafe"),
    ("[ INFO: suspicious rcu_dereference_check() usage. ]", "lockdep", "rcu_"),
    ("refcount_t overflow at put_it+0x1/0x2 in x[3], uid/euid: 0/0", "refcount", "put_it"),
    ("Kernel bug detected[#1]:", "bug", "BUG"),
    ("Bad page state in process 'x'", "bug", "Bad page"),
    ("slab error in verify_redzone_free(): cache `x': memory outside object", "bug", "redzone"),
    ("VFS: Close: file count is 0", "bug", "reference"),
    ("INFO: Freed in put_it+0x1/0x2 age=3 cpu=1 pid=7", "bug", "put_it"),
    ("unreferenced object 0xffff888001234560 (size 64):", "bug", "leak"),
    ("Killed process 77 (hog) total-vm:1kB, anon-rss:1kB, file-rss:0kB", "oom-kill", "hog"),
    ("WARNING: CPU: 0 PID: 1 at rust/kernel/dax.rs:12 drop_it+0x1/0x2", "warning", "drop_it"),
    ("WARNING: CPU: 0 PID: 1 at /home/me@work/fs/dax.c:12 f+0x1/0x2", "warning", "fs/dax.c:12"),
    ("WARNING: at ffffff9e01234567 [verbose debug info unavailable]", "warning", "WARNING"),
    ("Unable to handle kernel paging request at virtual address 1f   ", "page-fault", "fault"),
    ("kernel: " + DMAR, "dmar-fault", "Write"),
]


@pytest.mark.parametrize("line", NOISE)
def test_noise_is_no_finding(line: str) -> None:
    more = [f"line {number}" for number in range(20)]
    assert kinds(line, *more) == []
    assert kinds(line) == []


@pytest.mark.parametrize(("line", "kind", "word"), ALONE)
def test_a_header_alone_is_enough(line: str, kind: str, word: str) -> None:
    for stamp in (STAMP, "[   12.345678][  T123] ", "<4>" + STAMP):
        (finding,) = classify([STAMP + "boot", stamp + line])
        assert finding.kind.value == kind
        assert word in finding.title


def test_what_a_program_wrote_into_the_kernel_log_is_no_finding() -> None:
    later = [f"{STAMP}line {number}" for number in range(30)]
    for level in ("<12>", "user  :warn  : ", "daemon:warn  : "):
        words = [f"{level}{STAMP}{line}" for line in ("BUG: mine", WARNING[0], "refcount_t: mine;")]
        assert classify([STAMP + "boot", *words, *later]) == []
    assert (
        classify(["12,339,5140900,-;BUG: mine", *(f"6,340,5140901,-;{n}" for n in range(30))]) == []
    )


def test_words_of_a_program_are_no_finding_in_a_log_without_stamps() -> None:
    later = [f"line {number}" for number in range(30)]
    for words in (
        "BUG: mine",
        "WARNING: mine",
        "INFO: task done",
        "Kernel panic - not syncing: no",
    ):
        assert classify(["boot", words, *later]) == []
    assert [
        f.kind.value for f in classify(["boot", "BUG: Bad page state in process x", *later])
    ] == ["bug"]


def test_a_panic_may_be_proven_late() -> None:
    noise = [f"other CPU says {number}" for number in range(20)]
    assert kinds("Kernel panic - not syncing: x", *noise, *BODY) == ["panic"]


def test_a_boot_proves_the_words_of_a_panic() -> None:
    boot = [
        "[    0.000000] Linux version 6.1.0 (x)",
        *(f"[    {n / 1000:.6f}] line {n}" for n in range(1, 200)),
    ]
    words = "[   50.000000] Kernel panic - not syncing: x"
    assert classify([*boot, words, *boot]) == []  # a program prints both
    other = [line.replace("line", "another") for line in boot]
    assert [f.kind.value for f in classify([*boot, words, *other])] == ["panic"]


def test_an_archive_of_many_boots_is_no_reset() -> None:
    prefix = "Mar  3 04:05:06 bench kernel: "
    boot = [f"{prefix}[    {n / 10:.6f}] line {n}" for n in range(200)]
    boot[0] = prefix + "[    0.000000] Linux version 6.1.0 (x)"
    assert classify([*boot, *boot, *boot]) == []


def test_an_old_oom_kill_is_one_finding() -> None:
    lines = [
        "hog invoked oom-killer: gfp_mask=0x201da, order=0, oom_adj=0",
        *BODY,
        "Mem-Info:",
        "Out of memory: kill process 77 (hog) score 9 or a child",
        "Killed process 77 (hog) vsz:1kB, anon-rss:1kB, file-rss:0kB",
        "systemd invoked nothing",
    ]
    assert kinds(*lines) == ["oom-kill"]


def test_a_memory_leak_is_named_by_its_caller() -> None:
    lines = [
        "BUG: memory leak",
        "unreferenced object 0xffff888001234560 (size 64):",
        '  comm "x", pid 3, jiffies 4294937296',
        "  backtrace:",
        "    [<ffffffff81234567>] kmemleak_alloc+0x1/0x2",
        "    [<ffffffff81234567>] kmalloc_trace+0x1/0x2",
        "    [<ffffffff81234567>] nd_label_alloc+0x1/0x2",
    ]
    for stamp in (STAMP, ""):
        found = classify([stamp + line for line in lines])
        assert [(f.kind.value, f.title) for f in found] == [
            ("bug", "memory leak in nd_label_alloc")
        ]


def test_words_of_a_program_without_a_stamp_are_no_finding_in_a_stamped_log() -> None:
    words = ["Kernel panic - not syncing: no", "BUG: unable to handle page fault", *WARNING[:1]]
    log = [STAMP + "boot", *words, *(f"{STAMP}line {number}" for number in range(30))]
    assert classify(log) == []


def test_words_in_the_kernel_log_are_no_panic() -> None:
    assert kinds("Kernel panic - not syncing: no", *(f"line {n}" for n in range(30))) == []


def test_panic_as_the_last_line_is_one() -> None:
    assert kinds("Kernel panic - not syncing: Attempted to kill init!") == ["panic"]
    assert kinds("Kernel panic - not syncing: x", *BODY) == ["panic"]


def test_the_report_may_lack_stamps_where_the_log_has_them() -> None:
    log = [STAMP + "boot", *WARNING, *(f"{STAMP}line {n}" for n in range(30))]
    assert [finding.kind for finding in classify(log)] == [Kind.WARNING]


def test_a_report_may_begin_behind_a_prompt() -> None:
    prompt = "guest login: "
    assert kinds(prompt + WARNING[0], *BODY) == ["warning"]
    assert kinds(prompt + WARNING[0], *BODY, stamp="") == ["warning"]
    assert kinds(prompt + WARNING[0], *(f"line {n}" for n in range(30))) == []


def test_log_without_any_stamp() -> None:
    assert kinds(*WARNING, stamp="") == ["warning"]


def test_finding_tells_lines_taint_and_trace() -> None:
    lines = [
        *(f"{STAMP}boot {number}" for number in range(100)),
        *(STAMP + line.replace("Not tainted", "Tainted: G    B   W  O     ") for line in WARNING),
        *(f"{STAMP}later {number}" for number in range(100)),
    ]
    (finding,) = classify(lines)
    assert (finding.first_line, finding.last_line) == (101, 104)
    assert finding.taint == "GBWO"
    assert finding.title == "WARNING in dax_disassociate_entry (fs/dax.c:373)"
    assert len(finding.trace) == 4
    assert not finding.corrupted
    assert json.loads(json.dumps(finding.as_dict()))["line"] == 101


def test_header_without_a_trace_is_corrupted() -> None:
    (finding,) = classify([STAMP + WARNING[0]])
    assert finding.corrupted


def test_declared_splats_are_expected() -> None:
    findings = classify([STAMP + DMAR, *(STAMP + line for line in WARNING)])
    assert [finding.kind for finding in findings] == [Kind.DMAR_FAULT, Kind.WARNING]
    left = unexpected(findings, ["DMAR:.*fault"])
    assert [finding.kind for finding in left] == [Kind.WARNING]
    assert unexpected(findings, ["DMAR:.*fault", r"fs/dax\.c"]) == []
    assert unexpected(findings, []) == findings


@pytest.mark.parametrize(
    ("before", "found"),
    [
        ("reboot: Restarting system", []),
        ("kexec_core: Starting new kernel", []),
        ("systemd-shutdown[1]: Powering off.", []),
        ("EXT4-fs (pmem0): mounted filesystem", ["reset"]),
    ],
)
def test_a_second_boot_is_a_finding_unless_asked_for(before: str, found: list[str]) -> None:
    boot = ["[    0.000000] Linux version 6.1.0 (x)", "[    0.000000] Command line: y"]
    log = [
        *boot,
        "[    0.500000] tsc: a",
        "[    5.000000] " + before,
        *boot,
        "[    0.510000] tsc: a",
        "[    0.610000] pci: b",
    ]
    assert [finding.kind.value for finding in classify(log)] == found


def test_a_log_that_a_program_prints_is_no_second_boot() -> None:
    boot = [
        "[    0.000000] Linux version 6.1.0 (x)",
        *(f"[    {n / 40:.6f}] line {n}" for n in range(1, 200)),
    ]
    assert classify([*boot, "# dmesg", *boot, "[    7.000000] later"]) == []
    assert classify([*boot, "# dmesg | head -n 1", boot[0], "[    7.000000] later"]) == []


def test_the_reset_that_follows_a_panic_is_the_panic() -> None:
    boot = ["[    0.000000] Linux version 6.1.0 (x)", "[    0.500000] tsc: a"]
    panic = [STAMP + "Kernel panic - not syncing: x", *(STAMP + line for line in BODY)]
    assert [f.kind.value for f in classify([*boot, *panic, *boot, *boot])] == ["panic", "reset"]


def test_hostile_input_is_bounded() -> None:
    classifier = Classifier()
    began = time.process_time()
    for _ in range(64):  # a line without an end
        classifier.feed(b"A" * (1 << 20))
    classifier.feed(b"\n" + STAMP.encode() + b"WARNING: CPU: 0 PID: 1 at " + b"x" * (1 << 20))
    classifier.feed(b"\x00\xff\x1b[" * 100000 + b"\n")
    found = []
    for _ in range(2000):  # headers without an end
        found += classifier.feed(f"{STAMP}{WARNING[0]}\n".encode())
    found += classifier.finish()
    assert len(found) >= 2000
    assert max(len(line) for finding in found for line in finding.trace) <= 512
    assert time.process_time() - began < 10


def test_a_report_without_an_end_is_cut() -> None:
    log = [STAMP + WARNING[0], *(f"{STAMP} f{n}+0x1/0x2" for n in range(5000))]
    (finding,) = classify(log)
    assert len(finding.trace) <= 400


def test_clean_text_is_read_quickly() -> None:
    line = b"[   12.345678] pci 0000:00:05.0: [1234:11e8] type 00 class 0x00ff00 conventional\n"
    data = line * (4 * (1 << 20) // len(line))

    def classified() -> None:
        classifier = Classifier()
        assert classifier.feed(data) == []
        assert classifier.finish() == []

    def looked_at() -> None:
        assert not any(b"BUG" in line for line in data.splitlines())

    def seconds(work: Callable[[], None]) -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    rounds = [(seconds(classified), seconds(looked_at)) for _ in range(5)]
    ours, least = map(min, zip(*rounds, strict=True))
    assert ours < 40 * least, f"{ours / least:.0f} times what one look at each line takes"


def test_command_line_says_what_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad"
    bad.write_text("\n".join(STAMP + line for line in WARNING))
    good = tmp_path / "good"
    good.write_text(STAMP + "x\n")
    assert classify_files([str(good)]) == 0
    assert classify_files([str(good), str(bad)]) == 1
    said = capsys.readouterr().out
    assert f"{bad}:1: warning: WARNING in dax_disassociate_entry (fs/dax.c:373)" in said
    assert classify_files([str(bad)], as_json=True) == 1
    values = json.loads(capsys.readouterr().out)
    assert values["file"] == str(bad)
    assert values["findings"][0]["kind"] == "warning"
    assert values["findings"][0]["line"] == 1
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bad.read_bytes())))
    assert classify_files(["-"]) == 1
    with pytest.raises(UsageError, match="nothing: No such file"):
        classify_files([str(tmp_path / "nothing")])
    with pytest.raises(UsageError, match="without a name"):
        classify_files([""])
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="standard input is closed"):
        classify_files(["-"])
