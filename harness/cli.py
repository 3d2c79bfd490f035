"""nvh: the command line."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import __version__, manual, ui
from harness.commands import (
    bisect,
    completion,
    doctor,
    guests,
    inventory,
    kernels,
    logs,
    nightly,
    reports,
    repro,
    results,
    testing,
)
from harness.errors import EXIT_INTERRUPTED, EXIT_UNTESTABLE, HarnessError, HostError
from harness.images.kernel import absolute
from harness.pool import ISOLATIONS
from harness.signals import came, interruptible
from harness.time_limit import OF_RUN, OF_TEST
from harness.toml_table import parse_size

#: What a shell shows of a program that wrote into a closed pipe (128 + SIGPIPE).
EXIT_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run nvh; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    words, rest = _split(words)
    args = parser.parse_args(words)
    if hasattr(args, "pytest_args"):
        args.pytest_args = rest
    elif hasattr(args, "command_words"):
        args.command = rest
    elif rest:
        args.refuse("nothing is taken after --")
    # Nobody else writes what the harness makes, whatever the user's mask lets them.
    os.umask(os.umask(0o077) | 0o022)
    action: Callable[[argparse.Namespace], int] = args.action
    try:
        interruptible()
        _absolute(args)
        return action(args)
    except HarnessError as error:
        return ui.complain(error)
    except KeyboardInterrupt:
        ui.terminal.print("nvh: interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_INTERRUPTED if came() else EXIT_BROKEN_PIPE
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        return ui.complain(HostError(f"{what}{error.strerror or error}"))
    except Exception:  # a bug of ours: Python's own exit code would tell git bisect run "bad"
        traceback.print_exc()
        return EXIT_INTERRUPTED if came() else EXIT_UNTESTABLE


def _absolute(args: argparse.Namespace) -> None:
    """Make paths that were given relative to here good everywhere: in workers, in reports."""
    if getattr(args, "kernel", None) is not None:
        args.kernel = absolute(args.kernel)
    if getattr(args, "machine", None):
        args.machine = _absolute_machine(args.machine)
    if getattr(args, "good", None) and getattr(args, "bad", None) and not args.tree:
        args.good, args.bad = absolute(args.good), absolute(args.bad)
    if getattr(args, "kernels", None):
        args.kernels = [absolute(word) for word in args.kernels]
    if getattr(args, "machines", None):
        args.machines = [_absolute_machine(word) for word in args.machines]


def _absolute_machine(word: str) -> str:
    path = word.endswith(".toml") or "/" in word
    return str(Path(word).expanduser().absolute()) if path else word


def _size(text: str) -> str:
    if not parse_size(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 512M or 2G")
    return text


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = manual.Parser(prog="nvh")
    manual.describe(parser, "")
    parser.add_argument(
        "--version", action="version", version=f"nvh {__version__}", help="show it and exit"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    test = _command(commands, "test", "run testcases and say what the kernel does", testing.test)
    test.usage = "nvh test [-h] [OPTIONS] [-- PYTEST ARGUMENTS]"
    test.add_argument("-k", metavar="EXPR", help="only these: V3, 'V3 or L1', ext4, ...")
    test.add_argument(
        "--set", metavar="NAME", help="only the rows of a set in testcases/sets.toml, such as first"
    )
    test.add_argument(
        "--failed", metavar="RESULTS", help="only what failed in a run, such as results/latest"
    )
    test.add_argument(
        "-v", "--verbose", action="store_true", help="pytest's own words instead of the view"
    )
    _guest_options(test)
    test.add_argument(
        "-n", metavar="N", default="auto", help="tests at once: a number, or auto (default)"
    )
    test.add_argument(
        "--isolation",
        choices=ISOLATIONS,
        default="clone",
        help="a fresh clone for each test (default), a cold boot, or one shared guest",
    )
    test.add_argument("--results", metavar="DIR", help="where results go (default: results/)")
    _time_options(test)
    test.add_argument(
        "--strict", action="store_true", help="a known issue that no longer shows is a failure"
    )
    test.add_argument(
        "--with-kernel",
        action="store_true",
        help="put the kernel and its modules into bundles",
    )
    test.add_argument(
        "--dump-memory",
        metavar="SIZE",
        type=_size,
        help="keep the memory of a guest that breaks, for crash or drgn: at most 512M, ...",
    )
    test.add_argument("--list", action="store_true", help="show the testcases and run nothing")
    test.set_defaults(pytest_args=[])

    _repro(commands)
    _bisect(commands)
    _new_report(commands)

    run = _command(commands, "run", "run a command in a fresh guest", guests.run)
    run.usage = "nvh run [-h] [OPTIONS] -- COMMAND [ARGUMENT ...]"
    _guest_options(run)
    run.add_argument(
        "--put", metavar="FILE[:PATH]", action="append", default=[], help="copy a file in first"
    )
    run.add_argument("--bare", action="store_true", help="make no namespaces, bind no device")
    run.add_argument(
        "--timeout",
        metavar="S",
        type=float,
        default=3600.0,
        help="seconds that the command gets (default: %(default)g)",
    )
    run.set_defaults(command_words=True, command=[])

    shell = _command(commands, "shell", "open a root shell in a fresh guest", guests.shell)
    _guest_options(shell)
    shell.add_argument("--bare", action="store_true", help="make no namespaces, bind no device")

    check = _command(commands, "doctor", "say what this host can and cannot do", doctor.doctor)
    _kernel_option(check)
    _accel_option(check)

    _machine(commands)
    _image(commands)
    _kernel(commands)
    _nightly(commands)

    _pages(commands)

    classify = _command(commands, "classify", "find kernel faults in console logs", logs.classify)
    classify.add_argument("files", nargs="+", metavar="FILE", help="a log; - is standard input")
    classify.add_argument("--json", action="store_true", help="one JSON object a file")

    complete = _command(
        commands, "completion", "print a shell's completion script", completion.completion
    )
    complete.add_argument("shell", choices=completion.SHELLS, help="which shell")
    complete.set_defaults(parser=parser)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    text: str,
    action: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text)
    manual.describe(parser, parser.prog.removeprefix("nvh "))
    parser.set_defaults(action=action, refuse=parser.error)
    return parser


def _group(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    parser = commands.add_parser(name, help=text)
    manual.describe(parser, name)
    return parser.add_subparsers(metavar="ACTION", required=True)


def _repro(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    again = _command(commands, "repro", "run a bundle's test again", repro.repro)
    again.add_argument("bundle", metavar="BUNDLE", help="a directory or a .tar.zst")
    _kernel_option(again)
    _accel_option(again)
    again.add_argument(
        "--machine",
        metavar="M",
        default="",
        help="another than the bundle's: a name or a .toml file",
    )
    again.add_argument("--repeat", metavar="N", type=int, default=1, help="runs (default: 1)")
    again.add_argument("--until-fail", action="store_true", help="stop when the symptom has shown")
    again.add_argument("--results", metavar="DIR", help="where results go (default: results/)")
    again.add_argument(
        "--with-kernel", action="store_true", help="put the kernel and its modules into bundles"
    )


def _bisect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    search = _command(
        commands, "bisect", "find the kernel or commit where a bug came or went", bisect.bisect
    )
    search.usage = "nvh bisect [-h] BUNDLE_OR_TEST --good G --bad B [OPTIONS] [-- PATHS]"
    search.add_argument(
        "test", metavar="BUNDLE_OR_TEST", nargs="?", help="a bundle, or what -k selects one test by"
    )
    search.add_argument("--good", metavar="G", help="a kernel, or a commit, that is good")
    search.add_argument("--bad", metavar="B", help="one that shows the symptom")
    search.add_argument(
        "--kernel",
        metavar="K",
        action="append",
        dest="kernels",
        help="one to search, in order; again for each (default: each series that Debian offers)",
    )
    search.add_argument(
        "--kernel-file", metavar="FILE", help="the kernels to search, one a line, in order"
    )
    search.add_argument("--tree", metavar="LINUX", help="search commits of a git checkout")
    _build_options(
        search,
        config="with --tree, as nvh kernel build takes it",
        patch="with --tree: applied to each commit that is built",
    )
    search.add_argument(
        "--repeat", metavar="N", type=int, help="runs of each, bad when one shows it (default: 1)"
    )
    search.add_argument("--accel", choices=("auto", "kvm", "tcg"), help="as nvh test takes it")
    search.add_argument("--machine", metavar="M", default="", help="another than the test's")
    search.add_argument("--results", metavar="DIR", help="where results go (default: results/)")
    search.add_argument(
        "--resume", metavar="DIR", help="go on with an interrupted bisection where it was"
    )
    search.set_defaults(command_words=True, command=[])


def _new_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    new = _command(
        commands, "new-report", "write a report's TOML and reproducer", reports.new_report
    )
    new.add_argument("report", metavar="NAME", help="such as vfio_fsdax_pins: a-z, 0-9 and _")
    kind = new.add_mutually_exclusive_group()
    kind.add_argument("--c", action="store_true", help="a reproducer in C")
    kind.add_argument("--sh", action="store_true", help="one in shell (default)")
    new.add_argument("--mail", metavar="URL", help="the mail, in an archive")
    new.add_argument("--title", metavar="TEXT", help="what it claims, in one line")
    new.add_argument("--machine", metavar="M", default="", help="another machine than the run's")


def _guest_options(parser: argparse.ArgumentParser) -> None:
    _kernel_option(parser)
    _accel_option(parser)
    parser.add_argument(
        "--machine",
        metavar="M",
        default="default",
        help="a machine's name (nvh machine list) or a .toml file (default: %(default)s)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be started and start nothing"
    )


def _time_options(parser: argparse.ArgumentParser) -> None:
    for name, default, what in (
        ("--max-time", OF_RUN, "the run may take; what is left of it then is MISS"),
        ("--max-test-time", OF_TEST, "a test may take, its guest's start included"),
    ):
        text = f"how many seconds {what} (default: {default:g})"
        parser.add_argument(name, metavar="S", type=seconds, default=default, help=text)


def seconds(word: str) -> float:
    """Return a time; argparse tells a ValueError as a wrong value."""
    value = float(word)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def _kernel_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kernel",
        metavar="K",
        help="a bzImage, a built kernel tree, debian:6.1 or deb:FILE (default: the "
        "distribution's 6.12)",
    )


def _accel_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accel",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        help="auto uses KVM if it proves to work (default)",
    )


def _machine(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    machine = _group(commands, "machine", "show machines")
    _command(
        machine, "list", "list the machines that come with the harness", inventory.machine_list
    )
    show = _command(machine, "show", "print a machine", inventory.machine_show)
    show.add_argument(
        "name",
        metavar="MACHINE",
        nargs="?",
        default="default",
        help="a name or a .toml file (default: %(default)s)",
    )
    show.add_argument("--argv", action="store_true", help="print QEMU's command, as a shell's line")
    show.add_argument(
        "--accel", choices=("kvm", "tcg"), default="tcg", help="with --argv (default: %(default)s)"
    )


def _image(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    image = _group(commands, "image", "list and clean what was built")
    _command(image, "list", "list what the store holds", inventory.image_list)
    _command(image, "verify", "compare every image with its hashes", inventory.image_verify)
    build = _command(image, "build", "build all that a boot needs", inventory.image_build)
    _kernel_option(build)
    remove = _command(image, "rm", "remove images", inventory.image_rm)
    remove.add_argument("what", metavar="WHAT", help="a kind, or the start of a key")
    collect = _command(image, "gc", "remove the longest unused images", inventory.image_gc)
    collect.add_argument(
        "--limit",
        default="10G",
        metavar="SIZE",
        help="what may stay, in bytes or as 512M (default: %(default)s)",
    )


def _kernel(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    kernel = _group(commands, "kernel", "show, fetch and build kernels")
    _command(kernel, "list", "list the packaged kernels in the store", inventory.kernel_list)
    fetch = _command(kernel, "fetch", "fetch the newest packaged kernel", inventory.kernel_fetch)
    fetch.add_argument(
        "selectors",
        metavar="KERNEL",
        nargs="+",
        help="debian:6.1, debian:sid, ubuntu:noble, default",
    )
    show = _command(kernel, "show", "say what a kernel selector stands for", inventory.kernel_show)
    show.add_argument(
        "selector",
        metavar="KERNEL",
        nargs="?",
        help="as --kernel takes it (default: the distribution's 6.12)",
    )
    remove = _command(kernel, "rm", "remove a packaged kernel", inventory.kernel_rm)
    remove.add_argument(
        "what",
        metavar="WHAT",
        help="a selector, a release, or the start of a key in nvh kernel list",
    )
    build = _command(
        kernel, "build", "build a lean kernel; its path is the last line", kernels.build
    )
    build.add_argument("source", metavar="TREE", help="a kernel tree, or debian-source:6.12")
    _build_options(
        build,
        config="on top of base: debug, iommufd, ... (guest-images/kernel/*.config), or a file",
        patch="applied with patch -p1 to a copy of the source, in this order",
    )
    fit = _command(
        kernel, "check", "say which rows of the catalogue a configuration can run", kernels.check
    )
    fit.add_argument("config", metavar="CONFIG", help="a .config, or a kernel as --kernel takes it")


def _build_options(command: argparse.ArgumentParser, *, config: str, patch: str) -> None:
    for option, what, told in (("--config", "FRAGMENT", config), ("--patch", "FILE", patch)):
        command.add_argument(
            option, metavar=what, nargs="+", action="extend", default=[], help=told
        )
    command.add_argument("-j", metavar="N", type=int, help="make's jobs (default: one a core)")


def _nightly(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    matrix = _command(commands, "matrix", "run testcases on many kernels", nightly.matrix)
    matrix.add_argument(
        "--kernel",
        metavar="K",
        action="append",
        dest="kernels",
        help="as nvh test takes it; again for each (default: the distribution's 6.12)",
    )
    matrix.add_argument(
        "--machine",
        metavar="M",
        action="append",
        dest="machines",
        help="a machine's name or a .toml file; again for each (default: default)",
    )
    matrix.add_argument(
        "--accel", choices=("auto", "kvm", "tcg"), help="kvm: end at once where it is not there"
    )
    matrix.add_argument("-k", metavar="EXPR", help="only these tests, as nvh test takes it")
    matrix.add_argument("--set", metavar="NAME", help="only the rows of a set")
    matrix.add_argument("-n", metavar="N", help="tests at once: a number, or auto (default)")
    matrix.add_argument("--results", metavar="DIR", help="where results go (default: results/)")
    matrix.add_argument(
        "--shard", metavar="I/N", help="only every N-th combination, from the I-th on"
    )
    matrix.add_argument(
        "--resume", metavar="DIR", help="go on with an interrupted matrix where it was"
    )
    matrix.add_argument("--dry-run", action="store_true", help="print the runs and start none")

    compare = _command(commands, "compare", "tell what is new between two results", nightly.compare)
    compare.add_argument("old", metavar="OLD", help="a results directory, of a run or a matrix")
    compare.add_argument("new", metavar="NEW", help="the one to judge, such as results/latest")
    compare.add_argument("--json", action="store_true", help="as one JSON object")


def _pages(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = _command(
        commands, "report", "write stored results as a page, or for other tools", results.report
    )
    report.add_argument("results", metavar="RESULTS", help="of a run or a matrix: results/latest")
    report.add_argument("--open", action="store_true", help="show the page in a browser")
    report.add_argument(
        "--format",
        choices=[one.value for one in results.Format],
        default=results.Format.HTML,
        help="html (default): report.html; junit, xunit2: for Jenkins, GitLab and GitHub; "
        "kcidb: JSON for KernelCI; ktap: as kselftest prints",
    )
    report.add_argument(
        "--output", metavar="FILE", help="where to, - for here (default: into RESULTS)"
    )
    kcidb = report.add_argument_group("with --format kcidb")
    kcidb.add_argument("--origin", metavar="NAME", help="your CI system's name at KernelCI")
    kcidb.add_argument("--url", metavar="URL", help="where RESULTS can be downloaded from")
    kcidb.add_argument("--build", metavar="ID", help="KernelCI's id of the build that was tested")

    trend = _command(commands, "trend", "plot verdicts and durations over nights", results.trend)
    trend.add_argument(
        "folders", metavar="DIR", nargs="+", help="results of runs and matrices, or folders of them"
    )
    trend.add_argument("--output", metavar="FILE", help="the page (default: DIR/trend.html)")
    trend.add_argument("--open", action="store_true", help="show it in a browser")


if __name__ == "__main__":
    sys.exit(main())
