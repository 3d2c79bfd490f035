"""nvh new-report: a report from a mailing list becomes a testcase that is ready to be filled in."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from harness import paths
from harness.errors import EXIT_OK, UsageError
from harness.lab import Lab, Options
from harness.process import shell_line
from harness.report.record import program
from harness.verdict.reports import good_name

_TOML = """\
# A report as a testcase; docs/reproducing.md says what each key means.

[report]
title = {title}
mail = {mail}  # an address in an archive, or author, date and subject
claim = '''
What the mail says the kernel does, and what it should do.
'''
{machine}kernels = []  # where [right] holds: [">=5.8"]; elsewhere the test is skipped

# What the reproducer finds in the guest.  Each is proven before anything is said of the kernel.
[setup]
devices = []  # ["edu"]: behind an IOMMU and on vfio-pci; its PCI address is in $NVH_EDU
[setup.mount]  # its path is in $NVH_MOUNT; without this table nothing is mounted
nvdimm = "fsdax0"
filesystem = "ext4"
dax = "always"

[run]
arguments = {arguments}
timeout = 60  # seconds, three times as long without KVM

# What is right, as the reproducer says it: result is "ok" when it exits with 0 and no KTAP line of
# its says "not ok"; every other key is one of its facts.
[right]
result = "ok"
data = "equal"
"""

_SHELL = """\
#!/bin/bash
# {title}
#
# Runs as root in an empty directory of the guest.  $NVH_MOUNT is the mount of the report's file,
# $NVH_FSDAX0, $NVH_DEVDAX2M ... are the machine's namespaces, $NVH_EDU ... its vfio devices.  The
# workloads (testcases/workloads) can be called by name; their facts are this reproducer's.

fact() {{
    printf '# facts {{"%s": "%s"}}\\n' "$1" "$2"
}}

# The report's steps come here.
echo hello >"$NVH_MOUNT/file" || exit 1
sync
if [ "$(cat "$NVH_MOUNT/file")" = hello ]; then
    fact data equal
else
    fact data differs
fi
"""

_C = """\
/*
 * {title}
 *
 * Runs as root in an empty directory of the guest.  NVH_MOUNT is the mount of the report's file,
 * NVH_FSDAX0, NVH_DEVDAX2M ... are the machine's namespaces, NVH_EDU ... its vfio devices.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nvh.h"

#define SIZE (2UL << 20)

static const char *path;

static const struct nvh_option options[] = {{
	{{"file", &path, NULL, "file to map"}},
	{{0}},
}};

int main(int argc, char **argv)
{{
	nvh_options(argc, argv, "The reproducer of a report.", options);
	if (!path)
		nvh_usage("--file is needed");
	nvh_begin("{name}");

	/* The report's steps come here. */
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, SIZE) < 0)
		nvh_bail("%s: %s", path, nvh_errname(errno));
	char *addr = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (addr == MAP_FAILED)
		nvh_bail("mmap: %s", nvh_errname(errno));
	strcpy(addr, "hello");
	nvh_fact_str("data", strcmp(addr, "hello") ? "differs" : "equal");
	nvh_step(true, "the file was mapped and written");
	return nvh_end();
}}
"""


def new_report(args: argparse.Namespace) -> int:
    """Write a report's TOML and its reproducer's skeleton, both of which run as they are."""
    folder = paths.reports()
    _check(args.report, folder)
    if args.machine:
        if "/" in args.machine:  # the command line makes a path of FILE.toml
            hint = "put the file into guest-images/machines and give its name"
            raise UsageError("a report's machine is one of the checkout's", hint=hint)
        Lab(Options(machine=args.machine)).machine  # noqa: B018 - a wrong name is told now
    title = args.title or f"TODO: what {args.report} claims, in one line"
    in_c = args.c
    values = {
        "name": args.report,
        "title": json.dumps(title, ensure_ascii=False),
        "mail": json.dumps(args.mail or "TODO: the mail", ensure_ascii=False),
        "machine": f"machine = {json.dumps(args.machine)}\n" if args.machine else "",
        "arguments": '["--file", "$NVH_MOUNT/file"]' if in_c else "[]",
    }
    file = folder / f"{args.report}.{'c' if in_c else 'sh'}"
    toml = folder / f"{args.report}.toml"
    folder.mkdir(parents=True, exist_ok=True)
    # One line, and none that would end the comment it stands in, or look like another's beginning.
    comment = " ".join(title.split()).replace("*/", "* /").replace("/*", "/ *")
    file.write_text((_C if in_c else _SHELL).format(name=args.report, title=comment))
    file.chmod(0o644 if in_c else 0o755)
    toml.write_text(_TOML.format(**values))
    print(f"{_shown(toml)}: the mail, the claim, the guest and what is right")
    print(f"{_shown(file)}: the steps")
    build = "make workloads && " if in_c else ""
    print(f"then: {build}{shell_line([program(), 'test', '-k', args.report])}")
    return EXIT_OK


def _check(name: str, folder: Path) -> None:
    """Complain of a name that cannot be a report's."""
    if not good_name(name):
        raise UsageError(
            f"{name!r} is not a report's name",
            hint="3 to 40 of a-z, 0-9 and _, a letter first, no row's name: vfio_fsdax_pins",
        )
    for there in [*folder.glob(f"{name}.*")]:
        raise UsageError(f"{there} is there already", hint="take another name")
    if (paths.source_tree() / "testcases" / "workloads" / f"{name}.c").exists():
        raise UsageError(f"a workload is called {name}", hint="take another name")


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
