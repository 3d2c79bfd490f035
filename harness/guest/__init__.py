"""A booted guest: its sessions, namespaces, devices and workloads."""

from harness.guest.filesystem import Mount
from harness.guest.guest import Guest
from harness.guest.ktap import Step, WorkloadResult
from harness.guest.provision import NamespaceInfo, VfioInfo
from harness.guest.ssh import CommandTimeout, Result

__all__ = [
    "CommandTimeout",
    "Guest",
    "Mount",
    "NamespaceInfo",
    "Result",
    "Step",
    "VfioInfo",
    "WorkloadResult",
]
