"""The fixtures for what a guest has, on guests that are made up."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

CONFTEST = """
import contextlib, types
import pytest
from harness.guest.filesystem import STATX_ATTR_DAX, Mount
from harness.guest.provision import NamespaceInfo, VfioInfo
pytest_plugins = ["harness.pytest_plugin"]


def space(name, mode, fs=""):
    return NamespaceInfo(name, "namespace0.0", "region0", mode, f"/dev/{name}", 2 << 20, 1, fs)


class Guest:
    machine = types.SimpleNamespace(name="made-up")
    attributes = STATX_ATTR_DAX
    symbols = "dax_iomap_rw\\nvfs_read\\n"
    iommu = "dmar0"

    def __init__(self):
        spaces = (
            space("first", "fsdax", "ext4"), space("second", "fsdax", "xfs"),
            space("third", "devdax"), space("fourth", "devdax"),
        )
        self.namespaces = {one.name: one for one in spaces}
        self.vfio_devices = {
            name: VfioInfo(name, f"0000:00:0{at}.0", "1234:11e8", at, self.iommu, "vfio-pci")
            for at, name in enumerate(("edu", "other"), 3)
        }

    def namespace(self, name):
        return self.namespaces[name]

    def vfio(self, name):
        return self.vfio_devices[name]

    def run(self, command, check=True):
        return types.SimpleNamespace(stdout=self.symbols)

    @contextlib.contextmanager
    def mounted(self, namespace, fs, dax, mkfs):
        yield Mount(namespace, fs, dax, f"/mnt/{namespace.name}", "", self.attributes)

    def workload(self, name, *options, timeout=60.0, binary=None):
        return (name, options, timeout)


@pytest.fixture
def guest():
    return Guest()
"""


@pytest.fixture
def outcomes(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project whose guests are its own: nothing of ours is fetched, built or written."""
    monkeypatch.setenv("NVH_CACHE", "/proc/none")
    pytester.makeconftest(CONFTEST)
    return pytester


def told(pytester: pytest.Pytester, tests: str) -> str:
    """Run tests and return what pytest says."""
    pytester.makepyfile("import pytest\nfrom conftest import Guest\n" + tests)
    done = pytester.runpytest_subprocess("-rA", "--strict-markers")
    assert not (pytester.path / "results").exists()  # a fixture called guest that is not ours
    return done.stdout.str()


def test_each_is_what_the_guest_has(outcomes: pytest.Pytester) -> None:
    said = told(
        outcomes,
        """
def test_all(machine, fsdax, devdax, vfio_device, workload):
    assert machine.name == "made-up"
    assert (fsdax.path, fsdax.fstype, fsdax.dax) == ("/mnt/first", "ext4", "always")
    assert devdax.device == "/dev/third"
    assert vfio_device.address == "0000:00:03.0"
    assert workload("hold", "--seconds", "1", timeout=5) == ("hold", ("--seconds", "1"), 5)
""",
    )
    assert "1 passed" in said


def test_others_are_had_by_parameters(outcomes: pytest.Pytester) -> None:
    said = told(
        outcomes,
        """
@pytest.mark.parametrize("fsdax", ["ext4", "xfs"], indirect=True)
@pytest.mark.parametrize("devdax", ["fourth"], indirect=True)
@pytest.mark.parametrize("vfio_device", ["other"], indirect=True)
def test_all(fsdax, devdax, vfio_device):
    assert fsdax.namespace.filesystem == fsdax.fstype
    assert devdax.device == "/dev/fourth"
    assert vfio_device.name == "other"
@pytest.mark.parametrize("fsdax", ["btrfs"], indirect=True)
def test_none(fsdax): pass
""",
    )
    assert "2 passed, 1 error" in said
    assert "fsdax: no file system is called 'btrfs' (ext4, xfs)" in said


@pytest.mark.parametrize(
    ("fixture", "without", "why"),
    [
        ("fsdax", "guest.namespaces.clear()", "machine made-up has no namespace in fsdax mode"),
        ("devdax", "guest.namespaces.clear()", "machine made-up has no namespace in devdax mode"),
        ("vfio_device", "guest.vfio_devices.clear()", "machine made-up has no device on vfio-pci"),
        ("vfio_device", "Guest.iommu = 'none'", "not proven: edu is behind an IOMMU"),
        ("fsdax", "Guest.attributes = 0", "not proven: files of /mnt/first are DAX"),
        (
            "fsdax",
            "Guest.attributes, Guest.symbols = 0, 'vfs_read'",
            "the kernel has no DAX for file systems (set CONFIG_FS_DAX=y)",
        ),
    ],
)
def test_what_is_not_there_is_told(
    outcomes: pytest.Pytester, fixture: str, without: str, why: str
) -> None:
    said = told(
        outcomes,
        f"""
@pytest.fixture
def guest():
    before = Guest.iommu
    guest = Guest()
    {without}
    return guest if Guest.iommu == before else Guest()
def test_it({fixture}): pass
""",
    )
    assert why in said
    assert "1 passed" not in said
