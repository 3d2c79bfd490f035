"""What a run's options and a test's markers ask for."""

from __future__ import annotations

import pytest

from harness.pool import ISOLATIONS, Wish
from harness.time_limit import OF_TEST


def add_options(parser: pytest.Parser) -> None:
    """Register the options of the plugin."""
    group = parser.getgroup("nvh", "nvdimm-harness")
    group.addoption(
        "--nvh-kernel",
        metavar="K",
        help="a bzImage, a built kernel tree, or debian:6.1 (default: the distribution's 6.12)",
    )
    group.addoption(
        "--nvh-accel",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        help="auto uses KVM if it proves to work (default: %(default)s)",
    )
    group.addoption(
        "--nvh-machine",
        metavar="M",
        default="default",
        help="a machine's name, or a .toml file (default: %(default)s)",
    )
    group.addoption(
        "--nvh-isolation",
        choices=ISOLATIONS,
        default="clone",
        help="what a test without a marker gets: a fresh clone, a cold boot or a shared guest"
        " (default: %(default)s)",
    )
    group.addoption(
        "--nvh-max-test-time",
        metavar="S",
        type=float,
        default=OF_TEST,
        help="seconds a test may take, its guest's start included (default: %(default)g)",
    )
    group.addoption(
        "--nvh-strict", action="store_true", help="a known issue that no longer shows is a failure"
    )
    group.addoption(
        "--nvh-dump-memory", metavar="SIZE", help="keep a broken guest's memory, at most: 512M, ..."
    )
    group.addoption(
        "--nvh-workloads",
        metavar="DIR",
        help="workloads' binaries (default: built from the sources)",
    )
    group.addoption(
        "--nvh-results",
        metavar="DIR",
        help="an existing results directory (default: a new one in results/)",
    )
    group.addoption("--nvh-with-kernel", action="store_true", help="bundles hold the kernel")
    group.addoption(
        "--nvh-trusted", action="store_true", help="images have just been verified (nvh test)"
    )
    group.addoption(
        "--nvh-end", metavar="EPOCH", type=float, help="when the run's time is over (nvh test)"
    )


def wish_of(item: pytest.Item, config: pytest.Config) -> Wish:
    """Return the guest that a test's markers and the run's options ask for."""

    def word(name: str) -> str | None:
        marker = item.get_closest_marker(name)
        if marker is not None and (len(marker.args) != 1 or marker.kwargs):
            raise pytest.UsageError(f"{item.nodeid}: marker {name} takes one word")
        return str(marker.args[0]) if marker else None

    isolation = word("isolation") or str(config.getoption("--nvh-isolation"))
    if isolation not in ISOLATIONS:
        known = ", ".join(ISOLATIONS)
        raise pytest.UsageError(f"{item.nodeid}: no isolation is called {isolation!r} ({known})")
    power_cycle = "power_cycle" in getattr(item, "fixturenames", ())
    if power_cycle and isolation == "shared":
        raise pytest.UsageError(f"{item.nodeid}: a shared guest's power is not cut")
    arguments = item.get_closest_marker("kernel_args")
    append = tuple(str(argument) for argument in arguments.args) if arguments else ()
    return Wish(isolation, word("machine"), append, power_cycle)
