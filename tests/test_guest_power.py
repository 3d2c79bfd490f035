"""A power cut: NVDIMMs keep what was written to them, everything else is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import GuestLost, UsageError
from harness.guest import Guest
from harness.lab import Lab
from harness.pool import Wish, guest_pool

pytestmark = pytest.mark.guest

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


def mount(guest: Guest, *, made: bool) -> str:
    device = guest.namespace("fsdax0").device
    mkfs = "" if made else f"mkfs.ext4 -qF {device} && "
    guest.run(f"mkdir -p /mnt/p && {mkfs}mount -o dax=never {device} /mnt/p", timeout=60.0)
    return "/mnt/p"


def test_only_what_reached_the_nvdimm_outlives_a_power_cut(tcg_lab: Lab, tmp_path: Path) -> None:
    template = tcg_lab.template(tcg_lab.recipe())
    before = {name: file.stat().st_mtime_ns for name, file in template.nvdimms.items()}
    with guest_pool(tcg_lab, tmp_path / "pool") as pool:
        with pool.guest(Wish(power_cycle=True)) as first:
            assert first.facts["how"] == "clone"
            files = list(first.nvdimms.values())
            raw = first.namespace("devdax2m")
            first.run("echo 0 > /proc/sys/vm/dirty_writeback_centisecs; echo x > /root/ram")
            folder = mount(first, made=False)
            first.run(f"echo kept > {folder}/synced; sync; echo lost > {folder}/cached")
            boot_id = first.run(BOOT_ID).stdout
            with pool.power_cycled(first) as second:
                assert first.vm.child.poll() is not None
                with pytest.raises(GuestLost):
                    first.run("true")
                assert (second.facts["how"], second.facts["why_boot"]) == ("boot", "power cycle")
                assert second.run(BOOT_ID).stdout != boot_id
                assert second.namespace("devdax2m") == raw
                assert second.vfio("edu").driver == "vfio-pci"
                assert second.run("ls /root/ram", check=False).status != 0
                folder = mount(second, made=True)
                assert second.run(f"cat {folder}/synced").stdout == "kept\n"
                assert "lost" not in second.run(f"cat {folder}/cached", check=False).stdout
                child = second.vm.child
            assert child.poll() is not None
            assert all(file.exists() for file in files)
        assert not any(file.exists() for file in files)
        with pool.guest(Wish()) as clone, pytest.raises(UsageError, match="do not outlive"):
            pool.power_cycled(clone).__enter__()
    # A clone's files were copies.
    assert {name: file.stat().st_mtime_ns for name, file in template.nvdimms.items()} == before
