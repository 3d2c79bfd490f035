"""QEMU: its argument vector, its accelerators and its life."""
