"""A process that may start threads but no processes: what a kernel may do is compute.

By a filter of Linux's seccomp, in its classic BPF form: whoever wants to start a process or another
program is killed. Where the system offers no filters, nothing is confined.
"""

from __future__ import annotations

import ctypes
import errno
import platform

# By machine: the audit code of its architecture, the numbers of the system calls seccomp, clone and
# clone3, and of those that only start processes or programs (fork, vfork, execve, execveat).
_CALLS = {
    "x86_64": (0xC000003E, 317, 56, 435, (57, 58, 59, 322)),
    "aarch64": (0xC00000B7, 277, 220, 435, (221, 281)),
}

_LOAD, _IF_EQUAL, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.ENOSYS, 0x80000000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in what the filter sees
_CLONE_THREAD = 0x10000

_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
# Without it some kernels slow down the memory accesses of whoever has a filter, which we time.
_SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def forbid_processes() -> bool:
    """Kill this thread's process when it, or a thread it starts, wants to start another process.

    Returns whether the system can do that.
    """
    if platform.machine() not in _CALLS:
        return False
    architecture, seccomp, clone, clone3, forbidden = _CALLS[platform.machine()]
    checks = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _NUMBER),
        # Its flags lie in memory, where a filter cannot look; the C library then takes clone.
        (_IF_EQUAL, 0, 1, clone3),
        (_RETURN, 0, 0, _REFUSE),
    ]
    for number in forbidden:
        checks += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _KILL)]
    checks += [
        (_IF_EQUAL, 1, 0, clone),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_IF_ANY_BIT, 0, 1, _CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _KILL),
    ]
    instructions = (_Instruction * len(checks))(*(_Instruction(*c) for c in checks))
    program = _Program(len(checks), instructions)
    libc = ctypes.CDLL(None)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    flags = _SECCOMP_FILTER_FLAG_SPEC_ALLOW
    return bool(libc.syscall(seccomp, _SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(program)) == 0)
