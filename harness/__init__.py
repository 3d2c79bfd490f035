"""A QEMU/NVDIMM integration test harness for pmem, DAX, page pinning and VFIO."""

__version__ = "0.1.0"
