"""A QEMU that does what a guest which has taken it over would: it gets nowhere."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import process
from harness.errors import HarnessError, HostError
from harness.guest import launch
from harness.guest.boot import RAM, Recipe
from harness.guest.template import Template
from harness.images.store import file_hash
from harness.lab import Lab
from harness.qemu.argv import SANDBOX, Memory
from harness.qemu.vm import Vm

pytestmark = pytest.mark.guest
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its user")


@pytest.fixture(scope="module")
def template(tcg_lab: Lab, recipe: Recipe) -> Template:
    return tcg_lab.template(recipe)


@pytest.fixture
def taken(template: Template, tmp_path: Path) -> Iterator[Vm]:
    """A clone's QEMU; it is ours to misuse through its monitor, and its guest never runs."""
    with launch.started(
        template.recipe,
        initramfs=template.recipe.images.initramfs,
        nvdimms=template.nvdimms,
        folder=tmp_path,
        memory=Memory(template.path / RAM, shared=False),
        grace=0,
    ) as vm:
        yield vm


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_it_is_filtered_and_gains_no_privilege(taken: Vm) -> None:
    for task in Path(f"/proc/{taken.child.pid}/task").iterdir():
        found = status(int(task.name))
        assert (found["Seccomp"], found["NoNewPrivs"]) == ("2", "1")
    assert Path(f"/proc/{taken.child.pid}/oom_score_adj").read_text() == "500\n"
    limits = Path(f"/proc/{taken.child.pid}/limits").read_text()
    assert "Max core file size        0 " in limits


@root_only
def test_it_is_not_root(taken: Vm) -> None:
    for task in Path(f"/proc/{taken.child.pid}/task").iterdir():
        found = status(int(task.name))
        assert set(found["Uid"].split()) == set(found["Gid"].split())
        assert 61184 <= int(found["Uid"].split()[0]) < 65520
        assert found["Groups"] == ""
        assert {int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert taken.user.endswith("who owns nothing")


@root_only
def test_it_reads_nothing_of_roots(taken: Vm, template: Template, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x" * 512)
    secret.chmod(0o600)
    for file in (secret, template.path / "info.json", Path("/etc/shadow")):
        with pytest.raises(HostError, match="Permission denied"):
            taken.qmp.execute(
                "blockdev-add", {"driver": "file", "node-name": "n", "filename": str(file)}
            )


@root_only
def test_it_writes_neither_its_template_nor_an_image(taken: Vm, template: Template) -> None:
    images = template.recipe.images
    files = [template.path / RAM, *template.nvdimms.values(), images.root, images.initramfs]
    before = [file_hash(file) for file in files]
    inherited = Path(f"/proc/{taken.child.pid}/fd")
    links = {link.name: str(link.readlink()) for link in inherited.iterdir()}
    reopened = [
        f"/proc/self/fd/{number}"
        for number, file in links.items()
        if file.startswith("/") and not file.startswith("/dev/")
    ]
    assert len(reopened) >= len(files)
    for target in [*map(str, files), str(template.path / "new"), *reopened]:
        with pytest.raises(HostError, match=r"not permitted|denied"):
            taken.qmp.execute("pmemsave", {"val": 0, "size": 4096, "filename": target})
    with tempfile.TemporaryDirectory() as public:
        Path(public).chmod(0o777)
        saved = Path(public, "saved")
        taken.qmp.execute("pmemsave", {"val": 0, "size": 4096, "filename": str(saved)})
        assert saved.stat().st_size == 4096  # where it may, it does
    assert [file_hash(file) for file in files] == before
    assert not (template.path / "new").exists()


def test_it_starts_no_program(taken: Vm, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    proof = tmp_path / "proof"
    with contextlib.suppress(HarnessError):  # it ends before it can answer
        taken.qmp.execute("migrate-incoming", {"uri": f"exec:touch {proof}"}, timeout=5)
    assert taken.child.wait(10) == -signal.SIGSYS
    assert not proof.exists()


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(["-runas", "nobody"], id="changes its user", marks=root_only),
        pytest.param(
            ["-netdev", "tap,id=n,script=/bin/true,ifname=nvh", "-device", "e1000,netdev=n"],
            id="runs a script",
        ),
    ],
)
def test_the_sandbox_ends_a_qemu_that(recipe: Recipe, attack: list[str]) -> None:
    def ends(sandbox: str, seconds: float) -> int | None:
        vector = [recipe.qemu, "-machine", "none", "-nodefaults", "-display", "none", "-S"]
        null = os.open(os.devnull, os.O_WRONLY)
        child = process.spawn([*vector, *sandbox.split(), *attack], stdout=null, stderr=null)
        os.close(null)
        deadline = time.monotonic() + seconds
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        found = child.poll()
        process.end(child, grace=0)
        return found

    assert ends(f"-sandbox {SANDBOX}", 60) == -signal.SIGSYS
    assert ends("", 3) != -signal.SIGSYS  # and by nothing else
