"""Kernels, root image, initramfs, and the content-addressed store that keeps them."""

from harness.images.guest import GuestImages, prepare
from harness.images.initramfs import run_segment
from harness.images.kconfig import problems as config_problems
from harness.images.kernel import Kernel, default_kernel, resolve
from harness.images.store import Entry, Progress, Store

__all__ = [
    "Entry",
    "GuestImages",
    "Kernel",
    "Progress",
    "Store",
    "config_problems",
    "default_kernel",
    "prepare",
    "resolve",
    "run_segment",
]
