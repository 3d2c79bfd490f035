"""Bundles of runs that never were."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import process
from harness.images.kernel import Kernel
from harness.report.bundle import About, Bundles, Setting
from harness.report.record import TestRecord
from harness.verdict.status import Status

NODEID = "testcases/test_v_dax.py::test_v3_fsdax_is_refused[ext4]"
MACHINE = '[machine]\ncpus = 1\n[[nvdimm]]\nname = "fsdax0"\nsize = "34M"\n'


def setting(root: Path, **changed: Any) -> Setting:
    """Return what a run's tests share, with the files that it names."""
    files = {
        "testcases/test_v_dax.py": "import pytest\n",
        "testcases/steps.py": "",
        "testcases/catalogue/v.toml": "",
        "testcases/workloads/vfio_map.c": "int main;",
        "testcases/workloads/Makefile": "",
        "testcases/reports/some_report.toml": "",
        "testcases/reports/some_report.sh": "#!/bin/sh\nvfio_map\n",
        "testcases/reports/made_bug.c": "int main;",
        "build/vfio_map": "program",
        "build/layout": "program",
        "build/made_bug": "program",
        "build/nvh.o": "object",
        "boot/vmlinuz": "image",
        "boot/config": "CONFIG_FS_DAX=y\n",
        "modules/modules.dep": "kernel/ext4.ko:\n",
        "modules/kernel/ext4.ko": "module",
    }
    for name, text in files.items():
        file = root / "made" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755 if file.parent.name == "build" and not file.suffix else 0o644)
    made = root / "made"
    kernel = Kernel(
        "6.12.1", made / "boot/vmlinuz", made / "modules", made / "boot/config", "a deb", "digest"
    )
    values: dict[str, Any] = {
        "testcases": made / "testcases",
        "reports": made / "testcases/reports",
        "workloads": made / "build",
        "kernel": kernel,
        "selector": "debian:6.12",
        "nvh": "/opt/nvh with space/nvh",
    }
    return Setting(**{**values, **changed})


def about(**changed: Any) -> About:
    values: dict[str, Any] = {
        "nodeid": NODEID,
        "row": {
            "id": "V3",
            "title": "a file",
            "source": ["a mail", "a commit"],
            "right": {"map": "OK"},
        },
        "machine": "small",
        "machine_text": MACHINE,
    }
    return About(**{**values, **changed})


def record(
    status: Status = Status.FAIL, message: str = "map: expected OK, seen ENOSYS", **more: Any
) -> TestRecord:
    return TestRecord(more.pop("nodeid", NODEID), status, 1.0, message=message, **more)


def bundle_of(
    root: Path,
    of: TestRecord | None = None,
    *,
    commands: str = "/opt/nvh/vfio_map --device x\n",
    **changed: Any,
) -> Path:
    """Return a bundle's directory: that of a test that failed, or that another record tells of."""
    ended = of or record()
    results = root / "results"
    (results / ended.folder).mkdir(parents=True, exist_ok=True)
    ended.save(results / ended.folder)
    (results / ended.folder / "commands").write_text(commands)
    (results / ended.folder / "dmesg").write_text("a splat\n")
    bundles = Bundles(results, lambda: setting(root, **changed))
    bundles.begin(about(nodeid=ended.nodeid))
    folder = bundles.end(ended)
    assert folder is not None
    return folder


def archive_of(folder: Path, fill: Callable[[tarfile.TarFile], None]) -> Path:
    """Return a .tar.zst that holds whatever is put into it."""
    tar = folder / "made.tar"
    with tarfile.open(tar, "w") as archive:
        fill(archive)
    process.run(["zstd", "-q", "-f", "--rm", "-o", f"{tar}.zst", str(tar)], timeout=60)
    return Path(f"{tar}.zst")
