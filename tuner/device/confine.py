"""The filter of system calls for a child that runs kernels on a device.

It computes and answers, and nothing else: any other call ends it. It is a filter of Linux's seccomp
in the classic BPF form, made here for the device's processor.
"""

from __future__ import annotations

import struct

from fastrun.tuner.device.machine_code import NUMBERS

_ALLOWED = (
    "read", "write", "ppoll", "pread64", "futex", "clock_gettime", "sched_yield", "exit",
    "exit_group", "rt_sigreturn", "mmap", "munmap",
)  # fmt: skip
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "riscv64": 0xC00000F3}
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in what the filter sees


def computing(machine: str) -> bytes:
    """The instructions of the filter, of eight bytes each."""
    checks = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, _AUDIT[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for name in _ALLOWED:
        checks += [(_IF_EQUAL, 0, 1, NUMBERS[machine][name]), (_RETURN, 0, 0, _ALLOW)]
    checks.append((_RETURN, 0, 0, _KILL))
    return b"".join(struct.pack("<HBBI", *check) for check in checks)
