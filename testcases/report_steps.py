"""How a report is run: a guest made ready and proven, a reproducer heard, a claim compared."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from harness.errors import WorkloadError
from harness.guest import Guest
from harness.guest.guest import WORKLOADS
from harness.verdict.expectation import Case
from harness.verdict.reports import RESULT, MountWish, Report, heard
from testcases.filesystems import dax_mount


def run_report(guest: Guest, case: Case, report: Report) -> None:
    """Run a report's reproducer and compare what it says with what is right."""
    if not report.concerns(str(guest.facts["release"])):
        kernels = " and ".join(report.kernels)
        case.skip(f"what is right is known for kernels {kernels}", enable="give another --kernel")
    for pattern in report.allow:
        case.allow(pattern)
    variables = {"NVH_SCALE": str(int(guest.scale))}
    variables |= {f"NVH_{name.upper()}": made.device for name, made in guest.namespaces.items()}
    for module in report.modules:
        guest.run(f"modprobe -q {module}; true")
    for name in report.devices:
        device = guest.vfio(name)
        case.prove(f"{name} is behind an IOMMU", bool(device.iommu), seen=device.iommu)
        variables[f"NVH_{name.upper()}"] = device.address
    with contextlib.ExitStack() as stack:
        if report.mount is not None:
            path = stack.enter_context(_mounted(guest, case, report.mount))
            variables["NVH_MOUNT"] = path
        status, output = _run(guest, report, variables)
    said = heard(status, output)
    for key, value in said.facts.items():
        case.fact(key, value)
    if said.bailed:
        raise WorkloadError(f"{report.name}: {said.bailed}")
    missing = said.skipped or said.facts.get("missing")
    if missing:
        case.skip(f"the guest lacks what the reproducer needs: {missing}")
    seen = {RESULT: said.result, **said.facts}
    for key, value in report.proof.items():
        case.prove(f"{key} is {value}", seen.get(key) == value, seen=seen.get(key, "not told"))
    if RESULT not in report.right:
        # As of any workload: a step that is not ok could not be taken.
        case.prove("the reproducer took all its steps", said.result == "ok", seen=said.result)
    for key in report.right:
        case.expect(key, seen.get(key, "not told"))


@contextlib.contextmanager
def _mounted(guest: Guest, case: Case, wish: MountWish) -> Iterator[str]:
    if wish.dax == "always":
        with dax_mount(guest, case, wish.filesystem, mkfs=wish.mkfs, nvdimm=wish.nvdimm) as mount:
            yield mount.path
        return
    namespace = guest.namespace(wish.nvdimm)
    mounted = guest.mounted(namespace, wish.filesystem, dax=wish.dax, mkfs=wish.mkfs)
    with mounted as mount:
        case.prove("files of the mount are not DAX", not mount.is_dax, seen=hex(mount.attributes))
        yield mount.path


def _run(guest: Guest, report: Report, variables: dict[str, str]) -> tuple[int, str]:
    """Run the reproducer in an empty directory; return its status and all that it said."""
    program = f"{WORKLOADS}/{report.name}"
    if report.script is None:
        guest.install(report.name)
    else:
        text = report.script.read_text()
        for binary in sorted(guest.workloads.iterdir()):
            if re.search(rf"\b{re.escape(binary.name)}\b", text) and not binary.suffix:
                guest.install(binary.name)
        guest.ssh.put(report.script, program)
    exported = " ".join(f"{name}={value}" for name, value in variables.items())
    # In double quotes, so that an argument may be file:$NVH_MOUNT/a.
    words = " ".join('"' + re.sub(r'(["\\`])', r"\\\1", word) + '"' for word in report.arguments)
    command = f"export PATH={WORKLOADS}:$PATH {exported}; cd $(mktemp -d); {program} {words} 2>&1"
    guest.note(f"$ {command}")
    done = guest.run(command, timeout=report.timeout, check=False)
    guest.note(done.stdout.rstrip())
    return done.status, done.stdout
