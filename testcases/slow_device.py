"""A block device whose I/O takes as long as a test wants: what O_DIRECT pins wait for."""

from __future__ import annotations

from dataclasses import dataclass

from harness.guest import Guest
from harness.verdict.expectation import Case

#: How long dm-delay holds a transfer back at most, in seconds: the workload has it end when it has
#: seen enough.
HELD = 60
#: How long a transfer of null_blk takes, in seconds: the operation under test must start, and be
#: seen waiting, well within it, also in a guest under TCG on a busy host.
SECONDS = 4

# The transfer is held back before it reaches the device, so a late read brings late data.
# There need not be a udev in the guest: dmsetup makes the node itself.
_DM_DELAY = """
[ -b /dev/mapper/nvh-slow ] && exit 0
modprobe -q brd rd_nr=1 rd_size=1024
[ -d /sys/module/dm_delay ] || modprobe -q dm-delay
[ -b /dev/ram0 ] || exit 1
DM_DISABLE_UDEV=1 dmsetup create nvh-slow --table "0 2048 delay /dev/ram0 0 {milliseconds}"
"""

# Its partition table is looked for when it appears, which takes a few of its slow reads.
_NULL_BLK = f"""
[ -b /dev/nullb0 ] && exit 0
modprobe -q null_blk nr_devices=1 gb=1 bs=4096 queue_mode=2 irqmode=2 \
    completion_nsec={SECONDS}000000000
[ -b /dev/nullb0 ]
"""


@dataclass(frozen=True)
class SlowDevice:
    """Paths in the guest; ``backing`` is the quick device below, None where there is none."""

    path: str
    backing: str | None


def slow_device(
    guest: Guest, case: Case, *, with_data: bool = False, milliseconds: int = HELD * 1000
) -> SlowDevice:
    """Return the guest's slow device, made when it is first asked for; SKIP where it cannot be.

    ``with_data`` asks for a device that keeps what is written to it, and only there a transfer
    takes the ``milliseconds``.
    """
    if guest.run(_DM_DELAY.format(milliseconds=milliseconds), check=False).status == 0:
        return SlowDevice("/dev/mapper/nvh-slow", "/dev/ram0")
    if not with_data:
        return null_blk(guest, case, otherwise="CONFIG_BLK_DEV_RAM=m CONFIG_DM_DELAY=m or ")
    return case.skip(
        "the kernel has no slow block device", enable="set CONFIG_BLK_DEV_RAM=m CONFIG_DM_DELAY=m"
    )


def null_blk(guest: Guest, case: Case, *, otherwise: str = "") -> SlowDevice:
    """Return one that ends its I/O in a timer's interrupt, not in a task as dm-delay does.

    It takes a quarter of a minute to appear.
    """
    if guest.run(_NULL_BLK, check=False, timeout=60.0).status == 0:
        return SlowDevice("/dev/nullb0", None)
    enable = f"set {otherwise}CONFIG_BLK_DEV_NULL_BLK=m"
    return case.skip("the kernel has no slow block device", enable=enable)
