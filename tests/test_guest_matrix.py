"""A matrix with real guests: one kernel on two machines, one row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from harness import paths
from harness.lab import Lab

pytestmark = pytest.mark.guest

#: Only what the row needs.
SECOND = """
[machine]
cpus = 1
memory = "1G"
iommu = "intel"

[[nvdimm]]
name = "devdax2m"
size = "130M"
label = "2M"
[nvdimm.namespace]
mode = "devdax"
align = "2M"
map = "mem"

[[pci]]
name = "edu"
device = "edu"
id = "1234:11e8"
vfio = true
"""


def nvh(*words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "harness", *words],
        cwd=paths.source_tree(),
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=900,
    )
    assert "Traceback" not in done.stdout
    return done.returncode, done.stdout


def test_one_kernel_on_two_machines(tcg_lab: Lab, tmp_path: Path) -> None:
    _ = tcg_lab.kernel  # fetched before anything is timed
    (tmp_path / "second.toml").write_text(SECOND)
    results = tmp_path / "results"
    code, out = nvh(
        *("matrix", "--machine", "default", "--machine", str(tmp_path / "second.toml")),
        *("--accel", "tcg", "-n", "1", "-k", "test_v10_devdax_mmap and length"),
        *("--results", str(results)),
    )
    assert code == 0, out
    assert "V10  PASS     PASS" in out
    names = [
        str(case.get("classname"))
        for case in ET.parse(results / "latest/junit.xml").iter("testcase")
    ]
    assert names == ["default.default.testcases.test_v_dax", "default.second.testcases.test_v_dax"]
    written = json.loads((results / "latest/matrix.json").read_text())
    assert [one["state"] for one in written["combinations"]] == ["done", "done"]
    latest = str(results / "latest")
    code, out = nvh("compare", latest, latest)
    assert (code, out.splitlines()[-1]) == (0, "4 as before")
    code, out = nvh("matrix", "--resume", latest)
    assert (code, out.splitlines()[0].partition(";")[0]) == (0, "0 runs to do")
