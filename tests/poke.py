"""Faults put into a running guest's kernel through QEMU's debugger stub.

Stock kernels have no LKDTM, and a module would need each kernel's headers.  So a system call that
nobody uses is overwritten with a few bytes of machine code, and whoever makes it meets the fault in
the kernel, with interrupts, preemption and stack as the kernel itself would have them.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import Iterator

from harness.guest import Guest
from harness.qemu.vm import Vm

#: The system call that is overwritten, and its number on x86-64: every kernel has it.
VICTIM, NUMBER = "__x64_sys_sched_rr_get_interval", 148
#: Makes it, in the guest.
CALL = f"perl -e 'syscall({NUMBER}, 0, 0)'"
_ENDBR64 = bytes.fromhex("f30f1efa")


class Stub:
    """A conversation with QEMU's debugger stub; the guest is stopped meanwhile."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.settimeout(30.0)

    def ask(self, text: str) -> str:
        """Send a packet and return the answer's content."""
        data = text.encode()
        self._socket.sendall(b"$" + data + b"#%02x" % (sum(data) & 0xFF))
        answer = b""
        while (match := re.search(rb"\$([^#]*)#..", answer)) is None:
            chunk = self._socket.recv(4096)
            assert chunk, f"the stub hung up on {text}"
            answer += chunk
        self._socket.sendall(b"+")
        return match[1].decode()

    def write(self, address: int, code: bytes) -> None:
        """Overwrite memory of the guest's kernel, read-only or not."""
        assert self.ask(f"M{address:x},{len(code):x}:{code.hex()}") == "OK"


@contextlib.contextmanager
def stub(vm: Vm) -> Iterator[Stub]:
    """Stop a guest and talk to the stub as long as the block lasts; then the guest goes on."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            vm.qmp.send_file(theirs.fileno(), "gdb")
        address = {"type": "fd", "data": {"str": "gdb"}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        vm.qmp.execute("chardev-add", {"id": "stub", "backend": backend})
        vm.qmp.execute("human-monitor-command", {"command-line": "gdbserver chardev:stub"})
        yield (talk := Stub(ours))
        assert talk.ask("D") == "OK"


def _symbols(guest: Guest, *names: str) -> dict[str, int]:
    pattern = "|".join(names)
    found = guest.run(f"grep -E ' ({pattern})$' /proc/kallsyms").stdout
    return {line.split()[2]: int(line.split()[0], 16) for line in found.splitlines()}


def _call(at: int, target: int) -> bytes:
    return b"\xe8" + struct.pack("<i", target - (at + 5))


def null_pointer(guest: Guest) -> None:
    """Let the call read through a null pointer."""
    _overwrite(guest, bytes.fromhex("31c0 8b00 c3"))  # xor eax,eax; mov eax,[rax]; ret


def spin(guest: Guest) -> None:
    """Let the call spin for ever with interrupts off."""
    _overwrite(guest, bytes.fromhex("fa ebfe"))  # cli; jmp .


def soft_lockup(guest: Guest) -> None:
    """Let the call take a spin lock of its own and keep the processor, interrupts on."""
    symbols = _symbols(guest, VICTIM, "_raw_spin_lock")
    code = bytes.fromhex("6a00 4889e7")  # push 0; mov rdi,rsp
    at = symbols[VICTIM] + len(_ENDBR64) + len(code)
    _overwrite(guest, code + _call(at, symbols["_raw_spin_lock"]) + bytes.fromhex("ebfe"))


def warning(guest: Guest) -> None:
    """Let the call complain as WARN_ON() does: __warn(file, line, caller, taint, NULL, NULL)."""
    symbols = _symbols(guest, VICTIM, "__warn")
    code = b"\x55"  # push rbp: the stack is aligned
    head = len(_ENDBR64) + len(code)
    rest = bytes.fromhex("be2a000000")  # mov esi,42
    rest += b"\x48\xba" + struct.pack("<Q", symbols[VICTIM])  # mov rdx,caller
    rest += bytes.fromhex("b909000000 4531c0 4531c9")  # mov ecx,9; xor r8d,r8d; xor r9d,r9d
    at = symbols[VICTIM] + head + 7 + len(rest)
    rest += _call(at, symbols["__warn"]) + bytes.fromhex("5d 31c0 c3")  # pop rbp; xor eax,eax; ret
    name = b"fs/made_up.c\0"
    code += bytes.fromhex("488d3d") + struct.pack("<i", len(rest)) + rest + name  # lea rdi,[rip+N]
    _overwrite(guest, code)


def _overwrite(guest: Guest, code: bytes) -> None:
    address = _symbols(guest, VICTIM)[VICTIM]
    with stub(guest.vm) as talk:
        talk.write(address, _ENDBR64 + code)
